"""The data check of slices in folders a class: what it counts, and every kind of mistake in one pass."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared_components.data.checks.check_data import check_data
from shared_components.data.image_labels import slice_list
from tests.data.test_image_labels import breast_ultrasound, mask, picture, published
from tests.runs.commands import run_python


def told(capsys, root: Path, **options: object) -> tuple[list, dict[str, str], str]:
    """The findings, the table by its words, and all that is written."""
    findings = check_data(root, num_workers=1, **options)
    text = capsys.readouterr().out
    table = dict(line.split(maxsplit=1) for line in text.splitlines() if " " in line)
    return findings, table, text


@pytest.mark.parametrize(("test", "below"), [("validate", ""), ("validation", "flair/flair")])
def test_a_good_folder_has_its_counts_and_no_finding(tmp_path, capsys, test, below):
    root = published(tmp_path / "brats", test, below)
    picture(root / below / "training" / "normal" / "BraTS_001_80.png", 500)  # not constant
    findings, table, text = told(capsys, root, report=tmp_path / "r.json")
    assert {finding.level for finding in findings} <= {"note"}
    assert table["layout"] == "published" and table["cases"] == "12"
    assert table["classes"] == "object absent: normal 6; present: tumor 6"
    assert table["sections"] == "absent + present: train 2 + 2, validation 2 + 2, test 2 + 2"
    assert table["outlines"] == "train 2 of 2, validation 2 of 2, test 2 of 2 slices with the object"
    assert table["patients"].startswith("3 (the names of slices")
    assert "12 cases checked, 12 usable: 0 errors, 0 warnings" in text
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert report["classes"]["test"] == {"absent": 2, "present": 2, "outlined": 2}
    assert {len(ids) for ids in report["split"].values()} == {4}


def broken(root: Path) -> Path:
    """The published layout with a mistake of every kind."""
    published(root)
    train, test = root / "training", root / "validate"
    (train / "normal" / "BraTS_001_80.png").write_bytes(b"<html>not found</html>")
    Image.fromarray(np.full((12, 10), 255, np.uint8)).save(train / "seg" / "BraTS_001_100.png")  # turned
    mask(train / "seg" / "BraTS_002_80.png", 7)  # of a normal slice
    mask(train / "seg" / "BraTS_002_110.png", 0)
    mask(train / "seg" / "BraTS_7_110.png", 9)
    (test / "seg" / "BraTS_009_100.png").unlink()
    picture(test / "tumor" / "BraTS_001_100.png", 999)  # a patient that trains too
    picture(test / "tumor" / "BraTS_012_3_mask.png", 998)
    return root


def test_every_mistake_is_one_line_with_file_found_expected_and_remedy(tmp_path, capsys):
    root = broken(tmp_path / "brats")
    findings, table, text = told(capsys, root)
    lines = text.splitlines()

    def said(level: str, *parts: str) -> None:
        assert [line for line in lines if line.startswith(level) and all(part in line for part in parts)], parts

    said("error", "training/normal/BraTS_001_80.png: truncated/corrupt or no picture", "<html>")
    said("error", "training/seg/BraTS_001_100.png: label on another grid", "10x12 pixels", "has 12x10", "are swapped")
    said("error", "patient BraTS_001 is in", "'test'", "leave all in one section")
    said("error", "BraTS_012_3_mask.png: named as a mask, but there is no image beside it", "rename")
    said("warning", "training/seg/BraTS_002_80.png: outline of a slice in normal/, expected none; empty it, or move")
    said("warning", "training/seg/BraTS_002_110.png: empty mask of a slice in tumor/; outline the object, or move")
    said("warning", "training/seg/BraTS_7_110.png: mask without an image", "rename")
    said("warning", "section 'test': 1 of 4 slices with the object have a mask", "no masks will be scored")
    assert sum(finding.level == "error" for finding in findings) == 4
    assert table["outlines"].endswith("test 1 of 4 slices with the object")


def test_masks_of_normal_slices_may_be_there_if_they_are_empty(tmp_path, capsys):
    findings, _, _ = told(capsys, breast_ultrasound(tmp_path))
    assert [finding.kind for finding in findings if finding.level != "note"] == ["constant_image"]
    kind = tmp_path / "benign"
    Image.fromarray(np.full((5, 12), 255, np.uint8)).save(kind / "benign (4)_mask_1.png")  # the second of two
    findings, _, text = told(capsys, tmp_path)
    (error,) = [finding for finding in findings if finding.level == "error"]
    assert error.kind == "label_grid" and error.file.endswith("benign (4)_mask_1.png") and "12x5 pixels" in text


def test_values_of_masks_are_those_of_the_object_and_white(tmp_path, capsys):
    root = published(tmp_path / "brats")
    assert not [finding for finding in told(capsys, root, labels=[2, 3])[0] if finding.level == "error"]
    Image.fromarray(np.full((10, 12), 5, np.uint8)).save(root / "training" / "seg" / "BraTS_001_100.png")
    (error,) = [finding for finding in told(capsys, root, labels=[2, 3])[0] if finding.level == "error"]
    assert "unknown label values 5 (120 voxels); expected 0, 2, 3, 255, 65535" in error.message


def test_one_class_to_train_on_is_an_error_as_in_training(tmp_path, capsys):
    for number in range(4):
        picture(tmp_path / "training" / "tumor" / f"p{number}_1.png", number)
    picture(tmp_path / "validation" / "normal" / "q1_1.png", 9)
    findings, table, text = told(capsys, tmp_path)
    assert [finding.kind for finding in findings if finding.level == "error"] == ["one_class"]
    assert "0 slices without the object and 3 with it to train on; expected some of either" in text
    assert table["classes"] == "object absent: normal 1; present: tumor 4"


def test_colour_is_counted_as_the_model_takes_it(tmp_path, capsys):
    root = published(tmp_path / "brats")
    rgb = np.random.default_rng(0).integers(1, 255, (10, 12, 3)).astype(np.uint8)
    Image.fromarray(rgb).save(root / "training" / "normal" / "BraTS_001_80.png")
    assert "colour picture, model takes 1 channel here: the luminance is used" in told(capsys, root)[2]
    Image.fromarray(np.dstack([rgb, rgb[..., :1]])[..., :2], "LA").save(root / "training/normal/BraTS_001_90.png")
    findings, _, text = told(capsys, root, num_channels=2)
    assert sum(finding.kind == "channels" for finding in findings) == 12 and "model takes 2" in text


def test_the_usable_slices_keep_folders_sections_and_masks(tmp_path, capsys):
    root = broken(tmp_path / "brats")
    told(capsys, root, skip_bad=tmp_path / "usable", patient_pattern=r"^(\w+)_\d+$")
    (tmp_path / "usable" / "validate" / "tumor" / "BraTS_001_100.png").unlink(missing_ok=True)
    kept = {file.relative_to(tmp_path / "usable").as_posix() for file in (tmp_path / "usable").rglob("*.png")}
    assert "training/normal/BraTS_001_80.png" not in kept and "training/normal/BraTS_002_80.png" in kept
    assert "validate/tumor/BraTS_009_110.png" in kept and "validate/seg/BraTS_009_110.png" in kept
    assert {item["patient"] for item in slice_list(tmp_path / "usable", "test")} == {"BraTS_009"}
    told(capsys, root, skip_bad=tmp_path / "usable.json")
    listed = json.loads((tmp_path / "usable.json").read_text(encoding="utf-8"))
    assert {Path(item["image"]).parent.name: item["class"] for item in listed} == {"normal": 0, "tumor": 1}


def test_the_command_ends_with_exit_code_1_and_no_traceback(tmp_path):
    command = ["-m", "shared_components", "check_data", "--dataset_dir"]
    run = run_python(*command, str(broken(tmp_path / "brats")))
    assert run.code == 1 and "Traceback" not in run.stdout + run.stderr
    assert "classes   object absent: normal 6; present: tumor 8" in run.stdout
    assert run_python(*command, str(published(tmp_path / "good"))).code == 0
