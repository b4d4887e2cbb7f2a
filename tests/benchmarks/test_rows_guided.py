"""Rows c1 and c2 on images of seconds: equal images on equal weights and noise, and rows that say what was compared."""

from __future__ import annotations

import pytest

from benchmarks.rows_guided import guided_rows


def test_images_equal_those_of_diffusers_and_of_one_at_a_time():
    pytest.importorskip("diffusers")
    rows = list(guided_rows(pairs=1, seed=0, size=32, steps=5, batches=(1, 2)))
    assert [row.name for row in rows] == ["c1", "c2", "c1", "c1", "c2"]
    exact = [row for row in rows if "bound 1e-04" in row.gate.text]
    assert len(exact) == 3 and all(row.gate.passed for row in exact)
    assert all("timing only" in row.gate.text for row in rows if row not in exact)
    assert {row.details["batch"] for row in rows} == {1, 2} and all(row.ratio() for row in rows)
