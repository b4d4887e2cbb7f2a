"""Which cases train, validate and test, and whether one of them leaks into another section."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from shared_components.data.cases import Case, CaseFolder, Finding
from shared_components.data.dataset_json import SECTIONS

_BLOCK = 1 << 20


def sections(folder: CaseFolder) -> dict[str, list[str]]:
    """Return the sorted case ids of "train", "validation" and "test".

    With a ``split.json``, or a manifest's own split, its sections hold. Without one, every fifth case of the sorted
    ids is "test" (the fifth, the tenth, ...; the last one if there are fewer than five). A "validation" section that
    is not given is every eighth of the sorted "train" ids (the last one if there are fewer than eight), which
    "train" then leaves out. Where a manifest names the patients, patients are counted instead of cases, in the order
    of their first case, so that none lies in two sections. Nothing is drawn at random, so the sections of a folder are
    always the same. They contain incomplete cases too, so that mending or leaving out a case moves no other case to
    another section.
    """
    if folder.split is None:
        train, test = _every(sorted(case.id for case in folder.cases), 5, folder.groups)
        parts = {"train": train, "test": test}
    else:
        parts = dict(folder.split)
    if "validation" not in parts:
        parts["train"], parts["validation"] = _every(sorted(parts.get("train", [])), 8, folder.groups)
    return {section: sorted(parts.get(section, [])) for section in SECTIONS}


def _every(ids: list[str], step: int, groups: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Split off every ``step``-th id, or group of ids, at least one where there are two or more."""
    members: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for case in ids:
        members[("group", groups[case]) if case in groups else ("case", case)].append(case)
    units = list(members)
    chosen = units[step - 1 :: step] or (units[-1:] if len(units) > 1 else [])
    taken = {case for unit in chosen for case in members[unit]}
    return [case for case in ids if case not in taken], [case for case in ids if case in taken]


def find_leaks(folder: CaseFolder) -> list[Finding]:
    """Find what stands in two sections: a case by its id, a patient, or an image with the same content.

    Two image files have the same content if their bytes are the same, after decompression where compressed.
    Only files that agree in a short fingerprint (size and first bytes, or gzip's own checksum) are read
    whole.
    """
    leaks = []
    listed: dict[str, str] = {}
    for section, ids in (folder.split or {}).items():
        for case in ids:
            if listed.setdefault(case, section) != section:
                text = f"case {case} is in '{listed[case]}' and in '{section}'; leave it in one"
                leaks.append(Finding("error", case, str(folder.root / "split.json"), text, "leak"))
    place = {case: section for section, ids in sections(folder).items() for case in ids}
    leaks += _shared_groups(folder, place)
    for twins in _same_images([case for case in folder.cases if case.id in place]):
        first, file = twins[0]
        for other, other_file in twins[1:]:
            if other.id == first.id:
                continue
            same = f"same image as {file.name} of case {first.id}"
            if place[first.id] == place[other.id]:
                leaks.append(Finding("warning", other.id, str(other_file), same, "duplicate_image"))
            else:
                where = f"'{place[other.id]}', that one in '{place[first.id]}'"
                text = f"{same}; this one is in {where}; remove one"
                leaks.append(Finding("error", other.id, str(other_file), text, "leak"))
    return leaks


def _shared_groups(folder: CaseFolder, place: Mapping[str, str]) -> Iterator[Finding]:
    """Yield one error a patient whose cases lie in more than one section."""
    first: dict[str, str] = {}
    told = set()
    for case in sorted(place):
        group = folder.groups.get(case)
        if group is None or group in told:
            continue
        other = first.setdefault(group, case)
        if place[other] != place[case]:
            told.add(group)
            text = f"patient {group} is in '{place[other]}' ({other}) and in '{place[case]}'; leave all in one section"
            yield Finding("error", case, str(folder.root / "manifest.csv"), text, "leak")


def _same_images(cases: list[Case]) -> Iterator[list[tuple[Case, Path]]]:
    """Yield groups of two or more image files with the same content."""
    files = [(case, path) for case in cases for path in case.images]
    for group in _groups(files, _fingerprint):
        yield from _groups(group, _digest)


def _groups(files: list[tuple[Case, Path]], key: Callable[[Path], object]) -> Iterator[list[tuple[Case, Path]]]:
    groups: dict[object, list[tuple[Case, Path]]] = defaultdict(list)
    for case, path in files:
        try:
            groups[key(path)].append((case, path))
        except (OSError, EOFError, zlib.error):
            continue  # unreadable: reported by the check of the case itself
    return (group for group in groups.values() if len(group) > 1)


def _fingerprint(path: Path) -> tuple:
    """Return something cheap that files of the same content share."""
    with open(path, "rb") as file:
        head = file.read(4096)
        size = file.seek(0, 2)
        if head[:2] != b"\x1f\x8b":
            return size, head
        file.seek(max(0, size - 8))
        return ("gzip", file.read())


def _digest(path: Path) -> bytes:
    digest = hashlib.blake2b()
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rb") if compressed else open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.digest()
