"""Folders that are divided on the disk: one for training, one for testing, each with images and labels of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from shared_components.data.formats.files import subfolders
from shared_components.data.layouts.case_folder import Case, CaseFolder

_WORDS = {
    "train": re.compile(r"(?<![a-z])train(ing)?(?![a-z])"),
    "validation": re.compile(r"(?<![a-z])val(id(ation|ate)?)?(?![a-z])"),
    "test": re.compile(r"(?<![a-z])test(ing)?(?![a-z])"),
}
_NEW_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def part_folders(root: Path) -> dict[str, Path]:
    """Return the folders in ``root`` that a section's name stands in, such as ``Training`` or ``MoNuSegTestData``.

    Empty unless there is one for "train" and one for "test" (and at most one for "validation"), so that nothing is
    guessed. An archive that was unpacked into a folder of its own name is looked into.
    """
    found: dict[str, Path] = {}
    for child in _folders(root):
        words = _NEW_WORD.sub(" ", child.name).lower()
        named = [section for section, word in _WORDS.items() if word.search(words)]
        if len(named) > 1 or any(section in found for section in named):
            return {}
        found.update(dict.fromkeys(named, _unpacked(child)))
    return found if {"train", "test"} <= set(found) else {}


def with_part_names(parts: Mapping[str, CaseFolder]) -> dict[str, CaseFolder]:
    """Put the part's name before every id where two parts have a case of the same id, as is done for folders of images
    that lie one folder down.
    """
    ids = [case.id for part in parts.values() for case in part.cases]
    if len(set(ids)) == len(ids):
        return dict(parts)
    return {section: _renamed(part, f"{part.root.name}_") for section, part in parts.items()}


def joined_cases(parts: Mapping[str, CaseFolder]) -> tuple[list[Case], list[Case], dict[str, list[str]] | None]:
    """Return the labelled cases of all parts, the others, and the split that the parts are.

    Without labels for "test" there is no split: its images can be predicted only.
    """
    labelled = {section: part.cases for section, part in parts.items() if part.labelled}
    others = [case for part in parts.values() if not part.labelled for case in part.cases]
    cases = sorted((case for found in labelled.values() for case in found), key=lambda case: case.id)
    split = {section: [case.id for case in found] for section, found in labelled.items()}
    return cases, sorted(others, key=lambda case: case.id), split if "test" in split else None


def _renamed(part: CaseFolder, before: str) -> CaseFolder:
    cases = [replace(case, id=before + case.id) for case in part.cases]
    problems = [replace(problem, case=before + problem.case) for problem in part.problems if problem.case]
    return replace(part, cases=cases, problems=problems + [problem for problem in part.problems if not problem.case])


def _folders(root: Path) -> list[Path]:
    return [child for child in subfolders(root) if not child.name.startswith("_")]  # not __MACOSX


def _unpacked(folder: Path) -> Path:
    inside = _folders(folder)
    return inside[0] if [child.name for child in inside] == [folder.name] else folder
