"""Scores of one case against MONAI's metrics and values counted by hand, and the tables of them."""

import csv
import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.metrics import DiceMetric, HausdorffDistanceMetric, SurfaceDistanceMetric

from shared_components.ensembling import calibration_bins, calibration_error, entropy, error_detection_auroc
from shared_components.errors import InputError
from shared_components.reporting import score_case, summarise, write_table
from shared_components.reporting.metrics import expected_dice_order, near_foreground

NAMES = {1: "anterior", 2: "posterior"}
SPACING = (0.5, 1.0, 3.0)


def blocks(shape=(16, 12, 8), shift=0):
    """Two touching blocks, labels 1 and 2, as (1, *shape) int64."""
    label = torch.zeros(1, *shape, dtype=torch.int64)
    label[:, 4 + shift : 8 + shift, 3:9, 2:6] = 1
    label[:, 8 + shift : 12 + shift, 3:9, 2:6] = 2
    return label


def one_hot(label, classes=3):
    return torch.nn.functional.one_hot(label[0], classes).movedim(-1, 0).float()


def uncertain(label, seed=0):
    generator = torch.Generator().manual_seed(seed)
    probabilities = one_hot(label) + torch.rand(3, *label.shape[1:], generator=generator)
    return probabilities / probabilities.sum(0)


def with_spacing(label):
    return MetaTensor(label, affine=torch.diag(torch.tensor([-SPACING[0], *SPACING[1:], 1.0])))


def test_equals_monai_in_millimetres():
    prediction, label = uncertain(blocks(shift=1)), with_spacing(blocks())
    scores, _ = score_case(prediction, label, NAMES)
    hot = [one_hot(prediction.argmax(0, keepdim=True))[None], one_hot(blocks())[None]]
    metrics = {
        "dice": DiceMetric(include_background=False, reduction="none")(*hot),
        "hd95_mm": HausdorffDistanceMetric(percentile=95, reduction="none")(*hot, spacing=SPACING),
        "assd_mm": SurfaceDistanceMetric(symmetric=True, reduction="none")(*hot, spacing=SPACING),
    }
    for metric, values in metrics.items():
        for name, value in zip(NAMES.values(), values[0]):
            assert scores[f"{metric}_{name}"] == pytest.approx(float(value), abs=1e-6)
    assert scores["hd95_mm_anterior"] > 0
    assert scores["dice_mean"] == pytest.approx(float(metrics["dice"].mean()), abs=1e-6)


def test_one_voxel_of_shift_is_one_voxel_of_distance():
    scores, _ = score_case(one_hot(blocks(shift=1)), with_spacing(blocks()), NAMES)
    assert scores["dice_anterior"] == pytest.approx(0.75)
    assert scores["hd95_mm_anterior"] == pytest.approx(0.5)


def test_a_label_map_scores_as_its_one_hot():
    label = with_spacing(blocks())
    expected, _ = score_case(one_hot(blocks(shift=1)), label, NAMES)
    assert score_case(blocks(shift=1), label, NAMES)[0] == expected
    assert (
        score_case(one_hot(blocks(shift=1)), MetaTensor(one_hot(blocks()), affine=label.affine), NAMES)[0] == expected
    )
    assert expected["error_auroc_near_foreground"] == 0.5


def ranked(*pairs):
    return expected_dice_order([{"expected_dice": expected, "dice_mean": dice} for expected, dice in pairs])


def test_the_order_of_cases_by_expected_dice():
    pairs = [(0.9, 0.8), (0.8, 0.7), (0.7, 0.75), (0.6, 0.2), (0.5, 0.1)]
    (row,) = ranked(*pairs, (math.nan, 0.0))
    # the ranks of the second and third are exchanged: 1 - 6 * 2 / (5 * 24)
    assert row["metric"] == "expected_dice_order" and row["mean"] == pytest.approx(0.9)
    assert (row["cases"], row["nan"]) == (6, 1) and math.isnan(row["std"])
    assert ranked(*pairs[:4]) == [] and ranked(*[(1.0, dice) for _, dice in pairs]) == []


@pytest.mark.parametrize(
    ("predicted", "referenced", "dice"), [(False, False, 1.0), (True, False, 0.0), (False, True, 0.0)]
)
def test_empty_masks(predicted, referenced, dice):
    """The convention: both empty 1, one empty 0; distances have no value."""
    empty = torch.zeros_like(blocks())
    scores, _ = score_case(one_hot(blocks() if predicted else empty), blocks() if referenced else empty, NAMES)
    assert scores["dice_anterior"] == scores["dice_mean"] == dice
    assert math.isnan(scores["hd95_mm_anterior"]) and math.isnan(scores["assd_mm_posterior"])
    assert math.isnan(scores["ece_near_foreground"]) == (not predicted and not referenced)


def test_uncertainty_is_judged_near_the_foreground():
    prediction, label = uncertain(blocks(shift=1)), with_spacing(blocks())
    scores, bins = score_case(prediction, label, NAMES, margin=1.0)
    predicted = prediction.argmax(0, keepdim=True)
    region = near_foreground(((predicted > 0) | (blocks() > 0))[0].numpy(), SPACING, 1.0)[None, None]
    region = torch.from_numpy(region)
    assert 0 < region.sum() < region.numel() and bins[0].sum() == region.sum()
    expected = calibration_error(calibration_bins(prediction[None], blocks()[None], mask=region))
    assert scores["ece_near_foreground"] == pytest.approx(expected)
    auroc = error_detection_auroc(entropy(prediction[None]), (predicted != blocks())[None], region)
    assert scores["error_auroc_near_foreground"] == pytest.approx(auroc)


def test_unions_of_classes_are_scored_as_one_structure():
    label = with_spacing(blocks())
    regions = {"whole": [1, 2], "inner": [2]}
    scores, _ = score_case(one_hot(blocks(shift=1)), label, NAMES, regions=regions, iou=True)
    merged = with_spacing((blocks() > 0).long())
    expected, _ = score_case(one_hot((blocks(shift=1) > 0).long(), 2), merged, {1: "whole"}, iou=True)
    for name in ("dice_whole", "iou_whole", "hd95_mm_whole", "assd_mm_whole"):
        assert scores[name] == pytest.approx(expected[name])
    assert scores["dice_inner"] == scores["dice_posterior"] and scores["iou_inner"] == scores["iou_posterior"]
    assert scores["dice_mean"] == pytest.approx((scores["dice_anterior"] + scores["dice_posterior"]) / 2)


def test_the_margin_is_in_millimetres():
    foreground = np.zeros((9, 9), dtype=bool)
    foreground[4, 4] = True
    near = near_foreground(foreground, (1.0, 2.0), 2.0)
    assert sorted(map(tuple, np.argwhere(near))) == [(2, 4), (3, 4), (4, 3), (4, 4), (4, 5), (5, 4), (6, 4)]
    assert not near_foreground(foreground & False, (1.0, 2.0), 2.0).any()


def test_a_single_slice_scores_as_a_picture():
    flat, deep = blocks()[..., 3], blocks()[..., 3:4]
    moved = blocks(shift=1)
    expected, _ = score_case(one_hot(moved[..., 3]), flat, NAMES, spacing=SPACING[:2])
    found, _ = score_case(one_hot(moved[..., 3:4]), deep, NAMES, spacing=SPACING)
    assert found["hd95_mm_anterior"] == expected["hd95_mm_anterior"] == 0.5
    assert found["assd_mm_anterior"] == expected["assd_mm_anterior"]


def test_mistakes():
    with pytest.raises(InputError, match="values 0 to 2, the model predicts 0 to 1"):
        score_case(one_hot(blocks().clamp(max=1), 2), blocks(), {1: "anterior"})
    with pytest.raises(InputError, match=r"\(16, 12, 7\).*\(16, 12, 8\).*Invertd"):
        score_case(one_hot(blocks())[..., :7], blocks(), NAMES)
    with pytest.raises(InputError, match="found class 5, the prediction has 0 to 2"):
        score_case(one_hot(blocks()), blocks(), {5: "tail"})


def test_summary_by_hand():
    rows = [{"case": "a", "hd": 1.0}, {"case": "b", "hd": math.nan}, {"case": "c", "hd": 4.0}]
    (summary,) = summarise(rows)
    assert summary == {
        "metric": "hd",
        "mean": 2.5,
        "std": pytest.approx(math.sqrt(4.5)),
        "median": 2.5,
        "min": 1.0,
        "max": 4.0,
        "cases": 3,
        "nan": 1,
    }
    (empty,) = summarise(rows[1:2])
    assert math.isnan(empty["mean"]) and (empty["cases"], empty["nan"]) == (1, 1)
    assert summarise([]) == []


def test_tables_read_back(tmp_path):
    path = write_table(tmp_path / "t.csv", [{"case": "a, b", "x": 1 / 3}, {"case": "c", "x": math.nan, "y": 2}])
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"case": "a, b", "x": "0.333333", "y": ""}, {"case": "c", "x": "nan", "y": "2"}]
