"""What the images and labels of a folder are like, in figures: the ground on which a bundle is adapted to them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import nibabel
import numpy as np
from tqdm import tqdm

from shared_components.data.checks.cases import usual_spatial_dims
from shared_components.data.formats.files import UnusableImage
from shared_components.data.formats.scan import FULL_SCALE, full_scale_label
from shared_components.data.formats.volumes import Grid, Volume, open_volume
from shared_components.data.layouts.cases import Case, CaseFolder

_SAMPLED_A_BLOCK = 4096
_SAMPLED_A_CASE = 8192
_POOL = 1 << 20  # values kept for the percentiles, however many cases there are
_PROGRESS_FROM = 20
_HOUNSFIELD_AIR, _HOUNSFIELD_LEAST = -500.0, -3100.0
_PERCENTILES = {"p0_5": 0.5, "p50": 50.0, "p99_5": 99.5}
_CT = re.compile(r"\b(ct|cta|cbct|hounsfield)\b")
_MR = re.compile(r"\b(mr|mri|t1\w*|t2\w*|flair|adc|dwi|swi|pd|dce|ktrans|hbv)\b")


@dataclass(frozen=True)
class LabelClass:
    """A label value: in how many cases it occurs, and its share of the labelled and of all voxels."""

    value: int
    num_cases: int
    share_of_labelled: float
    share_of_all: float


@dataclass(frozen=True)
class Fingerprint:
    """What `fingerprint` measured.

    Attributes:
        layout, channels: of the folder.
        num_cases, num_labelled: cases measured, and those of them with a label.
        pictures: whether they are pictures (pixels without a size) rather than volumes.
        num_channels: channels of a case.
        colour: whether three channels are colours that differ.
        sizes: smallest, median and largest number of voxels along each axis: left-right, posterior-anterior and
            inferior-superior of volumes, columns and rows of pictures.
        spacings: the same of the voxel size in mm; empty for pictures.
        intensities: for each channel min, max, mean, std and percentiles of all voxels.
        foreground: the same of the labelled voxels; empty if nothing is labelled.
        zero_share: share of the voxels that are exactly 0 in the first channel of a file.
        classes: the label values above 0, by value; white (255) of black and white masks counts as 1.
        num_slices: slices of all cases together along each axis; of pictures their number.
        modality, modality_source: "CT", "MR", "RGB" or "grey", and what says so.
        instances: whether maps of numbered objects lie beside the masks.
        unusable: case id to what is wrong, for cases that were left out.
    """

    layout: str
    channels: tuple[str, ...]
    num_cases: int
    num_labelled: int
    pictures: bool
    num_channels: int
    colour: bool
    sizes: tuple[tuple[float, float, float], ...]
    spacings: tuple[tuple[float, float, float], ...]
    intensities: tuple[dict[str, float], ...]
    foreground: tuple[dict[str, float], ...]
    zero_share: float
    classes: tuple[LabelClass, ...]
    num_slices: tuple[int, ...]
    modality: str
    modality_source: str
    instances: bool
    unusable: dict[str, str] = field(default_factory=dict)

    @property
    def median_size(self) -> tuple[float, ...]:
        """Median number of voxels along each axis."""
        return tuple(size[1] for size in self.sizes)

    @property
    def median_spacing(self) -> tuple[float, ...]:
        """Median voxel size along each axis, in mm."""
        return tuple(spacing[1] for spacing in self.spacings)


def fingerprint(
    folder: CaseFolder, num_workers: int | None = None, values: Collection[int] | None = None
) -> Fingerprint:
    """Measure every case of a folder once, in parallel, with a progress bar for more than 20.

    Memory holds a block of a few million voxels and one bit a voxel for each worker (one whole file of pictures, NRRD
    and MHA); it does not grow with the number of cases.

    Args:
        folder: the folder; cases that cannot be read, or whose label lies on another grid, are left out and named.
        num_workers: threads; by default the number of CPU cores, at most 8.
        values: label values whose voxels are the foreground; by default all above 0.
    """
    if values is not None and set(values) == {1}:
        values = {*values, *FULL_SCALE}
    cases = [case for case in folder.cases + folder.unlabelled if case.images]
    spatial_dims = usual_spatial_dims(cases)
    total = _Total()
    workers = max(1, num_workers or min(8, os.cpu_count() or 1))
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda case: _measured(case, spatial_dims, values, folder.ignored), cases)
        for case, measured in tqdm(
            zip(cases, found), total=len(cases), desc="measuring", unit="case", disable=len(cases) <= _PROGRESS_FROM
        ):
            total.add(case, measured)
    return total.fingerprint(folder, spatial_dims == 2)


@dataclass
class _Values:
    """Running figures of one channel's values, and a bounded sample of them."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    low: float = np.inf
    high: float = -np.inf
    sample: list[np.ndarray] = field(default_factory=list)
    every: int = 1  # of the values that others bring, the sample takes every n-th

    def add(self, values: np.ndarray) -> None:
        if values.size == 0:
            return
        values = values.astype(np.float64, copy=False)
        self.count += values.size
        self.total += float(values.sum())
        self.squares += float(np.square(values).sum())
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.sample.append(_thinned(values, _SAMPLED_A_BLOCK).astype(np.float32))

    def merge(self, other: _Values) -> None:
        self.count += other.count
        self.total += other.total
        self.squares += other.squares
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.sample += [part[:: self.every] for part in other.sample]
        if sum(part.size for part in self.sample) > _POOL:
            self.sample = [np.concatenate(self.sample)[::2].copy()]
            self.every *= 2

    def figures(self) -> dict[str, float]:
        if not self.count:
            return {}
        mean = self.total / self.count
        values = np.concatenate(self.sample)
        spread = max(0.0, self.squares / self.count - mean**2) ** 0.5
        named = {name: float(np.percentile(values, q)) for name, q in _PERCENTILES.items()}
        return {"min": self.low, "max": self.high, "mean": mean, "std": spread, **named}


@dataclass
class _Measured:
    """One case."""

    grid: Grid
    channels: list[_Values]
    foreground: list[_Values]
    num_zero: int
    label_values: Counter[int] | None


def _thinned(values: np.ndarray, most: int) -> np.ndarray:
    return values[:: max(1, -(-values.size // most))]


def _measured(case: Case, spatial_dims: int, wanted: Collection[int] | None, ignored: int | None) -> _Measured | str:
    """Measure a case; a text says what is wrong with one that cannot be used."""
    try:
        return _measure(case, spatial_dims, wanted, ignored)
    except UnusableImage as error:
        return str(error)


def _measure(case: Case, spatial_dims: int, wanted: Collection[int] | None, ignored: int | None) -> _Measured:
    counts, marked, label_grid = None, None, None
    for number, path in [(None, case.label), *enumerate(case.masks, 1)]:
        if path is None:
            continue
        with open_volume(path, spatial_dims, True, case.images[0]) as label:
            chosen = wanted if number is None else None if wanted is None or number in wanted else ()
            found, bits = _label_content(label, chosen, ignored if number is None else None)
            if label_grid is not None and label_grid.shape != label.grid.shape:
                raise UnusableImage(f"{path.name}: {label.grid}, another mask of the case has {label_grid}")
            label_grid = label.grid
        if number is not None:  # one mask a class
            found = Counter({number: sum(n for value, n in found.items() if value > 0)})
        counts = found if counts is None else counts + found
        marked = bits if marked is None else marked | bits
    channels: list[_Values] = []
    foreground: list[_Values] = []
    num_zero, grid = 0, None
    for path in case.images:
        with open_volume(path, spatial_dims) as volume:
            grid = volume.grid if grid is None else grid
            for other in (grid, label_grid):
                if other is not None and other.shape != volume.grid.shape:
                    raise UnusableImage(f"{path.name}: {volume.grid}, another file of the case has {other}")
            num_zero += _image_content(volume, marked, channels, foreground)
    if grid is None:
        raise UnusableImage("no image")
    for values in channels + foreground:
        values.sample = [_thinned(np.concatenate(values.sample), _SAMPLED_A_CASE)] if values.sample else []
    return _Measured(grid, channels, foreground, num_zero, counts)


def _label_content(
    label: Volume, wanted: Collection[int] | None, ignored: int | None
) -> tuple[Counter[int], np.ndarray]:
    """Return the voxel count of every value, and which voxels have a value wanted (above 0), as packed bits; neither of
    what is to be ignored.
    """
    counts: Counter[int] = Counter()
    bits = []
    pending = np.zeros(0, dtype=bool)
    for _, _, values in label.blocks():
        whole = np.rint(values)
        found, numbers = np.unique(whole, return_counts=True)
        counts.update({int(value): int(number) for value, number in zip(found, numbers) if np.isfinite(value)})
        marked = (whole > 0) & (whole != ignored) if wanted is None else np.isin(whole, list(wanted))
        pending = np.concatenate([pending, marked])
        even = len(pending) // 8 * 8
        bits.append(np.packbits(pending[:even]))
        pending = pending[even:]
    counts.pop(ignored, None)
    return counts, np.concatenate([*bits, np.packbits(pending)])


def _image_content(
    volume: Volume, marked: np.ndarray | None, channels: list[_Values], foreground: list[_Values]
) -> int:
    """Add a file's channels to the case's; return how many voxels of its first channel are 0."""
    first = len(channels)
    num_zero = 0
    for channel, start, values in volume.blocks():
        if len(channels) <= first + channel:
            channels.append(_Values())
            foreground.append(_Values())
        if volume.grid.affine is None and values.dtype == np.uint16:
            values = values / 257.0  # as the loader reads pictures of 16 bits
        finite = np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, dtype=bool)
        channels[first + channel].add(values[finite])
        num_zero += int((values == 0).sum()) if channel == 0 else 0
        if marked is not None:
            part = np.unpackbits(marked[start // 8 : -(-(start + values.size) // 8)], count=values.size)
            foreground[first + channel].add(values[finite & part.astype(bool)])
    return num_zero


class _Total:
    """Cases added up."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, ...]] = []
        self.spacings: list[tuple[float, ...]] = []
        self.channels: list[_Values] = []
        self.foreground: list[_Values] = []
        self.num_zero, self.num_voxels, self.num_labelled, self.num_coloured = 0, 0, 0, 0
        self.label_values: list[Counter[int]] = []
        self.channel_counts: Counter[int] = Counter()
        self.unusable: dict[str, str] = {}

    def add(self, case: Case, measured: _Measured | str) -> None:
        if isinstance(measured, str):
            self.unusable[case.id] = measured
            return
        size, spacing = _in_ras_order(measured.grid)
        self.sizes.append(size)
        self.spacings.append(spacing)
        self.num_zero += measured.num_zero
        self.num_voxels += measured.channels[0].count
        self.channel_counts[len(measured.channels)] += 1
        sums = [values.total for values in measured.channels]
        self.num_coloured += measured.grid.affine is None and len(sums) == 3 and max(sums) - min(sums) > 1e-6
        for mine, new in ((self.channels, measured.channels), (self.foreground, measured.foreground)):
            mine += [_Values() for _ in range(len(new) - len(mine))]
            for values, more in zip(mine, new):
                values.merge(more)
        if measured.label_values is not None:
            self.num_labelled += 1
            self.label_values.append(measured.label_values)

    def fingerprint(self, folder: CaseFolder, pictures: bool) -> Fingerprint:
        num_channels = self.channel_counts.most_common(1)[0][0] if self.channel_counts else 0
        if pictures and set(self.channel_counts) == {1, 3}:
            num_channels = 3  # grey ones are repeated
        colour = pictures and self.num_coloured > 0
        intensities = tuple(values.figures() for values in self.channels[:num_channels])
        modality, source = modality_of(folder, pictures, colour, intensities)
        return Fingerprint(
            layout=folder.layout,
            channels=folder.channels,
            num_cases=len(self.sizes),
            num_labelled=self.num_labelled,
            pictures=pictures,
            num_channels=num_channels,
            colour=colour,
            sizes=_spreads(self.sizes),
            spacings=() if pictures else _spreads(self.spacings),
            intensities=intensities,
            foreground=tuple(values.figures() for values in self.foreground[:num_channels] if values.count),
            zero_share=self.num_zero / max(1, self.num_voxels),
            classes=_classes(self.label_values, self.num_voxels),
            num_slices=(len(self.sizes),) if pictures else tuple(np.sum(self.sizes, axis=0, dtype=int).tolist()),
            modality=modality,
            modality_source=source,
            instances=(folder.root / "instances").is_dir(),
            unusable=self.unusable,
        )


def modality_of(
    folder: CaseFolder, pictures: bool, colour: bool, intensities: Sequence[dict[str, float]]
) -> tuple[str, str]:
    """Return "CT", "MR", "RGB" or "grey", and what says so: the channels' names, else the intensities.

    Hounsfield units are told by air, which is near -1000 and which no other modality stores.
    """
    if pictures:
        return ("RGB", "three channels that differ") if colour else ("grey", "pictures of one grey channel")
    names = " ".join(folder.channels).lower().replace("_", " ").replace("-", " ")
    for modality, pattern in (("CT", _CT), ("MR", _MR)):
        if match := pattern.search(names):
            return modality, f"the channel's name says {match.group(0)}"
    low = intensities[0].get("p0_5", 0.0) if intensities else 0.0
    if intensities and _HOUNSFIELD_LEAST < intensities[0]["min"] <= _HOUNSFIELD_AIR:
        return "CT", f"values down to {intensities[0]['min']:g} look like Hounsfield units, in which air is -1000"
    return "MR", f"no Hounsfield units (values from {low:g}), and nothing names the modality"


def _in_ras_order(grid: Grid) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return size and spacing along left-right, posterior-anterior, inferior-superior; a picture's as it lies."""
    if grid.affine is None or len(grid.shape) != 3:
        return grid.shape, grid.spacing
    order = np.argsort(nibabel.io_orientation(grid.affine)[:, 0])
    return tuple(grid.shape[axis] for axis in order), tuple(grid.spacing[axis] for axis in order)


def _spreads(rows: Sequence[Sequence[float]]) -> tuple[tuple[float, float, float], ...]:
    if not rows:
        return ()
    columns = np.asarray(rows, dtype=float).T
    return tuple((float(c.min()), float(np.median(c)), float(c.max())) for c in columns)


def _classes(cases: Sequence[Counter[int]], num_voxels: int) -> tuple[LabelClass, ...]:
    whites = [full_scale_label(values, None) for values in cases]
    binary = all(white or not set(values) - {0, 1} for white, values in zip(whites, cases))
    total: Counter[int] = Counter()
    present: Counter[int] = Counter()
    for values, white in zip(cases, whites):
        renumbered = {(1 if binary and white and value == white[0] else value): n for value, n in values.items()}
        total.update(renumbered)
        present.update([value for value, number in renumbered.items() if number])
    labelled = sum(number for value, number in total.items() if value > 0)
    return tuple(
        LabelClass(value, present[value], total[value] / labelled, total[value] / max(1, num_voxels))
        for value in sorted(total)
        if value > 0
    )
