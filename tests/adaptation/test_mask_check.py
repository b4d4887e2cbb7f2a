"""What is said of masks that cannot be of vessels, and of vessels of the other polarity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shared_components.adaptation.mask_check import about_masks
from shared_components.data.phantoms import make_phantoms
from tests.data.folders import save_picture


@pytest.mark.parametrize(("kind", "polarity", "other"), [("fundus", "dark", "bright"), ("octa", "bright", "dark")])
def test_the_polarity_is_seen_in_the_masks(tmp_path, kind, polarity, other):
    folder = make_phantoms(tmp_path / kind, 4, kind=kind)
    assert about_masks(folder, polarity) == []
    (text,) = about_masks(folder, other)
    found = {"dark": "darker", "bright": "brighter"}[polarity]
    assert f"{found} than what surrounds it in 4 of 4 pictures" in text and f"give {polarity}" in text


def blobs(folder: Path, radius: int) -> Path:
    rows, columns = np.mgrid[:200, :200]
    disc = (rows - 90) ** 2 + (columns - 110) ** 2 < radius**2
    for number in range(3):
        save_picture(folder / "images" / f"{number}.png", np.where(disc, 40, 150 + number).astype(np.uint8))
        save_picture(folder / "masks" / f"{number}.png", np.where(disc, 255, 0).astype(np.uint8))
    return folder


def test_a_zone_is_no_vessel(tmp_path):
    """As the masks of the avascular zone in the folder of angiograms are."""
    (text,) = about_masks(blobs(tmp_path / "zone", 40), "dark")
    assert "in 3 of 3 pictures, far more than vessels are" in text


def test_what_cannot_be_read_or_shows_nothing_is_left_to_the_stages(tmp_path):
    folder = blobs(tmp_path / "set", 3)
    for file in (folder / "masks").iterdir():
        save_picture(file, np.zeros((200, 200), np.uint8))
    assert about_masks(folder, "dark") == []
    (folder / "masks" / "1.png").write_bytes(b"no picture")
    assert about_masks(folder, "bright") == [] and about_masks(tmp_path / "none", "dark") == []
    assert about_masks(folder / "images", "dark") == []
