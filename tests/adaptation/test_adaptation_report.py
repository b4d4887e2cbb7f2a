"""What the report says of the gap that adaptation is to close."""

from __future__ import annotations

import pytest

from shared_components.adaptation.adaptation_report import _gap


@pytest.mark.parametrize(
    ("dice", "said"),
    [
        ((0.5, 0.65, 0.8), "closes 50 % of the gap"),
        ((0.673, 0.618, 0.754), "does harm here: Dice falls from 0.673 to 0.618; 0.754 is possible"),
        ((0.8, 0.9, 0.7), "no gap to close"),
    ],
)
def test_the_gap_in_words(dice, said):
    names = ("segmenter", "adapted", "ceiling")
    scores = {f"target_{name}": {"dice_vessel": value} for name, value in zip(names, dice)}
    assert said in _gap(scores, "target")
    assert _gap(scores, "source") == ""
