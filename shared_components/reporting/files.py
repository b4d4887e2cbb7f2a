"""Names of cases and labels, and output files that are whole or not there at all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared_components.errors import InputError
from shared_components.output_lock import lock_folder
from shared_components.whole_files import whole_file

_PICTURE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".gif", ".npy")
_IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", *_PICTURE_SUFFIXES)


def write_atomically(path: str | os.PathLike, data: bytes | str) -> Path:
    """Write ``data`` under a temporary name in the same folder, then give it its name.

    Raises:
        InputError: if the folder cannot be written to or is full.
    """
    path = Path(path)
    try:
        with whole_file(path) as temporary:
            temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another output_dir") from error
    return path


def claim_outputs(output_dir: str | os.PathLike, patterns: Sequence[str], overwrite: bool) -> Path:
    """Make the output folder, before any work is done, claim it for this process and see that it can be written to.

    Args:
        output_dir: made with its parents if it is not there.
        patterns: names (with wildcards) of the files that will be written.
        overwrite: whether such files may be there already.

    Raises:
        InputError: if the folder cannot be made or written to, another process writes to it, or it holds such a file
            and ``overwrite`` is off.
    """
    folder = Path(output_dir)
    lock_folder(folder)
    taken = sorted(path.name for pattern in patterns for path in folder.glob(pattern))
    if taken and not overwrite:
        raise InputError(
            f"output_dir {folder}: {taken[0]} is there already; choose another output_dir or set overwrite to true"
        )
    return folder


def file_of(*items: Any) -> str:
    """Return the file that the first of ``items`` with metadata (a `MetaTensor`) was read from, else ''."""
    for item in items:
        name = getattr(item, "meta", {}).get("filename_or_obj", "")
        name = name[0] if isinstance(name, (list, tuple)) and name else name
        if name:
            return str(name)
    return ""


def case_name(file: str) -> str:
    """Return the file's name without folder and image suffix: ``/data/case_1.nii.gz`` is ``case_1``."""
    name = os.path.basename(file)
    for suffix in _IMAGE_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def case_file(*items: Any) -> str:
    """Return the file that names a case: of the files that ``items`` were read from the one of the shortest name.

    A label may be called as its image with a suffix such as ``_segmentation``, an image as its label with a
    channel's ``_0000``. Of names of one length the first is taken; '' where there is no file.
    """
    return min(filter(None, map(file_of, items)), key=lambda file: len(case_name(file)), default="")


def is_picture(item: Any) -> bool:
    """Tell whether a (C, *spatial) image has pixels but no size: read from a picture or drawn from its annotation."""
    return item.ndim == 3 and file_of(item).lower().endswith((*_PICTURE_SUFFIXES, ".xml"))


def unique_name(name: str, taken: Mapping[str, Any] | set[str]) -> str:
    """Return ``name``, with a number where it is taken (two folders may hold files of the same name)."""
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    return candidate


def foreground_names(label_names: Mapping[Any, Any] | None, classes: int) -> dict[int, str]:
    """Return the name of every class but the background (0).

    Args:
        label_names: ``{"anterior": 1}`` or, as in a bundle's metadata, ``{"1": "anterior"}``; a class without
            a name is called ``class_<index>``.
        classes: number of classes with the background; 1, a label map, leaves it to the names.
    """
    names = {index: f"class_{index}" for index in range(1, max(classes, 2))}
    for key, value in (label_names or {}).items():
        index, name = (int(key), value) if str(key).lstrip("-").isdigit() else (int(value), key)
        if index > 0:
            names[index] = str(name)
    return dict(sorted(names.items()))
