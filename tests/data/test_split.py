"""Sections of a folder, and leaks between them."""

from __future__ import annotations

import gzip
import json
import shutil

from shared_components.data.cases import find_cases
from shared_components.data.split import find_leaks, sections
from tests.data.folders import case_names, msd_folder, save, some_image, some_label


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
    (tmp_path / "split.json").write_text(json.dumps({"train": ids[:9], "test": ids[9:]}))
    parts = sections(find_cases(tmp_path))
    assert (parts["validation"], parts["test"]) == (["case_07"], ids[9:])
    (tmp_path / "split.json").write_text(json.dumps({"train": ids[:4], "val": ids[4:6], "test": ids[9:]}))
    assert sections(find_cases(tmp_path)) == {"train": ids[:4], "validation": ids[4:6], "test": ids[9:]}


def test_real_split_follows_the_rule(real_data):
    folder = find_cases(real_data / "Task04_Hippocampus")
    with_file = sections(folder)
    folder.split = None
    assert sections(folder) == with_file


def test_a_case_in_two_sections_leaks(tmp_path):
    msd_folder(tmp_path, case_names(3))
    (tmp_path / "split.json").write_text(
        '{"train": ["case_00", "case_01"], "validation": [], "test": ["case_01"]}'
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
