"""MONAI datalists of a data folder's sections, checked before anything is trained or evaluated."""

from __future__ import annotations

import logging
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shared_components.data.checks.cases import (
    AFFINE_TOLERANCE_MM,
    Labels,
    all_masks_empty,
    check_cases,
    label_conflicts,
    usual_spatial_dims,
)
from shared_components.data.layouts.case_folder import TABLES, describe, describe_some, errors_by_case
from shared_components.data.layouts.cases import Case, CaseFolder, Finding, find_cases
from shared_components.data.layouts.dataset_json import SECTIONS
from shared_components.data.layouts.split import choose_split, find_leaks, overlapping, sections
from shared_components.errors import InputError

logger = logging.getLogger(__name__)

_LEFT_OUT: dict[tuple[str, str], list[str]] = {}
_ABOUT_LABELS = {"no_label", "no_image", "no_such_case", "not_listed", "no_section"}
_WARNED_OF = {
    "empty_mask": "have an empty mask",
    "constant_image": "have a constant image",
    "implausible_size": "are less than 0.1 mm or more than 10 m across: see their spacing",
    "colour_for_grey": "are colour pictures, whose luminance is used",
    "grey_for_colour": "are grey pictures, repeated to three channels",
    "alpha": "have an alpha channel, dropped",
    "exif": "are turned upright by their EXIF orientation; their masks must be upright too",
    "bit_depth": "are 16-bit pictures that use few of the bits and come out dark",
    "jpeg_mask": "have a mask stored as JPEG, cut at half",
    "annotation_layers": "have an annotation of several layers, taken as one class",
    "region_without_pixels": "have an annotation with regions that leave no pixel",
    "palette_mask": "have a mask with a palette, whose index is taken as the label",
}


def datalist(
    dataset_dir: str | os.PathLike,
    section: str,
    labels: Labels = None,
    skip_bad: bool = False,
    num_channels: int | None = None,
    affine_tolerance: float = AFFINE_TOLERANCE_MM,
    channels: Sequence[str] | None = None,
    label_column: str | None = None,
    spatial_dims: int | None = 3,
    fold: int | None = None,
    num_folds: int = 5,
    patient_pattern: str | None = None,
    channel: int | None = None,
    published_fold: int | None = None,
    whole_labels: bool = False,
) -> list[dict[str, Any]]:
    """List the cases of a section for a MONAI dataset, after checking every one of them.

    The sections are those of ``split.json``, or follow from the sorted ids:
    `shared_components.data.layouts.split.sections` has the rule. Layouts:
    `shared_components.data.layouts.cases.find_cases`.

    Args:
        dataset_dir: folder of the data set.
        section: "train", "validation", "test", or "inference": every image, ``imagesTs`` among them, no
            labels.
        labels: the model's labels, name to value; by default those of ``dataset.json``.
        skip_bad: leave out cases with errors, with a warning, instead of refusing the section.
        num_channels: image channels that the model takes; by default as many as ``channels`` names, else 1.
        affine_tolerance: how far apart image and label may place the same corner voxel, in mm.
        channels: names of the image channels; for a manifest, of its image columns in the model's order.
        label_column: the manifest's column of labels.
        spatial_dims: 3 for a model of volumes, 2 for one of pictures and other 2-D images; ``None`` for one that takes
            either: what most of the folder's cases are.
        fold, num_folds: which part of what is not tested validates; without a fold `sections` has a rule.
        patient_pattern: regular expression that finds the patient in a case id
            (`shared_components.data.layouts.split.group_patients`); by default a manifest's column, else a case is a
            patient.
        channel: the one that a model of one channel is shown, of files with several.
        published_fold: 0, 1 or 2: train and test as cDAL was published on lungs
            (`shared_components.data.layouts.lung_folds.published_lung_split`).
        whole_labels: refuse a folder with a label to be ignored: for models that cannot leave voxels out.

    Returns:
        ``[{"image": path, "label": path}, ...]`` sorted by id, with absolute paths; "image" is a list of
        paths where a case has one file a channel. ``"ignored_value"`` is there where the folder has such a label.

    Raises:
        InputError: the section is unknown or empty; a case has an error and ``skip_bad`` is not set; a case
            or image is in two sections; every training mask is empty.
    """
    if section not in (*SECTIONS, "inference"):
        raise InputError(f"section '{section}': expected one of {', '.join(SECTIONS)}, inference")
    folder, num_channels = _folder(dataset_dir, num_channels, channels, label_column)
    spatial_dims = spatial_dims or usual_spatial_dims(folder.cases + folder.unlabelled)
    options = {"affine_tolerance": affine_tolerance, "spatial_dims": spatial_dims, "channel": channel}
    if section == "inference":
        cases, findings = _checked_images(folder, num_channels, **options)
    else:
        _refuse_without_labels(folder)
        if whole_labels:
            refuse_ignored(folder)
        choose_split(folder, fold, num_folds, patient_pattern, published_fold)
        if section == "train" and published_fold is not None:
            _tell_of_no_section(folder)
        _refuse_folder(folder, label_conflicts(folder, labels) + _errors(find_leaks(folder)))
        parts = sections(folder)
        ids = parts[section]
        if section == "train" and (shared := overlapping(parts)):
            logger.warning(
                "%s: one patient to train on: %s holds the same, its scores mean nothing", dataset_dir, shared
            )
        cases = [case for case in folder.cases if case.id in set(ids)]
        findings = check_cases(folder, cases, labels, num_channels, **options)
        findings += [p for p in folder.problems if p.case in set(ids) - {case.id for case in cases}]
        if section == "train":
            _refuse_folder(folder, all_masks_empty(folder, ids, findings))
    as_here = {"labels": labels, "channels": channels, "label_column": label_column, "num_channels": num_channels}
    good = _without_errors(folder, section, cases, findings, skip_bad, {**as_here, **options})
    _warn_about(folder, section, good, findings)
    ignored = {} if folder.ignored is None or section == "inference" else {"ignored_value": folder.ignored}
    return [{**case.datalist_item(), **ignored} for case in good]


def inference_cases(
    dataset_dir: str | os.PathLike,
    num_channels: int | None = None,
    affine_tolerance: float = AFFINE_TOLERANCE_MM,
    channels: Sequence[str] | None = None,
    label_column: str | None = None,
    spatial_dims: int | None = 3,
    channel: int | None = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """List the images that can be predicted, and say of each other one why it cannot.

    At inference a broken file does not take the other cases down: predict the first list, then report the
    second and end with exit code 1.

    Args:
        dataset_dir: folder of images, of any layout; labels in it are not looked at.
        num_channels: image channels that the model takes; by default as many as ``channels`` names, else 1.
        affine_tolerance: how far apart two channel files may place the same corner voxel, in mm.
        channels: names of the image channels; for a manifest, of its image columns in the model's order.
        label_column: the manifest's column of labels, only to be known as such.
        spatial_dims: 3 for a model of volumes, 2 for one of pictures and other 2-D images; ``None`` for one that takes
            either: what most of the folder's cases are.
        channel: the one that a model of one channel is shown, of files with several.

    Returns:
        The usable cases as ``[{"image": path or paths}, ...]`` sorted by id, and one line a bad case.

    Raises:
        InputError: the folder does not exist or holds no images.
    """
    folder, num_channels = _folder(dataset_dir, num_channels, channels, label_column)
    spatial_dims = spatial_dims or usual_spatial_dims(folder.cases + folder.unlabelled)
    options = {"affine_tolerance": affine_tolerance, "spatial_dims": spatial_dims, "channel": channel}
    cases, findings = _checked_images(folder, num_channels, **options)
    bad = errors_by_case(findings, folder.root)
    good = [case for case in cases if case.id not in bad]
    _warn_about(folder, "inference", good, findings)
    return [case.datalist_item() for case in good], list(bad.values())


def _folder(
    dataset_dir: str | os.PathLike, num_channels: int | None, channels: Sequence[str] | None, label_column: str | None
) -> tuple[CaseFolder, int]:
    """Return what is in the folder, and how many channels the model takes."""
    named = (channels,) if isinstance(channels, str) else channels
    num_channels = num_channels or (len(named) if named else 1)
    return find_cases(dataset_dir, named or num_channels, label_column), num_channels


def _checked_images(folder: CaseFolder, num_channels: int, **options: Any) -> tuple[list[Case], list[Finding]]:
    with_images = [case for case in folder.cases + folder.unlabelled if case.images]
    cases = [replace(case, label=None, masks=()) for case in with_images]
    cases.sort(key=lambda case: case.id)
    findings = check_cases(folder, cases, None, num_channels, **options)
    return cases, [finding for finding in findings if finding.kind not in _ABOUT_LABELS]


def _refuse_without_labels(folder: CaseFolder) -> None:
    if folder.layout in TABLES and not folder.labelled:
        _refuse_folder(folder, [problem for problem in folder.problems if problem.kind == "no_label_column"])
    elif not folder.labelled:
        raise InputError(
            f"{folder.root}: no labels; looked for labelsTr/, labels/, masks/ or Annotations/ beside the images, "
            "Aperio XML files among them, or a manifest.csv"
        )


def refuse_ignored(folder: CaseFolder) -> None:
    """Refuse a folder with voxels that nobody judged, for what needs whole label maps.

    Raises:
        InputError: it has a label to be ignored.
    """
    if folder.ignored is not None:
        raise InputError(
            f"{folder.root / 'dataset.json'}: voxels of the label {folder.ignored} (ignore) are to be left out, but "
            "this needs whole label maps; label these voxels and remove the entry, or take a segmentation bundle"
        )


def _tell_of_no_section(folder: CaseFolder) -> None:
    placed = {case for ids in (folder.split or {}).values() for case in ids}
    if rest := [case.id for case in folder.cases if case.id not in placed]:
        text = "%s: %d of %d pictures, such as %s, have no mask or no picture, and are in no published fold"
        logger.warning(text, folder.root, len(rest), len(folder.cases), rest[0])


def _errors(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level == "error"]


def _refuse_folder(folder: CaseFolder, errors: list[Finding]) -> None:
    """Raise on errors that leaving out a case does not mend."""
    if errors:
        raise InputError(_several(folder, errors, {}))


def _several(folder: CaseFolder, errors: Sequence[Finding], options: Mapping[str, Any]) -> str:
    return f"{describe_some(errors, folder.root)}. All of them: {check_command(folder.root, options)}"


def check_command(root: Path, options: Mapping[str, Any]) -> str:
    """Return the command that checks a folder as a run does.

    Args:
        root: the folder.
        options: of `shared_components.data.checks.check_data.check_data`; those that are ``None`` are left out.
    """
    given = [f'--{name} "{value}"' for name, value in options.items() if value not in (None, AFFINE_TOLERANCE_MM)]
    return " ".join([f"python -m shared_components check_data --dataset_dir {shlex.quote(str(root))}", *given])


def _without_errors(
    folder: CaseFolder,
    section: str,
    cases: list[Case],
    findings: list[Finding],
    skip_bad: bool,
    options: Mapping[str, Any],
) -> list[Case]:
    errors = _errors(findings)
    bad = {error.case for error in errors}
    good = [case for case in cases if case.id not in bad and case.images]
    total = len({case.id for case in cases} | bad)
    if errors and not skip_bad:
        raise InputError(
            f"{folder.root}: {len(bad)} of {total} {section} cases cannot be used{_for_want_of_a_label(errors)}; "
            f"mend them, or leave them out with --skip_bad True: {_several(folder, errors, options)}"
        )
    if not good:
        raise InputError(
            f"{folder.root}: no usable case in section '{section}' ({len(folder.cases)} cases in the folder, "
            f"{len(bad)} of this section with errors); add cases or change split.json{_fold_hint(folder, section)}"
        )
    if errors:
        logger.warning("%s: %d of %d %s cases are used, the others have errors", folder.root, len(good), total, section)
        note_left_out(folder, errors)
    return good


def _fold_hint(folder: CaseFolder, section: str) -> str:
    few = section == "validation" and folder.split is None and folder.fold is None and 0 < len(folder.cases) < 3
    return "; --fold 0 validates so few on those that are trained on" if few else ""


def _for_want_of_a_label(errors: Sequence[Finding]) -> str:
    """Say how many of the cases with errors have no label, which a data set may have by intention."""
    lacking = {error.case for error in errors if error.kind == "no_label"}
    others = {error.case for error in errors} - lacking
    return f"{f', {len(lacking)} of them' if others else ''} for want of a label" if lacking else ""


def note_left_out(folder: CaseFolder, errors: Sequence[Finding]) -> None:
    """Keep what is wrong with cases that ``skip_bad`` leaves out, for the end of the run (`left_out`)."""
    for error in errors:
        note_failure(folder.root, error.case, describe(error, folder.root))


def note_failure(root: Path, case: str, line: str) -> None:
    """Keep a line about a case of the folder ``root`` that is left out, once, for the end of the run (`left_out`)."""
    lines = _LEFT_OUT.setdefault((str(root), case), [])
    lines += [line] if line not in lines else []


def left_out() -> list[str]:
    """Return one line for each case that the datalists of this process leave out."""
    return ["; ".join(lines) for lines in _LEFT_OUT.values()]


def _warn_about(folder: CaseFolder, section: str, cases: list[Case], findings: list[Finding]) -> None:
    used = {case.id for case in cases}
    kinds = Counter(finding.kind for finding in findings if finding.case in used)
    for kind, what in _WARNED_OF.items():
        if kinds[kind]:
            logger.warning("%s: %d of %d %s cases %s", folder.root, kinds[kind], len(used), section, what)
    for finding in findings:
        if finding.kind in ("absent_label", "ignored_voxels"):
            level = logging.WARNING if finding.level == "warning" else logging.INFO
            logger.log(level, "%s: %s cases: %s", folder.root, section, finding.message)
    for problem in folder.problems:
        if problem.kind in ("images_below", "labels_beside"):
            logger.warning("%s", describe(problem, folder.root))
