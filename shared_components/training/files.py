"""Weights on disk: written whole or not at all, read without running anything."""

from __future__ import annotations

import os
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from shared_components.errors import InputError


def save_atomically(content: Any, path: str | os.PathLike) -> Path:
    """`torch.save` to a temporary file, force it to the disk, then rename.

    Whatever moment the process is killed at, ``path`` holds the previous content or the new one, complete.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def load_safely(path: str | os.PathLike) -> Any:
    """`torch.load` of tensors and plain values only; nothing in the file is run.

    Raises:
        InputError: there is no such file, it is truncated or corrupt, or it holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected saved weights: train the bundle, or give --ckpt_path")
    try:
        _check_sums(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: holds more than tensors and was not loaded; save a plain state dict") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: truncated or corrupt; use an intact copy of the file") from error


def _check_sums(path: Path) -> None:
    """Compare the checksums that torch writes and does not read; files of the old format have none."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise zipfile.BadZipFile(f"{path}: wrong checksum")
