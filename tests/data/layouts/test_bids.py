"""BIDS folders: subjects and sessions, channels by suffix, labels in derivatives."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared_components.data.checks.check_data import check_data
from shared_components.data.datalists import datalist, inference_cases
from shared_components.data.layouts.cases import find_cases
from shared_components.data.layouts.split import sections
from shared_components.data.loaders import LoadImageChannelsd
from shared_components.errors import InputError
from tests.data.folders import save, some_image, some_label


def image(root: Path, subject: str, name: str, session: str = "", data_type: str = "anat") -> Path:
    before = "_".join(filter(None, (subject, session)))
    number = sum(map(ord, before + name))
    return save(root / subject / session / data_type / f"{before}_{name}.nii.gz", some_image(number))


def label(root: Path, subject: str, name: str = "dseg", session: str = "", pipeline: str = "labels") -> Path:
    before = "_".join(filter(None, (subject, session)))
    return save(root / "derivatives" / pipeline / subject / session / "anat" / f"{before}_{name}.nii.gz", some_label())


def bids_folder(root: Path, count: int = 6) -> Path:
    for number in range(1, count + 1):
        for name in ("T1w", "FLAIR"):
            image(root, f"sub-{number:02d}", name)
        image(root, f"sub-{number:02d}", "task-rest_bold", data_type="func")
        label(root, f"sub-{number:02d}")
    return root


def test_a_subject_is_a_case_and_its_anatomical_images_are_channels(tmp_path, capsys):
    bids_folder(tmp_path)
    folder = find_cases(tmp_path)
    assert (folder.layout, folder.channels, folder.label_column) == ("bids", ("FLAIR", "T1w"), "labels/dseg")
    assert [case.id for case in folder.cases[:2]] == ["sub-01", "sub-02"]
    assert [path.name for path in folder.cases[0].images] == ["sub-01_FLAIR.nii.gz", "sub-01_T1w.nii.gz"]
    assert folder.problems == [] and check_data(tmp_path, channels="T1w") == []
    assert "label in  labels/dseg" in capsys.readouterr().out


def test_channels_choose_by_suffix_and_results_are_called_by_the_case(tmp_path):
    bids_folder(tmp_path)
    items = datalist(tmp_path, "train", channels=["T1w"])
    assert Path(items[0]["image"]).name == "sub-01_T1w.nii.gz" and Path(items[0]["label"]).name == "sub-01_dseg.nii.gz"
    loaded = LoadImageChannelsd("image", 1)(items[0])["image"]
    assert Path(loaded.meta["filename_or_obj"]).name == "sub-01.nii.gz"
    (first, *_), bad = inference_cases(tmp_path, channels=["task-rest_bold"])
    assert (Path(first["image"]).name, bad) == ("sub-01_task-rest_bold.nii.gz", [])
    assert Path(datalist(tmp_path, "train", channels=["bold"])[0]["image"]).name == "sub-01_task-rest_bold.nii.gz"
    with pytest.raises(InputError, match="no image 'T2w' of any subject; there are FLAIR, T1w, bold"):
        find_cases(tmp_path, ["T1w", "T2w"])
    with pytest.raises(
        InputError, match="4 of 4 .*2 channels, model takes 1; name those that it takes with --channels"
    ):
        datalist(tmp_path, "train", num_channels=1, labels=[1, 2])


def test_sessions_are_cases_and_the_subject_is_the_patient(tmp_path):
    for number in range(1, 6):
        for session in ("ses-1", "ses-2"):
            image(tmp_path, f"sub-{number}", "T1w", session)
            label(tmp_path, f"sub-{number}", "space-orig_dseg", session)
    folder = find_cases(tmp_path)
    assert [case.id for case in folder.cases[:2]] == ["sub-1_ses-1", "sub-1_ses-2"]
    assert sections(folder)["test"] == ["sub-5_ses-1", "sub-5_ses-2"]
    assert folder.patient_rule == "the subjects of BIDS"


def test_what_is_missing_is_said_and_what_is_of_no_use_is_not(tmp_path):
    bids_folder(tmp_path)
    (tmp_path / "sub-02" / "anat" / "sub-02_T1w.nii.gz").unlink()
    (tmp_path / "derivatives" / "labels" / "sub-03" / "anat" / "sub-03_dseg.nii.gz").unlink()
    image(tmp_path, "sub-04", "run-2_T1w")
    image(tmp_path, "sub-04", "run-1_T1w")
    (tmp_path / "sub-04" / "anat" / "sub-04_T1w.nii.gz").unlink()
    image(tmp_path, "sub-07", "task-rest_bold", data_type="func")
    found = {problem.case: (problem.kind, problem.message) for problem in find_cases(tmp_path, ["T1w"]).problems}
    assert {case: kind for case, (kind, _) in found.items()} == {
        "sub-02": "no_image",
        "sub-03": "no_label",
        "sub-04": "no_image",
    }
    both = find_cases(tmp_path, ["FLAIR", "T1w"]).problems
    (several,) = [problem for problem in both if problem.case == "sub-04"]
    assert several.message == "channel 1 (T1w) is missing: there is no such file, or more than one"


@pytest.mark.parametrize(
    "labels, wanted, found",
    [
        ([("masks", "desc-brain_mask"), ("masks", "label-lesion_mask")], None, "masks/label-lesion_mask"),
        ([("masks", "desc-brain_mask"), ("masks", "label-lesion_mask")], "desc-brain_mask", "masks/desc-brain_mask"),
        ([("labels", "T1w_seg-manual"), ("labels", "T2w_seg-manual")], None, "labels/T1w_seg-manual"),
        ([("a", "dseg"), ("a", "label-lesion_mask"), ("a", "label-GM_probseg")], None, "a/dseg"),
        ([("rater1", "dseg"), ("rater2", "dseg")], "rater2", "rater2/dseg"),
        ([("rater1", "dseg"), ("rater2", "dseg")], None, None),
        ([("masks", "desc-brain_mask")], None, None),
        ([], None, None),
    ],
)
def test_which_file_is_the_label(tmp_path, labels, wanted, found):
    for subject in ("sub-1", "sub-2", "sub-3"):
        image(tmp_path, subject, "T1w")
        for pipeline, name in labels:
            label(tmp_path, subject, name, pipeline=pipeline)
    folder = find_cases(tmp_path, label_column=wanted)
    assert (folder.label_column, folder.labelled) == (found, found is not None)
    if found is None:
        said = "which one is meant|Name it" if labels else "no file in derivatives"
        with pytest.raises(InputError, match=said):
            datalist(tmp_path, "train")
        assert len(inference_cases(tmp_path)[0]) == 3
    with pytest.raises(InputError, match="label_column 'nothing' is no label"):
        find_cases(tmp_path, label_column="nothing")


def test_labels_are_named_by_their_table_and_may_lie_beside_raw_data_or_images(tmp_path):
    raw = tmp_path / "rawdata"
    for subject in ("sub-1", "sub-2"):
        image(raw, subject, "T1w")
        label(tmp_path, subject)
    table = tmp_path / "derivatives" / "labels" / "desc-x_dseg.tsv"
    table.write_text("index\tname\n0\tBackground\n1\tCaudate\n2\tPutamen\n", encoding="utf-8")
    folder = find_cases(tmp_path)
    assert folder.label_names == {"Caudate": 1, "Putamen": 2} and len(folder.cases) == 2
    table.write_text("number\n1\n", encoding="utf-8")
    with pytest.raises(InputError, match="desc-x_dseg.tsv: no table of index and name"):
        find_cases(tmp_path)
    beside = tmp_path / "beside"
    image(beside, "sub-1", "T1w")
    image(beside, "sub-1", "dseg")
    assert find_cases(beside).cases[0].label.name == "sub-1_dseg.nii.gz"
