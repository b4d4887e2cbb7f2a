"""Every bundle that MONAI Label is tested with has a case; no server is needed to say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shared_components.data.formats.pictures import read_picture
from tests.monai_label.cases import BUNDLES, DRAWN, REAL, write_case


def test_each_bundle_has_one_case():
    assert not set(DRAWN) & set(REAL)
    assert sorted({*DRAWN, *REAL}) == [bundle.name for bundle in BUNDLES]


@pytest.mark.parametrize("bundle", [bundle.name for bundle in BUNDLES])
def test_the_case_can_be_read_and_shows_something(bundle: str, real_data: Path, tmp_path: Path) -> None:
    image, label, least_dice = write_case(bundle, real_data, tmp_path)
    assert image.is_file() and label.is_file() and 0 <= least_dice < 1
    if label.suffix == ".png":
        mask = read_picture(label, is_label=True).pixels
        assert 0.001 < np.mean(mask > 0) < 0.9 and set(np.unique(mask)) <= {0, 1, 255}
