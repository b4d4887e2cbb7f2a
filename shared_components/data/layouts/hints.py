"""Where images lie that are not where they are looked for."""

from __future__ import annotations

import os
from functools import cached_property
from itertools import islice
from pathlib import Path

from shared_components.data.formats.files import IMAGE_FOLDERS, PAIRED_LABEL_FOLDERS, image_files, is_series, label_stem

_FOLDERS_LOOKED_AT = 500
_NOT_READ = (
    ".mgz", ".mgh", ".img", ".hdr", ".dcm", ".par", ".webp", ".heic", ".jp2", ".svs", ".ndpi", ".npz", ".h5", ".hdf5",
    ".mat", ".pkl", ".zip",
)  # fmt: skip


def hint_at_images(root: Path) -> str:
    """Return what to add to the message that a folder holds no images; '' where none are found deeper in it either."""
    below = (child for pattern in ("*", "*/*") for child in root.glob(pattern) if _holds_data(child))
    inside = sorted(str(child.relative_to(root)) for child in below)
    if inside:
        return f"; did you mean {root / inside[0]}?"
    folders = (Path(path) for path, _, _ in os.walk(root))
    deeper = next((path for path in islice(folders, _FOLDERS_LOOKED_AT) if is_series(path) or image_files(path)), None)
    hint = f"; images lie deeper, in {deeper}: list them in a manifest.csv, or put them into one folder"
    return hint if deeper else ""


class NearMisses:
    """Files one folder down from a root that may be a missing one: of a kind that is not read, or of other capitals."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for file in sorted(self.root.glob("*/*")):
            stem = label_stem(file.name) or _stem_of_another_kind(file.name)
            if stem:
                found.setdefault(stem.lower(), []).append(file)
        return found

    def hint(self, case: str) -> str:
        """Return what to add to the message that a file of a case is missing; '' where there is nothing like it."""
        for file in self._files.get(case.lower(), []):
            stem = label_stem(file.name)
            if stem is None:
                return f"; {file.relative_to(self.root)} is of a kind that is not read: convert it"
            if stem != case:
                return f"; capitals count, and there is {file.relative_to(self.root)}"
        return ""


def _stem_of_another_kind(name: str) -> str | None:
    return next((name[: -len(suffix)] for suffix in _NOT_READ if name.lower().endswith(suffix)), None)


def _holds_data(folder: Path) -> bool:
    pairs = all(any((folder / name).is_dir() for name in names) for names in (IMAGE_FOLDERS, PAIRED_LABEL_FOLDERS))
    return pairs or (folder / "imagesTr").is_dir()
