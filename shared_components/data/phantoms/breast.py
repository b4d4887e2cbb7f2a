"""Phantoms that look like single slices of breast MR: breast, vessels and fibroglandular tissue."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from shared_components.data.phantoms.fields import to_bytes

LABELS = {"background": 0, "breast": 1, "vessels": 2, "fibroglandular": 3}
FILES = ("images/{}.png", "masks/{}.png")
_SIZE = 64
# grey values of air, chest wall, and of breast, vessels and fibroglandular tissue
_AIR, _WALL, _GREY = 0.02, 0.35, (0.55, 0.95, 0.3)


def breast_case(seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one phantom.

    Two breasts of bright fat hang from a grey chest wall at the bottom; in each lie dark patches of fibroglandular
    tissue and a few bright, thin vessels that cross it, some of them in the chest wall too, where they are no class.

    Returns:
        Image, uint8 (64, 64), and label map, uint8, of rows and columns.
    """
    rng = np.random.default_rng(np.random.SeedSequence((seed, index, 7)))
    rows, columns = np.mgrid[0:_SIZE, 0:_SIZE] / (_SIZE - 1)
    image, label = np.full((_SIZE, _SIZE), _AIR), np.zeros((_SIZE, _SIZE), np.uint8)
    edge = 0.72 + rng.uniform(-0.04, 0.04)
    image[rows > edge] = _WALL
    breasts = np.zeros_like(label, bool)
    for centre in (0.27, 0.73):
        width, height = rng.uniform(0.17, 0.22), rng.uniform(0.38, 0.55)
        breasts |= ((columns - centre - rng.normal(0, 0.01)) / width) ** 2 + ((rows - edge) / height) ** 2 <= 1
    breasts &= rows <= edge
    field = gaussian_filter(rng.standard_normal(label.shape), 3)
    tissue = breasts & (gaussian_filter(breasts.astype(float), 3) > 0.85) & (field > np.quantile(field, 0.6))
    vessels = _vessels(rng, rows, columns)
    for value, place in ((1, breasts), (3, tissue), (2, vessels & breasts)):
        label[place], image[place] = value, _GREY[value - 1]
    image[vessels & (rows > edge)] = 0.6
    image = gaussian_filter(image, 0.5) * (1 + 0.1 * gaussian_filter(rng.standard_normal(label.shape), 12) * 12)
    image = np.abs(image + rng.normal(0, 0.025, image.shape))
    return to_bytes(image), label


def _vessels(rng: np.random.Generator, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Draw thin curved lines from the chest wall into the breasts."""
    found = np.zeros(rows.shape, bool)
    for _ in range(int(rng.integers(4, 7))):
        start, slope, bend = rng.uniform(0.12, 0.88), rng.uniform(-0.3, 0.3), rng.uniform(-0.08, 0.08)
        depth = 1 - rows
        line = start + slope * depth + bend * np.sin(8 * depth)
        found |= (np.abs(columns - line) < 0.014) & (depth < rng.uniform(0.45, 0.7))
    return found
