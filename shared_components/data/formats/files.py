"""Files of a data set: which are images, and reading and writing JSON with errors a user can act on."""

from __future__ import annotations

import json
import os
import re
import threading
import unicodedata
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from shared_components.errors import InputError
from shared_components.whole_files import whole_file

NIFTI_SUFFIXES = (".nii.gz", ".nii")
VOLUME_SUFFIXES = NIFTI_SUFFIXES + (".nrrd", ".nhdr", ".mha", ".mhd")
TIFF_SUFFIXES = (".tif", ".tiff")
ARRAY_SUFFIXES = (".npy",)  # slices, read as pictures
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif") + TIFF_SUFFIXES + ARRAY_SUFFIXES
IMAGE_SUFFIXES = VOLUME_SUFFIXES + PICTURE_SUFFIXES
ANNOTATION_SUFFIXES = (".xml",)  # polygons, which can stand in for a label map

IMAGE_FOLDERS = ("images", "img", "Tissue Images", "CXR_png")
PAIRED_LABEL_FOLDERS = ("labels", "masks", "mask")
CHANNEL_SUFFIX = re.compile(r"^(.+)_(\d{4})$")
_LOOKED_AT = 10  # files of a folder that may be one of DICOM
_LABEL_SUFFIX = re.compile(r"_(segmentation|mask|seg|label|gt)$", re.IGNORECASE)

ITK_LOCK = threading.Lock()  # ITK loads its modules when first used, which threads must not do at the same time


class UnusableImage(Exception):
    """A file that holds no usable volume or picture; ``kind`` is a short stable word for the reason."""

    def __init__(self, message: str, kind: str = "unreadable") -> None:
        super().__init__(message)
        self.kind = kind


def last_line(error: Exception) -> str:
    """Return the last line of what an error says: of ITK's many the one with the reason."""
    return next((line for line in reversed(str(error).splitlines()) if line.strip()), "").strip()


def image_stem(name: str) -> str | None:
    """Return ``name`` without its image suffix, `composed`; ``None`` for a hidden file or one that is no image."""
    return _stem(name, IMAGE_SUFFIXES)


def label_stem(name: str) -> str | None:
    """Return ``name`` without its suffix as `image_stem` does, for a file that is an image or an annotation."""
    return _stem(name, IMAGE_SUFFIXES + ANNOTATION_SUFFIXES)


def label_suffix(name: str) -> str:
    """Return what `label_stem` takes off, as it is written; '' of a name without such a suffix."""
    stem = label_stem(name)
    return composed(name)[len(stem) :] if stem else ""


def composed(name: str) -> str:
    """Return a name whose accents are parts of their letters (NFC): some systems write them after the letter."""
    return unicodedata.normalize("NFC", name)


def _stem(name: str, suffixes: tuple[str, ...]) -> str | None:
    name = composed(name)
    if name.startswith("."):
        return None
    for suffix in suffixes:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return None


def is_image_folder(name: str) -> bool:
    """Tell whether a folder of this name holds the images, labels being beside it; however it is capitalised."""
    return name.lower() in {folder.lower() for folder in IMAGE_FOLDERS}


def image_files(folder: Path) -> list[Path]:
    """Return the image files directly in ``folder``, sorted by name; none if there is no such folder.

    Hidden files (and with them the ``._*`` companions that macOS writes) are left out, links are followed. A link to
    nothing is one of them too, so that a case does not vanish with what it links to. NumPy arrays count where there is
    no other image: beside images they hold something else, such as features.
    """
    if not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if image_stem(path.name) and (path.is_file() or _is_dead(path)))
    return [path for path in files if not path.name.lower().endswith(ARRAY_SUFFIXES)] or files


def _is_dead(link: Path) -> bool:
    return link.is_symlink() and not link.exists()


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in ``folder`` that are not hidden, sorted by name; none if there is no such folder."""
    inside = folder.iterdir() if folder.is_dir() else ()
    return sorted(child for child in inside if child.is_dir() and not child.name.startswith("."))


def images_by_stem(folder: Path) -> list[tuple[str, Path]]:
    """Return (name without suffix, file) of the `image_files` of a folder, and (name, folder) of DICOM series in it."""
    named = [(image_stem(path.name) or path.name, path) for path in image_files(folder)]
    below = sorted(folder.iterdir()) if folder.is_dir() else []
    return sorted(named + [(path.name, path) for path in below if is_series(path)])


def is_series(path: Path) -> bool:
    """Tell whether a path is a folder of DICOM files, by the first files in it: Thumbs.db may lie before them."""
    if not path.is_dir() or path.name.startswith("."):
        return False
    files = (file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith("."))
    first = list(islice(files, _LOOKED_AT))
    return not any(image_stem(file.name) for file in first) and any(map(_is_dicom, first))


def _is_dicom(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def without_label_suffix(labels: list[tuple[str, Path]], image_stems: Iterable[str]) -> list[tuple[str, Path]]:
    """Take a label's suffix such as ``_mask`` off its id where an image has the name without it."""
    known = _case_ids(image_stems)
    short = {stem: _LABEL_SUFFIX.sub("", stem) for stem, _ in labels}
    return [(short[stem] if stem not in known and short[stem] in known else stem, path) for stem, path in labels]


def labels_beside(files: Iterable[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Return the files that are called as another of them, but for a label's suffix such as ``_mask``."""
    files = list(files)
    known = _case_ids(stem for stem, _ in files)
    short = [_LABEL_SUFFIX.sub("", stem) for stem, _ in files]
    return [file for file, base in zip(files, short, strict=True) if base != file[0] and base in known]


def _case_ids(stems: Iterable[str]) -> set[str]:
    """Return names of images, also without the channel that nnU-Net has at their end."""
    names = set(stems)
    return {match.group(1) for match in map(CHANNEL_SUFFIX.match, names) if match} | names


def annotations_by_stem(folder: Path) -> list[tuple[str, Path]]:
    """Return (name without suffix, file) of the annotations (XML) directly in a folder; none if there is none."""
    if not folder.is_dir():
        return []
    named = ((label_stem(path.name), path) for path in sorted(folder.iterdir()) if not image_stem(path.name))
    return [(stem, path) for stem, path in named if stem and path.is_file()]


def read_json(path: Path) -> Any:
    """Read a JSON file, with or without a byte-order mark.

    Raises:
        InputError: the file cannot be read or is no JSON; the message has the line and column.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{path}: not valid JSON ({error.msg} at {where}); mend or remove the file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error}); mend or remove the file") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file whose top level must be an object.

    Raises:
        InputError: as `read_json`, or the top level is something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a JSON {type(content).__name__}, expected an object {{...}}")
    return content


def check_json_target(path: str | os.PathLike, option: str) -> Path:
    """Return ``path`` if a JSON file can be written there, so that a long run does not fail at its end.

    Raises:
        InputError: the name does not end in ``.json``, or its folder is missing or not writable.
    """
    target = Path(path).expanduser()
    if target.suffix.lower() != ".json":
        raise InputError(f"{option} {target}: expected a file name that ends in .json")
    if target.is_dir() or not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
        raise InputError(f"{option} {target}: cannot be written; give a file in an existing, writable folder")
    return target


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON in one step: a reader sees the old file or the whole new one."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
