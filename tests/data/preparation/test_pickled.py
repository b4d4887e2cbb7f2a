"""AdaptDiff's pickled dictionaries: made into folders, and nothing in them is run."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from PIL import Image

from shared_components.__main__ import main
from shared_components.data.layouts.cases import find_cases
from shared_components.data.preparation.pickled import import_pickle, read_pickled_arrays
from shared_components.errors import InputError


def content() -> dict:
    rng = np.random.default_rng(0)
    images = [rng.uniform(0, 1, (3, 8, 12)).astype(np.float32) for _ in range(2)]
    masks = [(rng.uniform(size=(8, 12)) > 0.7).astype(np.uint8) for _ in range(2)]
    return {"drive_im": images, "drive_gt": masks, "fa_im": images[:1]}


def save(folder, what, protocol=pickle.HIGHEST_PROTOCOL):
    path = folder / "data.pickle"
    path.write_bytes(pickle.dumps(what, protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_data_sets_become_folders(tmp_path, protocol):
    source = content()
    main(["import_pickle", "--source", str(save(tmp_path, source, protocol)), "--output_dir", str(tmp_path / "out")])
    folder = find_cases(tmp_path / "out" / "drive")
    assert [case.id for case in folder.cases] == ["drive_000", "drive_001"]
    for index, case in enumerate(folder.cases):
        pixels, mask = np.asarray(Image.open(case.images[0])), np.asarray(Image.open(case.label))
        assert np.abs(pixels / 255 - source["drive_im"][index].transpose(1, 2, 0)).max() <= 0.5 / 255 + 1e-6
        assert np.array_equal(mask, 255 * source["drive_gt"][index])
    assert find_cases(tmp_path / "out" / "fa").layout == "images"


class Evil:
    """What a hostile file would do when it is read."""

    def __init__(self, marker) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_nothing_in_the_file_is_run(tmp_path):
    path = save(tmp_path, {"drive_im": [Evil(tmp_path / "done")]})
    with pytest.raises(InputError, match="mkdir.*nothing in it was run"):
        import_pickle(path, tmp_path / "out")
    assert not (tmp_path / "done").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"drive_im": [np.zeros((8, 12), np.float32)] * 2}, r"shape \(8, 12\)"),
        ({"drive_im": [np.full((3, 8, 12), 200.0)] * 2}, "0..1"),
        ({"drive_gt": [np.zeros((8, 12), np.uint8)]}, "2 images and 1 masks"),
        ({"drive_gt": [np.zeros((9, 12), np.uint8)] * 2}, "mask 0 of 'drive'"),
        ({"drive_im": "text"}, "no list of arrays"),
        ({"drive_im": [np.array([{}], dtype=object)]}, "no list of arrays"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path, changed, message):
    path = save(tmp_path, {**content(), **changed})
    with pytest.raises(InputError, match=message):
        import_pickle(path, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["data.pickle"]


def test_other_files(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_pickled_arrays(tmp_path / "none")
    with pytest.raises(InputError, match="expected a dictionary"):
        read_pickled_arrays(save(tmp_path, [1]))
    (tmp_path / "data.pickle").write_bytes(b"\x80\x04rubbish")
    with pytest.raises(InputError, match="not a readable pickle"):
        read_pickled_arrays(tmp_path / "data.pickle")
    with pytest.raises(InputError, match="no entry ends in _im"):
        import_pickle(save(tmp_path, {"a": [np.zeros(3)]}), tmp_path / "out")
