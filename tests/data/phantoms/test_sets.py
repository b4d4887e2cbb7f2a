"""The phantom set: the same for the same parameters, and never in the way of other files."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import nibabel
import numpy as np
import pytest

from shared_components.data.checks.cases import check_folder
from shared_components.data.layouts.cases import find_cases
from shared_components.data.phantoms import demonstration_data, make_phantoms, phantom_case
from shared_components.errors import InputError


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_two_sets_of_the_same_seed_are_the_same_bytes_and_another_seed_is_not(tmp_path):
    first = digests(make_phantoms(tmp_path / "a", 4, seed=1))
    assert digests(make_phantoms(tmp_path / "b", 4, seed=1)) == first
    larger = digests(make_phantoms(tmp_path / "c", 5, seed=1))
    assert all(larger[name] == value for name, value in first.items() if name.endswith(".nii.gz"))
    other = digests(make_phantoms(tmp_path / "d", 4, seed=2))
    assert all(other[name] != value for name, value in first.items() if name.endswith(".nii.gz"))


def test_cases_are_hippocampus_like():
    scales = []
    for index in range(12):
        image, label = phantom_case(0, index)
        assert image.shape == label.shape and label.dtype == np.uint8
        assert all(low <= size <= high for size, low, high in zip(image.shape, (32, 44, 30), (44, 56, 40), strict=True))
        assert image.dtype == (np.uint8 if index % 5 == 0 else np.float32)
        shares = [(label == value).mean() for value in (1, 2)]
        assert all(0.005 < share < 0.06 for share in shares)
        front, back = (np.argwhere(label == value)[:, 1] for value in (1, 2))
        assert front.min() > back.max()
        scales.append(float(image.max()))
    assert max(scales) > 1e5 and min(scales) < 300


def test_the_set_is_a_good_msd_folder_with_all_sections(tmp_path):
    folder = find_cases(make_phantoms(tmp_path / "set"))
    assert (folder.layout, len(folder.cases)) == ("msd", 24)
    assert folder.label_names == {"anterior": 1, "posterior": 2}
    assert {section: len(ids) for section, ids in folder.split.items()} == {
        "train": 15,
        "validation": 3,
        "test": 6,
    }
    assert check_folder(folder) == []
    image = nibabel.load(folder.cases[0].images[0])
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S") and image.header.get_zooms() == (1, 1, 1)


def test_a_complete_set_is_used_again_and_anything_else_is_left_alone(tmp_path):
    folder = make_phantoms(tmp_path / "set", 3)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert make_phantoms(tmp_path / "set", 3) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times
    with pytest.raises(InputError, match="holds something other"):
        make_phantoms(tmp_path / "set", 4)
    (folder / "imagesTr" / "phantom_001.nii.gz").unlink()
    with pytest.raises(InputError, match="holds something other"):
        make_phantoms(tmp_path / "set", 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_numbers_out_of_range_and_a_folder_that_cannot_be_made(tmp_path):
    with pytest.raises(InputError, match="at least 3 cases"):
        make_phantoms(tmp_path / "set", 2)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        make_phantoms(tmp_path / "file" / "set", 3)


def test_a_small_set_has_every_section(tmp_path):
    split = json.loads((make_phantoms(tmp_path / "set", 3) / "split.json").read_text(encoding="utf-8"))
    assert split == {"train": ["phantom_000"], "validation": ["phantom_001"], "test": ["phantom_002"]}


def test_demonstration_data_keeps_the_users_folder_and_never_replaces_a_missing_one(tmp_path, caplog):
    assert demonstration_data(str(tmp_path), tmp_path / "out") == str(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        demonstration_data(tmp_path / "absent", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with caplog.at_level(logging.WARNING):
        folder = demonstration_data(None, tmp_path / "out")
    assert folder == str(tmp_path / "out" / "phantoms") and len(find_cases(folder).cases) == 24
    assert [record.message.count("demonstration on synthetic phantoms") for record in caplog.records] == [1]
