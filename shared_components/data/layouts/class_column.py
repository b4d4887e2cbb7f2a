"""The image-level labels of a ``manifest.csv``: a column of words, "normal" or "tumor", for images or volumes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from shared_components.data.formats.files import composed, label_stem
from shared_components.data.layouts.case_folder import CaseFolder
from shared_components.data.layouts.class_folders import NEGATIVE_WORDS, POSITIVE_WORDS
from shared_components.data.layouts.manifest import CLASS_COLUMNS, Table, cell_path

_NAMED = 5
_WORDS = {**dict.fromkeys(NEGATIVE_WORDS, 0), **dict.fromkeys(POSITIVE_WORDS, 1)}


def manifest_words(folder: CaseFolder) -> tuple[str, dict[str, str]]:
    """Return the first of `CLASS_COLUMNS` whose cells are all words of a class, and case id to word, in lower case.

    A row without an id is known by its image; cells that are empty have no entry. Both are empty where there is no such
    column, or the folder's layout is another one.
    """
    if folder.layout != "manifest":
        return "", {}
    rows = Table(folder.root / "manifest.csv").rows
    ids = {file: case.id for case in folder.cases for file in case.images}
    for column in CLASS_COLUMNS:
        told = [row for row in rows if row.get(column)]
        if told and all(row[column].lower() in _WORDS for row in told):
            names = (composed(row.get("id", "")) or _id_by_image(row, folder.root, ids) for row in told)
            return column, {name: row[column].lower() for name, row in zip(names, told)}
    return "", {}


def unknown_words(folder: CaseFolder) -> str:
    """Say what a manifest's column of classes holds that is no word of a class; empty if it is all known, or paths."""
    if folder.layout != "manifest" or manifest_words(folder)[0]:
        return ""
    rows = Table(folder.root / "manifest.csv").rows
    for column in CLASS_COLUMNS:
        strange = sorted({row[column] for row in rows if (row.get(column) or "0").lower() not in _WORDS})
        if strange and not any(label_stem(Path(cell).name) for cell in strange):
            some = ", ".join(strange[:_NAMED]) + (" and others" if len(strange) > _NAMED else "")
            known = f"{', '.join(NEGATIVE_WORDS)} or {', '.join(POSITIVE_WORDS)}"
            return f"the column {column} holds {some}, expected {known}"
    return ""


def manifest_classes(folder: CaseFolder) -> dict[str, int]:
    """Return case id to 0 (object absent) or 1 (present), as `manifest_words` has them."""
    return {case: _WORDS[word] for case, word in manifest_words(folder)[1].items()}


def _id_by_image(row: Mapping[str, str], root: Path, ids: Mapping[Path, str]) -> str:
    files = (cell_path(root, cell) for cell in row.values())
    return next((ids[file] for file in files if file in ids), "")
