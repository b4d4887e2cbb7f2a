"""What the values of an image or a label map are, gathered block by block."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from shared_components.data.volumes import Volume

INTEGER_TOLERANCE = 1e-3


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
    """

    num_nan: int = 0
    num_infinite: int = 0
    first_bad: tuple[int, tuple[int, ...]] | None = None
    ranges: dict[int, tuple[float, float]] = field(default_factory=dict)
    values: Counter[int] = field(default_factory=Counter)
    num_fractional: int = 0
    first_fraction: float | None = None

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
