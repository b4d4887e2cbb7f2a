"""MedSegDiff's published scores, on the example of its specification."""

from __future__ import annotations

import pytest
import torch

from shared_components.reporting.published_metrics import published_overlaps

PREDICTION = torch.tensor([[0, 0.2, 0.4, 0.6], [0.8, 1, 1, 1]])
TRUTH = torch.tensor([[0.0, 0, 0, 1], [1, 1, 1, 0]])


def test_the_published_example():
    expected = (0.7475210190, 0.6076191247)  # counted in single precision
    assert published_overlaps(PREDICTION, TRUTH) == pytest.approx(expected, rel=2e-8)
    assert published_overlaps(PREDICTION * 0.4, TRUTH) == pytest.approx(expected, rel=2e-8)


def test_the_truth_is_cut_at_every_threshold():
    half = 0.6 * TRUTH  # marks nothing at 0.7 and 0.9
    dice, iou = published_overlaps(TRUTH, half)
    assert dice == pytest.approx((3 + 2 * 1e-4 / 4) / 5, abs=1e-6) and iou == pytest.approx(3 / 5, abs=1e-6)


def test_empty_masks():
    empty = torch.zeros(2, 4)
    assert published_overlaps(empty, empty) == (1, 1)
    assert published_overlaps(empty, TRUTH) == pytest.approx((0, 0), abs=3e-5)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 4\) and truth \(4, 2\)"):
        published_overlaps(PREDICTION, TRUTH.T)
