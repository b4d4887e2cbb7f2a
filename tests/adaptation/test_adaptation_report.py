"""What the report says: of the gap that adaptation is to close, and of the width of vessels."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image

from shared_components.adaptation.adaptation_report import _gap
from shared_components.adaptation.scale import folder_width, mask_width, target_sheet


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


def test_width_is_area_by_length(tmp_path):
    mask = np.zeros((40, 60), np.uint8)
    mask[10:15, 5:55] = 255
    assert mask_width([mask]) == pytest.approx(5, abs=0.6)  # the skeleton is a little shorter than the vessel
    thin = np.zeros_like(mask)
    thin[30, :] = 1
    assert mask_width([thin]) == 1
    assert 1 < mask_width([mask, thin]) < 5
    assert math.isnan(mask_width([np.zeros_like(mask)])) and math.isnan(folder_width(tmp_path))


def test_the_sheet_shows_where_most_is_labelled(tmp_path):
    label = np.zeros((50, 70), np.uint8)
    label[33:43, 41:51] = 255
    Image.fromarray(label).save(tmp_path / "a.png")
    Image.fromarray(label[:8, :9]).save(tmp_path / "b.png")
    images = {"a.png": 200.0 * (label > 0), "b.png": np.full((8, 9), 90.0)}
    shown = np.asarray(Image.open(io.BytesIO(target_sheet(images, tmp_path, (10, 12)))))[..., 0]
    assert shown.shape == (20, 24)
    assert (shown[:10, :12] == 200).sum() == (shown[10:, :12] == 255).sum() == 100
    assert (shown[:8, 12:21] == 90).all() and shown[8:10].max() == 200 and not shown[10:, 12:].any()
