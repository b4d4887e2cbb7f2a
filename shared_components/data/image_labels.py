"""Slices with an image-level label each, "object absent" or "present", found in a folder without a flag."""

from __future__ import annotations

import csv
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from shared_components.data.cases import Case, CaseFolder, Finding, find_cases
from shared_components.data.check import check_cases, describe, usual_spatial_dims
from shared_components.data.datalists import note_left_out
from shared_components.data.dataset_json import SECTIONS
from shared_components.data.files import images_by_stem
from shared_components.data.loaders import LoadLabelMapd
from shared_components.data.slice_transforms import object_pixels
from shared_components.data.split import choose_split, find_leaks, sections
from shared_components.errors import InputError

logger = logging.getLogger(__name__)

NEGATIVE_WORDS = ("normal", "healthy", "negative", "absent", "0")
POSITIVE_WORDS = ("tumor", "tumour", "positive", "present", "abnormal", "malignant", "benign", "lesion", "1")
CLASS_COLUMNS = ("class", "image_label", "label")
_TRAINING, _TEST = ("training", "train"), ("validation", "validate", "test", "testing")
_BELOW = ("", "flair", "flair/flair")
_MASK_BESIDE = re.compile(r"(?P<image>.+)_mask(?:_\d+)?$", re.IGNORECASE)
_NUMBER_OF_SLICE = re.compile(r"[_-]?(?:slice|z|s)?[_-]?\d+$", re.IGNORECASE)
_NAMED_IN_MESSAGE = 3
_PATIENT_HINT = (
    r"; --patient_pattern says where the names have the patient, such as '^(\w+)_\d+$', or '.+' if each is another one"
)
_ABOUT_LABELS = ("no_label", "no_image", "not_listed", "no_section", "no_label_column")


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


def find_labelled_slices(
    dataset_dir: str | os.PathLike, channels: Sequence[str] | int | None = None, label_column: str | None = None
) -> LabelledSlices:
    """Find slices and their image-level labels; no image is read.

    Understood are, in this order:

    * the published layout: folders ``training/`` and ``validation/`` (or ``validate/``), directly or in ``flair/`` or
      ``flair/flair/``, each with ``normal/`` and ``tumor/`` (or other `NEGATIVE_WORDS` and `POSITIVE_WORDS`, several
      of a kind too, as ``benign/`` and ``malignant/``) and perhaps ``seg/`` with equally named masks, or masks
      ``NAME_mask``, ``NAME_mask_1``, ... beside an image ``NAME``; what is under ``validation/`` is the test section.
      Or these folders directly;
    * ``manifest.csv`` with a column of `CLASS_COLUMNS` that holds such words;
    * every layout of `shared_components.data.cases.find_cases` with masks: the label follows from the mask.

    In the published layout the patient is the file's name without the number of the slice at its end, so that no
    patient comes to lie in two sections; where that is the name of a class only (``tumor_001``), every slice is a
    patient of its own. Images of one name in several folders have these folders' names in their ids.

    Args:
        dataset_dir: the folder.
        channels, label_column: of `find_cases`.

    Raises:
        InputError: there is no such folder, it holds nothing usable, or neither labels nor masks.
    """
    root = Path(os.path.abspath(os.path.expanduser(dataset_dir)))
    for below in _BELOW if root.is_dir() else ():
        published = _published(root / below, root)
        if published:
            return published
    folder = find_cases(root, channels, label_column)
    classes = _manifest_classes(folder) if folder.layout == "manifest" else {}
    unknown = [case.id for case in folder.cases if case.id not in classes and case.label is None]
    if not classes and len(unknown) == len(folder.cases):
        raise InputError(
            f"{root}: no image-level labels; expected folders normal/ and tumor/, a manifest.csv with a column "
            f"{', '.join(CLASS_COLUMNS)} of such words, or masks that the labels follow from"
        )
    return LabelledSlices(folder, classes)


def slice_list(
    dataset_dir: str | os.PathLike,
    section: str,
    values: Sequence[int] = (1,),
    channels: Sequence[str] | None = None,
    label_column: str | None = None,
    min_pixels: int = 1,
    skip_bad: bool = False,
    fold: int | None = None,
    num_folds: int = 5,
    patient_pattern: str | None = None,
    masks: bool = False,
) -> list[dict[str, Any]]:
    """List the slices of a section for a MONAI dataset, after checking every image.

    The sections are those of ``split.json``, of the manifest or of the published layout, or follow from the patients
    (`shared_components.data.split.sections`). The training section has no masks in it: training sees image-level labels
    alone.

    Args:
        dataset_dir: as in `find_labelled_slices`.
        section: "train", "validation" or "test".
        values: values of a mask that are the object; white (255) always is.
        channels, label_column: as in `find_labelled_slices`.
        min_pixels: of the object, from which on a mask makes a slice positive. Slices with fewer, but some, are left
            out of training and count as negative elsewhere.
        skip_bad: leave out slices with errors, with a warning, instead of refusing the section.
        fold, num_folds, patient_pattern: of `shared_components.data.datalists.datalist`.
        masks: whether the training section has its masks after all, for a network that learns from outlines.

    Returns:
        ``[{"image": path or paths, "class": 0 or 1, "patient": name}, ...]`` sorted by id, with ``"label": path`` where
        there is a mask and the section is not "train", or ``masks`` is set; of several masks the paths, which
        `LoadLabelMapd` unites if told so.

    Raises:
        InputError: the section is unknown, empty or has slices of one class only in training; the folder holds volumes;
            an image has an error and ``skip_bad`` is not set; a patient or an image is in two sections.
    """
    if section not in SECTIONS:
        raise InputError(f"section '{section}': expected one of {', '.join(SECTIONS)}")
    found = find_labelled_slices(dataset_dir, channels, label_column)
    folder = found.folder
    if usual_spatial_dims(folder.cases) == 3:
        raise InputError(f"{folder.root}: volumes; make slices of them by python -m shared_components prepare_slices")
    choose_split(folder, fold, num_folds, patient_pattern)
    hint = _PATIENT_HINT if folder.layout == "published" and patient_pattern is None else ""
    _refuse(folder, [finding for finding in find_leaks(folder) if finding.level == "error"], hint)
    alone = len(folder.cases) - len(folder.groups)
    if hint and alone and section == "train":
        logger.warning("%s: the names of %d slices tell no patient, each counts as one%s", folder.root, alone, hint)
    chosen = set(sections(folder)[section])
    cases = _usable(folder, [case for case in folder.cases if case.id in chosen], channels, skip_bad)
    items = [item for case in cases if (item := _item(case, found, section, values, min_pixels)) is not None]
    if section == "train" and not masks:
        for item in items:
            item.pop("label", None)
    kinds = {item["class"] for item in items}
    if not items or (section == "train" and kinds != {0, 1}):
        count = f"{sum(item['class'] for item in items)} positive ones of {len(items)}"
        wanted = "expected some of either class"
        raise InputError(f"{folder.root}: section '{section}' has {count} slices; {wanted}{hint}")
    return items


def has_masks(items: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every positive slice of a list has a mask, so that masks can be scored."""
    return all("label" in item for item in items if item.get("class", 1) == 1)


def mask_class(
    mask: str | os.PathLike | Sequence[str | os.PathLike], values: Sequence[int], min_pixels: int = 1
) -> int | None:
    """Return the image-level label that follows from a mask; ``None`` if fewer than ``min_pixels`` show the object.

    A mask may be several files, which are united.
    """
    files = str(mask) if isinstance(mask, (str, os.PathLike)) else [str(file) for file in mask]
    loaded = LoadLabelMapd("label", labels=values, united=True)({"label": files})["label"].as_tensor()
    count = int(object_pixels(loaded, values).sum())
    return 0 if count == 0 else 1 if count >= min_pixels else None


class ImageLabelFromMaskd(MapTransform):
    """Add the image-level label that follows from a case's mask file, where the case has none: in MONAI Label.

    To be used before loading. Any pixel of the object makes the case a positive one (`mask_class`).

    Args:
        keys: entry of the mask's path, which stays as it is.
        values: values of a mask that are the object; white (255) always is.
        class_key: the image-level label that is added, 0 or 1.
    """

    def __init__(self, keys: KeysCollection, values: Sequence[int] = (1,), class_key: str = "class") -> None:
        super().__init__(keys)
        self.values, self.class_key = tuple(values), class_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the label to ``data``."""
        result = dict(data)
        for key in self.key_iterator(result):
            result.setdefault(self.class_key, mask_class(result[key], self.values))
        return result


def _item(
    case: Case, found: LabelledSlices, section: str, values: Sequence[int], min_pixels: int
) -> dict[str, Any] | None:
    label = found.classes.get(case.id)
    if label is None:
        label = mask_class(case.label, values, min_pixels) if case.label else None
        if label is None and section == "train":
            return None
    item = {**case.datalist_item(), "class": label or 0, "patient": found.folder.groups.get(case.id, case.id)}
    if case.id in found.masks:
        item["label"] = [str(mask) for mask in found.masks[case.id]]
    return item


def _usable(folder: CaseFolder, cases: list[Case], channels: Sequence[str] | None, skip_bad: bool) -> list[Case]:
    images = [Case(case.id, case.images) for case in cases]
    findings = check_cases(folder, images, None, len(channels) if channels else 1, spatial_dims=2)
    errors = [finding for finding in findings if finding.level == "error" and finding.kind not in _ABOUT_LABELS]
    if errors and not skip_bad:
        _refuse(folder, errors)
    bad = {error.case for error in errors}
    if bad:
        logger.warning("%s: %d of %d slices are left out, they have errors", folder.root, len(bad), len(cases))
        note_left_out(folder, errors)
    return [case for case in cases if case.id not in bad and case.images]


def _refuse(folder: CaseFolder, errors: Sequence[Finding], hint: str = "") -> None:
    if errors:
        named = "; ".join(describe(error, folder.root) for error in errors[:_NAMED_IN_MESSAGE])
        more = f"; and {len(errors) - _NAMED_IN_MESSAGE} more" if len(errors) > _NAMED_IN_MESSAGE else ""
        raise InputError(f"{folder.root}: {named}{more}; correct them{hint}")


def _published(folder: Path, root: Path) -> LabelledSlices | None:
    """Read the published layout, if ``folder`` has it."""
    parts = {"train": _first(folder, _TRAINING), "test": _first(folder, _TEST)}
    if _class_folders(folder, NEGATIVE_WORDS) and _class_folders(folder, POSITIVE_WORDS):
        parts = {"": folder}
    elif parts["train"] is None or not _class_folders(parts["train"], POSITIVE_WORDS):
        return None
    found = [_Slice(section, *file) for section, part in parts.items() if part for file in _files(part)]
    names = Counter((one.section, one.stem) for one in found)
    cases: dict[str, Case] = {}
    slices: dict[str, _Slice] = {}
    problems: list[Finding] = []
    for case, one in zip(_ids(found), found):
        mask = one.masks[0] if one.masks else None
        if case in cases:
            text = f"same name as {cases[case].images[0]}; rename one"
            problems.append(Finding("error", case, str(one.image), text, "duplicate_id"))
            continue
        if mask and mask.parent.name == "seg" and names[one.section, one.stem] > 1:
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
    result.groups = _patients(slices)
    _refuse(result, problems)
    several = {case: one.masks for case, one in slices.items() if len(one.masks) > 1}
    return LabelledSlices(result, {case: one.label for case, one in slices.items()}, several)


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
    drawn = dict(images_by_stem(part / "seg"))
    for label, words in enumerate((NEGATIVE_WORDS, POSITIVE_WORDS)):
        for folder in _class_folders(part, words):
            images = dict(images_by_stem(folder))
            beside: dict[str, list[Path]] = {}
            for stem in list(images):
                mask = _MASK_BESIDE.match(stem)
                if mask and mask["image"] in images:
                    beside.setdefault(mask["image"], []).append(images.pop(stem))
            for stem, image in images.items():
                yield stem, image, label, [drawn[stem]] if stem in drawn else beside.get(stem, [])


def _class_folders(part: Path, words: Sequence[str]) -> list[Path]:
    return [part / word for word in words if not word.isdigit() and (part / word).is_dir()]


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


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


def _manifest_classes(folder: CaseFolder) -> dict[str, int]:
    """Read the image-level labels of a ``manifest.csv`` by id; a row without one is known by its image."""
    lines = (folder.root / "manifest.csv").read_text(encoding="utf-8-sig").splitlines()
    separator = max(",;\t", key=lines[0].count)
    reader = csv.DictReader(lines, delimiter=separator)
    rows = [{key.strip(): cell.strip() for key, cell in row.items() if key and cell} for row in reader]
    ids = {file: case.id for case in folder.cases for file in case.images}
    words = {**dict.fromkeys(NEGATIVE_WORDS, 0), **dict.fromkeys(POSITIVE_WORDS, 1)}
    for column in CLASS_COLUMNS:
        cells = [row[column].lower() for row in rows if row.get(column)]
        if cells and all(cell in words for cell in cells):
            return {
                row.get("id") or _id_by_image(row, folder.root, ids): words[row[column].lower()]
                for row in rows
                if row.get(column)
            }
    return {}


def _id_by_image(row: Mapping[str, str], root: Path, ids: Mapping[Path, str]) -> str:
    files = (root / cell.replace("\\", "/") for cell in row.values())
    return next((ids[file] for file in files if file in ids), "")
