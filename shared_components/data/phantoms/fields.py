"""Random fields that the phantoms' textures and outlines are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from monai.transforms.utils import get_largest_connected_component_mask
from PIL import Image, ImageDraw
from scipy.ndimage import binary_fill_holes, gaussian_filter

_FINER = 4


def case_rng(seed: int, index: int) -> np.random.Generator:
    """Return the generator of one case: a function of (seed, number of the case) alone."""
    return np.random.default_rng(np.random.SeedSequence((seed, index)))


def smooth_noise(rng: np.random.Generator, shape: Sequence[int], sigma: float | Sequence[float]) -> np.ndarray:
    """Return Gaussian noise smoothed with ``sigma`` voxels, with mean 0 and standard deviation 1."""
    field = gaussian_filter(rng.standard_normal(tuple(shape)), sigma, mode="reflect")
    return (field - field.mean()) / field.std()


def ellipse(shape: Sequence[int], centre: Sequence[float], axes: Sequence[float], angle: float = 0.0) -> np.ndarray:
    """Return each pixel's distance from the centre in units of the ellipse's radius in that direction.

    Args:
        shape: (rows, columns).
        centre: row and column.
        axes: semi-axes in pixels, along the rows and along the columns before the turn.
        angle: turn in radians.
    """
    y, x = (grid - middle for grid, middle in zip(np.ogrid[: shape[0], : shape[1]], centre))
    along, across = np.cos(angle) * y + np.sin(angle) * x, np.cos(angle) * x - np.sin(angle) * y
    return np.hypot(along / axes[0], across / axes[1])


def largest_part(mask: np.ndarray) -> np.ndarray:
    """Return the largest connected part of a mask, its holes filled."""
    return binary_fill_holes(get_largest_connected_component_mask(mask, connectivity=1))


def draw_curves(shape: Sequence[int], curves: Sequence[np.ndarray], widths: Sequence[float]) -> np.ndarray:
    """Draw smooth-edged curves.

    Args:
        shape: (rows, columns).
        curves: of each the points (n, 2), row and column.
        widths: of each the width in pixels.

    Returns:
        (rows, columns) coverage in [0, 1].
    """
    canvas = Image.new("L", (shape[1] * _FINER, shape[0] * _FINER))
    draw = ImageDraw.Draw(canvas)
    for points, width in zip(curves, widths):
        places = [(float(x) * _FINER, float(y) * _FINER) for y, x in points]
        draw.line(places, fill=255, width=max(round(width * _FINER), 1), joint="curve")
    return np.asarray(canvas.resize((shape[1], shape[0]), Image.Resampling.BOX)) / 255.0


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Return an image of values in [0, 1] as uint8, clipped."""
    return np.clip(np.round(image * 255), 0, 255).astype(np.uint8)
