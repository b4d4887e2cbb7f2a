"""Checking cases: every problem of every case, found in one pass over the files."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tqdm import tqdm

from shared_components.data.checks.label_maps import absent_labels, label_maps_among_images
from shared_components.data.formats.aperio import is_annotation
from shared_components.data.formats.files import UnusableImage
from shared_components.data.formats.pictures import channels_fit, is_picture
from shared_components.data.formats.scan import Labels, ValueScan, allowed_values, full_scale_label, scan_values
from shared_components.data.formats.volumes import Grid, open_volume
from shared_components.data.layouts.cases import Case, CaseFolder, Finding
from shared_components.data.layouts.split import find_leaks, sections

AFFINE_TOLERANCE_MM = 0.1
_PROGRESS_FROM = 20
_BODY_MM = (0.1, 10_000.0)  # the longest side of a volume is hardly less, hardly more
_ABOUT_THE_KIND_OF_PICTURE = {
    "alpha", "annotation_layers", "bit_depth", "colour_for_grey", "exif", "full_scale_mask", "grey_for_colour",
    "jpeg_mask", "palette_mask"
}  # fmt: skip


def check_case(
    case: Case,
    labels: Labels = None,
    num_channels: int | None = 1,
    affine_tolerance: float = AFFINE_TOLERANCE_MM,
    spatial_dims: int = 3,
) -> list[Finding]:
    """Check the files of one case, reading each once and in blocks; a missing label is no finding here.

    Pictures are read as `shared_components.data.loaders` reads them. What it does to one that is not quite what the
    model takes (grey for RGB, a mask of 0 and 255, ...) is a warning or a note.

    Args:
        case: image files (one, or one a channel) and perhaps a label file.
        labels: the label values allowed beside 0: a mapping from names, or the values; ``None`` allows every
            whole number from 0.
        num_channels: image channels that the model takes; ``None`` to leave this unchecked.
        affine_tolerance: how far apart two files may place the same corner voxel, in mm.
        spatial_dims: 3 for volumes, 2 for pictures and other 2-D images.

    Returns:
        Errors, warnings and notes, in the order of the files; empty if all is well.
    """
    allowed = allowed_values(labels)
    return _checked(case, allowed, num_channels, affine_tolerance, spatial_dims, None, None).findings


def _checked(
    case: Case,
    allowed: frozenset[int] | None,
    num_channels: int | None,
    affine_tolerance: float,
    spatial_dims: int,
    channel: int | None,
    ignored: int | None,
) -> _CaseCheck:
    check = _CaseCheck(case, affine_tolerance, spatial_dims, ignored)
    channels = [check.image(path) for path in case.images]
    found = [number for number in channels if number]
    if channel is None:
        check.count_channels(found, num_channels)
    else:
        check.has_channel(found, channel)
    if case.label is not None:
        check.label(case.label, allowed)
    for mask in filter(None, case.masks):  # one a class
        check.label(mask, frozenset({0, 1}))
    return check


class _CaseCheck:
    """Collects what is found in the files of one case."""

    def __init__(self, case: Case, affine_tolerance: float, spatial_dims: int, ignored: int | None) -> None:
        self.case = case
        self.tolerance = affine_tolerance
        self.spatial_dims = spatial_dims
        self.ignored = ignored
        self.num_ignored, self.num_labelled = 0, 0  # voxels of the label map: not judged, and all
        self.first: tuple[Path, Grid] | None = None
        self.findings: list[Finding] = []
        self.values: frozenset[int] | None = None  # of the label map, if it can be read
        self.levels: dict[Path, set[int] | None] = {}  # of the images that can be read, as `ValueScan` has them

    def image(self, path: Path) -> int:
        """Check an image file; return its number of channels, 0 if it cannot be used."""
        content = self._scan(path, is_label=False)
        if content is None:
            return 0
        grid, num_channels, scan = content
        self.levels[path] = scan.levels
        if self.first is None:
            self.first = (path, grid)
            self._see_size(path, grid)
        self._compare(path, grid, "channel_grid")
        self._nonfinite(path, scan, "nonfinite")
        constant = scan.constant_channels()
        colours = grid.affine is None and num_channels > 1
        for channel in constant if not colours or len(constant) == num_channels else []:
            which = f" in channel {channel}" if num_channels > 1 else ""
            text = f"constant image: every voxel is {scan.ranges[channel][0]:g}{which}"
            self._add("warning", path, text, "constant_image")
        return num_channels

    def _see_size(self, path: Path, grid: Grid) -> None:
        longest = max((size * step for size, step in zip(grid.shape, grid.spacing)), default=None)
        if longest is not None and len(grid.shape) == 3 and not _BODY_MM[0] <= longest <= _BODY_MM[1]:
            text = f"{grid}: {longest:.6g} mm across; if its unit is another than mm, correct the header or set pixdim"
            self._add("warning", path, text, "implausible_size")

    def count_channels(self, channels: list[int], expected: int | None) -> None:
        """Compare the channels found, one number a readable file, with what the model takes."""
        if not channels or expected is None or (len(channels) < len(self.case.images)):
            return
        path = self.case.images[0]
        wanted = expected if len(channels) == 1 else 1
        channels = [self._converted(file, found, wanted) for file, found in zip(self.case.images, channels)]
        if len(channels) > 1 and max(channels) > 1:
            self._add("error", path, f"{channels} channels in the case's files, expected 1 in each", "channels")
        elif sum(channels) != expected:
            found = f"{sum(channels)} channel{'s' if sum(channels) > 1 else ''}"
            remedy = "keep only the channels that it takes" if sum(channels) > expected else "add the others"
            if len(channels) > max(1, expected):
                remedy = "name those that it takes with --channels, or keep only their files"
            if expected == 1 and len(channels) == 1:
                remedy = f"choose one, 0 to {channels[0] - 1}, with --channel, or {remedy}"
            self._add("error", path, f"{found}, model takes {expected}; {remedy}", "channels")

    def has_channel(self, channels: list[int], channel: int) -> None:
        """See that the channel chosen is in every file."""
        for path, found in zip(self.case.images, channels):
            if not 0 <= channel < found:
                count = f"{found} channel{'s' if found > 1 else ''}"
                text = f"{count}, channel {channel} was asked for; give --channel 0 to {found - 1}"
                self._add("error", path, text, "channels")

    def _converted(self, path: Path, found: int, wanted: int) -> int:
        """Return the number of channels that the loader makes of a file's, and say so where it is another."""
        if found == wanted or not channels_fit(found, wanted) or not is_picture(path):
            return found
        takes = f"{wanted} channel{'s' if wanted > 1 else ''}"
        if wanted == 1:
            text = f"colour picture, model takes {takes} here: the luminance is used"
            self._add("warning", path, text, "colour_for_grey")
        else:
            self._add("warning", path, f"grey picture, model takes {takes} here: repeated", "grey_for_colour")
        return wanted

    def label(self, path: Path, allowed: frozenset[int] | None) -> None:
        """Check a label file."""
        if is_annotation(path) and not self.case.images:
            return  # nothing to draw it on; that the image is missing is said
        content = self._scan(path, is_label=True)
        if content is None:
            return
        grid, num_channels, scan = content
        if path == self.case.label:
            self.num_labelled = scan.values.total()
            self.num_ignored = scan.values.pop(self.ignored, 0)
            self.values = frozenset(scan.values)
        self._compare(path, grid, "label_grid")
        if num_channels > 1:
            self._add("error", path, f"label with {num_channels} channels, expected one label map", "label_channels")
        self._nonfinite(path, scan, "label_nonfinite")
        if scan.num_fractional:
            text = f"non-integer labels: {scan.num_fractional} voxels, such as {scan.first_fraction:.4g}"
            self._add("error", path, f"{text}; resample label maps with nearest neighbour", "label_fraction")
        self._values(path, scan, allowed)

    def _values(self, path: Path, scan: ValueScan, allowed: frozenset[int] | None) -> None:
        if white := full_scale_label(scan.values, allowed):
            text = f"mask of 0 and {white[0]}: {white[0]} is read as label {white[1]}"
            self._add("note", path, text, "full_scale_mask")
            return
        unknown = sorted(v for v in scan.values if (v < 0 if allowed is None else v not in allowed))
        if unknown:
            some = ", ".join(f"{value} ({scan.values[value]} voxels)" for value in unknown[:5])
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            expected = "whole numbers from 0" if allowed is None else ", ".join(map(str, sorted(allowed)))
            self._add("error", path, f"unknown label values {some}{more}; expected {expected}", "label_values")
        elif not scan.num_fractional and not any(value > 0 for value in scan.values):
            others = "" if scan.values else ", all are to be ignored"
            self._add("warning", path, f"empty mask: no voxel is labelled{others}", "empty_mask")

    def _scan(self, path: Path, is_label: bool) -> tuple[Grid, int, ValueScan] | None:
        try:
            with open_volume(path, self.spatial_dims, is_label, next(iter(self.case.images), None)) as volume:
                content = volume.grid, volume.num_channels, scan_values(volume, is_label)
        except UnusableImage as error:
            self._add("error", path, str(error), error.kind)
            return None
        for kind, text in volume.notes:
            if kind != "exif" or (self.case.label is not None and not is_label):
                self._add("warning", path, text, kind)
        return content

    def _compare(self, path: Path, grid: Grid, kind: str) -> None:
        """Compare a file's grid with that of the case's first image."""
        if self.first is None or self.first[0] == path:
            return
        first_path, first = self.first
        what = "label on another grid than the image" if kind == "label_grid" else "another grid than the first channel"
        if grid.shape != first.shape:
            swapped = len(grid.shape) == 2 and grid.shape == first.shape[::-1]
            turned = "; rows and columns are swapped" if swapped else ""
            self._add("error", path, f"{what}: {grid}, {first_path.name} has {first}{turned}", kind)
        elif (distance := grid.corner_distance(first)) > self.tolerance:
            text = f"{what}: same shape, but corners up to {distance:.3g} mm apart from {first_path.name}"
            text += f" (affine {_rounded(grid)} and {_rounded(first)})"
            text += f"; at most {self.tolerance:g} mm is accepted; correct the header or raise --affine_tolerance"
            self._add("error", path, text, "affine")

    def _nonfinite(self, path: Path, scan: ValueScan, kind: str) -> None:
        if scan.first_bad is None:
            return
        counts = [(scan.num_nan, "NaN"), (scan.num_infinite, "infinite")]
        found = " and ".join(f"{count} {name}" for count, name in counts if count)
        channel, index = scan.first_bad
        where = f"channel {channel}, voxel {index}" if len(scan.ranges) > 1 else f"voxel {index}"
        remedy = "replace them by numbers" + (", or by check_data --fill_nonfinite true" if kind == "nonfinite" else "")
        self._add("error", path, f"{found} voxels, the first at {where}; {remedy}", kind)

    def _add(self, level: str, path: Path, message: str, kind: str) -> None:
        self.findings.append(Finding(level, self.case.id, str(path), message, kind))


def check_cases(
    folder: CaseFolder,
    cases: list[Case],
    labels: Labels = None,
    num_channels: int | None = None,
    num_workers: int | None = None,
    affine_tolerance: float = AFFINE_TOLERANCE_MM,
    spatial_dims: int = 3,
    channel: int | None = None,
) -> list[Finding]:
    """Check several cases of a folder in parallel, with a progress bar for more than 20.

    Memory holds a block of a few million voxels a worker (for NRRD, MHA and pictures one whole file).

    Args:
        folder: the folder; its ``label_names`` stand in for ``labels``, its channels for ``num_channels`` (if
            nothing says how many channels there are, pictures may be grey or RGB).
        cases: those to check.
        labels, num_channels, affine_tolerance, spatial_dims, channel: see `check_case`.
        num_workers: threads; by default the number of CPU cores, at most 8.

    Returns:
        The findings in the order of the cases, and those of the folder about these cases before them. Of a label that
        is named and that no mask has, a warning.
    """
    ids = {case.id for case in cases}
    known = [problem for problem in folder.problems if problem.case in ids]
    incomplete = {problem.case for problem in known if problem.kind in ("missing_channel", "no_suffix")}
    labels = folder.label_names or None if labels is None else labels
    wanted = allowed_values(labels)
    either = num_channels is None and not folder.channels_named and spatial_dims == 2

    def one(case: Case) -> _CaseCheck:
        expected = None if case.id in incomplete or either else num_channels or len(folder.channels)
        return _checked(case, wanted, expected, affine_tolerance, spatial_dims, channel, folder.ignored)

    workers = max(1, num_workers or min(8, os.cpu_count() or 1))
    progress = partial(tqdm, total=len(cases), desc="checking", unit="case", disable=len(cases) <= _PROGRESS_FROM)
    with ThreadPoolExecutor(workers) as pool:
        checks = list(progress(pool.map(one, cases)))
    values = [check.values for check in checks if check.values is not None]
    found = [finding for check in checks for finding in check.findings]
    levels = {(check.case.id, path): levels for check in checks for path, levels in check.levels.items()}
    found += label_maps_among_images(folder, levels)
    return known + found + absent_labels(folder, labels, values) + _ignored_voxels(folder, checks)


def _ignored_voxels(folder: CaseFolder, checks: list[_CaseCheck]) -> list[Finding]:
    """Return a note of how many voxels nobody judged."""
    if folder.ignored is None:
        return []
    of_case = [check for check in checks if check.num_labelled]
    share = sum(check.num_ignored for check in of_case) / max(1, sum(check.num_labelled for check in of_case))
    count = sum(check.num_ignored > 0 for check in of_case)
    text = f"{share:.3g} of the voxels have the label {folder.ignored} (ignore), in {count} of {len(of_case)} masks"
    text += ": no loss and no score counts them"
    return [Finding("note", "", str(folder.root), text, "ignored_voxels")]


def check_folder(
    folder: CaseFolder,
    labels: Labels = None,
    num_workers: int | None = None,
    affine_tolerance: float = AFFINE_TOLERANCE_MM,
    num_channels: int | None = None,
    spatial_dims: int | None = None,
    channel: int | None = None,
) -> list[Finding]:
    """Check everything in a folder: pairing, every case, leaks between sections, empty training sections.

    Args:
        folder, labels, num_workers, affine_tolerance, num_channels, channel: see `check_cases`.
        spatial_dims: 2 or 3; by default 2 if most of the cases are pictures, else 3.

    Returns:
        The findings sorted by case id, those about the whole folder first. What is said of more than one case about
        the kind of its pictures is said once.
    """
    cases = folder.cases + folder.unlabelled
    spatial_dims = spatial_dims or usual_spatial_dims(cases)
    findings = check_cases(folder, cases, labels, num_channels, num_workers, affine_tolerance, spatial_dims, channel)
    findings = _said_once(folder, findings)
    ids = {case.id for case in cases}
    findings += [problem for problem in folder.problems if problem.case not in ids]
    findings += label_conflicts(folder, labels)
    if folder.labelled:
        findings += find_leaks(folder)
        findings += all_masks_empty(folder, sections(folder)["train"], findings)
    return sorted(findings, key=lambda finding: finding.case)


def _rounded(grid: Grid) -> list[list[float]]:
    return [[float(f"{value:.5g}") for value in row] for row in grid.affine[:3]]


def usual_spatial_dims(cases: list[Case]) -> int:
    """Return 2 if most of the cases with images are pictures, else 3."""
    pictures = [is_picture(case.images[0]) for case in cases if case.images]
    return 2 if sum(pictures) * 2 > len(pictures) else 3


def _said_once(folder: CaseFolder, findings: list[Finding]) -> list[Finding]:
    """Replace findings about the kind of the pictures that more than one case has by one for the folder."""
    alike: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        if finding.kind in _ABOUT_THE_KIND_OF_PICTURE and finding.level != "error":
            alike[finding.kind].append(finding)
    repeated = {kind: group for kind, group in alike.items() if len({finding.case for finding in group}) > 1}
    kept = [finding for finding in findings if finding.kind not in repeated or finding.level == "error"]
    for kind, group in repeated.items():
        count = len({finding.case for finding in group})
        text = f"{count} cases, such as {Path(group[0].file).name}: {group[0].message}"
        kept.append(Finding(group[0].level, "", str(folder.root), text, kind))
    return kept


def label_conflicts(folder: CaseFolder, labels: Labels) -> list[Finding]:
    """Find label names to which ``dataset.json`` gives another value than the model does, and labels of the model that
    are to be ignored.
    """
    own = {name.lower(): value for name, value in folder.label_names.items()}
    texts = [
        f"label '{name}' has the value {own[name.lower()]}, in the model it is {value}; renumber"
        for name, value in (labels.items() if isinstance(labels, Mapping) else ())
        if own.get(name.lower(), value) != value
    ]
    if folder.ignored is not None and folder.ignored in (allowed_values(labels) or ()):
        text = f"the value {folder.ignored} is to be ignored, but the model has it as a label; take it out of labels"
        texts.append(text)
    file = str(folder.root / "dataset.json")
    return [Finding("error", "", file, text, "label_conflict") for text in texts]


def all_masks_empty(folder: CaseFolder, train_ids: list[str], findings: list[Finding]) -> list[Finding]:
    """Return an error if no mask of the training section has a labelled voxel, else nothing."""
    empty = {finding.case for finding in findings if finding.kind == "empty_mask"}
    masks = {case.id for case in folder.cases if case.label is not None} & set(train_ids)
    if not masks or masks - empty:
        return []
    text = f"all {len(masks)} training masks are empty; label at least one case"
    return [Finding("error", "", str(folder.root), text, "all_masks_empty")]
