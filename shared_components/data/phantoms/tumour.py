"""Phantoms that look like MR of a brain with a tumour, in two sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from shared_components.data.phantoms.fields import case_rng, largest_part, smooth_noise

CHANNELS = ("FLAIR", "T1ce")
LABELS = {"background": 0, "oedema": 1, "core": 2, "enhancing": 3}
FILES = ("imagesTr/{}_0000.nii.gz", "imagesTr/{}_0001.nii.gz", "labelsTr/{}.nii.gz")
_VERSION = 1
# grey value of each tissue in FLAIR and in T1 with contrast agent
_TISSUES = {
    "grey": (0.56, 0.46),
    "white": (0.46, 0.58),
    "fluid": (0.14, 0.20),
    "hyperintensity": (0.76, 0.50),
    "vessel": (0.30, 0.95),
    "oedema": (0.74, 0.42),
    "core": (0.58, 0.27),
    "enhancing": (0.66, 0.90),
}


def tumour_case(seed: int, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one phantom.

    A brain without its skull: grey matter folded around white, two ventricles, vessels that light up in T1ce
    and small bright spots in FLAIR that are no tumour. The tumour lies in one half of the brain: a core with
    an interrupted enhancing rim, and oedema around both. Both images have partial-volume blur, bias fields,
    noise and a scale of their own; outside the brain they are 0. Every fourth case is int16.

    Returns:
        FLAIR and T1ce (x, y, z), float32 or int16, and the label map, uint8, on a 1 mm RAS grid: 44 to 52 by
        48 to 56 by 10 to 14 voxels.
    """
    rng = case_rng(seed, index)
    shape = tuple(int(rng.integers(low, high + 1)) for low, high in ((44, 52), (48, 56), (10, 14)))
    x, y, z = _coordinates(shape)
    depth = 1 - np.sqrt((x / 0.92) ** 2 + (y / 0.94) ** 2 + (z / 1.5) ** 2)
    depth += 0.03 * smooth_noise(rng, shape, (3, 3, 2))
    brain = largest_part(depth > 0)
    white = depth + 0.07 * smooth_noise(rng, shape, (2, 2, 1)) > 0.22
    fluid = _ventricles(x, y, z, rng)
    label = _tumour(shape, brain & (depth > 0.08) & ~fluid, (x, y), rng)
    regions = {
        "grey": brain,
        "white": white,
        "hyperintensity": _spots(shape, fluid, white, rng),
        "fluid": fluid | ((depth < 0.06) & (smooth_noise(rng, shape, (2, 2, 1)) > 0.5)),
        "vessel": _vessels(shape, x, y, rng),
        **{name: label == value for name, value in LABELS.items() if value > 0},
    }
    images = []
    for channel in range(len(CHANNELS)):
        tissue = np.zeros(shape)
        for name, region in regions.items():
            tissue[region & brain] = _TISSUES[name][channel]
        images.append(_acquire(tissue, brain, label, rng, whole_numbers=index % 4 == 3))
    return images[0], images[1], label


def _coordinates(shape: tuple[int, ...]) -> list[np.ndarray]:
    """Return right, front and up, each -1 to 1 over the volume."""
    return np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")


def _ventricles(x: np.ndarray, y: np.ndarray, z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two bent horns beside the midline, wider at the back."""
    width, place = rng.uniform(0.06, 0.10), rng.uniform(0.11, 0.16)
    across = (np.abs(x + rng.uniform(-0.03, 0.03)) - place - 0.14 * (y + 0.1) ** 2) / (width * (1 - 0.3 * y))
    return across**2 + ((y + 0.05) / rng.uniform(0.36, 0.50)) ** 2 + (z / 0.85) ** 2 < 1


def _tumour(
    shape: tuple[int, ...],
    tissue: np.ndarray,
    across: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw the nested tumour: a core (2), its enhancing rim (3) and oedema (1) around, within ``tissue``."""
    side = rng.choice((-1, 1))
    weight = tissue & (across[0] * side > 0.25) & (across[0] * side < 0.6) & (np.abs(across[1]) < 0.55)
    weight[..., :3] = weight[..., -3:] = False
    centre = np.argwhere(weight)[rng.integers(weight.sum())]
    radius = rng.uniform(4.0, 6.0)
    offsets = [axis - middle for axis, middle in zip(np.ogrid[tuple(map(slice, shape))], centre)]
    stretch = rng.uniform(0.8, 1.25, 2)
    distance = np.sqrt((offsets[0] * stretch[0]) ** 2 + (offsets[1] * stretch[1]) ** 2 + (1.5 * offsets[2]) ** 2)
    core = distance / radius + 0.12 * smooth_noise(rng, shape, (2.5, 2.5, 1.5))
    reach = radius * rng.uniform(1.5, 2.0)
    spread = distance / reach + 0.20 * smooth_noise(rng, shape, (3.5, 3.5, 2))
    rim = (core > rng.uniform(0.62, 0.74)) & (smooth_noise(rng, shape, (3, 3, 2)) > -1.0)
    label = np.where(spread < 1, LABELS["oedema"], 0)
    label = np.where(core < 1, np.where(rim, LABELS["enhancing"], LABELS["core"]), label)
    whole = largest_part((label > 0) & tissue)
    return np.where(whole & tissue, label, 0).astype(np.uint8)


def _spots(shape: tuple[int, ...], fluid: np.ndarray, white: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mark bright white matter that is no tumour: caps of the ventricles and small spots."""
    caps = (gaussian_filter(fluid.astype(float), (1.5, 2.0, 0.7)) > 0.12) & (smooth_noise(rng, shape, (3, 3, 2)) > 0.4)
    return white & (caps | (smooth_noise(rng, shape, (1.6, 1.6, 0.8)) > 2.1))


def _vessels(shape: tuple[int, ...], x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mark the sinus at the back of the midline and small vessels: what lights up but does not enhance."""
    sinus = (np.abs(x) < 0.06) & (y < -0.76)
    return sinus | (smooth_noise(rng, shape, (0.8, 0.8, 1.6)) > 2.7)


def _acquire(
    tissue: np.ndarray,
    brain: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    whole_numbers: bool,
) -> np.ndarray:
    """Turn tissue into an image: uneven tumour, partial-volume blur, bias field, noise, scale."""
    tissue = tissue + (label > 0) * 0.06 * smooth_noise(rng, tissue.shape, (1.5, 1.5, 1))
    image = gaussian_filter(tissue, (0.6, 0.6, 0.4))
    image = image * (1 + 0.09 * smooth_noise(rng, tissue.shape, (14, 14, 6)))
    noise = rng.uniform(0.02, 0.05)
    image = np.hypot(image + noise * rng.standard_normal(image.shape), noise * rng.standard_normal(image.shape))
    image = np.where(brain, image * 10 ** rng.uniform(2.0, 3.3), 0)
    return np.round(image).astype(np.int16) if whole_numbers else image.astype(np.float32)


def describe(num_cases: int, seed: int) -> dict[str, Any]:
    """Return the content of nnU-Net's ``dataset.json``, which also marks the set as complete."""
    return {
        "name": "Brain tumour phantoms",
        "description": "Synthetic volumes for demonstrations; no patient data",
        "licence": "CC0 1.0",
        "channel_names": {str(number): name for number, name in enumerate(CHANNELS)},
        "labels": LABELS,
        "numTraining": num_cases,
        "file_ending": ".nii.gz",
        "phantoms": {"kind": "tumour", "version": _VERSION, "num_cases": num_cases, "seed": seed},
    }
