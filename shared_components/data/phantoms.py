"""A small synthetic data set for demonstrations: volumes that look like cropped MR of a hippocampus."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from scipy.ndimage import gaussian_filter

from shared_components.errors import InputError

logger = logging.getLogger(__name__)

LABELS = {"background": 0, "anterior": 1, "posterior": 2}
_VERSION = 1
_CENTRELINE_POINTS = 64
_SHEATH_GAP = -0.012


def make_phantoms(output_dir: str | os.PathLike, num_cases: int = 24, seed: int = 0) -> Path:
    """Write a phantom data set in MSD layout, with a ``split.json``; takes a few seconds.

    Every case is a function of (seed, number of the case) alone, so a larger set begins with the smaller
    one's volumes. A complete set of the same parameters is used as it is. The set appears under its name at
    once, when it is complete.

    Args:
        output_dir: folder to make; it may exist if it is empty or holds the same set.
        num_cases: at least 3, so that training, validation and test have a case each.
        seed: at least 0.

    Returns:
        The folder.

    Raises:
        InputError: the folder holds something else or cannot be written, or a number is out of range.
    """
    folder = Path(os.path.abspath(os.path.expanduser(output_dir)))
    if num_cases < 3 or seed < 0:
        raise InputError(
            f"num_cases {num_cases}, seed {seed}: expected at least 3 cases and a seed of at least 0"
        )
    description = _description(num_cases, seed)
    if _is_complete(folder, description):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".phantoms-", dir=folder.parent) as temporary:
            _write_set(Path(temporary) / "set", description, seed)
            os.rename(Path(temporary) / "set", folder)
    except OSError as error:
        if _is_complete(folder, description):
            return folder  # another process was faster
        raise InputError(
            f"{folder}: the phantoms cannot be written ({error.strerror}); give another folder"
        ) from error
    return folder


def demonstration_data(dataset_dir: str | os.PathLike | None, output_dir: str | os.PathLike) -> str:
    """Return ``dataset_dir``, or phantoms made under ``output_dir`` if there is none.

    Args:
        dataset_dir: the user's data folder; ``None`` or an empty string asks for the demonstration.
        output_dir: folder of the run; the phantoms go into its folder ``phantoms``.

    Raises:
        InputError: ``dataset_dir`` is given but does not exist (phantoms never stand in for it).
    """
    if dataset_dir:
        if not Path(dataset_dir).expanduser().is_dir():
            raise InputError(f"dataset_dir {dataset_dir}: no such folder")
        return str(dataset_dir)
    folder = make_phantoms(Path(output_dir) / "phantoms")
    logger.warning(
        "no dataset_dir given: this is a demonstration on synthetic phantoms (%s), not on patients", folder
    )
    return str(folder)


def phantom_case(seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one phantom.

    A bent tube whose front end is thicker lies along the second axis among tissue of white, grey and dark
    patches. The tube is grey, as some of the patches and a few blobs are that are no part of it; a white
    sheath, with gaps, surrounds it. The image has partial-volume blur, a smooth bias field, noise, and a
    scale of its own: every fifth case is uint8, among the others are maxima from 50 to 1e6.

    Returns:
        Image (x, y, z), float32 or uint8, and label map, uint8, on a 1 mm RAS grid; the anterior part is the
        one of larger y.
    """
    rng = np.random.default_rng(np.random.SeedSequence((seed, index)))
    shape = tuple(int(rng.integers(low, high + 1)) for low, high in ((32, 44), (44, 56), (30, 40)))
    label, nearness = _structure(shape, rng)
    tissue = _tissue(shape, rng)
    sheath = (nearness < 1.8) & (gaussian_filter(rng.standard_normal(shape), 2.5) > _SHEATH_GAP)
    tissue[sheath] = 0.85
    for centre, radius in _distractors(shape, rng):
        distance = sum(
            (axis - c) ** 2 for axis, c in zip(np.ogrid[tuple(map(slice, shape))], centre, strict=True)
        )
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
            ((axis - centre) / (size * width)) ** 2
            for axis, centre, width in zip(grid, point, widths, strict=True)
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
    image = np.hypot(
        image + noise * rng.standard_normal(image.shape), noise * rng.standard_normal(image.shape)
    )
    scale = 10 ** rng.uniform(1.7, 6.0)
    if index % 5 == 0:
        return np.clip(image * 200, 0, 255).astype(np.uint8)
    return (image * scale).astype(np.float32)


def _description(num_cases: int, seed: int) -> dict[str, Any]:
    """Return the content of ``dataset.json``, which also marks the set as complete."""
    names = [f"phantom_{index:03d}.nii.gz" for index in range(num_cases)]
    return {
        "name": "Hippocampus phantoms",
        "description": "Synthetic volumes for demonstrations; no patient data",
        "licence": "CC0 1.0",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": {str(value): name for name, value in LABELS.items()},
        "numTraining": num_cases,
        "numTest": 0,
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
        "test": [],
        "phantoms": {"version": _VERSION, "num_cases": num_cases, "seed": seed},
    }


def _is_complete(folder: Path, description: dict[str, Any]) -> bool:
    """Tell whether the folder holds this very set.

    Raises:
        InputError: it holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    files = [folder / path for pair in description["training"] for path in pair.values()] + [
        folder / "split.json"
    ]
    if found != description or not all(file.is_file() for file in files):
        wanted = description["phantoms"]
        raise InputError(
            f"{folder}: holds something other than phantoms of {wanted}; remove it or give another folder"
        )
    return True


def _write_set(folder: Path, description: dict[str, Any], seed: int) -> None:
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    affine = np.eye(4)
    ids = []
    for index, pair in enumerate(description["training"]):
        image, label = phantom_case(seed, index)
        nibabel.save(nibabel.Nifti1Image(image, affine), folder / pair["image"])
        nibabel.save(nibabel.Nifti1Image(label, affine), folder / pair["label"])
        ids.append(Path(pair["image"]).name.removesuffix(".nii.gz"))
    test = ids[3::4] or ids[-1:]
    rest = [case for case in ids if case not in test]
    validation = rest[5::6] or rest[-1:]
    split = {
        "train": [case for case in rest if case not in validation],
        "validation": validation,
        "test": test,
    }
    for name, content in (("split.json", split), ("dataset.json", description)):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
