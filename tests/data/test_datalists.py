"""Datalists of the sections, and what they refuse."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from shared_components.data.checks.check_data import check_data
from shared_components.data.datalists import datalist, inference_cases
from shared_components.errors import InputError
from tests.data.folders import SHAPE, case_names, msd_folder, picture_folder, save, some_image, some_label

LABELS = {"anterior": 1, "posterior": 2}


def names(items: list) -> list[str]:
    return [Path(item["image"]).name.split(".")[0] for item in items]


def test_sections_hold_images_and_labels_with_absolute_paths(tmp_path, monkeypatch):
    ids = case_names(10)
    msd_folder(tmp_path / "set", ids)
    monkeypatch.chdir(tmp_path)
    assert names(datalist("set", "test", LABELS)) == [ids[4], ids[9]]
    assert names(datalist("set", "validation", LABELS)) == [ids[8]]
    train = datalist("set", "train", LABELS)
    assert names(train) == ids[:4] + ids[5:8]
    image, label = (
        tmp_path / "set" / "imagesTr" / "case_00.nii.gz",
        tmp_path / "set" / "labelsTr" / "case_00.nii.gz",
    )
    assert train[0] == {"image": str(image), "label": str(label)}


def test_inference_lists_every_image_without_labels(tmp_path):
    msd_folder(tmp_path, ["a", "b"])
    (tmp_path / "labelsTr" / "b.nii.gz").unlink()
    save(tmp_path / "imagesTs" / "aa.nii.gz", some_image(7))
    items = datalist(tmp_path, "inference")
    assert names(items) == ["a", "aa", "b"]
    assert all(set(item) == {"image"} for item in items)


def test_one_file_a_channel_gives_a_list(tmp_path):
    for case in ("a", "b", "c"):
        save(tmp_path / "labelsTr" / f"{case}.nii.gz", some_label())
        for channel in range(2):
            save(tmp_path / "imagesTr" / f"{case}_000{channel}.nii.gz", some_image(channel + 7 * ord(case)))
    (item,) = datalist(tmp_path, "train", LABELS, num_channels=2)
    assert [Path(path).name for path in item["image"]] == ["a_0000.nii.gz", "a_0001.nii.gz"]


def broken_folder(root: Path) -> Path:
    """Five cases: two of the training section broken, one of the test section too."""
    msd_folder(root, case_names(6))
    (root / "imagesTr" / "case_00.nii.gz").write_bytes(b"")
    (root / "labelsTr" / "case_01.nii.gz").unlink()
    (root / "labelsTr" / "case_04.nii.gz").write_bytes(b"")
    return root


def test_errors_of_the_section_refuse_it_in_one_line_that_names_the_command(tmp_path):
    root = broken_folder(tmp_path / "my set")
    with pytest.raises(InputError) as error:
        datalist(root, "train", LABELS)
    message = str(error.value)
    assert "2 of 4 train cases cannot be used" in message and "\n" not in message
    assert "imagesTr/case_00.nii.gz: empty file" in message and "case_01" in message and "case_04" not in message
    assert f"python -m shared_components check_data --dataset_dir '{root}'" in message
    assert names(datalist(root, "validation", LABELS)) == ["case_05"]


def test_the_command_that_lists_all_errors_checks_as_the_run_does(tmp_path):
    """Without the run's classes the same folder has no error."""
    msd_folder(tmp_path, case_names(6))
    options = {"labels": {"anterior": 1}, "spatial_dims": 3}
    with pytest.raises(InputError) as refused:
        datalist(tmp_path, "train", **options)
    _, command = str(refused.value).split("All of them: python -m shared_components check_data ")
    folder, classes = f"--dataset_dir {tmp_path}", """--labels "{'anterior': 1}\""""
    assert command == f'{folder} {classes} --num_channels "1" --spatial_dims "3"'
    assert [f for f in check_data(tmp_path, **options, num_channels=1) if f.level == "error"]
    assert not [f for f in check_data(tmp_path) if f.level == "error"]


def test_skip_bad_uses_the_others_and_says_how_many(tmp_path, caplog):
    root = broken_folder(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert names(datalist(root, "train", LABELS, skip_bad=True)) == ["case_02", "case_03"]
    assert "2 of 4 train cases are used" in caplog.text
    with pytest.raises(InputError, match="no usable case in section 'test'"):
        datalist(root, "test", LABELS, skip_bad=True)


def test_empty_masks_are_counted_and_all_empty_is_refused(tmp_path, caplog):
    msd_folder(tmp_path, case_names(6))
    save(tmp_path / "labelsTr" / "case_00.nii.gz", np.zeros(SHAPE, np.uint8))
    save(tmp_path / "imagesTr" / "case_01.nii.gz", np.ones(SHAPE, np.uint8))
    with caplog.at_level(logging.WARNING):
        assert len(datalist(tmp_path, "train", LABELS)) == 4
    assert "1 of 4 train cases have an empty mask" in caplog.text
    assert "1 of 4 train cases have a constant image" in caplog.text
    for case in case_names(6)[:4]:
        save(tmp_path / "labelsTr" / f"{case}.nii.gz", np.zeros(SHAPE, np.uint8))
    with pytest.raises(InputError, match="all 4 training masks are empty"):
        datalist(tmp_path, "train", LABELS)


def test_a_class_that_no_mask_of_a_section_has_is_told(tmp_path, caplog, capsys):
    root = msd_folder(tmp_path, case_names(5))
    for case in ("case_00", "case_02"):  # train; case_01 has both
        save(root / "labelsTr" / f"{case}.nii.gz", np.minimum(some_label(), 1))
    save(root / "labelsTr" / "case_04.nii.gz", np.minimum(some_label(), 1))
    labels = {"anterior": 1, "posterior": 2}
    for section in ("train", "test"):
        datalist(root, section, labels)
    told = "the one mask has not the label 2 (posterior): it cannot be learned, and its Dice is 1"
    assert [told in message for message in caplog.messages] == [True] and "test cases" in caplog.text
    save(root / "labelsTr" / "case_01.nii.gz", np.minimum(some_label(), 1))
    datalist(root, "train", labels)
    assert "train cases: none of the 3 masks has the label 2 (posterior)" in caplog.text
    caplog.clear()
    datalist(root, "train", [1, 2])  # values that files may hold, no classes
    assert caplog.messages == []
    save(root / "labelsTr" / "case_03.nii.gz", np.minimum(some_label(), 1))
    check_data(root)
    assert "none of the 5 masks has the label 2 (posterior)" in capsys.readouterr().out


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_cases_to_validate_on_are_told_of_the_fold_that_works(tmp_path, count):
    root = msd_folder(tmp_path, case_names(count))
    with pytest.raises(InputError, match="no usable case in section 'validation' .*; --fold 0 validates"):
        datalist(root, "validation")
    assert len(datalist(root, "validation", fold=0)) == len(datalist(root, "train", fold=0)) == 1


def test_leaks_are_refused_whatever_the_section(tmp_path):
    ids = case_names(5)
    msd_folder(tmp_path, ids)
    shutil.copy(tmp_path / "imagesTr" / "case_00.nii.gz", tmp_path / "imagesTr" / "case_04.nii.gz")
    for section in ("train", "test"):
        with pytest.raises(InputError, match="case_04.*same image as case_00.nii.gz"):
            datalist(tmp_path, section, LABELS, skip_bad=True)
    (tmp_path / "split.json").write_text(json.dumps({"train": ids[:3], "test": ids[2:4]}), encoding="utf-8")
    with pytest.raises(InputError, match="case case_02 is in 'train' and in 'test'"):
        datalist(tmp_path, "train", LABELS)


def test_labels_of_another_meaning_an_unknown_section_and_images_without_labels(tmp_path):
    msd_folder(tmp_path / "set", case_names(3))
    with pytest.raises(InputError, match="in the model it is 2"):
        datalist(tmp_path / "set", "train", {"anterior": 2, "posterior": 1})
    with pytest.raises(InputError, match="section 'val': expected one of train, validation"):
        datalist(tmp_path / "set", "val")
    with pytest.raises(InputError, match="no labels; looked for labelsTr/"):
        datalist(tmp_path / "set" / "imagesTr", "train")


def test_an_id_of_the_split_that_does_not_exist_is_refused(tmp_path):
    msd_folder(tmp_path, case_names(3))
    split = {"train": ["case_00", "case_09"], "validation": ["case_02"], "test": ["case_01"]}
    (tmp_path / "split.json").write_text(json.dumps(split), encoding="utf-8")
    with pytest.raises(InputError, match="names case_09, but there is no such case"):
        datalist(tmp_path, "train", LABELS)
    assert names(datalist(tmp_path, "test", LABELS)) == ["case_01"]


def test_inference_cases_sets_bad_cases_apart(tmp_path):
    for number in range(3):
        save(tmp_path / f"scan {number}.nii.gz", some_image(number))
    (tmp_path / "scan 1.nii.gz").write_bytes(b"<!DOCTYPE html>")
    good, failures = inference_cases(tmp_path)
    assert names(good) == ["scan 0", "scan 2"]
    (failure,) = failures
    assert failure.startswith("scan 1: scan 1.nii.gz: truncated/corrupt") and "\n" not in failure


def test_images_below_those_that_are_predicted_are_told_of(tmp_path, caplog):
    save(tmp_path / "one.nii.gz", some_image())
    save(tmp_path / "more" / "two.nii.gz", some_image())
    assert [Path(item["image"]).name for item in inference_cases(tmp_path)[0]] == ["one.nii.gz"]
    assert "1 images below it, such as more/two.nii.gz, are not looked at" in caplog.text
    assert [finding.kind for finding in check_data(tmp_path)] == ["images_below"]


def test_a_model_of_slices_takes_what_the_folder_holds(tmp_path):
    msd_folder(tmp_path / "volumes", case_names(5))
    picture_folder(tmp_path / "slices", 5)
    assert len(datalist(tmp_path / "volumes", "test", [1, 2], spatial_dims=None)) == 1
    assert len(datalist(tmp_path / "slices", "test", [1], num_channels=3, spatial_dims=None)) == 1
    assert inference_cases(tmp_path / "slices", 3, spatial_dims=None)[1] == []
    with pytest.raises(InputError, match="2-D"):
        datalist(tmp_path / "volumes", "test", [1, 2], spatial_dims=2)


def test_real_sections(real_data):
    root = real_data / "Task04_Hippocampus"
    assert [len(datalist(root, section, LABELS)) for section in ("train", "validation", "test")] == [
        140,
        20,
        40,
    ]
