"""Slices and stacks of them as NumPy arrays (``.npy``), read without running anything in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shared_components.data.formats.files import ARRAY_SUFFIXES, UnusableImage

_TOLERANCE = 1e-6
_WHITE = 255


def read_array(path: Path, is_label: bool = False) -> np.ndarray:
    """Read a slice of a ``.npy`` file as (rows, columns, channels) with 1 channel or 3.

    The array is (rows, columns), (rows, columns, 1 or 3) or (1, rows, columns). An image's floats go from 0 to 1, as
    the published CDM prepares them, and come out as float32 from 0 to 255, where pictures of 8 bits have them; whole
    numbers go to 255, those of uint16 to 65535; bool is black and white. A label map keeps its values.

    Raises:
        UnusableImage: the file is no single array of real numbers, is truncated, has another shape, or an image's
            values lie outside. Python objects in a file are never unpickled. NaN and infinities pass: what is done
            about them is for the caller.
    """
    array = _pixels(path)
    if array.dtype == bool:
        return array.astype(np.uint8) * (1 if is_label else _WHITE)
    if is_label:
        return array if array.dtype.kind == "f" else _whole(array, -(1 << 31), (1 << 31) - 1).astype(np.int32)
    if array.dtype.kind == "f":
        return _unit(array) * np.float32(_WHITE)
    return array if array.dtype == np.uint16 else _whole(array, 0, _WHITE).astype(np.uint8)


def is_stack(path: Path) -> bool:
    """Tell whether a file holds the slices of a volume with their labels, (slices, 2, rows, columns), by its header."""
    if not path.name.lower().endswith(ARRAY_SUFFIXES):
        return False
    try:
        array = _opened(path)
    except (UnusableImage, OSError):
        return False  # unreadable: `read_array` says why
    return array.ndim == 4 and array.shape[1] == 2


def read_stack(path: Path, is_label: bool = False) -> np.ndarray:
    """Read a volume (x, y, z) of a file of the published CDM's preparation: (slices, 2, rows, columns).

    The first channel is the image, of any values, the second the label map. Where the slices lie in space, such a file
    does not say.

    Raises:
        UnusableImage: as `read_array`, but for the values.
    """
    return np.array(_opened(path)[:, int(is_label)].T)


def _pixels(path: Path) -> np.ndarray:
    array = _opened(path)
    if array.ndim == 3 and array.shape[0] == 1 and array.shape[-1] not in (1, 3):
        array = array[0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3)):
        text = f"array of shape {array.shape}, expected one slice, (rows, columns) or (rows, columns, 1 or 3)"
        raise UnusableImage(f"{text}; save each slice in a file of its own", "rank")
    return np.array(array if array.ndim == 3 else array[..., None])


def _opened(path: Path) -> np.ndarray:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, OverflowError, SyntaxError) as error:
        if "Python objects" in str(error):
            text = "holds Python objects, which are never unpickled; save an array of numbers"
            raise UnusableImage(text, "dtype") from error
        with open(path, "rb") as file:
            head = file.read(16)
        raise UnusableImage(f"truncated/corrupt or no single NumPy array (starts {head!r}; {error})") from error
    if array.dtype.kind not in "biuf":
        raise UnusableImage(f"array of type {array.dtype}, expected real numbers", "dtype")
    if array.size == 0:
        raise UnusableImage(f"shape {array.shape}: holds no pixels", "zero_size")
    return array


def _whole(array: np.ndarray, low: int, high: int) -> np.ndarray:
    if array.min() < low or array.max() > high:
        text = f"whole numbers {array.min()} to {array.max()}, expected {low} to {high}"
        raise UnusableImage(f"{text}; scale the volume to 0..1 and save floats", "range")
    return array


def _unit(array: np.ndarray) -> np.ndarray:
    finite = array[np.isfinite(array)]
    if finite.size and (finite.min() < -_TOLERANCE or finite.max() > 1 + _TOLERANCE):
        text = f"floats {finite.min():g} to {finite.max():g}, expected 0 to 1"
        raise UnusableImage(f"{text}; scale the volume, all its slices alike, and save it again", "range")
    return np.where(np.isfinite(array), array.clip(0, 1), array).astype(np.float32)
