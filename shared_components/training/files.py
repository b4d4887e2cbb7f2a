"""Weights on disk: written whole or not at all, read without running anything."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from shared_components.errors import InputError
from shared_components.whole_files import whole_file


def save_atomically(content: Any, path: str | os.PathLike) -> Path:
    """`torch.save` to a temporary file, force it to the disk, then rename.

    Whatever moment the process is killed at, ``path`` holds the previous content or the new one, complete.

    Raises:
        InputError: the folder cannot be written to or is full; what was there before stays.
    """
    path, disk = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary, open(temporary, "wb") as file:
            disk = _Disk(file)
            torch.save(content, disk)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        cause = (disk and disk.error) or error
        if not isinstance(cause, OSError):
            raise
        raise InputError(
            f"{path}: cannot be written ({cause.strerror}); free some space or choose another output_dir"
        ) from error
    return path


class _Disk:
    """A file that remembers what the system said: torch raises an error of its own for it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


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
        raise InputError(
            f"{path}: holds more than tensors, or no weights at all, and was not loaded; save a plain state dict"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        what = f" ({error})" if isinstance(error, _WrongSum) else ""
        raise InputError(f"{path}: truncated or corrupt{what}; use an intact copy of the file") from error


def load_state_dict(path: str | os.PathLike) -> dict[str, Tensor]:
    """Load a flat state dict by `load_safely`.

    Raises:
        InputError: as there, or the file holds something else than named tensors.
    """
    weights = load_safely(path)
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        found = f"the keys {list(weights)[:3]}" if isinstance(weights, dict) else type(weights).__name__
        raise InputError(f"{path}: not a flat state dict of tensors, found {found}; expected such as models/model.pt")
    return weights


class _WrongSum(ValueError):
    pass


def _check_sums(path: Path) -> None:
    """Compare the checksums that torch writes and does not read; files of the old format have none."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if (member := archive.testzip()) is not None:
                raise _WrongSum(f"the checksum of its part {member} does not match")
