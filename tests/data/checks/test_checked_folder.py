"""The folder that ``check_data --skip_bad`` makes is a data folder of its own."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from shared_components.data.checks.cases import check_folder
from shared_components.data.checks.check_data import check_data
from shared_components.data.datalists import datalist, inference_cases
from shared_components.data.layouts.cases import find_cases
from shared_components.data.layouts.split import sections
from shared_components.errors import InputError
from tests.data.folders import case_names, msd_folder, picture_folder, save, some_image, some_label
from tests.data.formats.test_dicom import SPACING, write_series

SERIES_AFFINE = np.array([[-SPACING[0], 0, 0, -10], [0, -SPACING[1], 0, 20], [0, 0, SPACING[2], 5], [0, 0, 0, 1]])


def names(items: list[dict]) -> list[str]:
    return [Path(item["image"]).resolve().name for item in items]


def test_the_good_cases_keep_their_sections_and_their_labels(tmp_path, capsys):
    root = msd_folder(tmp_path / "set", case_names(12))
    (root / "imagesTr" / "case_01.nii.gz").write_bytes(b"")
    save(root / "imagesTs" / "new.nii.gz", some_image(77))
    check_data(root, skip_bad=tmp_path / "usable")
    assert f"11 usable cases linked in {tmp_path / 'usable'}" in capsys.readouterr().out
    folder = find_cases(tmp_path / "usable")
    assert check_folder(folder) == [] and folder.label_names == {"anterior": 1, "posterior": 2}
    assert [case.id for case in folder.unlabelled] == ["new"]
    for section, ids in sections(find_cases(root)).items():
        kept = [case for case in ids if case != "case_01"]
        assert sections(folder)[section] == kept
        assert names(datalist(tmp_path / "usable", section)) == [f"{case}.nii.gz" for case in kept]


def test_cases_of_a_file_a_channel(tmp_path):
    meta = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "tumour": 1}}
    (tmp_path / "set").mkdir()
    root = msd_folder(tmp_path / "set", [], **meta)
    for number, case in enumerate(("p_0001", "p_0002", "q_0001", "q_0002")):
        save(root / "labelsTr" / f"{case}.nii.gz", (some_label() > 0).astype(np.uint8))
        for channel in range(2):
            save(root / "imagesTr" / f"{case}_{channel:04d}.nii.gz", some_image(10 * number + channel))
    (root / "imagesTr" / "q_0002_0001.nii.gz").unlink()
    check_data(root, skip_bad=tmp_path / "usable")
    folder = find_cases(tmp_path / "usable")
    assert [case.id for case in folder.cases] == ["p_0001", "p_0002", "q_0001"]
    assert folder.channels == ("T1", "T2") and {len(case.images) for case in folder.cases} == {2}
    assert check_folder(folder) == []


def test_pictures_whose_names_end_in_a_number_stay_whole(tmp_path):
    root = picture_folder(tmp_path / "set", 6)
    for part in ("images", "masks"):
        for file in (root / part).iterdir():
            file.rename(file.with_name(file.name.replace("case_0", "lesion_000")))
    (root / "images" / "lesion_0002.png").write_bytes(b"no picture")
    check_data(root, skip_bad=tmp_path / "usable")
    folder = find_cases(tmp_path / "usable")
    assert [case.id for case in folder.cases] == [f"lesion_000{number}" for number in (0, 1, 3, 4, 5)]
    assert [finding for finding in check_folder(folder) if finding.level == "error"] == []


def test_images_alone(tmp_path):
    save(tmp_path / "set" / "a.nii.gz", some_image())
    (tmp_path / "set" / "b.nii.gz").write_bytes(b"")
    check_data(tmp_path / "set", skip_bad=tmp_path / "usable")
    cases, failures = inference_cases(tmp_path / "usable")
    assert names(cases) == ["a.nii.gz"] and failures == []


def test_a_list_is_written_where_a_list_is_asked_for(tmp_path):
    root = msd_folder(tmp_path / "set", case_names(4))
    check_data(root, skip_bad=tmp_path / "good.json")
    assert len(json.loads((tmp_path / "good.json").read_text(encoding="utf-8"))) == 4


def test_nothing_is_overwritten_and_copies_need_a_place(tmp_path):
    root = msd_folder(tmp_path / "set", case_names(4))
    with pytest.raises(InputError, match=r"--skip_bad .*set: holds files already"):
        check_data(root, skip_bad=root)
    with pytest.raises(InputError, match="--fill_nonfinite: needs --skip_bad FOLDER"):
        check_data(root, fill_nonfinite=True)
    with pytest.raises(InputError, match="--fill_nonfinite: needs --skip_bad FOLDER"):
        check_data(root, skip_bad=tmp_path / "good.json", fill_nonfinite=True)


def test_infinities_of_a_channel_are_filled_from_its_own_values(tmp_path):
    image = np.stack([some_image(1), 1000 + some_image(2)], axis=-1)
    image[0, 0, 0, 1], image[1, 1, 1, 1], image[2, 2, 2, 0] = -np.inf, np.inf, np.nan
    root = msd_folder(tmp_path / "set", ["a"], channel_names={"0": "T1", "1": "T2"})
    save(root / "imagesTr" / "a.nii.gz", image)
    check_data(root, skip_bad=tmp_path / "usable", fill_nonfinite=True)
    copy = nibabel.load(tmp_path / "usable" / "imagesTr" / "a.nii.gz").get_fdata()
    finite = [image[..., channel][np.isfinite(image[..., channel])] for channel in range(2)]
    assert copy[0, 0, 0, 1] == finite[1].min() and copy[1, 1, 1, 1] == finite[1].max()
    assert copy[2, 2, 2, 0] == finite[0].min() and np.array_equal(copy[3:], image[3:])


@pytest.mark.parametrize("inside_cases", [False, True])
def test_a_mask_file_a_class_stays_one(tmp_path, inside_cases):
    root = tmp_path / "set"
    for number, case in enumerate(("a", "b", "c")):
        place = root / case / "segmentations" if inside_cases else root / "masks"
        image = root / case / "ct.nii.gz" if inside_cases else root / "images" / f"{case}.nii.gz"
        save(image, some_image(number))
        for value, name in enumerate(("liver", "spleen"), 1):
            if (case, name) != ("c", "spleen"):
                file = place / f"{name}.nii.gz" if inside_cases else place / name / f"{case}.nii.gz"
                save(file, (some_label() == value).astype(np.uint8))
    (root / "b" / "ct.nii.gz" if inside_cases else root / "images" / "b.nii.gz").write_bytes(b"")
    check_data(root, skip_bad=tmp_path / "usable")
    before, after = find_cases(root), find_cases(tmp_path / "usable")
    assert after.label_names == before.label_names == {"liver": 1, "spleen": 2}
    assert [case.id for case in after.cases] == ["a", "c"]
    for case in after.cases:
        masks = next(other for other in before.cases if other.id == case.id).masks
        assert [mask and mask.resolve() for mask in case.masks] == [mask and mask.resolve() for mask in masks]
    assert [finding for finding in check_folder(after) if finding.level == "error"] == []


def test_a_patient_in_two_sections_is_found_by_a_pattern(tmp_path):
    root = msd_folder(tmp_path / "set", ["p1_a", "p1_b", "p2_a"])
    (root / "split.json").write_text(json.dumps({"train": ["p1_a", "p2_a"], "test": ["p1_b"]}), encoding="utf-8")
    assert [finding.kind for finding in check_data(root)] == []
    (finding,) = check_data(root, patient_pattern=r"^(p\d)_")
    assert finding.level == "error" and "patient p1 is in 'train' (p1_a) and in 'test'" in finding.message
    with pytest.raises(InputError, match="matches none of the 3 case ids"):
        check_data(root, patient_pattern="^(x)$")


def test_filled_copies_of_files_of_equal_names_stay_apart(tmp_path):
    for number in range(5):
        image = some_image(number)
        image[0, 0, 0] = np.nan
        save(tmp_path / "set" / f"p{number}" / "ct.nii.gz", image)
        save(tmp_path / "set" / f"p{number}" / "seg.nii.gz", some_label())
    check_data(tmp_path / "set", skip_bad=tmp_path / "usable", fill_nonfinite=True)
    for number in range(5):
        copy = nibabel.load(tmp_path / "usable" / "imagesTr" / f"p{number}.nii.gz").get_fdata()
        assert copy[1, 1, 1] == some_image(number)[1, 1, 1]


def test_series_in_folders_of_their_numbers_keep_their_ids(tmp_path):
    for number in range(5):
        volume = np.random.default_rng(number).integers(0, 99, (6, 5, 4))
        write_series(tmp_path / "set" / "images" / f"1.2.840.{number}", volume, series=number)
        save(tmp_path / "set" / "labels" / f"1.2.840.{number}.nii.gz", some_label(), SERIES_AFFINE)
    check_data(tmp_path / "set", skip_bad=tmp_path / "usable")
    folder = find_cases(tmp_path / "usable")
    assert [case.id for case in folder.cases] == [f"1.2.840.{number}" for number in range(5)]
    assert check_folder(folder) == []
