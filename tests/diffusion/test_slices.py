from __future__ import annotations

import pytest
import torch

from shared_components.diffusion.label_coding import LabelCoding
from shared_components.diffusion.prepare_batch import LabelDiffusionPrepareBatch
from shared_components.diffusion.slices import images_per_call, pad_to_multiple, slices_to_volume, volume_to_slices


def test_slices_and_back():
    volume = torch.randn(2, 3, 4, 5, 6)
    slices = volume_to_slices(volume)
    assert torch.equal(slices[6 + 2], volume[1, :, :, :, 2])
    assert torch.equal(slices_to_volume(slices, 6), volume)


def test_neighbours_are_channels_and_the_outermost_is_repeated():
    volume = torch.arange(4.0).expand(1, 1, 2, 2, 4)
    slices = volume_to_slices(volume, 1)
    assert slices[:, :, 0, 0].tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]


@pytest.mark.parametrize("size, padded", [((7, 9), (8, 12)), ((8, 12), (8, 12)), ((1, 1), (4, 4))])
def test_padding_repeats_the_border_and_is_undone(size, padded):
    slices = torch.randn(2, 1, *size)
    result, (top, left) = pad_to_multiple(slices, 4)
    assert result.shape[2:] == padded
    assert torch.equal(result[..., top : top + size[0], left : left + size[1]], slices)
    assert torch.equal(result[..., 0, left], slices[..., 0, 0])


def test_prepare_batch_uses_inner_slices_and_codes_labels():
    image = torch.arange(5.0).expand(1, 1, 2, 2, 5)
    label = torch.tensor([0, 1, 2, 1, 0]).expand(1, 1, 2, 2, 5)
    condition, clean = LabelDiffusionPrepareBatch(LabelCoding(list(range(1, 3)), "classes"), 1)(
        {"image": image, "label": label}
    )
    assert condition[:, :, 0, 0].tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert clean[:, :, 0, 0].tolist() == [[-1, 1, -1], [-1, -1, 1], [-1, 1, -1]]


def test_prepare_batch_takes_images():
    condition, clean = LabelDiffusionPrepareBatch(LabelCoding(list(range(1, 2)), "classes"))(
        {"image": torch.zeros(3, 1, 4, 4), "label": torch.ones(3, 1, 4, 4)}
    )
    assert condition.shape == (3, 1, 4, 4)
    assert clean[0, :, 0, 0].tolist() == [-1, 1]


def test_a_processor_gets_as_many_images_as_its_caches_hold():
    small, large = torch.zeros(1, 1, 64, 64), torch.zeros(1, 3, 1024, 512)
    assert [images_per_call(most, small) for most in (1, 16, 17, 500)] == [1, 16, 16, 16]
    assert images_per_call(64, large) == 1
    assert images_per_call(64, large.to("meta")) == 64
    assert torch.jit.script(images_per_call)(500, small) == 16


def test_a_trace_keeps_no_number_of_calls():
    class Doubled(torch.nn.Module):
        def forward(self, images):
            per_call = images_per_call(64, images)
            return torch.cat([2 * images[low : low + per_call] for low in range(0, len(images), per_call)])

    traced = torch.jit.trace(Doubled(), torch.zeros(4, 1, 256, 256))
    images = torch.randn(7, 1, 256, 256)
    assert torch.equal(traced(images), 2 * images)
