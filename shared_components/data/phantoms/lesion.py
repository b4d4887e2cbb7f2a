"""Phantoms that look like dermoscopic photographs of skin lesions."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from shared_components.data.phantoms.fields import (
    case_rng,
    draw_curves,
    ellipse,
    largest_part,
    smooth_noise,
    to_bytes,
)

FILES = ("images/{}.png", "masks/{}.png")
_SKIN = np.array([[0.93, 0.77, 0.70], [0.80, 0.60, 0.52], [0.84, 0.82, 0.70]])
_PIGMENT = np.array([[0.62, 0.42, 0.28], [0.38, 0.25, 0.20], [0.60, 0.30, 0.22]])


def lesion_case(seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one phantom.

    An irregular brown patch of mixed pigment, some of it almost as pale as the skin, lies on textured skin
    with red blotches and small spots. The light falls unevenly and fades towards the corners, which are as
    dark as the lesion in many images; hairs cross it, and there may be a shadow that darkens without
    colouring.

    Returns:
        Image (height, width, 3) uint8 in RGB, and mask (height, width) uint8, 0 or 255; 112 to 144 rows and
        128 to 160 columns.
    """
    rng = case_rng(seed, index)
    shape = int(rng.integers(112, 145)), int(rng.integers(128, 161))
    mask, depth = _outline(shape, rng)
    cover = 1 / (1 + np.exp(-depth / rng.uniform(0.6, 2.0)))
    pigment = cover * rng.uniform(0.6, 1.0) * (1 - 0.75 * _pale_part(shape, mask, rng))
    pigment = np.maximum(pigment, _spots(shape, mask, rng))[..., None]
    image = (1 - pigment) * _skin(shape, rng) + pigment * _pigment(shape, rng)
    image = image * _light(shape, rng)[..., None]
    hairs = 0.85 * _hairs(shape, rng)[..., None]
    image = (1 - hairs) * image + hairs * np.array([0.16, 0.12, 0.10])
    image = gaussian_filter(image, (0.6, 0.6, 0)) + rng.normal(0, rng.uniform(0.01, 0.025), image.shape)
    return to_bytes(image), np.where(mask, 255, 0).astype(np.uint8)


def _outline(shape: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw an irregular patch: its mask, and how deep in it every pixel lies, in pixels, below 0 outside."""
    radius = rng.uniform(0.16, 0.33) * min(shape)
    centre = np.array(shape) / 2 + rng.uniform(-0.13, 0.13, 2) * shape
    axes = radius * np.array([1.0, rng.uniform(0.7, 1.0)])
    level = ellipse(shape, centre, axes, rng.uniform(0, np.pi)) - 1
    level += 0.16 * smooth_noise(rng, shape, radius / 2.5) + 0.04 * smooth_noise(rng, shape, 2)
    mask = largest_part(level < 0)
    depth = np.where(mask, np.maximum(-level, 0.02), -np.maximum(level, 0.02)) * radius
    return mask, depth


def _pale_part(shape: tuple[int, int], mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mark a region of the lesion that has lost its pigment: 0 to 1, nothing in one image of four."""
    field = smooth_noise(rng, shape, 9)
    limit = np.quantile(field[mask], rng.uniform(0.5, 1.0))
    return gaussian_filter((field > limit).astype(float), 2)


def _spots(shape: tuple[int, int], mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a few brown spots on the skin, too small to be the lesion: cover in [0, 1]."""
    cover = np.zeros(shape)
    for _ in range(rng.integers(2, 9)):
        centre, size = rng.uniform(0, 1, 2) * shape, rng.uniform(1.5, 4.0)
        cover = np.maximum(cover, rng.uniform(0.4, 0.8) * (ellipse(shape, centre, (size, size)) < 1))
    return gaussian_filter(np.where(mask, 0, cover), 0.8)


def _skin(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    base = rng.dirichlet(np.ones(3)) @ _SKIN
    relief = 0.025 * smooth_noise(rng, shape, 1.2) + 0.03 * smooth_noise(rng, shape, 8)
    red = np.clip(smooth_noise(rng, shape, 10) - 0.6, 0, 1.5)[..., None] * np.array([0.0, -0.10, -0.09])
    return base * (1 + relief[..., None]) + rng.uniform(0.3, 1.0) * red


def _pigment(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Mix two browns in patches, with the net of dark lines that pigment makes."""
    first, second = rng.dirichlet(np.ones(3), 2) @ _PIGMENT
    share = 1 / (1 + np.exp(-2.5 * smooth_noise(rng, shape, 6)))[..., None]
    net = np.exp(-((smooth_noise(rng, shape, 1.5) / 0.35) ** 2))
    return (share * first + (1 - share) * second) * (1 - 0.22 * net[..., None])


def _light(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return how bright each pixel is lit: uneven, with dark corners and, in half of the images, a shadow."""
    radius = np.hypot(*shape) / 2
    away = ellipse(shape, np.array(shape) / 2 + rng.uniform(-9, 9, 2), (radius, radius))
    corners = 1 - rng.uniform(0.25, 0.8) * np.clip((away - 0.5) / 0.5, 0, 1) ** 1.5
    slope = 1 + 0.12 * (ellipse(shape, rng.uniform(0, 1, 2) * shape, (radius, radius)) - 0.5)
    centre = rng.choice((0.0, 1.0), 2) * shape + rng.uniform(-0.1, 0.25, 2) * shape
    shadow = np.exp(-(ellipse(shape, centre, rng.uniform(20, 38, 2), rng.uniform(0, np.pi)) ** 2))
    return corners * slope * (1 - rng.choice((0.0, 0.5)) * shadow)


def _hairs(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw curved hairs of roughly one direction: coverage in [0, 1]."""
    number, direction = rng.integers(3, 13), rng.uniform(0, 2 * np.pi)
    t = np.linspace(0, 1, 24)
    curves = []
    for _ in range(number):
        turn = direction + rng.normal(0, 0.5) + rng.uniform(-0.9, 0.9) * t
        steps = rng.uniform(40, 130) / 23 * np.stack((np.sin(turn), np.cos(turn)), axis=1)
        curves.append(rng.uniform(-0.1, 1.1, 2) * shape + np.cumsum(steps, axis=0) - steps.sum(0) / 2)
    return draw_curves(shape, curves, rng.uniform(0.7, 1.6, number))
