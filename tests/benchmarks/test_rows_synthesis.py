"""Row f on an image of seconds: equal results, and rows that say what was compared."""

from __future__ import annotations

from benchmarks.rows_synthesis import synthesis_rows


def test_the_cache_changes_nothing_and_saves_time():
    same, other = synthesis_rows(pairs=1, seed=0, size=32, steps=3)
    assert same.gate.passed and "bound 1e-05" in same.gate.text
    assert same.ratio()["ratio"] > 1
    assert "timing only" in other.gate.text and "8,118,433" in other.gate.text
