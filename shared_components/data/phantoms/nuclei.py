"""Phantoms that look like tissue stained with haematoxylin and eosin."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from shared_components.data.phantoms.fields import case_rng, ellipse, smooth_noise, to_bytes

FILES = ("images/{}.png", "masks/{}.png", "instances/{}.png")
# absorbance of red, green and blue light (Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 23(4), 2001)
_HAEMATOXYLIN, _EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])
_SHAPE = (128, 128)
_MAX_OVERLAP = 0.2
_MIN_PIXELS = 12


def nuclei_case(seed: int, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one phantom.

    Nuclei lie alone and in clumps where they touch and cover each other; some are dark throughout, some pale
    with a dark rim. The tissue between them is pink and fibrous with white gaps, blue where it is cellular;
    red cells and blurred smears are no nuclei. Strength and hue of the stain differ from image to image.

    Returns:
        Image (128, 128, 3) uint8 in RGB; mask (128, 128) uint8, 0 or 255; and instances (128, 128) uint16,
        0 or the number of the nucleus, without gaps. A pixel that two nuclei share is the first one's.
    """
    rng = case_rng(seed, index)
    instances, blue = _nuclei(rng)
    inside = instances > 0
    haze = 0.10 + 0.05 * smooth_noise(rng, _SHAPE, 7) + 0.45 * _smears(rng)
    haze += np.clip(0.16 * (smooth_noise(rng, _SHAPE, 12) - 0.3), 0, 0.35)
    pink = _stroma(rng)
    haematoxylin = np.where(inside, np.maximum(blue, 0.10), np.clip(haze, 0, None))
    eosin = np.where(inside, 0.45 * pink + 0.1, pink)
    jitter = 1 + rng.uniform(-0.1, 0.1, (2, 3))
    stains = rng.uniform(1.0, 1.9) * haematoxylin[..., None] * _HAEMATOXYLIN * jitter[0]
    stains = stains + rng.uniform(0.8, 1.4) * eosin[..., None] * _EOSIN * jitter[1]
    image = rng.uniform(0.92, 0.98) * np.exp(-gaussian_filter(stains, (0.7, 0.7, 0)))
    image += rng.normal(0, 0.015, image.shape)
    return to_bytes(image), np.where(inside, 255, 0).astype(np.uint8), instances.astype(np.uint16)


def _nuclei(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Place nuclei, more than half of them beside another: their numbers, and their haematoxylin."""
    instances, blue = np.zeros(_SHAPE, dtype=np.int64), np.zeros(_SHAPE)
    centres: list[np.ndarray] = []
    size, wanted = rng.uniform(4.5, 7.0), rng.integers(26, 48)
    ripple, grain = 0.06 * smooth_noise(rng, _SHAPE, 3), 0.12 * smooth_noise(rng, _SHAPE, 0.9)
    for _ in range(3 * wanted):
        if len(centres) == wanted:
            break
        centre = rng.uniform(-2, 130, 2)
        if centres and rng.random() < 0.65:
            turn = rng.uniform(0, 2 * np.pi)
            apart = rng.uniform(1.4, 1.9) * size * np.array([np.sin(turn), np.cos(turn)])
            centre = centres[rng.integers(len(centres))] + apart
        axes = size * rng.uniform(0.75, 1.3) * np.array([1.0, rng.uniform(0.6, 1.0)])
        distance = ellipse(_SHAPE, centre, axes, rng.uniform(0, np.pi)) + ripple
        body = distance < 1
        free = body & (instances == 0)
        if free.sum() < max(_MIN_PIXELS, (1 - _MAX_OVERLAP) * body.sum()):
            continue
        centres.append(centre)
        instances[free] = len(centres)
        blue[free] = _chromatin(distance[free], grain[free], rng)
    return instances, blue


def _chromatin(distance: np.ndarray, grain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return one nucleus's haematoxylin: dark throughout, or pale with a dark rim and a nucleolus."""
    strength = rng.uniform(0.5, 1.1)
    if rng.random() < 0.45:
        rim = np.exp(-(((distance - 0.92) / 0.14) ** 2))
        nucleolus = distance < rng.uniform(0.1, 0.3)
        return strength * (0.30 + 0.55 * rim + 0.5 * nucleolus) + grain
    return strength * (0.9 + grain)


def _smears(rng: np.random.Generator) -> np.ndarray:
    """Draw nuclei that are out of focus, and are none for the reference: cover in [0, 1]."""
    cover = np.zeros(_SHAPE)
    for _ in range(rng.integers(1, 6)):
        centre, axes = rng.uniform(0, 128, 2), rng.uniform(3, 8, 2)
        cover = np.maximum(cover, ellipse(_SHAPE, centre, axes, rng.uniform(0, np.pi)) < 1)
    return gaussian_filter(cover, 3)


def _stroma(rng: np.random.Generator) -> np.ndarray:
    """Draw the eosin: fibres, gaps without tissue, and red cells."""
    sigma = (1.0, 7.0) if rng.random() < 0.5 else (7.0, 1.0)
    pink = 0.36 + 0.07 * smooth_noise(rng, _SHAPE, sigma) + 0.08 * smooth_noise(rng, _SHAPE, 6)
    gaps = smooth_noise(rng, _SHAPE, 10) > rng.uniform(1.0, 1.8)
    pink = np.where(gaps, 0.05, pink)
    for _ in range(rng.integers(0, 8)):
        size = rng.uniform(2.5, 3.6)
        pink[ellipse(_SHAPE, rng.uniform(0, 128, 2), (size, size)) < 1] = rng.uniform(0.8, 1.1)
    return np.clip(pink, 0.02, None)
