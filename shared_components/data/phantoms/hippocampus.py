"""Phantoms that look like cropped MR of a hippocampus."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from shared_components.data.phantoms.fields import case_rng
from shared_components.data.phantoms.msd import msd_description

LABELS = {"background": 0, "anterior": 1, "posterior": 2}
FILES = ("imagesTr/{}.nii.gz", "labelsTr/{}.nii.gz")
_VERSION = 1
_CENTRELINE_POINTS = 64
_SHEATH_GAP = -0.012


def hippocampus_case(seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one phantom.

    A bent tube whose front end is thicker lies along the second axis among tissue of white, grey and dark
    patches. The tube is grey, as some of the patches and a few blobs are that are no part of it; a white
    sheath, with gaps, surrounds it. The image has partial-volume blur, a smooth bias field, noise, and a
    scale of its own: every fifth case is uint8, among the others are maxima from 50 to 1e6.

    Returns:
        Image (x, y, z), float32 or uint8, and label map, uint8, on a 1 mm RAS grid; the anterior part is the
        one of larger y.
    """
    rng = case_rng(seed, index)
    shape = tuple(int(rng.integers(low, high + 1)) for low, high in ((32, 44), (44, 56), (30, 40)))
    label, nearness = _structure(shape, rng)
    tissue = _tissue(shape, rng)
    sheath = (nearness < 1.8) & (gaussian_filter(rng.standard_normal(shape), 2.5) > _SHEATH_GAP)
    tissue[sheath] = 0.85
    for centre, radius in _distractors(shape, rng):
        distance = sum((axis - c) ** 2 for axis, c in zip(np.ogrid[tuple(map(slice, shape))], centre, strict=True))
        tissue[(distance < radius**2) & (nearness > 1.8)] = 0.56
    tissue[label > 0] = 0.54 + rng.uniform(-0.03, 0.03)
    return _acquire(tissue, rng, index), label


def _structure(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a tube around a curved line that runs from the back (t = 0) to the front (t = 1).

    Returns the label map, and for every voxel the smallest squared distance to the line in units of the
    radius.
    """
    t = np.linspace(0, 1, _CENTRELINE_POINTS)
    bend = rng.uniform(2.0, 4.5) * rng.choice((-1, 1))
    line = np.stack(
        (
            bend * np.sin(np.pi * t + rng.uniform(-0.4, 0.4)),
            rng.uniform(26, 32) * (t - 0.5),
            rng.uniform(-6, -2) * t + rng.uniform(2, 5) * np.sin(np.pi * t + rng.uniform(-0.5, 0.5)),
        ),
        axis=1,
    )
    line = (line - line.mean(axis=0)) @ _rotation(rng.uniform(-0.2, 0.2, 3))
    line += (np.array(shape) - 1) / 2 + rng.uniform(-2, 2, 3)
    neck = rng.uniform(0.55, 0.63)
    head = 1 / (1 + np.exp(-(t - neck) / 0.035))
    radius = rng.uniform(4.2, 4.9) + rng.uniform(1.4, 2.4) * head + rng.uniform(0, 0.5) * np.sin(9 * t)
    nearness = np.full(shape, np.inf)
    grid = np.ogrid[tuple(map(slice, shape))]
    widths = (1.0, 1.0, rng.uniform(0.8, 1.0))
    for point, size in zip(line, radius, strict=True):
        squared = sum(
            ((axis - centre) / (size * width)) ** 2 for axis, centre, width in zip(grid, point, widths, strict=True)
        )
        nearness = np.minimum(nearness, squared)
    boundary = line[np.argmin(np.abs(t - neck)), 1]
    in_front = np.broadcast_to(grid[1] > boundary, shape)
    label = np.where(in_front, LABELS["anterior"], LABELS["posterior"])
    return np.where(nearness <= 1, label, 0).astype(np.uint8), nearness


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Return the rotation matrix about x, y and z in turn, angles in radians."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        first, second = (i for i in range(3) if i != axis)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def _tissue(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw patches of white (0.85), grey (0.58) and dark (0.2) tissue from a smooth random field."""
    field = gaussian_filter(rng.standard_normal(shape), 3.5)
    field /= field.std()
    return np.select([field > -0.2, field > -0.9], [0.85, 0.6], 0.2)


def _distractors(shape: tuple[int, ...], rng: np.random.Generator) -> list[tuple[np.ndarray, float]]:
    return [(rng.uniform(0, 1, 3) * shape, float(rng.uniform(2, 5))) for _ in range(5)]


def _acquire(tissue: np.ndarray, rng: np.random.Generator, index: int) -> np.ndarray:
    """Turn tissue into an image: partial-volume blur, texture, bias field, noise, scale."""
    image = gaussian_filter(tissue, 0.7) + 0.04 * gaussian_filter(rng.standard_normal(tissue.shape), 1.0)
    bias = gaussian_filter(rng.standard_normal(tissue.shape), 14, mode="nearest")
    image = image * (1 + 0.15 * bias / np.abs(bias).max())
    noise = rng.uniform(0.02, 0.05)
    image = np.hypot(image + noise * rng.standard_normal(image.shape), noise * rng.standard_normal(image.shape))
    scale = 10 ** rng.uniform(1.7, 6.0)
    if index % 5 == 0:
        return np.clip(image * 200, 0, 255).astype(np.uint8)
    return (image * scale).astype(np.float32)


def describe(num_cases: int, seed: int) -> dict[str, Any]:
    """Return the content of ``dataset.json``, which also marks the set as complete."""
    return msd_description("Hippocampus phantoms", "MRI", LABELS, _VERSION, num_cases, seed)
