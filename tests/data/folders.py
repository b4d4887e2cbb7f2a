"""Data folders for tests, small and written file by file."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

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
    (root / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def case_names(count: int) -> list[str]:
    """Return ``count`` case ids, sorted."""
    return [f"case_{number:02d}" for number in range(count)]


def some_picture(number: int = 0, shape: tuple[int, ...] = (10, 12, 3)) -> np.ndarray:
    """Return an 8-bit picture, (rows, columns[, 3]), that differs from number to number and in every direction."""
    return np.random.default_rng(number).integers(1, 255, shape).astype(np.uint8)


def some_mask(shape: tuple[int, int] = (10, 12)) -> np.ndarray:
    """Return a mask of 0 and 255, (rows, columns), off centre."""
    mask = np.zeros(shape, np.uint8)
    mask[1:5, 2:8] = 255
    return mask


def save_picture(path: Path, array: np.ndarray, **options: object) -> Path:
    """Write (rows, columns[, channels]) as the kind of picture that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def save_deep_png(path: Path, array: np.ndarray) -> Path:
    """Write (rows, columns, 2 to 4) uint16 as a 16-bit PNG, which Pillow cannot."""
    rows, columns, components = array.shape
    kind = {2: 4, 3: 2, 4: 6}[components]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", columns, rows, 16, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def picture_folder(root: Path, count: int, mask_suffix: str = "") -> Path:
    """Write ``images/`` and ``masks/`` of good colour pictures."""
    for number, case in enumerate(case_names(count)):
        save_picture(root / "images" / f"{case}.png", some_picture(number))
        save_picture(root / "masks" / f"{case}{mask_suffix}.png", some_mask())
    return root
