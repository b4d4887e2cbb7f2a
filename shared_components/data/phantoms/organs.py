"""Phantoms that look like coarse CT of an abdomen, for several organs."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from shared_components.data.phantoms.msd import msd_description

LABELS = {"background": 0, "liver": 1, "spleen": 2, "kidneys": 3, "aorta": 4, "bones": 5}
FILES = ("imagesTr/{}.nii.gz", "labelsTr/{}.nii.gz")
_VERSION = 1
_SHAPE = (64, 56, 12)
# Hounsfield units of the organs, in the order of the labels; soft tissue around them, fat, air
_UNITS = (100.0, 125.0, 165.0, 210.0, 480.0)
_MUSCLE, _FAT, _AIR = 45.0, -100.0, -1000.0


def organs_case(seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one phantom.

    An elliptic body with a rim of fat holds a liver on its right, a spleen on its left, two kidneys, an aorta and a
    vertebra with ribs, all ellipsoids whose size and place vary, and pockets of gas that are no organ. The image has
    texture, partial-volume blur and noise.

    Returns:
        Image (x, y, z) in Hounsfield units, int16, and label map, uint8, on a 1 mm RAS grid.
    """
    rng = np.random.default_rng(np.random.SeedSequence((seed, index, 5)))
    grid = np.meshgrid(*(np.linspace(-1, 1, size) for size in _SHAPE), indexing="ij")
    body = _ellipsoid(grid, (0, 0, 0), (0.92, 0.88, 9))
    inner = _ellipsoid(grid, (0, 0.02, 0), (0.92 - rng.uniform(0.06, 0.14), 0.88 - rng.uniform(0.06, 0.14), 9))
    image = np.where(inner, _MUSCLE, np.where(body, _FAT, _AIR))
    for _ in range(3):
        gas = _ellipsoid(grid, rng.uniform((-0.2, 0.1, -1), (0.4, 0.5, 1)), rng.uniform(0.05, 0.12, 3) * (1, 1, 3))
        image[gas & inner] = -300
    label = np.zeros(_SHAPE, np.uint8)
    for value, centre, radii in _organs(rng):
        place = _ellipsoid(grid, centre, radii) & inner
        label[place], image[place] = value, _UNITS[value - 1] + rng.normal(0, 8)
    return _acquire(image, rng), label


def _organs(rng: np.random.Generator) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Draw (label, centre, radii) of every part, in units of half the body; right is negative x, front positive y."""
    parts = [
        (1, (-0.4, 0.15, 0.3), (0.42, 0.5, 1.1)),
        (2, (0.58, -0.2, 0.4), (0.17, 0.3, 0.7)),
        (3, (-0.38, -0.42, -0.3), (0.14, 0.19, 0.8)),
        (3, (0.36, -0.42, -0.2), (0.14, 0.19, 0.8)),
        (4, (0.08, -0.32, 0.0), (0.08, 0.09, 9.0)),
        (5, (0.0, -0.58, 0.0), (0.17, 0.15, 9.0)),
        (5, (0.0, -0.76, 0.0), (0.05, 0.1, 9.0)),
    ]
    drawn = []
    for value, centre, radii in parts:
        spread = 0.02 if value == 5 else 0.06
        place = np.array(centre) + rng.normal(0, spread, 3)
        drawn.append((value, place, np.array(radii) * rng.uniform(0.85, 1.15, 3)))
    return drawn


def _ellipsoid(grid: list[np.ndarray], centre: Any, radii: Any) -> np.ndarray:
    return sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid, centre, radii, strict=True)) <= 1


def _acquire(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn tissue into an image: texture, partial-volume blur, noise."""
    image = gaussian_filter(image + rng.normal(0, 25, image.shape), 0.6)
    return np.round(np.clip(image + rng.normal(0, 10, image.shape), -1024, 1500)).astype(np.int16)


def describe(num_cases: int, seed: int) -> dict[str, Any]:
    """Return the content of ``dataset.json``, which also marks the set as complete."""
    return msd_description("Organ phantoms", "CT", LABELS, _VERSION, num_cases, seed)
