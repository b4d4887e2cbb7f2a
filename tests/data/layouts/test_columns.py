"""Folders of channels, folders of cases and folders of classes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from shared_components.data.checks.cases import check_folder
from shared_components.data.datalists import datalist, inference_cases
from shared_components.data.fingerprint import fingerprint
from shared_components.data.layouts.cases import find_cases
from shared_components.data.loaders import LoadImageChannelsd, LoadLabelMapd
from shared_components.errors import InputError
from tests.data.folders import SHAPE, save, some_image, some_label


def case_folder(root, case, image="image", label="seg_total"):
    save(root / case / f"{image}.nii.gz", some_image(len(case)))
    save(root / case / f"{label}.nii.gz", some_label())


def test_a_folder_a_case_names_its_results_by_the_folder(tmp_path):
    for case in ("patient_1", "patient_22"):
        case_folder(tmp_path, case)
    (tmp_path / "patient_1" / "labels.json").write_text(json.dumps({"0": "background", "2": "liver"}), encoding="utf-8")
    folder = find_cases(tmp_path)
    assert (folder.layout, folder.channels, folder.label_column) == ("case folders", ("image",), "seg_total")
    assert [case.id for case in folder.cases] == ["patient_1", "patient_22"]
    assert (folder.problems, folder.label_names) == ([], {"liver": 2})
    item = folder.cases[0].datalist_item()
    loaded = LoadLabelMapd("label")(LoadImageChannelsd("image", 1)(item))
    assert loaded["image"].meta["filename_or_obj"].endswith("patient_1/patient_1.nii.gz")
    assert loaded["label"].meta["filename_or_obj"].endswith("patient_1/patient_1.nii.gz")


def test_channels_of_a_case_are_named_by_their_files_without_the_case(tmp_path):
    for case in ("BraTS_1", "BraTS_2"):
        for number, channel in enumerate(("flair", "t1")):
            save(tmp_path / case / f"{case}_{channel}.nii.gz", some_image(number))
        save(tmp_path / case / f"{case}_seg.nii.gz", some_label())
        save(tmp_path / case / "brainmask.nii.gz", some_label())
    assert find_cases(tmp_path).channels == ("flair", "t1")
    chosen = find_cases(tmp_path, ["t1"])
    assert [[path.name for path in case.images] for case in chosen.cases] == [
        ["BraTS_1_t1.nii.gz"],
        ["BraTS_2_t1.nii.gz"],
    ]
    (tmp_path / "BraTS_2" / "BraTS_2_flair.nii.gz").unlink()
    (problem,) = find_cases(tmp_path, ["flair", "t1"]).problems
    assert (problem.case, problem.kind) == ("BraTS_2", "missing_channel")
    with pytest.raises(InputError, match="no file 'adc' in any case's folder; there are .*flair"):
        find_cases(tmp_path, ["flair", "adc"])


def test_the_label_of_a_folder_a_case_can_be_named(tmp_path):
    case_folder(tmp_path, "p1", image="ct", label="structures")
    assert find_cases(tmp_path).layout == "images"
    folder = find_cases(tmp_path, label_column="structures")
    assert (folder.layout, folder.cases[0].images[0].name) == ("case folders", "ct.nii.gz")
    with pytest.raises(InputError, match="label_column 'nothing'"):
        find_cases(tmp_path, label_column="nothing")


@pytest.mark.parametrize(
    ("label", "other"),
    [
        ("OTMultiClass", "brainmask"),  # BRATS 2015
        ("GlistrBoost", "GlistrBoost_ManuallyCorrected"),  # BraTS of TCGA
        ("seg", "brain_mask"),
        ("tumor_truth", "mask_of_head"),
    ],
)
def test_a_label_map_is_told_from_images_and_from_masks_of_the_whole_organ_by_its_name(tmp_path, label, other):
    for case in ("p1", "p2"):
        for number, channel in enumerate(("flair", "t1c")):
            save(tmp_path / case / f"{channel}.nii.gz", some_image(number + len(case)))
        save(tmp_path / case / f"{label}.nii.gz", some_label())
        save(tmp_path / case / f"{other}.nii.gz", (some_label() > 0).astype(np.uint8))
    folder = find_cases(tmp_path)
    assert (folder.layout, folder.channels, folder.label_column) == ("case folders", ("flair", "t1c"), label)


def test_channels_of_other_names_are_asked_for_and_label_maps_are_never_images(tmp_path):
    for channel in ("Flair_z", "T1c_z"):
        save(tmp_path / "p1" / f"{channel}.nii.gz", some_image(len(channel)))
    save(tmp_path / "p1" / "OTMultiClass.nii.gz", some_label())
    for understand in (find_cases, inference_cases):
        with pytest.raises(InputError, match="no file 'flair' in any .* Flair_z, OTMultiClass, T1c_z; .*--channels"):
            understand(tmp_path, channels=["flair", "t1c"])
    with pytest.raises(InputError, match="no file 'flair'"):
        datalist(tmp_path, "train", channels=["flair", "t1c"])
    ((item,), failures) = inference_cases(tmp_path, channels=["Flair_z", "T1c_z"])
    assert (len(item["image"]), failures) == (2, [])


def test_a_single_channel_needs_no_name_of_its_own(tmp_path):
    case_folder(tmp_path, "p1", image="ct", label="seg")
    ((item,), failures) = inference_cases(tmp_path, channels=["flair"])
    assert (item["image"].endswith("ct.nii.gz"), failures) == (True, [])


def test_an_image_called_as_its_folder_is_the_image(tmp_path):
    for case in ("p1", "p2", "p3"):
        save(tmp_path / case / f"{case}.nii.gz", some_image(int(case[1])))
        save(tmp_path / case / f"{case}_seg.nii.gz", some_label())
    folder = find_cases(tmp_path)
    assert [(case.id, case.images[0].name, case.label.name) for case in folder.cases[:1]] == [
        ("p1", "p1.nii.gz", "p1_seg.nii.gz")
    ]


def test_images_of_folders_a_channel_need_no_labels_where_the_channels_are_named(tmp_path):
    for channel in ("flair", "t1c"):
        save(tmp_path / channel / "a.nii.gz", some_image(len(channel)))
    ((item,), failures) = inference_cases(tmp_path, channels=["flair", "t1c"])
    assert ([name.split("/")[-2] for name in item["image"]], failures) == (["flair", "t1c"], [])
    with pytest.raises(InputError, match="no labels"):
        datalist(tmp_path, "train", channels=["flair", "t1c"])
    save(tmp_path / "seg" / "a.nii.gz", some_label())
    with pytest.raises(InputError, match="no folder 't2'; there are flair, t1c"):
        find_cases(tmp_path, ["flair", "t2"])


def test_a_file_that_looks_like_a_label_map_beside_an_image_is_no_case(tmp_path):
    for case in ("p1", "p2"):
        case_folder(tmp_path, case, image="ct", label="structures")
    cases, failures = inference_cases(tmp_path)
    assert [item["image"].split("/")[-1] for item in cases] == ["ct.nii.gz", "ct.nii.gz"]
    assert len(failures) == 2
    assert "3 whole numbers from 0 to 2, beside ct.nii.gz: a label map?" in failures[0]
    assert {finding.kind for finding in check_folder(find_cases(tmp_path))} == {"label_map"}


def test_label_maps_in_the_folder_of_the_images_are_left_out_and_it_is_said(tmp_path, caplog):
    for case in ("a", "b_seg"):  # an image may be called so
        save(tmp_path / f"{case}.nii.gz", some_image(len(case)))
    save(tmp_path / "a_seg.nii.gz", some_label())
    cases, failures = inference_cases(tmp_path)
    assert [item["image"].split("/")[-1] for item in cases] == ["a.nii.gz", "b_seg.nii.gz"]
    assert failures == []
    assert "files called as label maps (1, such as a_seg.nii.gz) are not taken for images" in caplog.text


def test_images_of_case_folders_without_labels_do_not_overwrite_each_other(tmp_path):
    for case in ("p1", "p2"):
        save(tmp_path / case / "image.nii.gz", some_image())
    cases, failures = inference_cases(tmp_path)
    assert failures == []
    names = [LoadImageChannelsd("image", 1)(item)["image"].meta["filename_or_obj"] for item in cases]
    assert [name.split("/")[-1] for name in names] == ["p1_image.nii.gz", "p2_image.nii.gz"]


def test_a_folder_a_channel_beside_one_of_labels(tmp_path):
    for case in ("a", "b"):
        save(tmp_path / "flair" / f"{case}.nii.gz", some_image(ord(case)))
        save(tmp_path / "t1c" / f"{case}.nii.gz", some_image(2 * ord(case)))
        save(tmp_path / "seg" / f"{case}_seg.nii.gz", some_label())
    folder = find_cases(tmp_path)
    assert (folder.layout, folder.channels, folder.label_column) == ("channel folders", ("flair", "t1c"), "seg")
    assert [(case.id, len(case.images), case.label.name) for case in folder.cases] == [
        ("a", 2, "a_seg.nii.gz"),
        ("b", 2, "b_seg.nii.gz"),
    ]
    assert find_cases(tmp_path, ["t1c"]).cases[0].images[0].parent.name == "t1c"
    assert [finding for finding in check_folder(folder) if finding.level == "error"] == []


def test_a_second_observer_is_chosen_by_the_folder_of_the_masks(tmp_path):
    for name in ("images", "manual1", "manual2"):
        save(tmp_path / name / "a.nii.gz", some_label() if "manual" in name else some_image())
    folder = find_cases(tmp_path, label_column="manual2")
    assert folder.cases[0].images[0].parent.name == "images"
    assert folder.cases[0].label.parent.name == "manual2"


def test_one_mask_a_class_becomes_one_label_map(tmp_path):
    masks = {"liver": np.zeros(SHAPE, np.uint8), "spleen": np.zeros(SHAPE, np.uint8)}
    masks["liver"][:2], masks["spleen"][3:] = 1, 255
    for case in ("a", "b", "c"):
        save(tmp_path / "images" / f"{case}.nii.gz", some_image(ord(case)))
        for name, mask in masks.items():
            if (case, name) != ("b", "spleen"):
                save(tmp_path / "masks" / name / f"{case}.nii.gz", mask)
    folder = find_cases(tmp_path)
    assert (folder.layout, folder.label_names, folder.problems) == ("paired", {"liver": 1, "spleen": 2}, [])
    assert [finding for finding in check_folder(folder) if finding.level == "error"] == []
    first, second = (LoadLabelMapd("label")(case.datalist_item())["label"] for case in folder.cases[:2])
    assert np.array_equal(np.asarray(first)[0], masks["liver"] + 2 * (masks["spleen"] > 0))
    assert np.array_equal(np.asarray(second)[0], masks["liver"])
    assert [(c.value, c.num_cases) for c in fingerprint(folder).classes] == [(1, 3), (2, 2)]
    assert len(datalist(tmp_path, "test", {"liver": 1, "spleen": 2})) == 1


def test_one_mask_a_class_inside_a_folder_a_case(tmp_path):
    for case in ("s1", "s2"):
        save(tmp_path / case / "ct.nii.gz", some_image())
        save(tmp_path / case / "segmentations" / "heart.nii.gz", (some_label() == 1).astype(np.uint8))
        save(tmp_path / case / "segmentations" / "aorta.nii.gz", (some_label() == 2).astype(np.uint8))
    folder = find_cases(tmp_path)
    assert (folder.layout, folder.label_names, folder.problems) == ("case folders", {"aorta": 1, "heart": 2}, [])
    label = LoadLabelMapd("label", stored_values=[[2]])(folder.cases[0].datalist_item())["label"]
    assert np.array_equal(np.asarray(label)[0], some_label() == 1)
