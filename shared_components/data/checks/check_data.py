"""The data-check command: a table of what was understood, one line a finding, and a summary."""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shared_components.data.checks.cases import AFFINE_TOLERANCE_MM, Labels, check_folder
from shared_components.data.checks.checked_folder import check_folder_target, write_checked_folder, write_class_folders
from shared_components.data.checks.checked_folder import fill_nonfinite as fill_nonfinite_of
from shared_components.data.checks.class_folders import check_class_folders, class_counts, class_overview
from shared_components.data.checks.understood import overview_text
from shared_components.data.formats.files import check_json_target, write_json
from shared_components.data.layouts.case_folder import describe
from shared_components.data.layouts.cases import Case, CaseFolder, Finding, find_cases
from shared_components.data.layouts.class_column import manifest_classes, unknown_words
from shared_components.data.layouts.class_folders import LabelledSlices, find_class_folders
from shared_components.data.layouts.dataset_json import named_channels
from shared_components.data.layouts.split import group_patients, sections
from shared_components.errors import InputError


def check_data(
    dataset_dir: str | os.PathLike,
    labels: Labels = None,
    channels: Sequence[str] | int | None = None,
    report: str | os.PathLike | None = None,
    skip_bad: str | os.PathLike | None = None,
    num_workers: int | None = None,
    affine_tolerance: float = AFFINE_TOLERANCE_MM,
    label_column: str | None = None,
    num_channels: int | None = None,
    spatial_dims: int | None = None,
    fill_nonfinite: bool = False,
    channel: int | None = None,
    patient_pattern: str | None = None,
) -> list[Finding]:
    """Check a data folder and write what was found to standard output; nothing in the folder is changed.

    Args:
        dataset_dir: the folder; see `shared_components.data.layouts.cases.find_cases` for the layouts. Before them
            comes that of folders a class, image-level labels
            (`shared_components.data.layouts.class_folders.find_class_folders`).
        labels: label values that may occur beside 0, as a mapping from names or as values; by default those of
            ``dataset.json``, else every whole number from 0.
        channels: names or number of the image channels; by default those of ``dataset.json``, else as found. For a
            manifest, names of its image columns.
        report: JSON file to write the findings to.
        skip_bad: folder to make, a ``dataset_dir`` of the usable cases alone (`write_checked_folder`); or a JSON file
            to list them in, as ``{"image": ..., "label": ...}``.
        num_workers: threads; by default the number of CPU cores, at most 8.
        affine_tolerance: how far apart two files of a case may place the same corner voxel, in mm.
        label_column: the manifest's column of labels.
        num_channels: image channels that the model takes, where ``channels`` does not say.
        spatial_dims: 2 or 3; by default 2 if most of the cases are pictures, else 3.
        fill_nonfinite: NaN and infinite voxels of images are no error: the folder ``skip_bad`` gets filled copies.
        channel: the one that a model of one channel is shown, of files with several.
        patient_pattern: regular expression that finds the patient in a case id (`group_patients`).

    Returns:
        The findings, sorted by case. The caller makes an exit code of them.

    Raises:
        InputError: the folder cannot be understood at all, a file to write cannot be written, a number is out of range,
            or the pattern matches nothing.
    """
    _check_numbers(spatial_dims, affine_tolerance, num_workers)
    if str(skip_bad).lower() in ("true", "false"):
        raise InputError(f"--skip_bad {skip_bad}: here it names a folder to make, of the usable cases, or a JSON file")
    report_file = check_json_target(report, "--report") if report else None
    as_list = skip_bad is not None and str(skip_bad).lower().endswith(".json")
    if fill_nonfinite and (skip_bad is None or as_list):
        raise InputError("--fill_nonfinite: needs --skip_bad FOLDER, where the filled copies go")
    target = check_json_target(skip_bad, "--skip_bad") if as_list else skip_bad and check_folder_target(skip_bad)
    slices = find_class_folders(dataset_dir) if label_column is None else None
    folder = slices.folder if slices else find_cases(dataset_dir, channels or num_channels, label_column)
    if not slices and (classes := manifest_classes(folder)):
        slices = LabelledSlices(folder, classes)
    elif not slices and (strange := unknown_words(folder)):
        text = f"{strange}: no image-level labels"
        level = "note" if folder.labelled else "warning"
        folder.problems.append(Finding(level, "", str(folder.root / "manifest.csv"), text, "class_words"))
    if patient_pattern is not None:
        group_patients(folder, patient_pattern)
    sys.stdout.write(overview_text(folder, class_overview(slices) if slices else None))
    sys.stdout.flush()
    if slices:
        number = channels if isinstance(channels, int) else len(named_channels(channels)) or None
        count = num_channels or (number if folder.layout == "published" else None)
        findings = check_class_folders(slices, labels, num_workers, affine_tolerance, count, spatial_dims, channel)
    else:
        findings = check_folder(folder, labels, num_workers, affine_tolerance, num_channels, spatial_dims, channel)
    copies: dict[Path, Path] = {}
    if fill_nonfinite:
        findings = _filled(folder, findings, target, copies)
    lines = [f"{finding.level:<8} {describe(finding, folder.root)}\n" for finding in findings]
    sys.stdout.write("".join(lines))
    usable = _usable(folder.cases, findings)
    levels = Counter(finding.level for finding in findings)
    total = len(folder.cases) + len(folder.unlabelled)
    counts = f"{levels['error']} errors, {levels['warning']} warnings"
    sys.stdout.write(f"{total} cases checked, {len(usable)} usable: {counts}\n")
    if report_file:
        write_json(report_file, _report(folder, findings, len(usable), slices))
    if target:
        if as_list:
            write_json(target, [_listed(case, slices) for case in usable])
        elif slices:
            write_class_folders(slices, usable, target, copies)
        else:
            write_checked_folder(folder, usable + _usable(folder.unlabelled, findings), target, copies)
        sys.stdout.write(f"{len(usable)} usable cases {'listed' if as_list else 'linked'} in {target}\n")
    return findings


def _check_numbers(spatial_dims: int | None, affine_tolerance: float, num_workers: int | None) -> None:
    if spatial_dims not in (None, 2, 3):
        raise InputError(f"--spatial_dims {spatial_dims}: expected 2 or 3")
    if affine_tolerance < 0:
        raise InputError(f"--affine_tolerance {affine_tolerance}: expected a distance in mm, at least 0")
    if num_workers is not None and num_workers < 1:
        raise InputError(f"--num_workers {num_workers}: expected at least 1 thread")


def _listed(case: Case, slices: LabelledSlices | None) -> dict[str, Any]:
    """Return a case as an entry of a list, with its image-level label, 0 or 1, where it has one."""
    item: dict[str, Any] = case.datalist_item()
    if slices is None:
        return item
    masks = [str(mask) for mask in slices.masks.get(case.id, ())]
    kind = {"class": slices.classes[case.id]} if case.id in slices.classes else {}
    return {**item, **({"label": masks} if masks else {}), **kind}


def _usable(cases: Sequence[Case], findings: list[Finding]) -> list[Case]:
    """Return the cases without an error."""
    bad = {finding.case for finding in findings if finding.level == "error"}
    return [case for case in cases if case.id not in bad and case.images]


def _filled(folder: CaseFolder, findings: list[Finding], target: Path, copies: dict[Path, Path]) -> list[Finding]:
    """Fill the images of the cases that have no other error; return the findings as they are then."""
    found = defaultdict(list)
    for finding in findings:
        found[finding.case].append(finding)
    for case in folder.cases + folder.unlabelled:
        kinds = {finding.kind for finding in found[case.id] if finding.level == "error"}
        if kinds == {"nonfinite"}:
            made, found[case.id] = fill_nonfinite_of(case, found[case.id], target)
            copies.update(made)
    return [finding for case in sorted(found) for finding in found[case]]


def _report(
    folder: CaseFolder, findings: list[Finding], num_usable: int, slices: LabelledSlices | None
) -> dict[str, Any]:
    levels = Counter(finding.level for finding in findings)
    return {
        "dataset_dir": str(folder.root),
        "layout": folder.layout,
        "num_cases": len(folder.cases),
        "num_unlabelled": len(folder.unlabelled),
        "num_usable": num_usable,
        "channels": list(folder.channels),
        "labels": folder.label_names,
        "ignored_label": folder.ignored,
        "label_column": folder.label_column,
        "split": sections(folder) if folder.labelled or slices else None,
        "classes": class_counts(slices) if slices else None,
        "num_errors": levels["error"],
        "num_warnings": levels["warning"],
        "findings": [asdict(finding) for finding in findings],
    }
