"""AdaptDiff's pickled data made into folders of pictures, without running anything in the file."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shared_components.errors import InputError
from shared_components.whole_files import whole_folder

logger = logging.getLogger(__name__)

IMAGES, MASKS = "_im", "_gt"


# What NumPy, old or new, builds an array of when it is read back, found without naming its private modules.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_SCALAR = np.float32(0).__reduce__()[0]
_FROM_BUFFER = np.empty(1).__reduce_ex__(5)[0]
_KNOWN = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _RECONSTRUCT for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _SCALAR for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FROM_BUFFER for core in ("core", "_core")},
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads containers, numbers, text and NumPy arrays; any other object in the file ends the reading."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise InputError(f"holds an object of {module}.{name}")
        return _KNOWN[module, name]


def read_pickled_arrays(source: str | os.PathLike) -> dict[str, list[np.ndarray]]:
    """Read a pickled dictionary of lists of NumPy arrays.

    Raises:
        InputError: there is no such file, it is no pickle or damaged, or it holds anything else; nothing in it is run.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the pickled dictionary")
    try:
        with open(path, "rb") as file:
            content = _ArrayUnpickler(file).load()
    except InputError as error:
        raise InputError(f"{path}: {error}; expected arrays alone; nothing in it was run, do not trust it") from None
    except Exception as error:
        raise InputError(f"{path}: not a readable pickle ({type(error).__name__}); get the file again") from error
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: holds a {type(content).__name__}, expected a dictionary of lists of arrays")
    arrays = {
        str(key): list(value) if isinstance(value, (list, tuple, np.ndarray)) else None
        for key, value in content.items()
    }
    for key, value in arrays.items():
        if value is None or not all(isinstance(item, np.ndarray) and item.dtype.kind in "fiub" for item in value):
            raise InputError(f"{path}: '{key}' is no list of arrays of numbers")
    return arrays


def import_pickle(source: str | os.PathLike, output_dir: str | os.PathLike) -> list[Path]:
    """Write each data set of a pickled dictionary as a folder of ``images/`` and ``masks/``.

    The layout of the published AdaptDiff: under ``<name>_im`` a list of (3, rows, columns) images in [0, 1], under
    ``<name>_gt`` their masks (rows, columns) of 0 and 1. Images become colour pictures of 8 bits, masks pictures of 0
    and 255. Which polarity the vessels have, the file does not say.

    Args:
        source: the file.
        output_dir: folder to make; must not exist.

    Returns:
        The folders made, one a data set.

    Raises:
        InputError: see `read_pickled_arrays`; a data set is incomplete, an array has another shape or range, or the
            folder exists.
    """
    target = Path(output_dir).expanduser()
    if target.exists():
        raise InputError(f"{target}: exists; remove it or name another output_dir")
    arrays = read_pickled_arrays(source)
    names = sorted(key[: -len(IMAGES)] for key in arrays if key.endswith(IMAGES))
    if not names:
        raise InputError(f"{source}: no entry ends in {IMAGES}; found {', '.join(sorted(arrays))}")
    with whole_folder(target) as folder:
        for name in names:
            _write_set(folder / name, name, arrays, str(source))
    logger.info("%s: %d data sets: %s", target, len(names), ", ".join(names))
    return [target / name for name in names]


def _write_set(folder: Path, name: str, arrays: Mapping[str, list[np.ndarray]], source: str) -> None:
    images, masks = arrays[name + IMAGES], arrays.get(name + MASKS)
    if masks is not None and len(masks) != len(images):
        raise InputError(f"{source}: '{name}' has {len(images)} images and {len(masks)} masks")
    for index, image in enumerate(images):
        if image.ndim != 3 or image.shape[0] != 3 or not (image.min() >= 0 and image.max() <= 1):
            raise InputError(
                f"{source}: image {index} of '{name}' has shape {image.shape} and values {image.min():g} to "
                f"{image.max():g}, expected (3, rows, columns) in 0..1"
            )
        pixels = np.round(255 * image.transpose(1, 2, 0).astype(np.float64)).astype(np.uint8)
        _save(pixels, folder / "images" / f"{name}_{index:03d}.png")
        if masks is None:
            continue
        if masks[index].shape != image.shape[1:]:
            raise InputError(
                f"{source}: mask {index} of '{name}' has shape {masks[index].shape}, its image {image.shape}"
            )
        _save(np.where(masks[index] > 0, 255, 0).astype(np.uint8), folder / "masks" / f"{name}_{index:03d}.png")


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
