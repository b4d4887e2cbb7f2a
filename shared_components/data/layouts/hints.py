"""Where images lie that are not where they are looked for."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from shared_components.data.formats.files import IMAGE_FOLDERS, PAIRED_LABEL_FOLDERS, image_files, is_series

_FOLDERS_LOOKED_AT = 500


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


def _holds_data(folder: Path) -> bool:
    pairs = all(any((folder / name).is_dir() for name in names) for names in (IMAGE_FOLDERS, PAIRED_LABEL_FOLDERS))
    return pairs or (folder / "imagesTr").is_dir()
