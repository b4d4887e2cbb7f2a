"""Phantoms of slices that show an object or do not, for methods that learn from image-level labels."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from shared_components.data.phantoms.fields import case_rng, ellipse, smooth_noise, to_bytes

FILES = ("images/{}.png", "masks/{}.png")
_SIZE = 64


def tumour_slice(seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one phantom like an axial FLAIR slice of a brain, half of them with a tumour.

    A textured ellipse with two dark ventricles; the tumour is a bright, irregular patch inside the brain.

    Returns:
        Image and mask, (64, 64) uint8, the mask 0 or 255 and empty where there is no tumour.
    """
    rng = case_rng(seed, index)
    shape = (_SIZE, _SIZE)
    axes = np.array([27.0, 23.0]) * rng.uniform(0.92, 1.05, 2)
    centre = np.array([31.5, 31.5]) + rng.uniform(-1.5, 1.5, 2)
    brain = ellipse(shape, centre, axes, rng.uniform(-0.15, 0.15)) < 1
    image = brain * (0.42 + 0.05 * smooth_noise(rng, shape, 4) + 0.02 * smooth_noise(rng, shape, 1.2))
    for side in (-1, 1):
        place = centre + np.array([rng.uniform(-3, 3), side * rng.uniform(4.5, 6.5)])
        image[ellipse(shape, place, (rng.uniform(6, 9), rng.uniform(1.5, 2.8)), side * 0.15) < 1] = 0.16
    mask = np.zeros(shape, dtype=bool)
    if rng.random() < 0.5:
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 0.68)
        middle = centre + distance * axes * np.array([np.sin(angle), np.cos(angle)])
        radius = rng.uniform(5.0, 8.5)
        level = ellipse(shape, middle, radius * rng.uniform(0.8, 1.2, 2)) + 0.16 * smooth_noise(rng, shape, 4)
        mask = (level < 1) & (ellipse(shape, centre, axes - 1.0) < 1)
        image = np.where(mask, image + rng.uniform(0.28, 0.40), image)
    image = gaussian_filter(image, 0.7) + brain * rng.normal(0, 0.015, shape)
    return to_bytes(image), np.where(mask, 255, 0).astype(np.uint8)


def kidney_slice(seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one phantom like an axial T2 slice of an abdomen, half of them at the height of the kidneys.

    A textured ellipse with a grey liver, a dark spine with a bright canal and bright bowel in front; the kidneys are
    two bright ovals with a darker middle, beside the spine.

    Returns:
        Image and mask, (64, 64) uint8, the mask 0 or 255 and empty where there are no kidneys.
    """
    rng = case_rng(seed, index)
    shape = (_SIZE, _SIZE)
    centre = np.array([31.5, 31.5]) + rng.uniform(-1.0, 1.0, 2)
    axes = np.array([22.0, 29.0]) * rng.uniform(0.94, 1.04, 2)
    body = ellipse(shape, centre, axes) < 1
    image = body * (0.30 + 0.04 * smooth_noise(rng, shape, 3))
    image[(ellipse(shape, centre + (-4, -13), (11, 10), 0.3) < 1) & body] = 0.42
    for _ in range(rng.integers(2, 5)):
        place = centre + np.array([rng.uniform(-14, -5), rng.uniform(-2, 18)])
        image[(ellipse(shape, place, rng.uniform(1.5, 3.0, 2)) < 1) & body] = rng.uniform(0.5, 0.8)
    image[ellipse(shape, centre + (13, 0), (5, 5)) < 1] = 0.16
    image[ellipse(shape, centre + (16, 0), (1.5, 1.5)) < 1] = 0.85
    mask = np.zeros(shape, dtype=bool)
    if rng.random() < 0.5:
        for side in (-1, 1):
            place = centre + np.array([rng.uniform(4, 7), side * rng.uniform(12, 14.5)])
            size = rng.uniform(4.2, 6.0)
            distance = ellipse(shape, place, (1.25 * size, size), side * rng.uniform(0.2, 0.5))
            kidney = (distance < 1) & body
            image[kidney], mask = 0.78, mask | kidney
            image[(distance < 0.35) & kidney] = 0.6
    image = image * (1 + 0.05 * smooth_noise(rng, shape, 3))
    image = gaussian_filter(image, 0.7) + body * rng.normal(0, 0.015, shape)
    return to_bytes(image), np.where(mask, 255, 0).astype(np.uint8)
