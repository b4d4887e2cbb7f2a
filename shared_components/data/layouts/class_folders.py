"""Slices in a folder a class, the published layout of image-level labels; no image is read."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared_components.data.formats.files import images_by_stem
from shared_components.data.layouts.case_folder import Case, CaseFolder, Finding

NEGATIVE_WORDS = ("normal", "healthy", "negative", "absent", "no", "notumor", "no_tumor", "0")
POSITIVE_WORDS = (
    "tumor", "tumour", "positive", "present", "abnormal", "malignant", "benign", "lesion", "glioma", "meningioma",
    "yes", "1",
)  # fmt: skip
OUTLINES = "seg"
MASK_BESIDE = re.compile(r"(?P<image>.+)_mask(?:_\d+)?$", re.IGNORECASE)
_TRAINING, _VALIDATION, _TEST = ("training", "train"), ("validation", "validate", "val", "valid"), ("test", "testing")
_BELOW = ("", "flair", "flair/flair")
_NUMBER_OF_SLICE = re.compile(r"[_-]?(?:slice|z|s)?[_-]?\d+$", re.IGNORECASE)
_PATIENTS_BY = "the names of slices without their number"


@dataclass
class LabelledSlices:
    """What `find_labelled_slices` understood of a folder.

    Attributes:
        folder: its cases; ``label`` is the mask, if there is one.
        classes: case id to 0 (absent) or 1 (present), as folders or a manifest say. Where they do not, a case's mask
            does (`mask_class`).
        masks: case id to its masks, for cases that have several, which are united when loaded.
    """

    folder: CaseFolder
    classes: dict[str, int] = field(default_factory=dict)
    masks: dict[str, list[Path]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Slice:
    """An image of the published layout: its section, name, file, class and masks."""

    section: str
    stem: str
    image: Path
    label: int
    masks: list[Path]


def find_class_folders(dataset_dir: str | os.PathLike) -> LabelledSlices | None:
    """Find slices in the published layout of folders a class; ``None`` for a folder that has another.

    `shared_components.data.image_labels.find_labelled_slices` says what the layout is. What is ambiguous is left in the
    folder's ``problems``: names of which there are two, masks that two images could have.
    """
    root = Path(os.path.abspath(os.path.expanduser(dataset_dir)))
    found = (_published(root / below, root) for below in (_BELOW if root.is_dir() else ()))
    return next(filter(None, found), None)


def _published(folder: Path, root: Path) -> LabelledSlices | None:
    """Read the published layout, if ``folder`` has it."""
    parts = _parts(folder)
    if not parts:
        return None
    found = [_Slice(section, *file) for section, part in parts.items() for file in _files(part)]
    names = Counter((one.section, one.stem) for one in found)
    cases: dict[str, Case] = {}
    slices: dict[str, _Slice] = {}
    problems = [finding for part in parts.values() for finding in _unused(part)]
    for case, one in zip(_ids(found), found):
        mask = one.masks[0] if one.masks else None
        if case in cases:
            text = f"same name as {cases[case].images[0]}; rename one"
            problems.append(Finding("error", case, str(one.image), text, "duplicate_id"))
            continue
        if mask and mask.parent.name == OUTLINES and names[one.section, one.stem] > 1:
            text = "two images of different folders have its name; rename one of them, and the mask with its image"
            problems.append(Finding("error", case, str(mask), text, "ambiguous_mask"))
        cases[case], slices[case] = Case(case, (one.image,), mask), one
    if not cases:
        return None
    split: dict[str, list[str]] = {}
    for case, one in slices.items():
        split.setdefault(one.section, []).append(case)
    listed = [cases[case] for case in sorted(cases)]
    result = CaseFolder(root, "published", ("image",), {}, listed, split=None if "" in split else split)
    result.problems = problems
    result.groups, result.patient_rule = _patients(slices), _PATIENTS_BY
    several = {case: one.masks for case, one in slices.items() if len(one.masks) > 1}
    return LabelledSlices(result, {case: one.label for case, one in slices.items()}, several)


def _parts(folder: Path) -> dict[str, Path]:
    """Return section to folder, or "" to the folder itself where it is not divided; none for another layout.

    What is published for validation is the test section, unless there is a folder of tests too.
    """
    if not folder.is_dir():
        return {}
    if _class_folders(folder, NEGATIVE_WORDS) and _class_folders(folder, POSITIVE_WORDS):
        return {"": folder}
    train, validation, test = (_first(folder, names) for names in (_TRAINING, _VALIDATION, _TEST))
    if train is None or not _class_folders(train, POSITIVE_WORDS):
        return {}
    every = NEGATIVE_WORDS + POSITIVE_WORDS
    tests = [part for part in (validation, test) if part and any(map(images_by_stem, _class_folders(part, every)))]
    return {"train": train, **dict(zip(("validation", "test")[-len(tests) :] if tests else (), tests))}


def _unused(part: Path) -> Iterator[Finding]:
    """Yield a warning for each folder of images that lies beside those of the classes and is of none."""
    used = _class_folders(part, NEGATIVE_WORDS + POSITIVE_WORDS)
    for child in sorted(part.iterdir()):
        if child.is_dir() and child not in used and child.name != OUTLINES and (images := images_by_stem(child)):
            text = f"{len(images)} images in a folder of no class are not used; call it {OUTLINES} if they are masks"
            text += f", by one of {', '.join(NEGATIVE_WORDS[:-1])} or {', '.join(POSITIVE_WORDS[:-1])}, or leave it out"
            yield Finding("warning", "", str(child), text, "unused_folder")


def _ids(slices: Sequence[_Slice]) -> list[str]:
    """Return an id a slice: its name; where others have the same, its folder's before it, and the part's if need be."""
    ids = [one.stem for one in slices]
    for folders in (1, 2):
        count = Counter(ids)
        ids = [
            "_".join([*one.image.parts[-1 - folders : -1], one.stem]) if count[case] > 1 else case
            for case, one in zip(ids, slices)
        ]
    return ids


def _files(part: Path) -> Iterator[tuple[str, Path, int, list[Path]]]:
    """Yield name, image, class and masks of every slice of a part of the published layout."""
    drawn = dict(images_by_stem(part / OUTLINES))
    for label, words in enumerate((NEGATIVE_WORDS, POSITIVE_WORDS)):
        for folder in _class_folders(part, words):
            images = dict(images_by_stem(folder))
            beside: dict[str, list[Path]] = {}
            for stem in list(images):
                mask = MASK_BESIDE.match(stem)
                if mask and mask["image"] in images:
                    beside.setdefault(mask["image"], []).append(images.pop(stem))
            for stem, image in images.items():
                yield stem, image, label, [drawn[stem]] if stem in drawn else beside.get(stem, [])


def _class_folders(part: Path, words: Sequence[str]) -> list[Path]:
    """Return the folders of a part that are named by a word, whatever the case."""
    return sorted(child for child in part.iterdir() if _is_word(child.name, words) and child.is_dir())


def _is_word(name: str, words: Sequence[str]) -> bool:
    return name.lower() in words and not name.isdigit()


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    inside = {child.name.lower(): child for child in folder.iterdir() if child.name.lower() in names and child.is_dir()}
    return next((inside[name] for name in names if name in inside), None)


def _patients(slices: Mapping[str, _Slice]) -> dict[str, str]:
    """Guess the patients from the names of slices; none if all would be one.

    A guess that is the name of a class, or that all slices of a class share and no others, tells the class and not the
    patient (``tumor_001``, ``tumor_002``, ...): its slices have none, so each counts as a patient of its own.
    """
    guesses = {case: _NUMBER_OF_SLICE.sub("", one.stem) for case, one in slices.items()}
    members: dict[str, set[str]] = defaultdict(set)
    whole: dict[Hashable, set[str]] = defaultdict(set)
    of_part: dict[Hashable, set[str]] = defaultdict(set)
    for case, one in slices.items():
        members[guesses[case]].add(case)
        whole[one.label].add(case)
        whole[one.image.parent.name].add(case)
        of_part[one.section, one.image.parent.name].add(case)
    words = {*NEGATIVE_WORDS, *POSITIVE_WORDS, *(one.image.parent.name.lower() for one in slices.values())}

    def tells(guess: str) -> bool:
        numbered = any(letter.isdigit() for letter in guess)
        classes = [*whole.values(), *(() if numbered else of_part.values())]
        return guess.lower().strip(" _-") not in {"", *words} and members[guess] not in classes

    told = {guess for guess in members if tells(guess)}
    patients = {case: guess for case, guess in guesses.items() if guess in told}
    return patients if len(members) > 1 else {}
