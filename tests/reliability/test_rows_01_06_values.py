"""Rows 1 to 6 of the table of cases: values in images and labels."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from shared_components.data.checks.cases import check_case
from shared_components.data.checks.check_data import check_data
from shared_components.data.datalists import datalist
from shared_components.data.layouts.cases import Case
from shared_components.errors import InputError
from tests.data.folders import case_names, msd_folder, save, some_image, some_label


def folder_with(tmp_path: Path, value: float) -> Path:
    """Six good cases, the second with two voxels of a value."""
    folder = msd_folder(tmp_path / "data", case_names(6))
    image = some_image(1)
    image[4, 3, 1] = image[5, 4, 3] = value
    save(folder / "imagesTr" / "case_01.nii.gz", image)
    return folder


def check_refused_and_filled(tmp_path: Path, capsys, value: float, words: str, filled_with: float) -> None:
    folder = folder_with(tmp_path, value)
    before = (folder / "imagesTr" / "case_01.nii.gz").read_bytes()
    with pytest.raises(InputError, match=rf"case_01.nii.gz: {words} voxels, the first at voxel \(4, 3, 1\)"):
        datalist(folder, "train")
    mended = tmp_path / "mended"
    findings = check_data(folder, skip_bad=mended, fill_nonfinite=True)
    assert [(finding.level, finding.case) for finding in findings] == [("warning", "case_01")]
    assert f"{words} voxels" in capsys.readouterr().out and "filled in the copy" in findings[0].message
    names = [Path(item["image"]).name for item in datalist(mended, "train")]
    assert names == [Path(item["image"]).name for item in datalist(folder, "train", skip_bad=True)][:1] + names[1:]
    assert "case_01.nii.gz" in names
    copy = nibabel.load(mended / "imagesTr" / "case_01.nii.gz").get_fdata()
    assert copy[4, 3, 1] == copy[5, 4, 3] == pytest.approx(filled_with)
    assert (folder / "imagesTr" / "case_01.nii.gz").read_bytes() == before


def others(value: float) -> np.ndarray:
    image = some_image(1)
    image[4, 3, 1] = image[5, 4, 3] = value
    return image[np.isfinite(image)]


def test_row_01_nan_voxel(tmp_path, capsys):
    check_refused_and_filled(tmp_path, capsys, np.nan, "2 NaN", others(np.nan).min())


def test_row_02_infinite_voxel(tmp_path, capsys):
    check_refused_and_filled(tmp_path, capsys, np.inf, "2 infinite", others(np.inf).max())


def test_row_03_nan_in_a_label(tmp_path):
    label = some_label().astype(np.float32)
    label[0, 0, 0] = np.nan
    case = Case("a", (save(tmp_path / "image.nii.gz", some_image()),), save(tmp_path / "label.nii.gz", label))
    (finding,) = check_case(case)
    assert (finding.level, finding.kind, Path(finding.file).name) == ("error", "label_nonfinite", "label.nii.gz")
    assert "1 NaN voxels, the first at voxel (0, 0, 0)" in finding.message


def test_row_04_constant_or_zero_image(predictions):
    assert "3 of 15 inference cases have a constant image" in predictions.warnings  # the single voxel is one too
    for case in ("constant", "zero"):
        assert np.isfinite(predictions.result(case, "uncertainty").get_fdata()).all()
        assert set(np.unique(predictions.labels(case))) <= {0, 1, 2}


def test_row_05_image_of_a_larger_scale(predictions):
    """The largest value of the data set's brightest image, beside images of 0 to 255."""
    assert len(np.unique(predictions.labels("plain"))) == 3
    assert np.mean(predictions.labels("bright") != predictions.labels("plain")) < 0.001


def test_row_06_one_extreme_voxel(predictions):
    assert np.mean(predictions.labels("outlier") != predictions.labels("plain")) < 0.02
