"""Checking cases: each kind of broken or odd input gets its finding, good ones get none."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest

from shared_components.data.checks.cases import check_case, check_folder
from shared_components.data.checks.check_data import check_data
from shared_components.data.layouts.cases import Case, find_cases
from shared_components.errors import InputError
from tests.data.folders import SHAPE, case_names, msd_folder, save, some_image, some_label

ALLOWED = {"anterior": 1, "posterior": 2}


def findings(tmp_path: Path, image=None, label=None, affine=None, num_channels=1, **options) -> list:
    """Check a case of the given arrays."""
    image_file = save(tmp_path / "image.nii.gz", some_image() if image is None else image)
    label_file = save(tmp_path / "label.nii.gz", some_label() if label is None else label, affine)
    return check_case(Case("a", (image_file,), label_file), ALLOWED, num_channels, **options)


def only(found: list, level: str, kind: str, file: str) -> str:
    """Return the message of the one finding."""
    assert [(f.level, f.kind, Path(f.file).name, f.case) for f in found] == [(level, kind, file, "a")]
    return found[0].message


def test_a_good_case_has_no_findings(tmp_path):
    assert findings(tmp_path) == []
    assert findings(tmp_path, image=some_image(shape=(*SHAPE, 1)), label=some_label()[..., None]) == []


@pytest.mark.parametrize("value, words", [(np.nan, "2 NaN voxels"), (np.inf, "2 infinite voxels")])
def test_non_finite_voxels_are_counted_and_the_first_is_located(tmp_path, value, words):
    image = some_image()
    image[4, 3, 1] = image[1, 2, 3] = value
    message = only(findings(tmp_path, image=image), "error", "nonfinite", "image.nii.gz")
    assert words in message and "(4, 3, 1)" in message


def test_non_finite_voxels_of_a_channel_and_of_a_label(tmp_path):
    image = some_image(shape=(*SHAPE, 2))
    image[0, 1, 2, 1] = -np.inf
    message = only(findings(tmp_path, image=image, num_channels=2), "error", "nonfinite", "image.nii.gz")
    assert "channel 1, voxel (0, 1, 2)" in message
    label = some_label().astype(np.float32)
    label[0, 0, 0] = np.nan
    assert "1 NaN" in only(findings(tmp_path, label=label), "error", "label_nonfinite", "label.nii.gz")


def test_a_constant_image_is_a_warning(tmp_path):
    image = np.full(SHAPE, 3, np.int16)
    assert "every voxel is 3" in only(findings(tmp_path, image=image), "warning", "constant_image", "image.nii.gz")


def test_extreme_values_are_fine(tmp_path):
    image = some_image() * 1.7e4
    image[0, 0, 0] = 1e30
    assert findings(tmp_path, image=image) == []


def test_rank_channels_and_zero_size(tmp_path):
    flat = save(tmp_path / "flat.nii.gz", some_image(shape=(6, 5)))
    assert "2-D image of shape (6, 5)" in only(check_case(Case("a", (flat,))), "error", "rank", "flat.nii.gz")
    message = only(findings(tmp_path, image=some_image(shape=(*SHAPE, 4))), "error", "channels", "image.nii.gz")
    assert "4 channels, model takes 1" in message
    message = only(findings(tmp_path, num_channels=4), "error", "channels", "image.nii.gz")
    assert "1 channel, model takes 4" in message
    empty = save(tmp_path / "empty.nii", np.zeros((3, 0, 2), np.uint8))
    assert "(3, 0, 2)" in only(check_case(Case("a", (empty,))), "error", "zero_size", "empty.nii")


def test_channel_files_are_counted_and_compared(tmp_path):
    files = tuple(save(tmp_path / f"a_000{i}.nii.gz", some_image(i)) for i in range(2))
    assert check_case(Case("a", files), None, 2) == []
    assert "2 channels, model takes 1" in only(check_case(Case("a", files)), "error", "channels", "a_0000.nii.gz")
    save(files[1], some_image(shape=(6, 5, 3)))
    message = only(check_case(Case("a", files), None, 2), "error", "channel_grid", "a_0001.nii.gz")
    assert "6x5x3 voxels" in message and "6x5x4 voxels" in message


def test_a_label_on_another_grid_shows_both(tmp_path):
    label = some_label((12, 12, 7))
    message = only(
        findings(tmp_path, label=label, affine=np.diag([0.734, 0.734, 5, 1])),
        "error",
        "label_grid",
        "label.nii.gz",
    )
    assert "12x12x7 voxels of 0.734x0.734x5 mm" in message and "6x5x4 voxels of 1x1x1 mm" in message


def test_an_affine_mismatch_is_given_in_mm_and_tiny_ones_pass(tmp_path):
    shifted = np.eye(4)
    shifted[0, 3] = 2.5
    message = only(findings(tmp_path, affine=shifted), "error", "affine", "label.nii.gz")
    assert "corners up to 2.5 mm apart" in message
    assert findings(tmp_path, affine=shifted, affine_tolerance=3.0) == []
    assert findings(tmp_path, affine=np.eye(4) + 1e-6 * np.ones((4, 4)) * [[1], [1], [1], [0]]) == []


def test_label_values(tmp_path):
    label = some_label()
    label[0, 0, :3] = 5
    assert "5 (3 voxels); expected 0, 1, 2" in only(
        findings(tmp_path, label=label), "error", "label_values", "label.nii.gz"
    )
    interpolated = some_label().astype(np.float32)
    interpolated[0, 0, :2] = 0.37
    message = only(findings(tmp_path, label=interpolated), "error", "label_fraction", "label.nii.gz")
    assert "non-integer labels: 2 voxels, such as 0.37" in message
    assert findings(tmp_path, label=some_label().astype(np.float32) * np.float32(0.9999999)) == []
    empty = np.zeros(SHAPE, np.uint8)
    assert "empty mask" in only(findings(tmp_path, label=empty), "warning", "empty_mask", "label.nii.gz")


def test_without_a_label_list_every_whole_number_from_0_may_occur(tmp_path):
    label = some_label().astype(np.int16)
    label[0, 0, 0] = 900
    case = Case("a", (save(tmp_path / "image.nii", some_image()),), save(tmp_path / "label.nii", label))
    assert check_case(case) == []
    label[0, 0, 0] = -1
    save(tmp_path / "label.nii", label)
    assert "-1 (1 voxels); expected whole numbers from 0" in check_case(case)[0].message
    with pytest.raises(InputError, match="expected whole numbers"):
        check_case(case, "anterior")


def good_bytes(tmp_path: Path) -> bytes:
    return save(tmp_path / "good" / "image.nii.gz", some_image(shape=(20, 20, 20))).read_bytes()


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "breaking, phrase",
    [
        (lambda content: content[: len(content) // 2], "truncated"),
        (lambda content: content[:-6], "truncated"),
        (flipped, "corrupt"),
        (lambda content: content[:-8] + bytes(4) + content[-4:], "corrupt"),
        (lambda content: b"", "empty file (0 bytes)"),
        (lambda content: b"<!DOCTYPE html><html>not found</html>", "no gzip file"),
        (lambda content: gzip.decompress(content), "no gzip file"),
        (lambda content: gzip.compress(b"<!DOCTYPE html>"), "no NIfTI file"),
        (lambda content: gzip.compress(gzip.decompress(content)[:400]), "truncated: 12 of 8000 voxels"),
        (lambda content: gzip.compress(gzip.decompress(content)[:349]), "truncated"),
    ],
)
def test_broken_files(tmp_path, breaking, phrase):
    file = tmp_path / "image.nii.gz"
    file.write_bytes(breaking(good_bytes(tmp_path)))
    message = only(check_case(Case("a", (file,))), "error", "unreadable", "image.nii.gz")
    assert phrase in message and "\n" not in message


def test_gzip_content_under_a_plain_name_and_a_missing_file(tmp_path):
    (tmp_path / "image.nii").write_bytes(good_bytes(tmp_path))
    message = only(check_case(Case("a", (tmp_path / "image.nii",))), "error", "unreadable", "image.nii")
    assert "does not end in .gz" in message
    message = only(check_case(Case("a", (tmp_path / "no.nii",))), "error", "unreadable", "no.nii")
    assert "No such file" in message


@pytest.mark.parametrize("step, across", [(5000.0, "30000"), (1e-4, "0.0006")])
def test_a_volume_of_no_bodys_size_is_a_warning(tmp_path, step, across):
    """Micrometres or metres taken for millimetres: resampling would make billions of voxels of it, or one."""
    affine = np.diag([step, step, step, 1.0])
    case = Case("a", (save(tmp_path / "image.nii.gz", some_image(), affine),))
    assert f"{across} mm across" in only(check_case(case), "warning", "implausible_size", "image.nii.gz")


@pytest.mark.parametrize("spacing", [0.0, -1.0, float("nan")])
def test_unusable_spacing_is_printed(tmp_path, spacing):
    content = bytearray(gzip.decompress(good_bytes(tmp_path)))
    content[80:84] = struct.pack("<f", spacing)
    (tmp_path / "image.nii").write_bytes(content)
    message = only(check_case(Case("a", (tmp_path / "image.nii",))), "error", "spacing", "image.nii")
    assert f"[{spacing}, 1.0, 1.0]" in message


def test_singular_affine_is_printed(tmp_path):
    content = bytearray(gzip.decompress(good_bytes(tmp_path)))
    content[280:296] = struct.pack("<4f", 0, 1, 0, 0)
    (tmp_path / "image.nii").write_bytes(content)
    message = only(check_case(Case("a", (tmp_path / "image.nii",))), "error", "affine", "image.nii")
    assert "singular affine [[0.0, 1.0, 0.0, 0.0]" in message


def test_voxels_that_are_no_numbers(tmp_path):
    colours = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), tmp_path / "rgb.nii.gz")
    assert "one real number a voxel" in only(
        check_case(Case("a", (tmp_path / "rgb.nii.gz",))), "error", "dtype", "rgb.nii.gz"
    )


def test_a_folder_where_all_is_well_has_no_findings(tmp_path):
    assert check_folder(find_cases(msd_folder(tmp_path, case_names(6)))) == []


def test_a_broken_case_does_not_hide_the_others_and_imagesTs_is_checked_too(tmp_path):
    msd_folder(tmp_path, case_names(4))
    (tmp_path / "imagesTr" / "case_01.nii.gz").write_bytes(b"")
    (tmp_path / "labelsTr" / "case_02.nii.gz").unlink()
    save(tmp_path / "imagesTs" / "new.nii.gz", some_image(9) * np.nan)
    found = check_folder(find_cases(tmp_path))
    expected = [("case_01", "unreadable"), ("case_02", "no_label"), ("new", "nonfinite")]
    assert [(finding.case, finding.kind) for finding in found] == expected


def test_a_missing_channel_is_told_once(tmp_path):
    meta = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "tumour": 2}}
    msd_folder(tmp_path, [], **meta)
    for case in ("a", "b"):
        save(tmp_path / "labelsTr" / f"{case}.nii.gz", some_label() * 0 + 2)
    for number, name in enumerate(("a_0000", "a_0001", "b_0000")):
        save(tmp_path / "imagesTr" / f"{name}.nii.gz", some_image(number))
    (finding,) = check_folder(find_cases(tmp_path))
    assert (finding.kind, Path(finding.file).name) == ("missing_channel", "b_0001.nii.gz")


def test_label_names_that_mean_other_values_in_the_model(tmp_path):
    folder = find_cases(msd_folder(tmp_path, case_names(3)))
    assert check_folder(folder, {"Anterior": 1, "posterior": 2}) == []
    found = check_folder(folder, {"anterior": 2, "posterior": 1})
    assert [finding.kind for finding in found] == ["label_conflict"] * 2
    assert "'anterior' has the value 1, in the model it is 2" in found[0].message


def test_all_training_masks_empty(tmp_path):
    msd_folder(tmp_path, case_names(3))
    for label in (tmp_path / "labelsTr").iterdir():
        save(label, np.zeros(SHAPE, np.uint8))
    found = check_folder(find_cases(tmp_path))
    assert found[0].kind == "all_masks_empty" and found[0].level == "error"
    assert [finding.kind for finding in found[1:]] == ["empty_mask"] * 3


def test_check_data_writes_table_report_and_list(tmp_path, capsys):
    root = msd_folder(tmp_path / "set", case_names(4))
    (root / "imagesTr" / "case_01.nii.gz").write_bytes(b"")
    before = sorted(path.name for path in root.rglob("*"))
    check_data(root, report=tmp_path / "report.json", skip_bad=tmp_path / "good.json")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:6] == [
        "layout    msd",
        "cases     4",
        "channels  MRI",
        "labels    anterior 1, posterior 2",
        "split     train 2, validation 1, test 1 (by sorted id)",
    ]
    assert lines[6] == "error    case_01: imagesTr/case_01.nii.gz: empty file (0 bytes)"
    assert lines[7] == "4 cases checked, 3 usable: 1 errors, 0 warnings"
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert (report["num_errors"], report["num_usable"], report["findings"][0]["kind"]) == (1, 3, "unreadable")
    good = json.loads((tmp_path / "good.json").read_text(encoding="utf-8"))
    assert [Path(item["image"]).name[:7] for item in good] == ["case_00", "case_02", "case_03"]
    assert good[0]["label"] == str(root / "labelsTr" / "case_00.nii.gz")
    assert sorted(path.name for path in root.rglob("*")) == before


def test_report_files_are_refused_before_the_check(tmp_path):
    root = msd_folder(tmp_path / "set", ["a"])
    with pytest.raises(InputError, match="--report .*ends in .json"):
        check_data(root, report=tmp_path / "report.txt")
    with pytest.raises(InputError, match="--skip_bad .*cannot be written"):
        check_data(root, skip_bad=tmp_path / "absent" / "good.json")


def test_real_bad_inputs_are_all_listed(real_data):
    found = check_folder(find_cases(real_data / "bad_inputs" / "Task04_Hippocampus"))
    expected = [
        ("hippocampus_010", "no_image"),
        ("hippocampus_118", "no_label"),
        ("hippocampus_281", "no_image"),
    ]
    assert [(finding.case, finding.kind) for finding in found] == expected


def test_real_image_with_the_label_of_another_organ(real_data):
    bad = real_data / "bad_inputs" / "Task04_Hippocampus"
    case = Case("a", (bad / "imagesTr" / "hippocampus_118.nii.gz",), bad / "labelsTr" / "hippocampus_281.nii.gz")
    message = only(check_case(case, ALLOWED), "error", "label_grid", "hippocampus_281.nii.gz")
    assert "512x512x94 voxels of 0.7344x0.7344x5 mm" in message and "37x52x33 voxels of 1x1x1 mm" in message


def test_real_odd_but_valid_cases_pass(real_data, tmp_path):
    source = real_data / "Task04_Hippocampus"
    for case in ("hippocampus_003", "hippocampus_243"):
        for name in ("imagesTr", "labelsTr"):
            (tmp_path / name).mkdir(exist_ok=True)
            shutil.copy(source / name / f"{case}.nii.gz", tmp_path / name)
    assert check_folder(find_cases(tmp_path), ALLOWED) == []
