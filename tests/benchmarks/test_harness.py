"""The arithmetic of ratios, the order of the pairs, and what a failed gate leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import harness
from benchmarks.gates import dice_gate, exact_gate, mean_dice
from benchmarks.harness import Gate, Row, Sample, measure, peak_memory, ratio_of_medians

ROOT = Path(__file__).parents[2]
PEAKS = """
import json, torch
from benchmarks.harness import peak_memory
with peak_memory() as small:
    torch.ones(1)
with peak_memory() as large:
    torch.ones(64, 1024, 1024)
print(json.dumps([small["mb"], large["mb"]]))
"""


def row(passed: bool = True) -> Row:
    return Row("a2", "the work", "plain code", "cpu", Gate(passed, "equal"))


def test_ratio_is_of_medians_and_range_of_pairs():
    found = ratio_of_medians([4.0, 6.0, 30.0], [2.0, 1.0, 10.0])
    assert found == {"ratio": 3.0, "low": 2.0, "high": 6.0, "opponent_s": 6.0, "project_s": 2.0}


def test_pairs_must_match():
    with pytest.raises(ValueError):
        ratio_of_medians([1.0, 2.0], [1.0])


def test_sides_are_timed_in_turn_after_a_warm_up():
    calls: list[str] = []
    found = measure(row(), lambda: calls.append("A"), lambda: calls.append("B"), pairs=3)
    assert "".join(calls) == "AB" + "ABABAB"
    assert len(found.opponent_samples) == len(found.project_samples) == 3
    assert len(found.first) == len(found.peak_mb) == 2


def test_a_failed_gate_is_neither_timed_nor_given_a_ratio():
    def never() -> None:
        raise AssertionError("timed although the gate failed")

    found = measure(row(passed=False), never, never, pairs=3)
    assert found.ratio() is None and found.record()["ratio"] is None


def test_a_failed_gate_hides_samples():
    found = row(passed=False)
    found.opponent_samples = found.project_samples = [Sample(1.0, 1.0)]
    assert found.ratio() is None


def test_peak_memory_sees_what_was_allocated_inside():
    """In a process of its own: one that has run other tests has freed memory to hand out again."""
    found = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, encoding="utf-8", check=True, cwd=ROOT)
    peaks = json.loads(found.stdout)
    if None in peaks:
        pytest.skip("this system cannot reset the peak memory of a process")
    assert 200 < peaks[1] - peaks[0] < 320


def test_a_peak_that_was_not_reset_is_no_measurement(tmp_path, monkeypatch):
    """A system that takes the request and ignores it, after a peak a gigabyte above what is resident."""
    status, clear = tmp_path / "status", tmp_path / "clear_refs"
    status.write_text("VmHWM:\t 1703552 kB\nVmRSS:\t  703552 kB\n", encoding="utf-8")
    monkeypatch.setattr(harness, "STATUS_FILE", status)
    monkeypatch.setattr(harness, "CLEAR_FILE", clear)
    with peak_memory() as peak:
        pass
    assert clear.read_text(encoding="utf-8") == "5" and peak["mb"] is None


def test_exact_gate_bounds_the_largest_difference():
    a = [torch.zeros(2, 3), torch.ones(2)]
    assert exact_gate(a, [a[0] + 9e-5, a[1]], 1e-4, "x").passed
    assert not exact_gate(a, [a[0], a[1] + 2e-4], 1e-4, "x").passed
    assert not exact_gate(a, [a[0] * float("nan"), a[1]], 1e-4, "x").passed
    assert not exact_gate([torch.zeros(2)], [torch.zeros(3)], 1e-4, "x").passed


def test_dice_gate_wants_forty_cases():
    assert not dice_gate([0.9] * 39, [0.95] * 39, "cases").passed
    assert dice_gate([0.9] * 40, [0.9] * 40, "cases").passed


def test_dice_gate_has_a_margin_of_half_a_point():
    opponent = [0.9] * 40
    assert dice_gate(opponent, [0.896] * 40, "cases").passed
    assert not dice_gate(opponent, [0.894] * 40, "cases").passed


def test_dice_gate_refuses_what_is_uncertain():
    """A mean difference of 0 whose interval reaches below the margin."""
    swing = [0.9 + 0.05 * (-1) ** index for index in range(40)]
    assert not dice_gate([0.9] * 40, swing, "cases").passed


def test_mean_dice_by_hand():
    """Class 1: one of two voxels hit, 2 * 1 / (1 + 2); class 2: empty on both sides, 1."""
    prediction = torch.tensor([[[1, 0, 0, 0]]])
    label = torch.tensor([[[1, 1, 0, 0]]])
    assert mean_dice(prediction, label, 3) == pytest.approx((2 / 3 + 1) / 2)
