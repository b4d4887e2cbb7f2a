"""Scores of weakly supervised segmentation, on masks whose scores are known, and the table of all methods."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset
from monai.transforms import KeepLargestConnectedComponent
from torch import nn

from shared_components.diffusion.saliency_network import SaliencyNetwork
from shared_components.errors import InputError
from shared_components.reporting.compare_methods import compare_methods
from shared_components.reporting.weak_handler import WeakMetrics
from shared_components.reporting.weak_metrics import (
    MEANINGS,
    hausdorff_distances,
    patient_dice,
    score_slice,
    summarise_slices,
)


def square(start: int, end: int, size: int = 16) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[start : end + 1, start : end + 1] = True
    return mask


def tensor(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask)[None].float()


def test_two_squares():
    first, second = square(1, 4), square(3, 6)
    scores = score_slice(tensor(first), tensor(second))
    assert scores["dice"] == pytest.approx(0.25) and scores["iou"] == pytest.approx(1 / 7)
    assert scores["hd95_directed_px"] == pytest.approx(2.5026296, abs=1e-3)
    assert scores["hd95_pooled_px"] == pytest.approx(2.7395733, rel=1e-6)
    stray = second.copy()
    stray[14, 14] = True
    directed, pooled = hausdorff_distances(first, stray)
    assert directed == pytest.approx(7.3539105, abs=1e-3) and pooled == pytest.approx(2.8284271, rel=1e-6)
    for other, expected in ((second, 2.8284271), (stray, 14.1421356)):
        assert hausdorff_distances(first, other, percentile=100) == pytest.approx([expected] * 2, rel=1e-6)


def test_an_empty_mask_has_no_distance_and_is_counted():
    scores = score_slice(tensor(np.zeros((16, 16), bool)), tensor(square(1, 4)))
    assert scores["dice"] == 0 and math.isnan(scores["hd95_pooled_px"])
    assert "dice" not in score_slice(tensor(square(1, 4)), tensor(np.zeros((16, 16), bool)))


def test_the_largest_component():
    mask = np.zeros((16, 16), bool)
    mask[1:3, 1:3], mask[6:9, 6:9], mask[14, 14] = True, True, True
    kept = KeepLargestConnectedComponent(applied_labels=[1], connectivity=1)(tensor(mask))
    assert int(kept.sum()) == 9
    removed, count = scipy.ndimage.label(mask & (kept[0].numpy() == 0))
    assert count == 2 and np.bincount(removed.ravel())[1:].max() == 4


def row(kind: int, positive: float, patient: str, found: np.ndarray, truth: np.ndarray | None) -> dict:
    label = None if truth is None else tensor(truth)
    scores = score_slice(tensor(found), label, tensor(found.astype(float)))
    return {"class": kind, "positive": positive, "open": positive >= 0.5, "patient": patient, "seconds": 1.0, **scores}


def test_the_summary_keeps_gate_negatives_and_positives_apart():
    empty = np.zeros((16, 16), bool)
    rows = [
        row(1, 0.9, "a", square(1, 4), square(1, 4)),
        row(1, 0.6, "a", square(3, 6), square(1, 4)),
        row(1, 0.2, "b", empty, square(1, 4)),
        row(0, 0.7, "b", square(0, 7), empty),
        row(0, 0.1, "b", empty, empty),
    ]
    found = summarise_slices(rows)
    assert found["gate_accuracy"] == pytest.approx(3 / 5) and found["gate_sensitivity"] == pytest.approx(2 / 3)
    assert found["gate_specificity"] == 0.5 and found["gate_auroc"] == pytest.approx(4 / 6)
    assert found["false_positive_share"] == pytest.approx((64 / 256) / 2) and found["negative_slices_marked"] == 0.5
    assert found["dice"] == pytest.approx((1 + 0.25 + 0) / 3) and found["hd95_empty"] == 1
    assert patient_dice(rows) == {"a": pytest.approx(2 * 20 / 64), "b": 0}
    assert found["dice_3d"] == pytest.approx(0.3125) and found["dice_best_threshold"] == pytest.approx(1.25 / 3)
    assert set(found) == set(MEANINGS)


def test_without_masks_the_gate_is_scored_alone():
    rows = [row(1, 0.9, "a", square(1, 4), None), row(0, 0.1, "b", square(1, 4), None)]
    found = summarise_slices(rows)
    assert found["gate_auroc"] == 1 and found["negative_slices_marked"] == 1 and "dice" not in found


class Bright(SaliencyNetwork):
    """The image is its own map; bright images are positive."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__(lambda x: torch.stack([-x.sum((1, 2, 3)), x.sum((1, 2, 3))], 1))
        self.sign = sign

    def member_maps(self, slices, position):
        return self.sign * slices[None, :, :1]


def test_all_methods_in_one_table(tmp_path, caplog):
    truth, empty = square(2, 5), np.zeros((16, 16), bool)
    items = [
        {"image": tensor(truth), "label": tensor(truth), "class": 1, "patient": "a"},
        {"image": tensor(empty) - 0.1, "label": tensor(empty), "class": 0, "patient": "b"},
    ]
    loader = DataLoader(Dataset(items), batch_size=2)
    methods, told = {"right": Bright(), "wrong": Bright(-1)}, {"maps: no gate": True, "other: no null class": False}
    table = compare_methods(methods, loader, lambda case: case, tmp_path / "out", left_out=told)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "left out of the comparison: maps: no gate"
    ]
    assert [entry["method"] for entry in table] == ["right", "wrong"]
    assert table[0]["dice"] == 1 and table[1]["dice"] == 0 and table[0]["gate_accuracy"] == 1
    assert table[1]["negative_slices_marked"] == 0
    with open(tmp_path / "out" / "methods_per_slice.csv", encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 4
    assert (tmp_path / "out" / "methods.md").read_text(encoding="utf-8").startswith("| method | slices |")
    with pytest.raises(InputError, match="methods.csv is there already"):
        compare_methods({"right": Bright()}, loader, lambda case: case, tmp_path / "out")


class NormedGate(nn.Module):
    """Has running statistics, as the bundles' gate does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x):
        total = self.norm(x).sum((1, 2, 3))
        return torch.stack([-total, total], 1)


def test_asking_the_gate_does_not_change_it(tmp_path):
    """Between the iterations of an evaluator its network is in train mode again."""
    network = Bright().train()
    network.gate = NormedGate()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    image = tensor(square(2, 5)) - 0.01
    case = {"image": image, "pred": torch.cat([1 - image, image]), "class": 1, "patient": "a", "label": image}
    engine = Engine(lambda engine, batch: [case])
    engine.state.device = torch.device("cpu")
    WeakMetrics(tmp_path, network).attach(engine)
    engine.run([[case], [case]])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.eval()
    with open(tmp_path / "weak_per_slice.csv", encoding="utf-8", newline="") as file:
        found = [float(row["positive"]) for row in csv.DictReader(file)]
    assert found == pytest.approx([float(network.positive_probability(image[None]))] * 2) and found[0] > 0.99


def test_a_slice_of_no_named_patient_is_one_of_its_own(tmp_path):
    """MONAI Label names none."""
    image = tensor(square(2, 5)) - 0.01
    case = {"image": image, "pred": torch.cat([1 - image, image]), "class": 1, "label": image}
    engine = Engine(lambda engine, batch: [case])
    engine.state.device = torch.device("cpu")
    WeakMetrics(tmp_path, Bright()).attach(engine)
    engine.run([[case]])
    with open(tmp_path / "weak_per_slice.csv", encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["patient"] == row["case"]
