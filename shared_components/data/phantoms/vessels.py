"""Phantoms of one vascular anatomy in two modalities: colour fundus photographs and OCT angiograms."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from shared_components.data.phantoms.fields import case_rng, draw_curves, ellipse, smooth_noise, to_bytes

FILES = ("images/{}.png", "masks/{}.png")
SHAPE = (128, 128)
_OTHER_PATIENTS = 100_000
_STEP = 3.0
_VISIBLE = 0.45


def fundus_case(seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a phantom of a colour fundus photograph: dark vessels on an orange ground.

    The light falls unevenly, an optic disc is bright, and there are a few dark and bright spots that are no vessels.

    Returns:
        Image (128, 128, 3) uint8 in RGB, and mask (128, 128) uint8, 0 or 255.
    """
    rng = case_rng(seed, index)
    cover, disc = _vessels(rng)
    ground = 0.62 + 0.05 * smooth_noise(rng, SHAPE, 14) + 0.015 * smooth_noise(rng, SHAPE, 1.2)
    ground *= 1 - 0.35 * np.clip(ellipse(SHAPE, rng.uniform(48, 80, 2), (90, 90)), 0, 1) ** 2
    ground = ground + 0.25 * np.exp(-(ellipse(SHAPE, disc, rng.uniform(9, 13, 2)) ** 4))
    ground = ground + _spots(rng, -0.12) + _spots(rng, 0.2)
    contrast = rng.uniform(0.3, 0.45) * gaussian_filter(cover, 0.6)
    colours = np.array([1.25, 0.72, 0.38])
    darkening = np.array([0.45, 1.0, 0.8])
    image = ground[..., None] * colours * (1 - contrast[..., None] * darkening)
    return to_bytes(image + rng.normal(0, 0.012, image.shape)), _mask(cover)


def octa_case(seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a phantom of an en-face OCT angiogram: bright vessels over a mesh of capillaries, in grey.

    Flow makes brightness change along a vessel. Speckle and bright lines of motion lie over all, and the mesh, which
    is no part of the mask, leaves a dark zone free. The anatomies are others than those of `fundus_case`.

    Returns:
        Image (128, 128) uint8, and mask (128, 128) uint8, 0 or 255.
    """
    rng = case_rng(seed, _OTHER_PATIENTS + index)
    cover, _ = _vessels(rng)
    mesh = np.exp(-((smooth_noise(rng, SHAPE, 1.6) / 0.45) ** 2)) * (0.8 + 0.2 * smooth_noise(rng, SHAPE, 10))
    free = 1 - np.exp(-(ellipse(SHAPE, rng.uniform(52, 76, 2), rng.uniform(11, 17, 2)) ** 4))
    flow = np.clip(0.75 + 0.16 * smooth_noise(rng, SHAPE, 3), 0.35, 1)
    image = 0.10 + rng.uniform(0.22, 0.34) * np.clip(mesh, 0, 1) * free
    image = image + gaussian_filter(cover, 0.5) * flow * rng.uniform(0.4, 0.55)
    image = image * (1 + 0.22 * smooth_noise(rng, SHAPE, 0.6))
    for row in rng.integers(0, SHAPE[0], rng.integers(1, 4)):
        image[row] += rng.uniform(0.05, 0.14)
    return to_bytes(image), _mask(cover)


def _mask(cover: np.ndarray) -> np.ndarray:
    return np.where(cover > _VISIBLE, 255, 0).astype(np.uint8)


def _vessels(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Grow a tree of vessels out of the optic disc: coverage in [0, 1], and the disc's centre."""
    side = rng.choice((-1.0, 1.0))
    disc = np.array([rng.uniform(48, 80), 64 + side * rng.uniform(48, 58)])
    curves: list[np.ndarray] = []
    widths: list[float] = []
    towards = np.pi if side > 0 else 0.0
    for angle in np.linspace(-1.35, 1.35, rng.integers(5, 7)):
        direction = towards + angle + rng.normal(0, 0.12)
        _grow(disc, direction, rng.uniform(2.6, 3.6), rng, curves, widths)
    return draw_curves(SHAPE, curves, widths), disc


def _grow(
    start: np.ndarray,
    direction: float,
    width: float,
    rng: np.random.Generator,
    curves: list[np.ndarray],
    widths: list[float],
) -> None:
    """Grow a vessel that winds, thins and branches until it is too thin or leaves the image."""
    points, bend = [start], rng.normal(0, 0.03)
    length = rng.integers(6, 12)
    for _ in range(length):
        bend = 0.8 * bend + rng.normal(0, 0.05)
        direction += bend
        points.append(points[-1] + _STEP * np.array([np.sin(direction), np.cos(direction)]))
    curves.append(np.array(points))
    widths.append(width)
    end = points[-1]
    if width < 1.0 or (end < -6).any() or (end > np.array(SHAPE) + 6).any():
        return
    _grow(end, direction, width * rng.uniform(0.82, 0.95), rng, curves, widths)
    if rng.uniform() < 0.75:
        turn = rng.choice((-1.0, 1.0)) * rng.uniform(0.5, 1.0)
        _grow(end, direction + turn, width * rng.uniform(0.55, 0.8), rng, curves, widths)


def _spots(rng: np.random.Generator, brightness: float) -> np.ndarray:
    """Draw a few spots: what they add to the ground."""
    added = np.zeros(SHAPE)
    for _ in range(rng.integers(0, 5)):
        centre, size = rng.uniform(0, 1, 2) * SHAPE, rng.uniform(1.5, 4.0, 2)
        added += brightness * np.exp(-(ellipse(SHAPE, centre, size, rng.uniform(0, np.pi)) ** 2))
    return added
