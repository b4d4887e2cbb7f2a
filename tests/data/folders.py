"""Data folders for tests, small and written file by file."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np

SHAPE = (6, 5, 4)
LABELS = {"0": "background", "1": "anterior", "2": "posterior"}


def some_image(number: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Return a float image that differs from number to number."""
    return np.random.default_rng(number).uniform(1, 100, shape).astype(np.float32)


def some_label(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Return a label map with the values 0, 1 and 2."""
    label = np.zeros(shape, np.uint8)
    label[1:3, 1:3, 1:3] = 1
    label[3:5, 1:3, 1:3] = 2
    return label


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write an array as NIfTI, 1 mm spacing unless told."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def msd_folder(root: Path, ids: list[str], **meta: object) -> Path:
    """Write an MSD folder of good cases; ``meta`` overrides ``dataset.json``."""
    for number, case in enumerate(ids):
        save(root / "imagesTr" / f"{case}.nii.gz", some_image(number))
        save(root / "labelsTr" / f"{case}.nii.gz", some_label())
    content = {"modality": {"0": "MRI"}, "labels": LABELS, **meta}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def case_names(count: int) -> list[str]:
    """Return ``count`` case ids, sorted."""
    return [f"case_{number:02d}" for number in range(count)]
