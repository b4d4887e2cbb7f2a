"""A segmentation network of any size and several views."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from shared_components.adaptation.segmenter import ViewSegmenter
from shared_components.errors import InputError
from shared_components.networks.residual_unet import ResidualUNet


class Pointwise(nn.Module):
    """Finds what is bright; knows no direction."""

    downsampling = 8

    def forward(self, image: Tensor) -> Tensor:
        assert image.shape[2] % 8 == 0 and image.shape[3] % 8 == 0
        return torch.cat([1 - image, 10 * image - 4], dim=1)


class Slanted(nn.Module):
    """Finds the left neighbour of what is bright: views disagree."""

    downsampling = 1

    def forward(self, image: Tensor) -> Tensor:
        moved = image.roll(-1, 3)
        return torch.cat([1 - moved, 10 * moved - 4], dim=1)


def test_views_of_a_network_without_direction_agree():
    image = torch.rand(2, 1, 21, 13)
    one = ViewSegmenter(Pointwise())(image)
    assert one.shape == (2, 2, 21, 13)
    torch.testing.assert_close(one.sum(dim=1), torch.ones(2, 21, 13))
    assert torch.equal(one[:, 1] > 0.5, image[:, 0] > 5 / 11)
    torch.testing.assert_close(ViewSegmenter(Pointwise(), 8)(image), one)


def test_views_come_back_to_their_place():
    image = torch.zeros(1, 1, 9, 9)
    image[..., 4, 4] = 1
    found = ViewSegmenter(Slanted(), 8, "majority")(image)[0, 1]
    marked = {tuple(place) for place in found.nonzero().tolist()}
    assert marked == {(4, 3), (4, 5), (3, 4), (5, 4)}
    assert found[4, 3] == pytest.approx(2 / 8)


@torch.no_grad()
def test_scripts_and_keeps_metadata():
    torch.manual_seed(0)
    segmenter = ViewSegmenter(ResidualUNet(channels=(4, 4)), 3).eval()
    image = torch.rand(1, 1, 10, 7)
    torch.testing.assert_close(torch.jit.script(segmenter)(image), segmenter(image))
    seen = segmenter(MetaTensor(image, meta={"filename_or_obj": "a.png"}))
    assert isinstance(seen, MetaTensor) and seen.meta["filename_or_obj"] == "a.png"
    segmenter.set_sampling(2, None)
    assert segmenter.num_samples == 2


@pytest.mark.parametrize("number", [0, 9, 1.5])
def test_numbers_of_views(number):
    with pytest.raises(InputError, match=f"num_samples.*1 to 8.*{number}"):
        ViewSegmenter(Pointwise(), number)
    with pytest.raises(InputError, match="combine"):
        ViewSegmenter(Pointwise(), 1, "median")
