"""Which cases train, validate and test, and whether one of them leaks into another section."""

from __future__ import annotations

import gzip
import hashlib
import random
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from shared_components.data.formats.files import UnusableImage
from shared_components.data.formats.scan import scan_values
from shared_components.data.formats.volumes import open_volume
from shared_components.data.layouts.cases import Case, CaseFolder, Finding
from shared_components.data.layouts.dataset_json import SECTIONS
from shared_components.data.layouts.lung_folds import published_lung_split
from shared_components.errors import InputError

_BLOCK = 1 << 20
_FOLD_SEED = 0
_PATIENT_PATTERNS = (
    r"^(.+?)[_-](?:slice|frame|tile|img|sl|s|z|f|t)[_-]?\d+$",  # a picture of a volume, a video or a slide
    r"^(.+?)[_-]?(?:left|right|L|R|OD|OS)$",  # one of two eyes or sides
)


def sections(folder: CaseFolder) -> dict[str, list[str]]:
    """Return the sorted case ids of "train", "validation" and "test".

    With a ``split.json``, or a manifest's own split, its sections hold. Without one, every fifth case of the sorted
    ids is "test" (the fifth, the tenth, ...; the last one if there are fewer than five). A "validation" section that
    is not given is every eighth of the sorted "train" ids (the last one if there are fewer than eight), which
    "train" then leaves out. Where patients are named (`group_patients`, a manifest), they are counted instead of
    cases, in the order of their first case, so that none lies in two sections. Nothing is drawn at random, so the
    sections of a folder are always the same. They contain incomplete cases too, so that mending or leaving out a case
    moves no other case to another section.

    With ``folder.fold``, what is not "test" is dealt to ``folder.num_folds`` parts of whole patients, in an order that
    a constant seed gives: part ``fold`` is "validation", the rest "train"; a "validation" that is given is dealt again.
    Every patient is thus in "validation" in one of the folds. Where there are fewer patients than folds, each is a part
    of its own, and a single one both trains and validates (and tests, if it is all there is): `overlapping` says so.

    Raises:
        InputError: there is no such fold.
    """
    if folder.split is None:
        train, test = _every(sorted(case.id for case in folder.cases), 5, folder.groups)
        parts = {"train": train, "test": test}
    else:
        parts = dict(folder.split)
    if folder.fold is not None:
        parts = _dealt(folder, parts)
    elif "validation" not in parts:
        parts["train"], parts["validation"] = _every(sorted(parts.get("train", [])), 8, folder.groups)
    return {section: sorted(parts.get(section, [])) for section in SECTIONS}


def overlapping(parts: Mapping[str, Sequence[str]]) -> str:
    """Tell which sections hold cases that are trained on, for want of patients; empty if none does."""
    shared = [name for name in ("validation", "test") if set(parts[name]) & set(parts["train"])]
    return " and ".join(shared)


def group_patients(folder: CaseFolder, patient_pattern: str) -> None:
    """Group a folder's cases by patient: those with the same text where a pattern matches their id.

    Args:
        folder: its ``groups``, ``patient_rule`` and ``patient_pattern`` are replaced.
        patient_pattern: regular expression that is searched in each id; the patient is its first group, or the whole
            match if it has none. A case that it does not match is a patient of its own.

    Raises:
        InputError: it is no regular expression, or matches no case.
    """
    try:
        pattern = re.compile(patient_pattern)
    except re.error as error:
        raise InputError(f"patient_pattern {patient_pattern!r}: no regular expression ({error})") from error
    matches = {case.id: pattern.search(case.id) for case in folder.cases}
    found = {case: match for case, match in matches.items() if match}
    if not found:
        some = next(iter(matches), "none")
        raise InputError(
            f"patient_pattern {patient_pattern!r}: matches none of the {len(matches)} case ids, such as {some}; "
            r"write one that finds the patient in them, such as ^(\w+)_\d+$"
        )
    folder.groups = {case: match.group(1 if pattern.groups else 0) for case, match in found.items()}
    folder.patient_rule, folder.patient_pattern = f"case ids, by {patient_pattern}", patient_pattern


def choose_split(
    folder: CaseFolder,
    fold: int | None,
    num_folds: int,
    patient_pattern: str | None,
    published_fold: int | None = None,
) -> None:
    """Set how a folder is divided, as the keys of a training configuration say: `sections` and `group_patients`.

    A ``published_fold`` (`published_lung_split`) comes before any other split.

    Raises:
        InputError: as `group_patients` and `published_lung_split`.
    """
    if published_fold is not None:
        folder.split = published_lung_split(folder, published_fold)
    folder.fold, folder.num_folds = fold, num_folds
    if patient_pattern is not None:
        group_patients(folder, patient_pattern)


def guess_patient_pattern(ids: Sequence[str]) -> str | None:
    """Return a pattern for `group_patients` if all ids look like parts of patients, as ``spleen_03_s019`` does."""
    for text in _PATIENT_PATTERNS:
        matches = [re.match(text, case) for case in ids]
        if ids and all(matches):
            patients = {match.group(1) for match in matches if match}
            if 1 < len(patients) < len(ids):
                return text
    return None


def _dealt(folder: CaseFolder, parts: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Divide what is not tested into "train" and the "validation" of a fold."""
    fold, wanted = folder.fold, folder.num_folds
    if not isinstance(wanted, int) or wanted < 2:
        raise InputError(f"num_folds is {wanted!r}; expected a whole number of at least 2")
    if not isinstance(fold, int) or not 0 <= fold < wanted:
        raise InputError(f"fold is {fold!r}; expected a whole number from 0 to {wanted - 1}, or none")
    units = list(_by_patient(sorted({*parts.get("train", []), *parts.get("validation", [])}), folder.groups).values())
    random.Random(_FOLD_SEED).shuffle(units)
    num_folds = min(wanted, len(units))
    if fold >= max(1, num_folds):
        raise InputError(f"{folder.root}: fold {fold} of {wanted}, but there are {len(units)} patients to divide")
    validation = [case for unit in units[fold::num_folds] for case in unit] if units else []
    train = [case for unit in units for case in unit if len(units) == 1 or case not in set(validation)]
    alone = folder.split is None and len(units) == 1 and not parts.get("test")
    return {"train": train, "validation": validation, "test": train if alone else parts.get("test", [])}


def _by_patient(ids: Sequence[str], groups: Mapping[str, str]) -> dict[tuple[str, ...], list[str]]:
    members: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for case in ids:
        members[("group", groups[case]) if case in groups else ("case", case)].append(case)
    return members


def _every(ids: list[str], step: int, groups: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Split off every ``step``-th id, or group of ids, at least one where there are two or more."""
    members = _by_patient(ids, groups)
    units = list(members)
    chosen = units[step - 1 :: step] or (units[-1:] if len(units) > 1 else [])
    taken = {case for unit in chosen for case in members[unit]}
    return [case for case in ids if case not in taken], [case for case in ids if case in taken]


def find_leaks(folder: CaseFolder) -> list[Finding]:
    """Find what stands in two sections: a case by its id, a patient, or an image with the same content.

    Two image files have the same content if their bytes are the same, after decompression where compressed.
    Only files that agree in a short fingerprint (size and first bytes, or gzip's own checksum) are read
    whole. Images of one value, such as empty slices or a sequence that was not taken, tell nothing of each other.
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
            file = {"manifest": "manifest.csv", "published": "."}.get(folder.layout, "split.json")
            yield Finding("error", case, str(folder.root / file), text, "leak")


def _same_images(cases: list[Case]) -> Iterator[list[tuple[Case, Path]]]:
    """Yield groups of two or more image files with the same content."""
    files = [(case, path) for case in cases for path in case.images]
    for group in _groups(files, _fingerprint):
        yield from (twins for twins in _groups(group, _digest) if not _is_constant(twins[0][1]))


def _is_constant(path: Path) -> bool:
    for spatial_dims in (3, 2):
        try:
            with open_volume(path, spatial_dims) as volume:
                scan = scan_values(volume)
        except UnusableImage:
            continue
        return len(scan.constant_channels()) == len(scan.ranges)
    return False


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
