"""Phantoms that look like frontal chest radiographs."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from shared_components.data.phantoms.fields import (
    case_rng,
    draw_curves,
    largest_part,
    smooth_noise,
    to_bytes,
)

FILES = ("images/{}.png", "masks/{}.png")


def lungs_case(seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one phantom.

    Two dark lungs lie in a bright chest; spine, heart, diaphragm, ribs and collar bones are brighter still.
    Air around the body and in the stomach is as dark as the lungs, and opacities make parts of a lung as
    bright as what surrounds it. Exposure and contrast differ from image to image.

    Returns:
        Image (height, width) uint8 and mask of both lungs without the heart, uint8, 0 or 255; 128 to 160 rows
        and columns.
    """
    rng = case_rng(seed, index)
    shape = int(rng.integers(128, 161)), int(rng.integers(128, 161))
    y, x = _body_coordinates(shape, rng)
    dome = _diaphragm(x, rng)
    heart = _heart(x, y, rng)
    sides = [_lung(x * side, y, rng) & (y < dome) & ~heart for side in (-1, 1)]
    lungs = largest_part(sides[0]) | largest_part(sides[1])
    body = np.abs(x) < rng.uniform(0.80, 1.06) - 0.35 * np.clip(-0.75 - y, 0, 1)
    density = np.full(shape, 0.60) + 0.05 * smooth_noise(rng, shape, 12)
    density += 0.20 * np.exp(-((x / 0.13) ** 2)) + 0.16 * (y > dome)
    density[heart & (y < dome)] += 0.14
    density[_stomach(x, y, dome, rng)] = 0.34
    density[lungs] = 0.30 + 0.035 * smooth_noise(rng, shape, 2.5)[lungs]
    density += lungs * 0.30 * _opacity(shape, rng)
    density[~body] = rng.uniform(0.05, 0.22)
    density = gaussian_filter(density, 1.2) + body * _bones(shape, x, y, rng)
    return _expose(density, rng), np.where(lungs, 255, 0).astype(np.uint8)


def _body_coordinates(shape: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return down (y) and across (x), -1 to 1 over the image, shifted, scaled, turned and bent a little."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    angle, scale = rng.uniform(-0.09, 0.09), rng.uniform(0.95, 1.15, 2)
    y, x = (np.cos(angle) * y + np.sin(angle) * x, np.cos(angle) * x - np.sin(angle) * y)
    bend = 0.035 * smooth_noise(rng, (2, *shape), (0, 14, 14))
    return (
        y * scale[0] + rng.uniform(-0.08, 0.08) + bend[0],
        x * scale[1] + rng.uniform(-0.08, 0.08) + bend[1],
    )


def _lung(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One lung to the right of x = 0: narrow above, its inner side straight, without its lower end."""
    width = rng.uniform(0.29, 0.34) * (1 + 0.28 * y)
    across = np.clip(np.abs(x - rng.uniform(0.43, 0.48)) / width, 0, None)
    return across**2.6 + np.abs((y - 0.05) / rng.uniform(0.78, 0.88)) ** 2.6 < 1


def _heart(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An oval that points down to the patient's left, with the bow of the aorta above it."""
    arch = np.hypot(x - 0.07, y + rng.uniform(0.22, 0.34)) < rng.uniform(0.08, 0.13)
    x, y = x - rng.uniform(0.10, 0.16), y - rng.uniform(0.20, 0.30)
    return arch | (np.hypot((0.8 * x + 0.6 * y) / rng.uniform(0.32, 0.42), (0.8 * y - 0.6 * x) / 0.25) < 1)


def _diaphragm(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Height of the two domes over x; the patient's right one, on the left, is the higher."""
    left, right = rng.uniform(0.36, 0.48), rng.uniform(0.44, 0.58)
    fall = rng.uniform(0.7, 1.4)
    return np.where(x < 0, left + fall * (x + 0.42) ** 2, right + fall * (x - 0.42) ** 2)


def _stomach(x: np.ndarray, y: np.ndarray, dome: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Air below the diaphragm on the patient's left, in two images of three."""
    size = rng.choice((0.0, 1.0, 1.0)) * rng.uniform(0.10, 0.18)
    below = dome + 0.05 + size
    return np.hypot((x - rng.uniform(0.35, 0.55)) / 1.5, y - below) < size


def _opacity(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw clouds in the lung: 0 to 1; few in most images."""
    field = smooth_noise(rng, shape, rng.uniform(7, 13)) - rng.uniform(0.0, 2.0)
    return np.clip(field, 0, 1)


def _bones(shape: tuple[int, int], x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return what ribs, collar bones and a wire add to the density."""
    pace = rng.uniform(0.19, 0.24)
    phase = (y - 0.35 * np.abs(x) + 0.5 * (np.abs(x) - 0.5) ** 2) / pace + rng.uniform(0, 1)
    ribs = np.clip(np.cos(2 * np.pi * phase) - 0.35, 0, 1) * (np.abs(x) > 0.12) * (np.abs(y) < 0.85)
    collar = np.exp(-(((y + 0.68 - 0.22 * np.abs(x)) / 0.045) ** 2)) * (np.abs(x) > 0.12)
    turns = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.15, 60))
    wire = rng.uniform(0, 1, 2) * shape + 2 * np.cumsum(np.stack((np.sin(turns), np.cos(turns)), 1), axis=0)
    wires = draw_curves(shape, [wire], [1.0]) * rng.choice((0.0, 0.3))
    return rng.uniform(0.10, 0.17) * gaussian_filter(ribs, 0.8) + 0.12 * collar + wires


def _expose(density: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn density into grey values: uneven exposure, contrast, noise."""
    image = density + 0.05 * smooth_noise(rng, density.shape, 40)
    image = np.clip(image, 0, 1) ** rng.uniform(0.7, 1.4) * rng.uniform(0.8, 1.05)
    return to_bytes(image + rng.normal(0, rng.uniform(0.015, 0.035), image.shape))
