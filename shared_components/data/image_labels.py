"""Slices with an image-level label each, "object absent" or "present", found in a folder without a flag."""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from shared_components.data.checks.cases import check_cases, usual_spatial_dims
from shared_components.data.datalists import note_left_out, refuse_ignored
from shared_components.data.layouts.case_folder import describe, describe_some
from shared_components.data.layouts.cases import Case, CaseFolder, Finding, find_cases
from shared_components.data.layouts.class_column import manifest_classes, unknown_words
from shared_components.data.layouts.class_folders import LabelledSlices, find_class_folders
from shared_components.data.layouts.dataset_json import SECTIONS
from shared_components.data.layouts.manifest import CLASS_COLUMNS
from shared_components.data.layouts.split import choose_split, find_leaks, sections
from shared_components.data.loaders import LoadLabelMapd
from shared_components.data.slice_transforms import object_pixels
from shared_components.errors import InputError

logger = logging.getLogger(__name__)

_PATIENT_HINT = (
    r"; --patient_pattern says where the names have the patient, such as '^(\w+)_\d+$', or '.+' if each is another one"
)
_ABOUT_LABELS = ("no_label", "no_image", "not_listed", "no_section", "no_label_column")


def find_labelled_slices(
    dataset_dir: str | os.PathLike, channels: Sequence[str] | int | None = None, label_column: str | None = None
) -> LabelledSlices:
    """Find slices and their image-level labels; no image is read.

    Understood are, in this order:

    * the published layout: folders ``training/`` and ``validation/`` (or ``validate/``), directly or in ``flair/`` or
      ``flair/flair/``, each with ``normal/`` and ``tumor/`` (or other `NEGATIVE_WORDS` and `POSITIVE_WORDS`, several
      of a kind too, as ``benign/`` and ``malignant/``, whatever the case) and perhaps ``seg/`` with equally named
      masks, or masks ``NAME_mask``, ``NAME_mask_1``, ... beside an image ``NAME``; what is under ``validation/`` is the
      test section, unless there is ``test/`` too. Or these folders directly;
    * ``manifest.csv`` with a column of `CLASS_COLUMNS` that holds such words;
    * every layout of `shared_components.data.layouts.cases.find_cases` with masks: the label follows from the mask.

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
    if published := find_class_folders(root):
        problems = published.folder.problems
        _refuse(published.folder, [problem for problem in problems if problem.level == "error"])
        for problem in problems:
            logger.warning("%s", describe(problem, root))
        return published
    folder = find_cases(root, channels, label_column)
    refuse_ignored(folder)
    classes = manifest_classes(folder)
    unknown = [case.id for case in folder.cases if case.id not in classes and case.label is None]
    if not classes and len(unknown) == len(folder.cases):
        strange = unknown_words(folder)
        raise InputError(
            f"{root}: no image-level labels{': ' if strange else ''}{strange}; expected folders normal/ and tumor/, a "
            f"manifest.csv with a column {', '.join(CLASS_COLUMNS)} of such words, or masks that the labels follow from"
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
    (`shared_components.data.layouts.split.sections`). The training section has no masks in it: training sees
    image-level labels alone.

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
    if not items and not chosen:
        patients = len({folder.groups.get(case.id, case.id) for case in folder.cases})
        text = f"section '{section}' is empty: {len(folder.cases)} slices of {patients} patients"
        raise InputError(f"{folder.root}: {text}, and no patient may be in two sections; add patients or a split{hint}")
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
        raise InputError(f"{folder.root}: {describe_some(errors, folder.root)}; correct them{hint}")
