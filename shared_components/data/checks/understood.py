"""A short table of what was understood of a data folder, to be seen before anything long starts."""

from __future__ import annotations

from collections.abc import Mapping

from shared_components.data.layouts.case_folder import TABLES
from shared_components.data.layouts.cases import CaseFolder
from shared_components.data.layouts.split import guess_patient_pattern, overlapping, sections

_SHOWN = 12


def overview(folder: CaseFolder, divided: bool = False) -> dict[str, str]:
    """Return what to say of a folder: a word and its text for each line.

    Args:
        folder: what was understood of it.
        divided: tell sections and patients of a folder without label maps too, whose images have labels.
    """
    without = "without labels" if folder.layout == "parts" else "in imagesTs"
    tests = f", {len(folder.unlabelled)} {without}" if folder.unlabelled else ""
    named = [f"{name} {value}" for name, value in folder.label_names.items()]
    labels = ", ".join(named[:_SHOWN]) + (f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else "")
    told = {
        "folder": str(folder.root),
        "layout": folder.layout,
        "cases": f"{len(folder.cases)}{tests}",
        "channels": ", ".join(folder.channels),
    }
    if folder.layout in TABLES:
        column = "column " if folder.layout == "manifest" else ""
        told["label in"] = f"{column}{folder.label_column}" if folder.label_column else f"no {column or 'file'}".strip()
    if folder.labelled:
        told["labels"] = labels or "not named; every whole number from 0 is accepted"
        if folder.ignored is not None:
            told["labels"] += f"; {folder.ignored} is ignored"
    if folder.labelled or divided:
        parts = sections(folder)
        counts = ", ".join(f"{section} {len(ids)}" for section, ids in parts.items())
        shared = overlapping(parts)
        told["split"] = f"{counts} ({split_source(folder)})" + (f"; {shared} repeats train" if shared else "")
        if folder.groups:
            told["patients"] = f"{len(set(folder.groups.values()))} ({folder.patient_rule})"
        elif pattern := guess_patient_pattern([case.id for case in folder.cases]):
            told["patients"] = f"each case is one; their ids look like fewer, by patient_pattern {pattern}"
    return told


def overview_text(folder: CaseFolder, more: Mapping[str, str] | None = None) -> str:
    """Return the table as lines of text, with ``more`` at its end."""
    return "".join(
        f"{name:<10}{value}\n" for name, value in {**overview(folder, more is not None), **(more or {})}.items()
    )


def split_source(folder: CaseFolder) -> str:
    """Tell what the sections follow from."""
    if folder.split is None:
        source = "by sorted patient" if folder.groups else "by sorted id"
    else:
        written = "the folders" if folder.layout in ("parts", "published") else "manifest.csv"
        source = "split.json" if (folder.root / "split.json").is_file() else written
    return source if folder.fold is None else f"{source}; validation: fold {folder.fold} of {folder.num_folds}"
