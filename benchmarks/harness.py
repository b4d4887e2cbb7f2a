"""Timing in interleaved pairs: opponent, project, opponent, project, ... in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

STATUS_FILE = Path("/proc/self/status")
CLEAR_FILE = Path("/proc/self/clear_refs")
RESET_SLACK_KB = 16 * 1024


@dataclass
class Sample:
    """One timed call.

    Attributes:
        seconds: of the process on the CPU (all its threads), or between two CUDA events.
        wall: seconds on the clock.
    """

    seconds: float
    wall: float


@dataclass
class Gate:
    """What had to hold before anything was timed, and whether it did."""

    passed: bool
    text: str


@dataclass
class Row:
    """The result of one row of the table.

    Attributes:
        name: of the row, such as ``a4``.
        content: what both sides did, in words.
        opponent: what the project was compared with.
        device: ``cpu`` or ``cuda``.
        gate: the condition on equal results; a row whose gate failed has no samples.
        opponent_samples, project_samples: pair by pair, in the order in which they were taken.
        first: seconds of the first call of either side, which warms up and is not among the samples.
        peak_mb: peak memory of either side in MB; ``None`` where it cannot be told.
        details: settings and anything else that belongs to the row.
    """

    name: str
    content: str
    opponent: str
    device: str
    gate: Gate
    opponent_samples: list[Sample] = field(default_factory=list)
    project_samples: list[Sample] = field(default_factory=list)
    first: tuple[float, float] | None = None
    peak_mb: tuple[float | None, float | None] | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return the row as plain values, its ratio included."""
        return {**asdict(self), "ratio": self.ratio()}

    def ratio(self) -> dict[str, float] | None:
        """Return ``ratio_of_medians`` of the pairs, ``None`` for a row that was not timed."""
        if not self.gate.passed or not self.project_samples:
            return None
        return ratio_of_medians(
            [sample.seconds for sample in self.opponent_samples],
            [sample.seconds for sample in self.project_samples],
        )


def ratio_of_medians(opponent: list[float], project: list[float]) -> dict[str, float]:
    """Return opponent time / project time, above 1 where the project is faster.

    Args:
        opponent, project: seconds, pair by pair.

    Returns:
        ``ratio`` of the medians; ``low`` and ``high``, the range of the ratios of the single pairs; the
        medians ``opponent_s`` and ``project_s``.
    """
    pairs = [a / b for a, b in zip(opponent, project, strict=True)]
    medians = float(np.median(opponent)), float(np.median(project))
    return {
        "ratio": medians[0] / medians[1],
        "low": min(pairs),
        "high": max(pairs),
        "opponent_s": medians[0],
        "project_s": medians[1],
    }


def timed(work: Callable[[], Any], device: str = "cpu") -> Sample:
    """Call ``work`` and time it: CPU time of this process, or CUDA events on a GPU."""
    if torch.device(device).type == "cuda":
        return _timed_cuda(work)
    wall, start = time.perf_counter(), time.process_time()
    work()
    return Sample(time.process_time() - start, time.perf_counter() - wall)


def _timed_cuda(work: Callable[[], Any]) -> Sample:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    torch.cuda.synchronize()
    wall = time.perf_counter()
    events[0].record()
    work()
    events[1].record()
    torch.cuda.synchronize()
    return Sample(events[0].elapsed_time(events[1]) / 1000, time.perf_counter() - wall)


def measure(row: Row, opponent: Callable[[], Any], project: Callable[[], Any], pairs: int) -> Row:
    """Warm both sides up (which yields cold-start time and peak memory), then time them in turn.

    A row whose gate failed is returned as it is.
    """
    if not row.gate.passed:
        return row
    first, peaks = [], []
    for work in (opponent, project):
        with peak_memory(row.device) as peak:
            first.append(timed(work, row.device).seconds)
        peaks.append(peak["mb"])
    row.first, row.peak_mb = (first[0], first[1]), (peaks[0], peaks[1])
    for _ in range(pairs):
        row.opponent_samples.append(timed(opponent, row.device))
        row.project_samples.append(timed(project, row.device))
    return row


@contextmanager
def peak_memory(device: str = "cpu") -> Iterator[dict[str, float | None]]:
    """Measure the peak memory inside the block: resident memory of the process, or allocated on the GPU.

    Yields:
        A dictionary whose ``mb`` is set on leaving; ``None`` where the system cannot reset its peak.
    """
    peak: dict[str, float | None] = {"mb": None}
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak["mb"] = torch.cuda.max_memory_allocated() / 1e6
        return
    if not _peak_was_reset():
        yield peak
        return
    yield peak
    peak["mb"] = _memory_kb("VmHWM") / 1e3


def _peak_was_reset() -> bool:
    """Ask for the peak to be set to what is resident now, and look whether it was: a container may accept
    the request and do nothing, and every later peak would be one of the past."""
    try:
        CLEAR_FILE.write_text("5", encoding="utf-8")
        return _memory_kb("VmHWM") <= _memory_kb("VmRSS") + RESET_SLACK_KB
    except OSError:
        return False


def _memory_kb(field_name: str) -> int:
    fields = dict(line.split(":", 1) for line in STATUS_FILE.read_text(encoding="utf-8").splitlines() if ":" in line)
    return int(fields[field_name].split()[0])
