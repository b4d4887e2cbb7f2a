"""Photographs of a retina made into angiograms: bright vessels, true labels, the same sections."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from shared_components.data.phantoms import make_phantoms
from shared_components.data.preparation.simulated_angiograms import largest_square, simulate_angiograms
from shared_components.errors import InputError


@pytest.fixture(scope="module")
def fundus(tmp_path_factory):
    return make_phantoms(tmp_path_factory.mktemp("source") / "fundus", 4, kind="fundus")


def test_dark_vessels_become_bright_and_keep_their_labels(fundus, tmp_path):
    made = simulate_angiograms(fundus, tmp_path / "angiograms")
    split = json.loads((made / "split.json").read_text(encoding="utf-8"))
    assert split == {name: json.loads((fundus / "split.json").read_text(encoding="utf-8"))[name] for name in split}
    for name in sum(split.values(), []):
        image, mask = (np.asarray(Image.open(made / kind / f"{name}.png")) for kind in ("images", "masks"))
        assert image.ndim == 2 and image.shape == mask.shape and image.shape[0] == image.shape[1]
        assert set(np.unique(mask)) == {0, 255}
        assert image[mask > 0].mean() > 1.5 * image[mask == 0].mean()


def test_speckle_and_seed(fundus, tmp_path):
    def first(name: str, **options) -> np.ndarray:
        folder = simulate_angiograms(fundus, tmp_path / name, **options)
        return np.asarray(Image.open(sorted((folder / "images").iterdir())[0]))

    calm, rough, other = first("a", speckle=0.0), first("b"), first("c", seed=1)
    assert np.array_equal(rough, first("d")) and not np.array_equal(rough, other)
    assert rough.std() > 1.1 * calm.std()


def test_the_largest_square_of_a_field():
    field = np.zeros((60, 80), bool)
    field[8:49, 20:61] = True
    field[8:20, 4:76] = True
    assert largest_square(field, 1) == (slice(8, 49), slice(20, 61))
    assert largest_square(np.ones((9, 9), bool)) == (slice(0, 9), slice(0, 9))


def test_a_folder_that_exists_is_refused(fundus, tmp_path):
    with pytest.raises(InputError, match="exists"):
        simulate_angiograms(fundus, tmp_path)
