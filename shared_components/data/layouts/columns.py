"""Folders that tell files apart where names do not: one folder a case, one a channel, one mask file a class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared_components.data.formats.files import (
    images_by_stem,
    is_image_folder,
    read_json_object,
    subfolders,
    without_label_suffix,
)
from shared_components.data.layouts.dataset_json import named_channels
from shared_components.data.layouts.label_files import chosen_label, is_no_image
from shared_components.data.layouts.manifest import Manifest, Row
from shared_components.errors import InputError

LABEL_FOLDERS = ("labels", "masks", "mask", "label", "seg", "segmentation", "segmentations", "gt", "ground_truth")
_CLASS_FOLDERS = ("segmentations", "masks", "labels")
Channels = Sequence[str] | int | str | None


@dataclass(frozen=True)
class Columns:
    """A folder understood as a table: a row a case, a column a kind of file, as a manifest has it.

    Attributes:
        layout: "case folders" or "channel folders".
        manifest: the table.
        label_names: name to value, where the folder says.
        masks: case id to a mask file for each class of ``label_names``, ``None`` where a case has none.
    """

    layout: str
    manifest: Manifest
    label_names: dict[str, int]
    masks: Mapping[str, tuple[Path | None, ...]] | None = None


def channel_folders(root: Path, channels: Channels, label_column: str | None) -> Columns | None:
    """Understand ``flair/``, ``t1c/`` and ``seg/`` of equally named files, a folder a channel; else ``None``.

    The label's folder is ``label_column``, else the first of `LABEL_FOLDERS` that is there. The others are the channels
    that share a name with it, or those that ``channels`` names, which need no labels beside them.

    Raises:
        InputError: only some of the ``channels`` are there.
    """
    inside = {child.name: dict(images_by_stem(child)) for child in subfolders(root)}
    inside = {name: files for name, files in inside.items() if files}
    label = label_column if label_column in inside else next((name for name in LABEL_FOLDERS if name in inside), None)
    named = named_channels(channels)
    all_named = bool(named) and set(named) <= set(inside)
    if (label is None and not all_named) or (label_column and label != label_column):
        return None
    if label_column is None and any(map(is_image_folder, inside)):
        return None  # images/ beside labels/: a pair
    every_stem = {stem for name, files in inside.items() if name != label for stem in files}
    labels = dict(without_label_suffix(list(inside.get(label, {}).items()), every_stem))
    others = [name for name, files in inside.items() if name != label and set(files) & set(labels)]
    if not all_named and not set(named).isdisjoint(others):
        missing = next(name for name in named if name not in inside)
        raise InputError(f"{root}: no folder '{missing}'; there are {', '.join(others)}; {_choice(named)}")
    images = list(named) if all_named else _without_other_labels(others, label_column)
    if not images or not set.intersection(*(set(inside[name]) for name in images)):
        return None
    cases = sorted({stem for name in images for stem in inside[name]} | set(labels))
    rows = [Row(case, tuple(inside[name].get(case) for name in images), labels.get(case)) for case in cases]
    rest = tuple(name for name in inside if name not in (*images, label))
    return Columns("channel folders", _manifest(root, images, label, rest, rows), {})


def case_folders(root: Path, channels: Channels, label_column: str | None) -> Columns | None:
    """Understand a folder a case, such as ``patient_1/`` with ``ct.nii.gz`` and ``seg.nii.gz``; else ``None``.

    A column is a file's name without its suffix and without the folder's name before it (``BraTS_1/BraTS_1_flair`` is
    "flair"). The label's is ``label_column``, else the first whose name says so; or a folder ``segmentations/``,
    ``masks/`` or ``labels/`` in the case's holds one mask file a class. Channels are the columns that ``channels``
    names, else the others that most cases have. A ``labels.json`` of value to name beside the files names the labels.
    """
    others = [child for child in subfolders(root) if not is_image_folder(child.name)]
    folders = [child for child in others if child.name.lower() not in LABEL_FOLDERS]
    inside = {child: _by_column(child) for child in folders}
    inside = {child: files for child, files in inside.items() if files}
    counts = Counter(column for files in inside.values() for column in files)
    label = label_column if label_column in counts else None
    if label_column is None:
        label = chosen_label(counts)
    masks = {child: _class_masks(child) for child in inside} if label is None and label_column is None else {}
    named = named_channels(channels)
    if label is None and not any(masks.values()) and not set(named) & set(counts):
        return None
    images = _image_columns(root, named, counts, label, len(inside))
    if not images:
        return None
    rows = [
        Row(child.name, tuple(files.get(column) for column in images), files.get(label) if label else None)
        for child, files in inside.items()
    ]
    names = tuple(sorted({name for found in masks.values() for name in found}))
    by_case = {child.name: tuple(found.get(name) for name in names) for child, found in masks.items()}
    rest = tuple(column for column in sorted(counts) if column not in (*images, label))
    manifest = _manifest(root, images, label or (names and "a mask file a class") or None, rest, rows)
    label_names = {name: number for number, name in enumerate(names, 1)} or _label_names(inside)
    return Columns("case folders", manifest, label_names, by_case if names else None)


def masks_by_class(label_dir: Path) -> tuple[tuple[str, ...], dict[str, tuple[Path | None, ...]]] | None:
    """Understand ``masks/liver/``, ``masks/spleen/`` of files named as images: classes, and case id to their files."""
    if images_by_stem(label_dir):
        return None
    inside = {child.name: dict(images_by_stem(child)) for child in subfolders(label_dir)}
    inside = {name: files for name, files in inside.items() if files}
    if not inside:
        return None
    cases = sorted({stem for files in inside.values() for stem in files})
    return tuple(inside), {case: tuple(files.get(case) for files in inside.values()) for case in cases}


def _without_other_labels(names: Sequence[str], label_column: str | None) -> list[str]:
    if label_column and (images := [name for name in names if is_image_folder(name)]):
        return images[:1]
    return [name for name in names if name not in LABEL_FOLDERS and name != "instances"]


def _by_column(folder: Path) -> dict[str, Path]:
    found = {}
    for stem, path in images_by_stem(folder):
        rest = stem.removeprefix(folder.name)
        own = rest != stem and rest[:1] in ("_", "-", ".")  # not the "c" of "ct" in a folder "c"
        found["image" if not rest else rest.lstrip("_-.") or stem if own else stem] = path
    return found


def _class_masks(folder: Path) -> dict[str, Path]:
    return next((found for name in _CLASS_FOLDERS if (found := dict(images_by_stem(folder / name)))), {})


def _image_columns(
    root: Path, named: Sequence[str], counts: Mapping[str, int], label: str | None, num_cases: int
) -> list[str]:
    found = [column for column in sorted(counts) if column != label and not is_no_image(column)]
    found = [column for column in found if 2 * counts[column] > num_cases]
    if not named or (len(named) == len(found) == 1 and named[0] not in counts):
        return found
    if missing := [name for name in named if name not in counts]:
        there = ", ".join(sorted(counts))
        raise InputError(f"{root}: no file '{missing[0]}' in any case's folder; there are {there}; {_choice(named)}")
    return list(named)


def _choice(named: Sequence[str]) -> str:
    order = ", in this order," if len(named) > 1 else ""
    return f"name what the model takes as {', '.join(named)}{order} with --channels"


def _label_names(inside: Mapping[Path, Mapping[str, Path]]) -> dict[str, int]:
    """Return what files ``labels.json`` of value to name say together."""
    names: dict[str, int] = {}
    for folder in inside:
        file = folder / "labels.json"
        for value, name in (read_json_object(file) if file.is_file() else {}).items():
            if str(value).isdigit() and int(value) > 0:
                names[str(name)] = int(value)
    return dict(sorted(names.items(), key=lambda item: item[1]))


def _manifest(root: Path, images: Sequence[str], label: str | None, rest: tuple[str, ...], rows: list[Row]) -> Manifest:
    return Manifest(root, tuple(images), label, rest, rows, None, {}, [], _no_label(rest))


def _no_label(rest: Sequence[str]) -> str:
    others = f"; name the file or folder that is one with --label_column ({', '.join(rest)})" if rest else ""
    return f"no labels: no name beside the channels' is one of label maps{others}"
