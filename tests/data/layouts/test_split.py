"""Sections of a folder, and leaks between them."""

from __future__ import annotations

import gzip
import json
import shutil

import numpy as np
import pytest

from shared_components.data.datalists import datalist
from shared_components.data.layouts.cases import find_cases
from shared_components.data.layouts.split import (
    find_leaks,
    group_patients,
    guess_patient_pattern,
    overlapping,
    sections,
)
from shared_components.errors import InputError
from tests.data.folders import case_names, msd_folder, save, save_picture, some_image, some_label


def test_without_a_split_every_fifth_is_test_and_every_eighth_of_the_rest_validation(tmp_path):
    ids = case_names(20)
    parts = sections(find_cases(msd_folder(tmp_path, ids)))
    assert parts["test"] == [ids[4], ids[9], ids[14], ids[19]]
    assert parts["validation"] == [ids[8], ids[18]]
    assert sorted(parts["train"] + parts["validation"] + parts["test"]) == ids


def test_small_folders_still_have_all_three_sections(tmp_path):
    parts = sections(find_cases(msd_folder(tmp_path, case_names(3))))
    assert parts == {"train": ["case_00"], "validation": ["case_01"], "test": ["case_02"]}


def test_an_incomplete_case_moves_no_other(tmp_path):
    before = sections(find_cases(msd_folder(tmp_path, case_names(20))))
    (tmp_path / "labelsTr" / "case_03.nii.gz").unlink()
    (tmp_path / "imagesTr" / "case_11.nii.gz").unlink()
    assert sections(find_cases(tmp_path)) == before


def test_a_split_file_decides_and_validation_comes_from_its_training_ids_alone(tmp_path):
    ids = case_names(12)
    msd_folder(tmp_path, ids)
    (tmp_path / "split.json").write_text(json.dumps({"train": ids[:9], "test": ids[9:]}), encoding="utf-8")
    parts = sections(find_cases(tmp_path))
    assert (parts["validation"], parts["test"]) == (["case_07"], ids[9:])
    (tmp_path / "split.json").write_text(
        json.dumps({"train": ids[:4], "val": ids[4:6], "test": ids[9:]}), encoding="utf-8"
    )
    assert sections(find_cases(tmp_path)) == {"train": ids[:4], "validation": ids[4:6], "test": ids[9:]}


def test_real_split_follows_the_rule(real_data):
    folder = find_cases(real_data / "Task04_Hippocampus")
    with_file = sections(folder)
    folder.split = None
    assert sections(folder) == with_file


def test_a_case_in_two_sections_leaks(tmp_path):
    msd_folder(tmp_path, case_names(3))
    (tmp_path / "split.json").write_text(
        '{"train": ["case_00", "case_01"], "validation": [], "test": ["case_01"]}', encoding="utf-8"
    )
    (leak,) = find_leaks(find_cases(tmp_path))
    assert (leak.level, leak.case, leak.kind) == ("error", "case_01", "leak")
    assert "'train' and in 'test'" in leak.message


def test_the_same_image_in_two_sections_leaks_and_within_one_is_a_warning(tmp_path):
    ids = case_names(10)
    msd_folder(tmp_path, ids)
    images = tmp_path / "imagesTr"
    shutil.copy(images / "case_00.nii.gz", images / "case_04.nii.gz")
    shutil.copy(images / "case_01.nii.gz", images / "case_02.nii.gz")
    found = {finding.case: finding for finding in find_leaks(find_cases(tmp_path))}
    assert (found["case_04"].level, found["case_04"].kind) == ("error", "leak")
    assert "case_00" in found["case_04"].message and "'test'" in found["case_04"].message
    assert (found["case_02"].level, found["case_02"].kind) == ("warning", "duplicate_image")
    assert len(found) == 2


def test_images_of_one_value_leak_nothing(tmp_path):
    """Empty slices of two patients, or a sequence that neither has, are alike in every byte."""
    msd_folder(tmp_path, case_names(10))
    for case in ("case_00", "case_01", "case_04"):
        save(tmp_path / "imagesTr" / f"{case}.nii.gz", np.zeros((6, 5, 4), np.float32))
    assert find_leaks(find_cases(tmp_path)) == []
    for number in (0, 4):
        save_picture(tmp_path / "pictures" / "images" / f"{number}.png", np.full((5, 4, 3), 9, np.uint8))
        save_picture(tmp_path / "pictures" / "masks" / f"{number}.png", np.zeros((5, 4), np.uint8))
    assert find_leaks(find_cases(tmp_path / "pictures")) == []


def test_recompressing_hides_no_leak(tmp_path):
    msd_folder(tmp_path, case_names(5))
    raw = gzip.decompress((tmp_path / "imagesTr" / "case_00.nii.gz").read_bytes())
    (tmp_path / "imagesTr" / "case_04.nii.gz").write_bytes(gzip.compress(raw, compresslevel=9, mtime=7))
    assert [leak.case for leak in find_leaks(find_cases(tmp_path))] == ["case_04"]


def test_the_channels_of_one_case_may_be_alike_and_unreadable_files_are_left_to_the_check(tmp_path):
    for case in ("a", "b"):
        save(tmp_path / "labelsTr" / f"{case}.nii.gz", some_label())
    for name in ("a_0000", "a_0001"):
        save(tmp_path / "imagesTr" / f"{name}.nii.gz", some_image())
    broken = gzip.compress(bytes(1000))[:-20] + bytes(8)
    for name in ("b_0000", "b_0001"):
        (tmp_path / "imagesTr" / f"{name}.nii.gz").write_bytes(broken)
    assert find_leaks(find_cases(tmp_path)) == []


def folds(folder, num_folds):
    parts = []
    for fold in range(num_folds):
        folder.fold, folder.num_folds = fold, num_folds
        parts.append(sections(folder))
    return parts


def test_every_case_that_is_not_tested_validates_in_one_of_the_folds(tmp_path):
    folder = find_cases(msd_folder(tmp_path, case_names(20)))
    tested = sections(folder)["test"]
    parts = folds(folder, 5)
    assert all(part["test"] == tested for part in parts)
    validated = sorted(case for part in parts for case in part["validation"])
    assert validated == sorted(set(case_names(20)) - set(tested))
    assert all(not set(part["train"]) & set(part["validation"]) for part in parts)
    assert parts[0]["validation"] != case_names(20)[:3]  # dealt, not cut off in order
    assert folds(find_cases(tmp_path), 5) == parts


def test_a_patient_stays_whole_in_every_fold(tmp_path):
    ids = [f"p{patient}_s{number:02d}" for patient in range(7) for number in range(3)]
    folder = find_cases(msd_folder(tmp_path, ids))
    group_patients(folder, guess_patient_pattern(ids))
    assert len(set(folder.groups.values())) == 7
    for part in folds(folder, 3):
        patients = {name: {case.split("_")[0] for case in cases} for name, cases in part.items()}
        assert not patients["train"] & patients["validation"]
        assert not patients["test"] & (patients["train"] | patients["validation"])


@pytest.mark.parametrize(
    ("ids", "guessed"),
    [
        (["spleen_03_s019", "spleen_03_s021", "spleen_26_s003"], True),
        (["Image_01L", "Image_01R", "Image_02L"], True),
        (["case_01", "case_02"], False),
        (["case_s01", "case_s02"], False),  # one patient would be all there is
    ],
)
def test_patients_are_guessed_only_where_all_ids_look_alike(ids, guessed):
    assert (guess_patient_pattern(ids) is not None) is guessed


def test_a_pattern_that_finds_nothing_or_is_none_is_refused(tmp_path):
    msd_folder(tmp_path, case_names(6))
    with pytest.raises(InputError, match="matches none of the 6 case ids, such as case_00"):
        datalist(tmp_path, "train", patient_pattern="^patient")
    with pytest.raises(InputError, match="no regular expression"):
        datalist(tmp_path, "train", patient_pattern="(")
    with pytest.raises(InputError, match="fold is 5; expected a whole number from 0 to 4"):
        datalist(tmp_path, "train", fold=5)
    with pytest.raises(InputError, match="fold 4 of 5, but there are"):
        datalist(tmp_path, "train", fold=4, patient_pattern=r"^case_\d")


def test_a_single_patient_trains_and_validates_and_it_is_said(tmp_path, caplog):
    msd_folder(tmp_path, case_names(1))
    folder = find_cases(tmp_path)
    folder.fold = 0
    assert sections(folder) == dict.fromkeys(("train", "validation", "test"), ["case_00"])
    assert overlapping(sections(folder)) == "validation and test"
    assert len(datalist(tmp_path, "validation", fold=0)) == 1
    datalist(tmp_path, "train", fold=0)
    assert "one patient to train on" in caplog.text
    msd_folder(tmp_path, case_names(2))
    folder = find_cases(tmp_path)
    folder.fold = 0
    assert sections(folder) == {"train": ["case_00"], "validation": ["case_00"], "test": ["case_01"]}


def test_a_fold_deals_the_validation_of_a_split_file_again(tmp_path):
    ids = case_names(8)
    msd_folder(tmp_path, ids)
    (tmp_path / "split.json").write_text(
        json.dumps({"train": ids[:5], "validation": ids[5:6], "test": ids[6:]}), encoding="utf-8"
    )
    parts = folds(find_cases(tmp_path), 3)
    assert sorted(case for part in parts for case in part["validation"]) == ids[:6]
