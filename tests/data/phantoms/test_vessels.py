"""The phantoms of vessels: two modalities of one kind of anatomy, opposite polarity, other patients."""

from __future__ import annotations

import numpy as np
from PIL import Image
from skimage.measure import label

from shared_components.data.phantoms import make_phantoms, phantom_case


def test_modalities(tmp_path):
    for kind, mode in (("fundus", "RGB"), ("octa", "L")):
        folder = make_phantoms(tmp_path / kind, 3, 1, kind)
        for file in sorted((folder / "images").iterdir()):
            image, mask = Image.open(file), np.asarray(Image.open(folder / "masks" / file.name))
            assert image.mode == mode and mask.shape == (128, 128) and sorted(np.unique(mask)) == [0, 255]
            assert 0.08 < (mask > 0).mean() < 0.3
            grey = np.asarray(image, float) if mode == "L" else np.asarray(image, float)[..., 1]
            difference = grey[mask > 0].mean() - grey[mask == 0].mean()
            assert difference > 20 if kind == "octa" else difference < -10


def test_anatomies_are_alike_and_of_other_patients():
    shares = {kind: [(phantom_case(0, n, kind)[1] > 0).mean() for n in range(8)] for kind in ("fundus", "octa")}
    assert abs(np.mean(shares["fundus"]) - np.mean(shares["octa"])) < 0.05
    for index in range(4):
        fundus, octa = (phantom_case(0, index, kind)[1] > 0 for kind in ("fundus", "octa"))
        assert 2 * (fundus & octa).sum() / (fundus.sum() + octa.sum()) < 0.6
        parts = label(octa, connectivity=2)
        assert np.bincount(parts.flat)[1:].max() > 0.5 * octa.sum()  # a tree, not dust
