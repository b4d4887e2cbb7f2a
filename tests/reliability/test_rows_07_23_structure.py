"""Rows 7 to 23 of the table of cases: dimensions, channels, pairs of image and label, label values."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import RandCropByPosNegLabeld

from shared_components.data.checks.cases import check_case, check_folder
from shared_components.data.checks.check_data import check_data
from shared_components.data.datalists import datalist, inference_cases
from shared_components.data.layouts.cases import Case, find_cases
from shared_components.data.loaders import LoadImageChannelsd, LoadLabelMapd
from shared_components.diffusion.label_coding import LabelCoding
from shared_components.diffusion.losses import CleanLabelLoss
from shared_components.errors import InputError
from shared_components.reporting.metrics import score_case, summarise
from tests.data.folders import (
    SHAPE,
    case_names,
    msd_folder,
    picture_folder,
    save,
    save_picture,
    some_image,
    some_label,
    some_mask,
    some_picture,
)

LABELS = {"anterior": 1, "posterior": 2}


def check(tmp_path: Path, image=None, label=None, affine=None, **options) -> list:
    """Check a case of the given arrays, image.nii.gz and label.nii.gz."""
    image_file = save(tmp_path / "image.nii.gz", some_image() if image is None else image)
    label_file = save(tmp_path / "label.nii.gz", some_label() if label is None else label, affine)
    return check_case(Case("a", (image_file,), label_file), LABELS, **options)


def only(findings: list, level: str, kind: str) -> str:
    """Return file and message of the one finding."""
    assert [(finding.level, finding.kind) for finding in findings] == [(level, kind)], findings
    return f"{Path(findings[0].file).name}: {findings[0].message}"


def test_row_07_flat_image_for_a_model_of_volumes(tmp_path):
    flat = save(tmp_path / "flat.nii.gz", some_image(shape=(6, 5)))
    message = only(check_case(Case("a", (flat,))), "error", "rank")
    assert "flat.nii.gz: 2-D image of shape (6, 5), the model takes 3-D volumes" in message


def test_row_08_last_dimension_of_one(predictions):
    assert np.array_equal(predictions.labels("one_more_dimension"), predictions.labels("plain"))
    assert predictions.result("one_more_dimension").shape == predictions.image("plain").shape


def test_row_09_several_channels_for_a_model_of_one(tmp_path):
    image = some_image(shape=(*SHAPE, 4))
    message = only(check(tmp_path, image=image), "error", "channels")
    assert "image.nii.gz: 4 channels, model takes 1; choose one, 0 to 3, with --channel" in message
    save(tmp_path / "images" / "a.nii.gz", image)
    cases, failures = inference_cases(tmp_path / "images", channel=2)
    assert failures == []
    loaded = LoadImageChannelsd("image", num_channels=1, channel=2)(cases[0])["image"]
    assert np.array_equal(loaded.numpy()[0], image[..., 2])
    assert "give --channel 0 to 3" in inference_cases(tmp_path / "images", channel=4)[1][0]


def test_row_10_missing_modality(tmp_path):
    meta = {"channel_names": {"0": "T1", "1": "T2", "2": "FLAIR", "3": "T1c"}, "labels": {"background": 0, "tumour": 1}}
    msd_folder(tmp_path, [], **meta)
    for case in ("a", "b"):
        save(tmp_path / "labelsTr" / f"{case}.nii.gz", (some_label() > 0).astype(np.uint8))
        for number in range(4 if case == "a" else 3):
            save(tmp_path / "imagesTr" / f"{case}_{number:04d}.nii.gz", some_image(10 * ord(case) + number))
    (finding,) = check_folder(find_cases(tmp_path))
    assert (finding.level, finding.case, Path(finding.file).name) == ("error", "b", "b_0003.nii.gz")
    assert "channel 3 (T1c) is missing" in finding.message


def test_row_11_modalities_on_different_grids(tmp_path):
    files = tuple(save(tmp_path / f"a_000{i}.nii.gz", some_image(i)) for i in range(2))
    save(files[1], some_image(shape=(6, 5, 3)))
    message = only(check_case(Case("a", files), None, 2), "error", "channel_grid")
    assert "a_0001.nii.gz" in message and "6x5x3 voxels" in message and "6x5x4 voxels" in message
    save(files[1], some_image(1), np.diag([1.0, 1.0, 2.0, 1.0]))
    message = only(check_case(Case("a", files), None, 2), "error", "affine")
    assert "[0.0, 0.0, 2.0, 0.0]" in message and "[0.0, 0.0, 1.0, 0.0]" in message


@pytest.fixture
def unpaired(tmp_path: Path) -> Path:
    """Ten cases; case_03 lacks its label, case_06 its image."""
    folder = msd_folder(tmp_path / "data", case_names(10))
    (folder / "labelsTr" / "case_03.nii.gz").unlink()
    (folder / "imagesTr" / "case_06.nii.gz").unlink()
    return folder


def check_skipped(folder: Path, case: str, words: str, caplog) -> None:
    with pytest.raises(
        InputError, match=rf"2 of 7 train cases cannot be used.* with --skip_bad True: .*{case}.*{words}"
    ):
        datalist(folder, "train")
    kept = datalist(folder, "train", skip_bad=True)
    assert len(kept) == 5 and not [item for item in kept if case in str(item)]
    assert "5 of 7 train cases are used, the others have errors" in caplog.text


def test_row_12_missing_label(unpaired, caplog):
    check_skipped(unpaired, "case_03", "image without a label", caplog)


def test_row_13_missing_image(unpaired, caplog):
    check_skipped(unpaired, "case_06", "label without an image", caplog)


def test_row_14_label_on_another_grid(tmp_path):
    label = some_label((12, 12, 7))
    message = only(check(tmp_path, label=label, affine=np.diag([0.734, 0.734, 5, 1])), "error", "label_grid")
    assert "label.nii.gz" in message
    assert "12x12x7 voxels of 0.734x0.734x5 mm" in message and "6x5x4 voxels of 1x1x1 mm" in message


def test_row_15_same_shape_in_another_place(tmp_path):
    shifted = np.eye(4)
    shifted[0, 3] = 2.5
    message = only(check(tmp_path, affine=shifted), "error", "affine")
    assert "label.nii.gz" in message and "corners up to 2.5 mm apart" in message and "--affine_tolerance" in message
    assert check(tmp_path, affine=shifted, affine_tolerance=3.0) == []


def test_row_16_affine_of_another_rounding(tmp_path):
    assert check(tmp_path, affine=np.eye(4) + 1e-6 * np.ones((4, 4)) * [[1], [1], [1], [0]]) == []


def test_row_17_unknown_label_value(tmp_path):
    label = some_label()
    label[0, 0, :3] = 5
    message = only(check(tmp_path, label=label), "error", "label_values")
    assert "label.nii.gz: unknown label values 5 (3 voxels); expected 0, 1, 2" in message


def test_row_18_interpolated_label(tmp_path):
    label = some_label().astype(np.float32)
    label[0, 0, :2] = 0.37
    message = only(check(tmp_path, label=label), "error", "label_fraction")
    assert "label.nii.gz: non-integer labels: 2 voxels, such as 0.37" in message


def test_row_19_whole_numbers_stored_as_float(tmp_path):
    label = some_label().astype(np.float32)
    assert check(tmp_path, label=label) == []
    loaded = LoadLabelMapd("label", labels=LABELS)({"label": str(tmp_path / "label.nii.gz")})["label"]
    assert np.array_equal(loaded.numpy()[0], label)


def test_row_20_mask_of_0_and_255(tmp_path, capsys):
    folder = picture_folder(tmp_path, 3)
    check_data(folder)
    assert "mask of 0 and 255: 255 is read as label 1" in capsys.readouterr().out
    loaded = LoadLabelMapd("label", labels={"lesion": 1})({"label": str(folder / "masks" / "case_00.png")})["label"]
    assert np.array_equal(loaded.numpy()[0].T, some_mask() > 0)
    mask = some_mask()
    mask[9, 9] = 100
    save_picture(folder / "masks" / "case_01.png", mask)
    findings = [finding for finding in check_folder(find_cases(folder), {"lesion": 1}) if finding.level == "error"]
    message = only(findings, "error", "label_values")
    assert "case_01.png" in message and "100 (1 voxels)" in message


def test_row_21_empty_mask_in_training(tmp_path):
    empty = np.zeros(SHAPE, np.uint8)
    assert "empty mask" in only(check(tmp_path, label=empty), "warning", "empty_mask")
    item = {"image": torch.rand(1, *SHAPE), "label": torch.zeros(1, *SHAPE)}
    crop = RandCropByPosNegLabeld(["image", "label"], "label", (4, 4, 2), pos=4, neg=1, num_samples=1)
    (patch,) = crop(item)
    coding = LabelCoding([1, 2], coding="classes")
    slices = patch["label"][0].permute(2, 0, 1)[:, None]
    target = coding.encode(slices)
    loss = CleanLabelLoss()(torch.zeros_like(target), target)
    assert math.isfinite(float(loss))


def test_row_22_empty_mask_in_metrics():
    names = {1: "lesion"}
    empty, some = torch.zeros(1, 6, 6, 6), torch.zeros(1, 6, 6, 6)
    some[0, 2:4, 2:4, 2:4] = 1
    both, _ = score_case(empty, empty, names)
    one, _ = score_case(empty, some, names)
    assert (both["dice_lesion"], one["dice_lesion"]) == (1, 0)
    assert math.isnan(both["hd95_mm_lesion"]) and math.isnan(one["hd95_mm_lesion"])
    summary = {row["metric"]: row for row in summarise([both, one])}
    assert summary["dice_lesion"]["mean"] == 0.5 and summary["hd95_mm_lesion"]["nan"] == 2


def test_row_23_every_training_mask_empty(tmp_path):
    folder = msd_folder(tmp_path, case_names(10))
    for label in (folder / "labelsTr").iterdir():
        nibabel.save(nibabel.Nifti1Image(np.zeros(SHAPE, np.uint8), np.eye(4)), label)
    with pytest.raises(InputError, match="all 7 training masks are empty; label at least one case"):
        datalist(folder, "train")


def test_colour_pictures_of_row_34_are_no_channels_of_row_09(tmp_path):
    save_picture(tmp_path / "a.png", some_picture())
    _, failures = inference_cases(tmp_path, num_channels=1, spatial_dims=2)
    assert failures == []
