"""Rotation and scaling with one factor for all axes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from shared_components.data.affine import RandSimilarityd
from shared_components.errors import InputError


def disc(size: int = 101, radius: float = 20.0) -> torch.Tensor:
    """(1, size, size), ones in the middle."""
    place = torch.arange(size) - (size - 1) / 2
    return (place[:, None] ** 2 + place[None] ** 2 <= radius**2).float()[None]


def radii(mask: torch.Tensor) -> tuple[float, float]:
    """Half the extent along rows and along columns."""
    inside = mask[0] > 0.5
    return float(inside.any(1).sum()) / 2, float(inside.any(0).sum()) / 2


@pytest.mark.parametrize("factor, radius", [(0.75, 15.0), (1.0, 20.0), (1.25, 25.0)])
@pytest.mark.parametrize("size", [101, 100])
def test_a_factor_is_how_many_times_as_large_objects_get(factor, radius, size):
    result = RandSimilarityd("label", 0.0, (factor, factor), mode="nearest")({"label": disc(size)})["label"]
    assert math.sqrt(float(result.sum()) / math.pi) == pytest.approx(radius, abs=0.3)
    centre = torch.nonzero(result[0]).float().mean(0)
    torch.testing.assert_close(torch.as_tensor(centre), torch.full((2,), (size - 1) / 2), atol=0.15, rtol=0)


def test_factors_are_drawn_evenly_and_alike_for_both_axes():
    transform = RandSimilarityd("label", 22 / 180 * math.pi, (0.75, 1.25), mode="nearest")
    transform.set_random_state(0)
    drawn = []
    for _ in range(200):
        rows, columns = radii(transform({"label": disc()})["label"])
        assert abs(rows - columns) <= 1
        drawn.append((rows + columns) / 40)
    assert min(drawn) < 0.78 and max(drawn) > 1.22 and np.mean(drawn) == pytest.approx(1.0, abs=0.04)
    grid = transform.rand_affine.rand_affine_grid
    angles = []
    for _ in range(200):
        grid.randomize()
        angles.append(math.degrees(grid.rotate_params[0]))
    assert -22 <= min(angles) < -20 and 20 < max(angles) <= 22


def test_all_keys_are_changed_alike_and_a_state_brings_the_draw_back():
    transform = RandSimilarityd(["image", "label"], 0.4, (0.75, 1.25), mode=["bilinear", "nearest"])
    picture = torch.zeros(1, 64, 64)
    picture[:, 10:20, 30:50] = 1
    transform.set_random_state(3)
    first = transform({"image": picture, "label": picture})
    transform.set_random_state(3)
    second = transform({"image": picture, "label": picture})
    assert torch.equal(first["image"], second["image"])
    assert ((first["image"] > 0.5) != (first["label"] > 0.5)).sum() < 12
    assert first["image"].shape == picture.shape and set(first["label"].unique().tolist()) == {0.0, 1.0}
    third = transform({"image": picture, "label": picture})
    assert not torch.equal(first["image"], third["image"])


def test_outside_is_zero_and_prob_zero_changes_nothing():
    ones = torch.ones(1, 40, 40)
    small = RandSimilarityd("image", 0.0, (0.5, 0.5))({"image": ones})["image"]
    assert float(small[0, 0, 0]) == 0 and float(small[0, 20, 20]) == 1
    assert torch.equal(RandSimilarityd("image", 1.0, (0.5, 2.0), prob=0.0)({"image": ones})["image"], ones)


@pytest.mark.parametrize("factors", [(1.25, 0.75), (0.0, 1.0), (-1.0, 1.0)])
def test_impossible_factors_are_refused(factors):
    with pytest.raises(InputError, match="expected two factors above 0"):
        RandSimilarityd("image", 0.0, factors)
