"""The figures of a folder."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from shared_components.data.fingerprint import fingerprint
from shared_components.data.layouts.cases import find_cases
from tests.data.folders import case_names, msd_folder, save


def test_sizes_and_spacings_follow_the_body_and_not_the_file(tmp_path):
    affine = np.array([[0, 0, 4.0, 0], [2.0, 0, 0, 0], [0, -3.0, 0, 0], [0, 0, 0, 1]])  # axes: A, I, R
    save(tmp_path / "images" / "a.nii.gz", np.ones((5, 6, 7), np.float32), affine)
    save(tmp_path / "labels" / "a.nii.gz", np.ones((5, 6, 7), np.uint8), affine)
    found = fingerprint(find_cases(tmp_path))
    assert found.median_size == (7, 5, 6)
    assert found.median_spacing == (4.0, 2.0, 3.0)
    assert found.num_slices == (7, 5, 6)


def test_intensities_are_those_of_the_labelled_voxels_and_of_the_values_asked_for(tmp_path):
    image = np.zeros((10, 4, 4), np.float32)
    label = np.zeros((10, 4, 4), np.uint8)
    image[:5], label[:5] = 100.0, 1
    image[5:8], label[5:8] = 300.0, 2
    save(tmp_path / "images" / "a.nii.gz", image)
    save(tmp_path / "labels" / "a.nii.gz", label)
    folder = find_cases(tmp_path)
    found = fingerprint(folder)
    assert found.foreground[0]["mean"] == pytest.approx((5 * 100 + 3 * 300) / 8)
    assert found.intensities[0]["mean"] == pytest.approx((5 * 100 + 3 * 300) / 10)
    assert found.zero_share == pytest.approx(0.2)
    assert [(c.value, c.num_cases, round(c.share_of_labelled, 4), c.share_of_all) for c in found.classes] == [
        (1, 1, 0.625, 0.5),
        (2, 1, 0.375, 0.3),
    ]
    assert fingerprint(folder, values={2}).foreground[0]["mean"] == 300.0


def test_blocks_that_do_not_end_at_a_whole_byte_mark_the_right_voxels(tmp_path, monkeypatch):
    monkeypatch.setattr("shared_components.data.formats.volumes.BLOCK_VOXELS", 24)
    rng = np.random.default_rng(0)
    image, label = rng.uniform(0, 1, (7, 5, 3)).astype(np.float32), rng.integers(0, 2, (7, 5, 3)).astype(np.uint8)
    save(tmp_path / "images" / "a.nii.gz", image)
    save(tmp_path / "labels" / "a.nii.gz", label)
    assert fingerprint(find_cases(tmp_path)).foreground[0]["mean"] == pytest.approx(image[label > 0].mean(), rel=1e-6)


@pytest.mark.parametrize(
    ("values", "modality", "said"),
    [((-1024, 400), "CT", "Hounsfield"), ((0, 400), "MR", "no Hounsfield"), ((-1e6, 10), "MR", "no Hounsfield")],
)
def test_the_modality_is_told_by_the_values_where_nothing_names_it(tmp_path, values, modality, said):
    save(tmp_path / "images" / "a.nii.gz", np.linspace(*values, 60, dtype=np.float32).reshape(5, 4, 3))
    save(tmp_path / "labels" / "a.nii.gz", np.ones((5, 4, 3), np.uint8))
    found = fingerprint(find_cases(tmp_path))
    assert (found.modality, said in found.modality_source) == (modality, True)


def test_the_modality_is_told_by_the_name_of_the_channel_before_that(tmp_path):
    found = fingerprint(find_cases(msd_folder(tmp_path, case_names(2), modality={"0": "CT"})))
    assert found.modality == "CT"
    assert "name" in found.modality_source


def test_pictures_of_grey_values_in_three_channels_have_no_colour_and_white_is_a_label(tmp_path):
    for number, colour in enumerate((False, True)):
        folder = tmp_path / str(number)
        (folder / "images").mkdir(parents=True)
        (folder / "masks").mkdir()
        picture = np.full((8, 6, 3), 50, np.uint8)
        picture[..., 2] = 80 if colour else 50
        Image.fromarray(picture).save(folder / "images" / "a.png")
        Image.fromarray(np.where(np.eye(8, 6) > 0, 255, 0).astype(np.uint8)).save(folder / "masks" / "a.png")
        found = fingerprint(find_cases(folder))
        assert (found.pictures, found.colour, found.modality) == (True, colour, "RGB" if colour else "grey")
        assert [item.value for item in found.classes] == [1]
        assert found.foreground[0]["mean"] == 50
        assert fingerprint(find_cases(folder), values={1}).foreground[0]["mean"] == 50


def test_a_case_that_cannot_be_used_is_named_and_left_out(tmp_path):
    msd_folder(tmp_path, case_names(3))
    save(tmp_path / "labelsTr" / "case_01.nii.gz", np.ones((3, 3, 3), np.uint8))
    (tmp_path / "imagesTr" / "case_02.nii.gz").write_bytes(b"")
    found = fingerprint(find_cases(tmp_path))
    assert found.num_cases == 1
    assert "3x3x3" in found.unusable["case_01"] and "empty file" in found.unusable["case_02"]


def test_the_sample_stays_bounded_and_the_content_is_json(tmp_path, monkeypatch):
    monkeypatch.setattr("shared_components.data.fingerprint._POOL", 100)
    found = fingerprint(find_cases(msd_folder(tmp_path, case_names(12))))
    assert 45 < found.intensities[0]["p50"] < 56  # uniform from 1 to 100
    assert json.loads(json.dumps(asdict(found)))["num_cases"] == 12
