"""Voxels that nobody judged, nnU-Net's label ``ignore``: from dataset.json to the score."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from shared_components.data.checks.cases import check_folder
from shared_components.data.checks.check_data import check_data
from shared_components.data.datalists import datalist
from shared_components.data.fingerprint import fingerprint
from shared_components.data.ignored import IGNORED, LeaveOutIgnoredd
from shared_components.data.image_labels import find_labelled_slices
from shared_components.data.layouts.cases import find_cases
from shared_components.data.loaders import LoadInstancesd, LoadLabelMapd
from shared_components.data.synthesis import synthesis_requests
from shared_components.errors import InputError
from shared_components.reporting import CaseMetrics, InstanceScores
from shared_components.reporting.metrics import score_case
from tests.data.folders import SHAPE, msd_folder, save, save_picture, some_label

NAMES = {"background": 0, "anterior": 1, "posterior": 2, "ignore": 3}


def partly_labelled(root: Path, labels: dict = NAMES, count: int = 6) -> Path:
    """An MSD folder; in each label map the last of four slices is to be ignored."""
    ids = [f"case_{number}" for number in range(count)]
    msd_folder(root, ids, labels=labels)
    label = some_label()
    label[..., 3] = 3
    for case in ids:
        save(root / "labelsTr" / f"{case}.nii.gz", label)
    return root


@pytest.mark.parametrize(
    "labels, names",
    [
        (NAMES, {"anterior": 1, "posterior": 2}),
        ({"0": "background", "1": "anterior", "2": "posterior", "3": "Ignore"}, {"anterior": 1, "posterior": 2}),
        ({"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}, {}),
    ],
)
def test_ignore_is_no_class_and_its_share_is_told(tmp_path, labels, names, capsys):
    folder = find_cases(partly_labelled(tmp_path, labels))
    assert (folder.label_names, folder.ignored) == (names, 3)
    (note,) = check_data(tmp_path)
    assert (note.level, note.kind) == ("note", "ignored_voxels")
    assert note.message.startswith("0.25 of the voxels have the label 3 (ignore), in 6 of 6 masks")
    assert "3 is ignored" in capsys.readouterr().out
    found = fingerprint(folder)
    assert [item.value for item in found.classes] == [1, 2]
    assert found.foreground == fingerprint(folder, values={1, 2}).foreground


def test_a_mask_of_ignored_voxels_alone_is_empty(tmp_path):
    partly_labelled(tmp_path)
    save(tmp_path / "labelsTr" / "case_1.nii.gz", np.full(SHAPE, 3, np.uint8))
    (warning,) = [finding for finding in check_folder(find_cases(tmp_path)) if finding.level == "warning"]
    assert (warning.case, warning.kind) == ("case_1", "empty_mask") and "all are to be ignored" in warning.message


@pytest.mark.parametrize("value", [0, 2, "many", [3, 4]])
def test_a_value_that_cannot_be_ignored_is_refused(tmp_path, value):
    with pytest.raises(InputError, match="dataset.json: .*'ignore'"):
        find_cases(msd_folder(tmp_path, ["a"], labels={**NAMES, "ignore": value}))


def test_a_model_cannot_have_it_as_a_label(tmp_path):
    partly_labelled(tmp_path)
    for labels in ({"anterior": 1, "posterior": 2, "other": 3}, [1, 2, 3]):
        with pytest.raises(InputError, match="the value 3 is to be ignored, but the model has it as a label"):
            datalist(tmp_path, "train", labels)


def test_what_needs_whole_label_maps_refuses_the_folder(tmp_path):
    partly_labelled(tmp_path)
    for ask in (
        lambda: datalist(tmp_path, "train", whole_labels=True),
        lambda: synthesis_requests(tmp_path, {"anterior": 1, "posterior": 2}),
        lambda: find_labelled_slices(tmp_path),
    ):
        with pytest.raises(InputError, match=r"label 3 \(ignore\) are to be left out, but this needs whole label maps"):
            ask()


def test_a_folder_of_usable_cases_keeps_it(tmp_path):
    partly_labelled(tmp_path / "data")
    check_data(tmp_path / "data", skip_bad=tmp_path / "usable")
    folder = find_cases(tmp_path / "usable")
    assert (folder.ignored, folder.label_names) == (3, {"anterior": 1, "posterior": 2})


def test_such_voxels_are_loaded_as_none_of_the_classes(tmp_path):
    item = datalist(partly_labelled(tmp_path), "train", {"anterior": 1, "posterior": 2})[0]
    assert item["ignored_value"] == 3
    for stored, posterior in ((None, 2.0), ([[2]], 1.0)):
        label = LoadLabelMapd("label", [1, 2], stored_values=stored)(item)["label"]
        assert isinstance(label, MetaTensor) and label.meta["filename_or_obj"] == item["label"]
        assert (label[..., 3] == IGNORED).all() and (label[..., :3] >= 0).all()
        assert label[0, 3, 1, 1] == posterior
    objects = LoadInstancesd("label")(item)["label"]
    assert (objects[..., 3] == 3).all()


def test_white_may_be_ignored(tmp_path):
    """A mask of 0 and 255 is black and white, but not where 255 is to be ignored."""
    mask = np.zeros((4, 6), np.uint8)
    mask[0], mask[1] = 255, 1
    for name in "abcdef":
        save_picture(
            tmp_path / "images" / f"{name}.png", np.random.default_rng(ord(name)).integers(0, 9, (4, 6, 3), np.uint8)
        )
        save_picture(tmp_path / "masks" / f"{name}.png", mask)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "lesion": 1, "ignore": 255}}))
    item = datalist(tmp_path, "train", {"lesion": 1}, num_channels=3, spatial_dims=2)[0]
    label = LoadLabelMapd("label", {"lesion": 1})(item)["label"][0].T
    assert label[:3, 0].tolist() == [IGNORED, 1, 0]


def scored(prediction: torch.Tensor, label: torch.Tensor, **case) -> dict[str, float]:
    done = LeaveOutIgnoredd("pred")({"pred": prediction, "label": label, **case})
    scores, _ = score_case(done["pred"], done["label"], {1: "lesion"}, ignored=done.get("ignored"))
    return scores


def test_scores_are_those_of_the_other_voxels():
    label = torch.zeros(1, 8, 8, 8)
    label[0, 2:6, 2:6, :4] = 1
    probability = torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(0))
    prediction = torch.stack([1 - probability, probability])
    expected, _ = score_case(prediction[..., :4], label[..., :4], {1: "lesion"})
    label[..., 4:] = IGNORED
    found = scored(prediction, label)
    for metric in ("dice_lesion", "ece_near_foreground", "error_auroc_near_foreground", "hd95_mm_lesion"):
        assert found[metric] == pytest.approx(expected[metric], abs=1e-6), metric
    assert label.min() == IGNORED and prediction[1, 0, 0, 7] == probability[0, 0, 7]  # what came in is as it was


def object_scores(tmp_path: Path, case: dict, instances: torch.Tensor | None) -> dict[str, float]:
    """The scores of single objects of one case, as an evaluation has them."""
    handler = CaseMetrics(tmp_path, instances=InstanceScores())
    engine = Engine(lambda engine, batch: None)
    engine.state.output = [LeaveOutIgnoredd("pred")(case)]
    engine.state.batch = [{} if instances is None else {"instances": instances}]
    handler(engine)
    (record,) = handler._records.values()
    return {name: record.scores[name] for name in ("aji", "pq", "instances_reference", "instances_predicted")}


@pytest.mark.parametrize("numbered", [True, False])
def test_objects_are_those_of_the_other_pixels(tmp_path, numbered):
    """Of three nuclei one is judged whole, one half, one not at all, and that one is missed."""
    numbers = torch.zeros(1, 40, 60)
    for number, column in enumerate((4, 24, 44), start=1):
        numbers[0, 10:22, column : column + 12] = number
    label = (numbers > 0).float()
    found = label.clone()
    found[..., 44:] = 0  # the third is missed
    found[0, 30:38, 40:50] = 1  # another invented
    label[..., 30:] = IGNORED  # half of the second, and all of these
    case = {"pred": torch.cat([1 - found, found]), "label": label}
    scores = object_scores(tmp_path, case, numbers if numbered else None)
    assert scores == {"aji": 1, "pq": 1, "instances_reference": 2, "instances_predicted": 2}


def test_an_object_across_a_strip_of_ignored_pixels_is_one(tmp_path):
    numbers = torch.zeros(1, 40, 40)
    numbers[0, 10:22, 10:22] = 1
    found = (numbers > 0).float()
    label = found.clone()
    label[..., 15:17] = IGNORED
    case = {"pred": torch.cat([1 - found, found]), "label": label}
    scores = object_scores(tmp_path, case, numbers)
    assert scores == {"aji": 1, "pq": 1, "instances_reference": 1, "instances_predicted": 1}


def test_another_prediction_of_a_case_is_treated_alike_and_whole_cases_are_left_alone():
    leave_out, label = LeaveOutIgnoredd("pred"), torch.tensor([[0.0, 1.0, IGNORED]])
    first = leave_out({"pred": torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]), "label": label})
    assert first["pred"].tolist() == [[0, 0, 1], [1, 1, 0]] and first["label"].tolist() == [[0, 1, 0]]
    again = leave_out({**first, "pred": torch.tensor([[1.0, 1.0, 1.0]])})
    assert again["pred"].tolist() == [[1, 1, 0]]
    whole = {"pred": torch.ones(2, 3), "label": torch.tensor([[0.0, 1.0, 1.0]])}
    assert leave_out(whole) == whole
    assert leave_out({"pred": torch.ones(2, 3)}).keys() == {"pred"}
