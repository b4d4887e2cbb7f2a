"""What the values of an image or a label map are, gathered block by block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from shared_components.data.formats.volumes import Volume
from shared_components.errors import InputError

INTEGER_TOLERANCE = 1e-3
FULL_SCALE = (255, 65535)
_FEW = 32  # values of a label map; images have more
_SAMPLE = 4096

Labels = Mapping[str, int] | Iterable[int] | int | None


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


def full_scale_label(values: Iterable[int], allowed: frozenset[int] | None) -> tuple[int, int] | None:
    """Tell what white stands for in a mask that is black and white, in a task with a single label.

    Args:
        values: the values of the mask.
        allowed: the task's label values with 0; ``None`` (unknown) is taken as {0, 1}.

    Returns:
        (255 or 65535, the label it stands for), or ``None`` if the values stand for themselves.
    """
    found = set(values)
    foreground = (allowed or frozenset({0, 1})) - {0}
    top = max(found, default=0)
    if top not in FULL_SCALE or found - {0, top} or len(foreground) != 1 or top in foreground:
        return None
    return top, next(iter(foreground))


@dataclass
class ValueScan:
    """Counts over the voxels of a volume.

    Attributes:
        num_nan: voxels that are NaN.
        num_infinite: voxels that are plus or minus infinity.
        first_bad: channel and (x, y, z) of the first voxel that is one or the other.
        ranges: smallest and largest finite value of each channel.
        values: whole-number values and their voxel counts (label maps only).
        num_fractional: voxels further than `INTEGER_TOLERANCE` from a whole number (label maps only).
        first_fraction: the first such value.
        levels: the values of an image that has none but few whole numbers from 0, as label maps have; ``None`` if it
            has others.
    """

    num_nan: int = 0
    num_infinite: int = 0
    first_bad: tuple[int, tuple[int, ...]] | None = None
    ranges: dict[int, tuple[float, float]] = field(default_factory=dict)
    values: Counter[int] = field(default_factory=Counter)
    num_fractional: int = 0
    first_fraction: float | None = None
    levels: set[int] | None = field(default_factory=set)

    def constant_channels(self) -> list[int]:
        """Return the channels in which every voxel has the same value."""
        return [channel for channel, (low, high) in self.ranges.items() if low == high]


def scan_values(volume: Volume, is_label: bool = False) -> ValueScan:
    """Read a volume to its end and gather its values; label maps also get their value counts."""
    scan = ValueScan()
    for channel, start, values in volume.blocks():
        if values.dtype.kind == "f":
            values = _without_nonfinite(scan, channel, start, values, volume.grid.shape)
        if values.size == 0:
            continue
        if is_label:
            _count_values(scan, values)
        else:
            _note_levels(scan, values)
        low, high = scan.ranges.get(channel, (np.inf, -np.inf))
        scan.ranges[channel] = (min(low, float(values.min())), max(high, float(values.max())))
    return scan


def _without_nonfinite(
    scan: ValueScan, channel: int, start: int, values: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    finite = np.isfinite(values)
    if finite.all():
        return values
    num_nan = int(np.isnan(values).sum())
    scan.num_nan += num_nan
    scan.num_infinite += int((~finite).sum()) - num_nan
    if scan.first_bad is None:
        index = np.unravel_index(start + int(np.argmin(finite)), shape, order="F")
        scan.first_bad = (channel, tuple(int(i) for i in index))
    return values[finite]


def _count_values(scan: ValueScan, values: np.ndarray) -> None:
    if values.dtype.kind == "f":
        whole = np.rint(values)
        fractional = np.abs(values - whole) > INTEGER_TOLERANCE
        if fractional.any():
            scan.num_fractional += int(fractional.sum())
            if scan.first_fraction is None:
                scan.first_fraction = float(values[np.argmax(fractional)])
            whole = whole[~fractional]
        values = whole
    found, counts = np.unique(values, return_counts=True)
    scan.values.update({int(value): int(count) for value, count in zip(found, counts, strict=True)})


def _note_levels(scan: ValueScan, values: np.ndarray) -> None:
    for part in (values[:: values.size // _SAMPLE + 1], values):  # a sample tells most images, at no cost
        if scan.levels is None:
            return
        found = np.unique(part)
        whole = {round(float(value)) for value in found} if len(found) <= _FEW else set()
        unlike = not whole or min(whole) < 0 or np.abs(found - np.rint(found)).max() > INTEGER_TOLERANCE
        scan.levels = None if unlike or len(scan.levels | whole) > _FEW else scan.levels | whole
