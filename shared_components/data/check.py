"""Checking cases: every problem of every case, found in one pass over the files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tqdm import tqdm

from shared_components.data.cases import Case, CaseFolder, Finding
from shared_components.data.scan import ValueScan, scan_values
from shared_components.data.split import find_leaks, sections
from shared_components.data.volumes import Grid, UnusableVolume, open_volume
from shared_components.errors import InputError

AFFINE_TOLERANCE_MM = 0.1
_PROGRESS_FROM = 20

Labels = Mapping[str, int] | Iterable[int] | int | None


def check_case(
    case: Case,
    labels: Labels = None,
    num_channels: int | None = 1,
    affine_tolerance: float = AFFINE_TOLERANCE_MM,
) -> list[Finding]:
    """Check the files of one case, reading each once and in blocks; a missing label is no finding here.

    Args:
        case: image files (one, or one a channel) and perhaps a label file, all 3-D.
        labels: the label values allowed beside 0: a mapping from names, or the values; ``None`` allows every
            whole number from 0.
        num_channels: image channels that the model takes; ``None`` to leave this unchecked.
        affine_tolerance: how far apart two files may place the same corner voxel, in mm.

    Returns:
        Errors and warnings, in the order of the files; empty if all is well.
    """
    allowed = allowed_values(labels)
    check = _CaseCheck(case, affine_tolerance)
    channels = [check.image(path) for path in case.images]
    check.count_channels([number for number in channels if number], num_channels)
    if case.label is not None:
        check.label(case.label, allowed)
    return check.findings


def allowed_values(labels: Labels) -> frozenset[int] | None:
    """Return the label values that may occur, 0 among them, or ``None`` if any may.

    Raises:
        InputError: a value is no whole number.
    """
    if labels is None:
        return None
    single = isinstance(labels, (int, str))
    values = list(labels.values() if isinstance(labels, Mapping) else [labels] if single else labels)
    if not all(isinstance(value, int) for value in values):
        raise InputError(f"labels {labels}: expected whole numbers, such as 1,2 or {{'tumour': 1}}")
    return frozenset(values) | {0}


class _CaseCheck:
    """Collects what is found in the files of one case."""

    def __init__(self, case: Case, affine_tolerance: float) -> None:
        self.case = case
        self.tolerance = affine_tolerance
        self.first: tuple[Path, Grid] | None = None
        self.findings: list[Finding] = []

    def image(self, path: Path) -> int:
        """Check an image file; return its number of channels, 0 if it cannot be used."""
        content = self._scan(path, is_label=False)
        if content is None:
            return 0
        grid, num_channels, scan = content
        if self.first is None:
            self.first = (path, grid)
        self._compare(path, grid, "channel_grid")
        self._nonfinite(path, scan, "nonfinite")
        for channel in scan.constant_channels():
            which = f" in channel {channel}" if num_channels > 1 else ""
            text = f"constant image: every voxel is {scan.ranges[channel][0]:g}{which}"
            self._add("warning", path, text, "constant_image")
        return num_channels

    def count_channels(self, channels: list[int], expected: int | None) -> None:
        """Compare the channels found, one number a readable file, with what the model takes."""
        if not channels or expected is None or (len(channels) < len(self.case.images)):
            return
        path = self.case.images[0]
        if len(channels) > 1 and max(channels) > 1:
            self._add(
                "error", path, f"{channels} channels in the case's files, expected 1 in each", "channels"
            )
        elif sum(channels) != expected:
            found = f"{sum(channels)} channel{'s' if sum(channels) > 1 else ''}"
            remedy = "keep only the channels that it takes" if sum(channels) > expected else "add the others"
            self._add("error", path, f"{found}, model takes {expected}; {remedy}", "channels")

    def label(self, path: Path, allowed: frozenset[int] | None) -> None:
        """Check a label file."""
        content = self._scan(path, is_label=True)
        if content is None:
            return
        grid, num_channels, scan = content
        self._compare(path, grid, "label_grid")
        if num_channels > 1:
            self._add(
                "error", path, f"label with {num_channels} channels, expected one label map", "label_channels"
            )
        self._nonfinite(path, scan, "label_nonfinite")
        if scan.num_fractional:
            text = f"non-integer labels: {scan.num_fractional} voxels, such as {scan.first_fraction:.4g}"
            self._add("error", path, f"{text}; resample label maps with nearest neighbour", "label_fraction")
        self._values(path, scan, allowed)

    def _values(self, path: Path, scan: ValueScan, allowed: frozenset[int] | None) -> None:
        unknown = sorted(v for v in scan.values if (v < 0 if allowed is None else v not in allowed))
        if unknown:
            some = ", ".join(f"{value} ({scan.values[value]} voxels)" for value in unknown[:5])
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            expected = "whole numbers from 0" if allowed is None else ", ".join(map(str, sorted(allowed)))
            self._add(
                "error", path, f"unknown label values {some}{more}; expected {expected}", "label_values"
            )
        elif not scan.num_fractional and not any(value > 0 for value in scan.values):
            self._add("warning", path, "empty mask: no voxel is labelled", "empty_mask")

    def _scan(self, path: Path, is_label: bool) -> tuple[Grid, int, ValueScan] | None:
        try:
            with open_volume(path) as volume:
                return volume.grid, volume.num_channels, scan_values(volume, is_label)
        except UnusableVolume as error:
            self._add("error", path, str(error), error.kind)
            return None

    def _compare(self, path: Path, grid: Grid, kind: str) -> None:
        """Compare a file's grid with that of the case's first image."""
        if self.first is None or self.first[0] == path:
            return
        first_path, first = self.first
        what = (
            "label on another grid than the image"
            if kind == "label_grid"
            else "another grid than the first channel"
        )
        if grid.shape != first.shape:
            self._add("error", path, f"{what}: {grid}, {first_path.name} has {first}", kind)
        elif (distance := grid.corner_distance(first)) > self.tolerance:
            text = f"{what}: same shape, but corners up to {distance:.3g} mm apart from {first_path.name}"
            text += f" (affine {grid.affine[:3].tolist()} and {first.affine[:3].tolist()})"
            self._add("error", path, f"{text}; at most {self.tolerance:g} mm is accepted", "affine")

    def _nonfinite(self, path: Path, scan: ValueScan, kind: str) -> None:
        if scan.first_bad is None:
            return
        counts = [(scan.num_nan, "NaN"), (scan.num_infinite, "infinite")]
        found = " and ".join(f"{count} {name}" for count, name in counts if count)
        channel, index = scan.first_bad
        where = f"channel {channel}, voxel {index}" if len(scan.ranges) > 1 else f"voxel {index}"
        self._add("error", path, f"{found} voxels, the first at {where}; replace them by numbers", kind)

    def _add(self, level: str, path: Path, message: str, kind: str) -> None:
        self.findings.append(Finding(level, self.case.id, str(path), message, kind))


def check_cases(
    folder: CaseFolder,
    cases: list[Case],
    labels: Labels = None,
    num_channels: int | None = None,
    num_workers: int | None = None,
    affine_tolerance: float = AFFINE_TOLERANCE_MM,
) -> list[Finding]:
    """Check several cases of a folder in parallel, with a progress bar for more than 20.

    Memory holds a block of a few million voxels a worker (for NRRD, MHA and pictures one whole file).

    Args:
        folder: the folder; its ``label_names`` stand in for ``labels``, its channels for ``num_channels``.
        cases: those to check.
        labels, num_channels, affine_tolerance: see `check_case`.
        num_workers: threads; by default the number of CPU cores, at most 8.

    Returns:
        The findings in the order of the cases, and those of the folder about these cases before them.
    """
    ids = {case.id for case in cases}
    known = [problem for problem in folder.problems if problem.case in ids]
    incomplete = {problem.case for problem in known if problem.kind in ("missing_channel", "no_suffix")}
    expected = num_channels or len(folder.channels)
    wanted = allowed_values(folder.label_names or None if labels is None else labels)

    def one(case: Case) -> list[Finding]:
        return check_case(case, wanted, None if case.id in incomplete else expected, affine_tolerance)

    workers = max(1, num_workers or min(8, os.cpu_count() or 1))
    progress = partial(
        tqdm, total=len(cases), desc="checking", unit="case", disable=len(cases) <= _PROGRESS_FROM
    )
    with ThreadPoolExecutor(workers) as pool:
        found = list(progress(pool.map(one, cases)))
    return known + [finding for findings in found for finding in findings]


def check_folder(
    folder: CaseFolder,
    labels: Labels = None,
    num_workers: int | None = None,
    affine_tolerance: float = AFFINE_TOLERANCE_MM,
) -> list[Finding]:
    """Check everything in a folder: pairing, every case, leaks between sections, empty training sections.

    Returns:
        The findings sorted by case id, those about the whole folder first.
    """
    cases = folder.cases + folder.unlabelled
    findings = check_cases(folder, cases, labels, None, num_workers, affine_tolerance)
    ids = {case.id for case in cases}
    findings += [problem for problem in folder.problems if problem.case not in ids]
    findings += label_conflicts(folder, labels)
    if folder.layout != "images":
        findings += find_leaks(folder)
        findings += all_masks_empty(folder, sections(folder)["train"], findings)
    return sorted(findings, key=lambda finding: finding.case)


def label_conflicts(folder: CaseFolder, labels: Labels) -> list[Finding]:
    """Find label names to which ``dataset.json`` gives another value than the model does."""
    if not isinstance(labels, Mapping):
        return []
    own = {name.lower(): value for name, value in folder.label_names.items()}
    return [
        Finding(
            "error",
            "",
            str(folder.root / "dataset.json"),
            f"label '{name}' has the value {own[name.lower()]}, in the model it is {value}; renumber",
            "label_conflict",
        )
        for name, value in labels.items()
        if own.get(name.lower(), value) != value
    ]


def all_masks_empty(folder: CaseFolder, train_ids: list[str], findings: list[Finding]) -> list[Finding]:
    """Return an error if no mask of the training section has a labelled voxel, else nothing."""
    empty = {finding.case for finding in findings if finding.kind == "empty_mask"}
    masks = {case.id for case in folder.cases if case.label is not None} & set(train_ids)
    if not masks or masks - empty:
        return []
    text = f"all {len(masks)} training masks are empty; label at least one case"
    return [Finding("error", "", str(folder.root), text, "all_masks_empty")]


def describe(finding: Finding, root: Path) -> str:
    """Return "case: file: message" on one line, with the file relative to the data folder."""
    file = os.path.relpath(finding.file, root)
    parts = [finding.case, "" if file == "." else file, finding.message]
    return " ".join(": ".join(part for part in parts if part).split())
