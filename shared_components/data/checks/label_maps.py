"""What is said of the label maps of a folder together: labels that none has, and label maps taken for images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from shared_components.data.formats.files import is_image_folder
from shared_components.data.formats.scan import Labels
from shared_components.data.layouts.case_folder import CaseFolder, Finding


def label_maps_among_images(folder: CaseFolder, levels: Mapping[tuple[str, Path], set[int] | None]) -> list[Finding]:
    """Return an error for each file that looks like a label map beside an image, in a folder a case.

    Only folders of images alone are looked at, and in them only what lies one folder down: elsewhere a place or a name
    says what is an image.

    Args:
        folder: what was understood of the data.
        levels: case id and image file to the few whole numbers that it holds, ``None`` where it holds others
            (`shared_components.data.formats.scan.ValueScan`).
    """
    if folder.layout != "images":
        return []
    beside: dict[Path, list[tuple[str, Path, set[int] | None]]] = defaultdict(list)
    for (case, path), found in levels.items():
        if path.parent != folder.root and not is_image_folder(path.parent.name):
            beside[path.parent].append((case, path, found))
    findings = []
    for files in beside.values():
        images = [path.name for _, path, found in files if found is None]
        for case, path, found in files if images else []:
            if found is not None and len(found) > 1:
                text = f"{len(found)} whole numbers from {min(found)} to {max(found)}, beside {images[0]}: a label map?"
                text += " Name the files that are images with --channels, or put this one into another folder"
                findings.append(Finding("error", case, str(path), text, "label_map"))
    return findings


def absent_labels(folder: CaseFolder, labels: Labels, values: list[frozenset[int]]) -> list[Finding]:
    """Return a warning for each of several named labels that no mask has."""
    if not isinstance(labels, Mapping) or len(labels) < 2 or not any(found - {0} for found in values):
        return []
    masks = f"none of the {len(values)} masks has" if len(values) > 1 else "the one mask has not"
    text = "it cannot be learned, and its Dice is 1 where none is found"
    present = frozenset().union(*values)
    return [
        Finding("warning", "", str(folder.root), f"{masks} the label {value} ({name}): {text}", "absent_label")
        for name, value in labels.items()
        if value and value not in present
    ]
