"""Saliency maps to masks: Otsu's threshold, polarity, scaling of each slice alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks.layers import GaussianFilter
from skimage.filters import threshold_otsu

from shared_components.diffusion.saliency_masks import SaliencyMask, otsu_threshold
from shared_components.errors import InputError


def test_otsu_of_two_values():
    values = torch.full((1, 1, 25, 40), 0.1)
    values.view(-1)[:100] = 0.9
    threshold = otsu_threshold(values)
    assert threshold.item() == pytest.approx(0.1015625, abs=1e-6)
    assert int((values > threshold).sum()) == 100


@pytest.mark.parametrize("seed", range(8))
def test_otsu_is_scikit_images(seed):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(3, 1, 31, 17, generator=generator) + 3 * (torch.rand(3, 1, 31, 17, generator=generator) > 0.8)
    expected = [threshold_otsu(image.numpy().astype(np.float64)) for image in maps[:, 0]]
    assert otsu_threshold(maps).flatten().tolist() == pytest.approx(expected, rel=1e-6)


def test_only_what_counts_enters_the_threshold():
    maps = torch.randn(2, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    counted = torch.zeros(2, 1, 20, 20, dtype=torch.bool)
    counted[..., 5:15, 4:16] = True
    inside = maps[..., 5:15, 4:16]
    assert torch.allclose(otsu_threshold(maps, counted), otsu_threshold(inside))


def test_the_mask_is_where_the_scaled_map_exceeds_the_threshold():
    maps = torch.randn(4, 1, 24, 24, generator=torch.Generator().manual_seed(1))
    for threshold, level in (("otsu", 0.5), ("fixed", 0.3), ("quantile", 0.9)):
        rule = SaliencyMask(threshold=threshold, level=level)
        scaled, probability = rule.scaled(maps, maps)[0], rule(maps, maps)
        assert scaled.amin(dim=(1, 2, 3)).tolist() == [0] * 4 and scaled.amax(dim=(1, 2, 3)).tolist() == [1] * 4
        limit = {"otsu": otsu_threshold(scaled), "fixed": 0.3, "quantile": None}[threshold]
        if limit is None:
            assert (probability > 0.5).sum(dim=(1, 2, 3)).tolist() == [57] * 4  # a tenth of 576 pixels
        else:
            assert torch.equal(probability > 0.5, scaled > limit)
        order = scaled.flatten(1).argsort(dim=1)
        assert (probability.flatten(1).gather(1, order).diff(dim=1) >= 0).all()


def test_values_of_the_threshold_are_background():
    maps = torch.tensor([0.0, 0.5, 1.0, 0.5]).reshape(1, 1, 2, 2)
    assert (SaliencyMask(threshold="fixed", level=0.5)(maps, maps) > 0.5).flatten().tolist() == [
        False,
        False,
        True,
        False,
    ]


def test_polarity_is_that_of_the_target():
    maps = torch.zeros(1, 1, 8, 8)
    maps[..., 2:4, 2:4], maps[..., 5:7, 5:7] = 1.0, -0.8
    marked = {name: SaliencyMask(name)(maps, maps)[0, 0] > 0.5 for name in ("bright", "dark", "both")}
    bright, dark = maps[0, 0] == 1, maps[0, 0] < 0
    assert torch.equal(marked["bright"] & (bright | dark), bright)
    assert torch.equal(marked["dark"] & (bright | dark), dark)
    assert torch.equal(marked["both"], bright | dark)


def test_a_slice_does_not_depend_on_its_neighbours():
    maps = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(2)) * torch.tensor([1, 10, 0.1]).view(
        3, 1, 1, 1
    )
    rule = SaliencyMask(smoothing=1.0)
    together = rule(maps, maps)
    alone = torch.cat([rule(one, one) for one in maps.split(1)])
    assert torch.allclose(together, alone, atol=1e-6)


def test_outside_the_body_nothing_is_marked():
    maps = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    maps[..., 0] = 50
    image = torch.full((1, 1, 16, 16), -1.0)
    image[..., 4:12, 4:12] = 0.2
    probability = SaliencyMask(body_level=-0.9)(maps, image)
    assert probability[image <= -0.9].max() == 0
    inside = SaliencyMask()(maps[..., 4:12, 4:12], image[..., 4:12, 4:12])
    assert torch.allclose(probability[..., 4:12, 4:12], inside)


def test_a_constant_map_marks_nothing():
    maps = torch.full((1, 1, 8, 8), 3.0)
    for threshold in ("otsu", "fixed", "quantile"):
        assert SaliencyMask(threshold=threshold)(maps, maps).max() <= 0.5


def test_mistakes_are_told():
    for options, text in (
        ({"polarity": "loud"}, "polarity must be one of bright, dark, both, not 'loud'"),
        ({"threshold": "li"}, "threshold must be one of otsu, fixed, quantile"),
        ({"level": 1.5}, "level must lie between 0 and 1, not 1.5"),
        ({"smoothing": -1}, "smoothing must be at least 0"),
    ):
        with pytest.raises(InputError, match=text):
            SaliencyMask(**options)


def test_smoothing_is_no_part_of_the_weights():
    """MONAI's filter smooths the same, but has its width among the parameters."""
    saliency = torch.randn(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    mask = SaliencyMask(smoothing=1.5)
    assert not mask.state_dict() and not list(mask.parameters())
    smooth = GaussianFilter(2, 1.5)(saliency)
    expected, _ = SaliencyMask().scaled(smooth, saliency)
    assert torch.allclose(mask.scaled(saliency, saliency)[0], expected, atol=1e-5)
