"""Vessels of any modality made bright; AdaptDiff's utilities for grey values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from skimage.exposure import match_histograms

from shared_components.data.phantoms import phantom_case
from shared_components.data.vessels import MatchHistogramd, VesselContrastd, continued, field_of_view
from shared_components.errors import InputError


def contrast(image: np.ndarray, polarity: str, **options) -> np.ndarray:
    made = VesselContrastd("image", polarity, **options)({"image": torch.as_tensor(image).float()})["image"]
    assert made.dtype == torch.float32 and made.shape == (1, *image.shape[1:])
    assert 0 <= made.min() and made.max() <= 1
    return made[0].numpy()


def test_vessels_are_bright_whatever_the_modality():
    """The published code never inverts: dark vessels would stay dark."""
    for kind, polarity in (("fundus", "dark"), ("octa", "bright")):
        image, mask = phantom_case(0, 1, kind)
        channels = np.moveaxis(image, 2, 0) if image.ndim == 3 else image[None]
        right, wrong = contrast(channels, polarity), contrast(channels, {"dark": "bright", "bright": "dark"}[polarity])
        assert right[mask > 0].mean() > right[mask == 0].mean() + 0.1
        assert wrong[mask > 0].mean() < wrong[mask == 0].mean() - 0.1


def test_the_green_channel_counts_alone():
    image = np.random.default_rng(0).uniform(0, 255, (3, 16, 16))
    other = image.copy()
    other[[0, 2]] = 7
    assert np.array_equal(contrast(image, "bright"), contrast(other, "bright"))
    assert np.array_equal(contrast(image, "bright"), contrast(image[1:2], "bright"))


def test_without_equalisation_it_is_a_scaling_between_percentiles():
    image = np.arange(101.0).reshape(1, 1, 101)
    assert contrast(image, "bright", clip_limit=0, lower=0, upper=100)[0] == pytest.approx(np.arange(101) / 100)
    dark = contrast(image, "dark", clip_limit=0, lower=0, upper=100, field_threshold=0)
    assert dark[0] == pytest.approx(1 - np.arange(101) / 100)


def test_a_constant_image_is_zero():
    for polarity in ("dark", "bright"):
        assert not contrast(np.full((3, 12, 12), 90.0), polarity).any()


def test_the_surround_of_a_photograph_is_no_edge():
    rows, columns = np.mgrid[:64, :64] - 31.5
    image = np.where(np.hypot(rows, columns) < 28, 120.0 + rows, 2.0)[None]
    inside = field_of_view(image[0])
    assert np.array_equal(inside, np.hypot(rows, columns) < 28)
    made = contrast(image, "dark", clip_limit=0, field_margin=0)
    ring = (np.hypot(rows, columns) < 31) & ~inside
    assert abs(made[31, 3] - made[31, 5]) < 0.03 and abs(made[3, 31] - made[5, 31]) < 0.06  # on either side of the rim
    assert np.ptp(made[ring]) > 0.6 and made[2, 31] > made[61, 31]  # it goes on with what is near


def test_a_field_goes_on_with_its_own_brightness():
    image = np.full((20, 30), 0.4)
    inside = np.zeros_like(image, bool)
    inside[5:15, 5:25] = True
    image[~inside] = 9.0
    assert continued(image, inside) == pytest.approx(np.full((20, 30), 0.4))
    assert continued(image, np.ones_like(inside)) is image


def test_the_field_of_view_is_that_of_the_brightest_channel_without_its_rim():
    rows, columns = np.mgrid[:100, :100] - 49.5
    red = np.where(np.hypot(rows, columns) < 45, 150.0, 1.0)
    green = np.where(columns < 0, 3.0, 90.0 + rows) * (red > 1)  # as black as the surround on one side
    made = contrast(np.stack([red, green, 0 * green]), "dark", clip_limit=0, lower=0, upper=100)
    assert made[50, 20] == 1 and made[50, 80] < 0.5  # dark tissue becomes bright, it is not filled in
    inside = field_of_view(red, margin=0.05)
    assert inside[49, 10:90].all() and not inside[49, :9].any()
    assert field_of_view(np.full((8, 8), 5.0), margin=0.1).all()


def test_metadata_are_kept():
    image = MetaTensor(torch.rand(3, 8, 8), meta={"filename_or_obj": "a.png"})
    made = VesselContrastd("image", "bright")({"image": image})["image"]
    assert isinstance(made, MetaTensor) and made.meta["filename_or_obj"] == "a.png"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vessel_polarity": "white"}, "vessel_polarity is 'white'.*dark, bright"),
        ({"vessel_polarity": "dark", "clip_limit": -1}, "clip_limit -1"),
        ({"vessel_polarity": "dark", "lower": 60, "upper": 50}, "60 and 50"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(InputError, match=message):
        VesselContrastd("image", **options)


def test_two_channels_are_refused():
    with pytest.raises(InputError, match="1 or 3 channels"):
        VesselContrastd("image", "dark")({"image": torch.zeros(2, 4, 4)})


def test_scaling_by_hand():
    scaled = contrast(np.array([[[0.0, 1.0, 3.0]]]), "bright", clip_limit=0, lower=0, upper=100)
    assert (2 * scaled[0] - 1).tolist() == pytest.approx([-1, -1 / 3, 1])  # as the generator sees it


def test_matching_histograms():
    image, template = torch.tensor([[[0.0, 1.0, 1.0, 3.0]]]), torch.tensor([[[10.0, 20.0, 30.0, 40.0]]])
    matched = MatchHistogramd("image", "template")({"image": image, "template": template})["image"]
    assert matched.flatten().tolist() == [10, 30, 30, 40]
    assert np.array_equal(match_histograms(image.numpy(), template.numpy()), matched.numpy())
