"""CHAOS and BTCV as they are shipped: which series and which pictures belong together, and where each slice lies."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared_components.data.checks.check_data import check_data
from shared_components.data.datalists import datalist, inference_cases
from shared_components.data.formats.files import UnusableImage
from shared_components.data.formats.ground import read_ground
from shared_components.data.formats.volumes import open_volume
from shared_components.data.image_labels import slice_list
from shared_components.data.layouts.cases import find_cases
from shared_components.data.loaders import LoadImageChannelsd, LoadLabelMapd
from shared_components.data.slice_folder import prepare_slices
from shared_components.errors import InputError
from tests.data.folders import save
from tests.data.formats.test_dicom import write_series

SHAPE = (8, 7, 5)
GREY = (0, 63, 126, 189, 252)


def organs() -> np.ndarray:
    """Grey values (x, y, z) of CHAOS's MR: every slice another picture, none like itself turned or mirrored."""
    label = np.zeros(SHAPE, np.uint8)
    for z in range(SHAPE[2]):
        label[z : z + 3, 1, z], label[0, 3:5, z], label[5, 2, z] = 63, 252, 126
    label[6, 5, 1:3] = 189
    label[5, 2, :2] = 0
    return label


def chaos(patient: Path, label: np.ndarray, number: int = 0, stems: list[str] | None = None) -> Path:
    """A patient of CHAOS: a series whose image shows its labels, and a picture a slice.

    ``stems`` are the names of the DICOM files by position; the pictures are then called ``GT_000``, ... in the order of
    those names. Otherwise they are called as the files, whose names are in no order.
    """
    noise = np.random.default_rng(number).integers(0, 9, SHAPE)
    series = write_series(patient / "DICOM_anon", label.astype(np.int16) + noise)
    (patient / "Ground").mkdir()
    files = [series / f"1_{(7 * z) % 11:02d}.dcm" for z in range(SHAPE[2])]
    names = [file.stem for file in files]
    if stems:
        names = [f"liver_GT_{sorted(stems).index(stem):03d}" for stem in stems]
        for file, stem in zip(files, stems):
            file.rename(series / f"{stem}.dcm")
    for z, name in enumerate(names):
        Image.fromarray(label[:, :, z].T.copy()).save(patient / "Ground" / f"{name}.png")
    return patient


def mr(root: Path, count: int) -> Path:
    for number in range(1, count + 1):
        chaos(root / "Train_Sets" / "MR" / str(number) / "T2SPIR", organs(), number)
        (root / "Train_Sets" / "MR" / str(number) / "T1DUAL" / "Ground").mkdir(parents=True)
    return root


def numbered(label: np.ndarray) -> np.ndarray:
    return sum((label == grey) * number for number, grey in enumerate(GREY))


ORDERS = {
    "called alike": None,
    "from below": ["i0000", "i0001", "i0002", "i0003", "i0004"],
    "from above": ["i0004", "i0003", "i0002", "i0001", "i0000"],
}


@pytest.mark.parametrize("order", ORDERS)
def test_a_picture_lies_where_its_dicom_file_does(tmp_path, order):
    """By ImagePositionPatient: the image shows the labels, so both must agree voxel by voxel."""
    patient = chaos(tmp_path / "MR" / "3" / "T2SPIR", organs(), stems=ORDERS[order])
    (case,) = find_cases(tmp_path).cases
    assert case.id == "MR_03" and case.label == patient / "Ground"
    image = LoadImageChannelsd("image", 1)({"image": str(case.images[0])})["image"]
    label = LoadLabelMapd("label", labels=[1, 2, 3, 4])({"label": str(case.label)})["label"]
    assert label.shape == (1, *SHAPE) and torch.allclose(label.affine, image.affine)
    assert np.array_equal(label[0].numpy(), numbered(organs()))
    expected = torch.tensor(GREY)[label[0].long()]
    assert (image[0].as_tensor() - expected).abs().max() <= 8  # the noise
    with open_volume(case.images[0]) as series, open_volume(case.label, is_label=True) as ground:
        assert ground.grid.corner_distance(series.grid) < 1e-6
        (block,) = list(ground.blocks())
    assert np.array_equal(block[2].reshape(SHAPE, order="F"), numbered(organs()))


def test_names_in_no_order_do_not_say_which_picture_is_whose(tmp_path):
    patient = chaos(tmp_path / "p", organs(), stems=["b", "d", "a", "e", "c"])
    with pytest.raises(UnusableImage, match="names are in another order than their positions; name each picture as"):
        read_ground(patient / "Ground")


def test_the_white_of_ct_is_the_liver(tmp_path):
    liver = np.where(organs() == 63, 255, 0).astype(np.uint8)
    patient = chaos(tmp_path / "CT" / "12", liver, stems=ORDERS["from below"])
    for file in (patient / "Ground").iterdir():
        Image.open(file).convert("1").save(file)  # one bit a pixel
    (case,) = find_cases(tmp_path / "CT").cases
    assert case.id == "CT_12" and np.array_equal(read_ground(case.label)[0], organs() == 63)


def test_train_sets_are_checked_trained_on_and_made_slices(tmp_path, capsys):
    root = mr(tmp_path / "chaos", 5)
    folder = find_cases(root)
    assert folder.layout == "chaos" and [case.id for case in folder.cases] == [f"MR_0{n}" for n in range(1, 6)]
    assert folder.label_names == {"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4}
    assert [finding for finding in check_data(root, num_workers=1) if finding.level == "error"] == []
    assert "labels    liver 1, right kidney 2, left kidney 3, spleen 4" in capsys.readouterr().out
    assert [item["case"] for item in datalist(root, "test")] == ["MR_05"]
    slices = prepare_slices(root, tmp_path / "slices", [2, 3], min_share=0.0, min_body=0.0)
    with open(slices / "manifest.csv", encoding="utf-8", newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    kidneys = np.isin(numbered(organs()), [2, 3]).sum((0, 1))
    for z in range(SHAPE[2]):
        row = rows[f"MR_01_z{z:03d}"]
        assert int(row["object_pixels"]) == kidneys[z] and row["class"] == ("tumor" if kidneys[z] else "normal")
    assert {item["class"] for item in slice_list(slices, "train", [2, 3])} == {0, 1}


def test_what_is_wrong_with_a_patient_is_told_in_one_line(tmp_path, capsys):
    root = mr(tmp_path / "chaos", 5)
    ground = [root / "Train_Sets" / "MR" / str(n) / "T2SPIR" / "Ground" for n in range(1, 6)]
    next(ground[0].iterdir()).unlink()
    Image.fromarray(np.full((7, 8), 70, np.uint8)).save(next(ground[1].iterdir()))
    Image.fromarray(np.zeros((8, 7), np.uint8)).save(sorted(ground[2].iterdir())[0])
    for file in ground[3].iterdir():
        file.unlink()
    findings = check_data(root, num_workers=1, skip_bad=tmp_path / "usable")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error")]
    expected = (
        ("MR_01", "1/T2SPIR/Ground: 4 pictures for 5 DICOM files in DICOM_anon/; expected one a file"),
        ("MR_02", "2/T2SPIR/Ground: grey values", "70", "expected 63, 126, 189 and 252 (MR), or 255 (CT)"),
        ("MR_03", "3/T2SPIR/Ground: 1_00.png: 7x8 pixels, expected 8x7, those of the series"),
        ("MR_04", "4/T2SPIR/DICOM_anon: image without a label"),
    )
    assert len(lines) == 4 and all(all(p in line for p in parts) for parts, line in zip(expected, lines))
    assert sum(finding.level == "error" for finding in findings) == 4
    usable = find_cases(tmp_path / "usable")
    assert [case.id for case in usable.cases] == ["MR_05"] and usable.split["test"] == ["MR_05"]
    assert read_ground(usable.cases[0].label)[0].max() == 4


def test_ct_and_mr_are_not_mixed_and_test_sets_have_no_labels(tmp_path):
    root = mr(tmp_path / "chaos", 1)
    chaos(root / "Train_Sets" / "CT" / "1", organs() * 0)
    with pytest.raises(InputError, match="CHAOS with CT and MR volumes.*such as Train_Sets/MR"):
        find_cases(root)
    assert [case.id for case in find_cases(root / "Train_Sets" / "MR").cases] == ["MR_01"]
    patient = chaos(tmp_path / "test" / "MR" / "2" / "T2SPIR", organs())
    for file in (patient / "Ground").iterdir():
        file.unlink()
    folder = find_cases(tmp_path / "test")
    assert folder.layout == "images" and not folder.labelled
    assert [item["case"] for item in inference_cases(tmp_path / "test")[0]] == ["MR_02"]


@pytest.mark.parametrize("part", ["", "Training", "RawData/Training"])
def test_btcv_is_paired_by_number(tmp_path, part, capsys):
    for number in (1, 2, 3, 10, 21):
        label = numbered(organs()).astype(np.uint8)
        save(tmp_path / part / "img" / f"img{number:04d}.nii.gz", organs().astype(np.float32) - 100 + number)
        save(tmp_path / part / "label" / f"label{number:04d}.nii.gz", label)
    (tmp_path / part / "label" / "label0021.nii.gz").unlink()
    folder = find_cases(tmp_path)
    assert folder.layout == "btcv" and folder.label_names["left kidney"] == 3 and len(folder.label_names) == 13
    pairs = {case.id: case.label and case.label.name for case in folder.cases}
    assert pairs == {
        "img0001": "label0001.nii.gz", "img0002": "label0002.nii.gz", "img0003": "label0003.nii.gz",
        "img0010": "label0010.nii.gz", "img0021": None,
    }  # fmt: skip
    (error,) = [finding for finding in check_data(tmp_path, num_workers=1) if finding.level == "error"]
    assert error.kind == "no_label" and error.case == "img0021"
    folder = prepare_slices(tmp_path, tmp_path / "slices", [2, 3], window=(-160, 240), min_share=0.0, min_body=0.0)
    with open(folder / "manifest.csv", encoding="utf-8", newline="") as file:
        counts = [int(row["object_pixels"]) for row in csv.DictReader(file) if row["patient"] == "img0010"]
    assert counts == np.isin(numbered(organs()), [2, 3]).sum((0, 1)).tolist()
