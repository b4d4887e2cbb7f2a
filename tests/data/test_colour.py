from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image, ImageEnhance

from shared_components.data.colour import RandColorJitterd
from shared_components.errors import InputError

STILL = {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0)}


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def changed(**ranges) -> np.ndarray:
    image = torch.from_numpy(picture()).permute(2, 0, 1).float()
    return RandColorJitterd("image", **{**STILL, **ranges})({"image": image})["image"].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    "name, enhance",
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
@pytest.mark.parametrize("factor", [0.6, 1.4])
def test_factors_do_what_pillow_does(name, enhance, factor):
    expected = np.asarray(enhance(Image.fromarray(picture())).enhance(factor)).astype(np.float32)
    # Pillow rounds the grey values and the result
    np.testing.assert_allclose(changed(**{name: (factor, factor)}), expected, atol=1.6)


def test_hue_is_turned():
    expected = []
    for pixel in picture().reshape(-1, 3) / 255:
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        expected.append(colorsys.hsv_to_rgb((hue + 0.1) % 1, saturation, value))
    np.testing.assert_allclose(changed(hue=(0.1, 0.1)).reshape(-1, 3), np.array(expected) * 255, atol=1e-2)


def test_a_seed_repeats_and_the_order_differs():
    image = MetaTensor(torch.from_numpy(picture()).permute(2, 0, 1).float(), meta={"name": "tile"})
    transform = RandColorJitterd("image")
    results, orders = [], set()
    for seed in [0, 1, 2, 0]:
        results.append(transform.set_random_state(seed)({"image": image})["image"])
        orders.add(tuple(name for name, _ in transform.changes))
    assert torch.equal(results[0], results[3]) and not torch.equal(results[0], results[1])
    assert len(orders) > 1 and results[0].meta["name"] == "tile"
    assert results[0].min() >= 0 and results[0].max() <= 255


def test_without_a_change_nothing_happens():
    np.testing.assert_allclose(changed(), picture(), atol=1e-3)
    image = torch.from_numpy(picture()).permute(2, 0, 1).float()
    assert RandColorJitterd("image", prob=0.0)({"image": image})["image"] is image


@pytest.mark.parametrize("ranges", [{"hue": (-0.6, 0)}, {"contrast": (1.2, 0.8)}, {"saturation": (-0.1, 1)}])
def test_nonsense_is_refused(ranges):
    with pytest.raises(InputError, match="expected a range within"):
        RandColorJitterd("image", **ranges)


def test_grey_pictures_are_refused():
    with pytest.raises(InputError, match="image: 1 channels, expected a colour picture with 3"):
        RandColorJitterd("image")({"image": torch.zeros(1, 4, 4)})
