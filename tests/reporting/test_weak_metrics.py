"""Scores of weakly supervised segmentation, on masks whose scores are known, and the table of all methods."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, Invertd, KeepLargestConnectedComponent, Resized
from torch import nn

from shared_components.diffusion.inferers import DrawsInferer, SplitDrawsd
from shared_components.diffusion.saliency_network import SaliencyNetwork
from shared_components.errors import InputError
from shared_components.reporting.compare_methods import compare_methods
from shared_components.reporting.draw_spread import summarise_draws
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
    draws = torch.cat([tensor(found), tensor(np.roll(found, 1, 0))])
    scores = score_slice(tensor(found), label, tensor(found.astype(float)), draws)
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


def test_the_spread_over_draws():
    """Two squares have Dice 0.25 with each other: pairs of 1, 0.25 and 0.25, three draws of 1, 1 and 0.25."""
    draws = torch.cat([tensor(square(1, 4)), tensor(square(1, 4)), tensor(square(3, 6))])
    scores = score_slice(tensor(square(1, 4)), tensor(square(1, 4)), draws=draws)
    assert scores["draw_agreement"] == pytest.approx(0.5) and scores["draw_dices"] == pytest.approx([1, 1, 0.25])
    assert scores["draw_dice"] == pytest.approx(0.75) and scores["draw_dice_sd"] == pytest.approx(0.4330127)
    unsure = score_slice(tensor(square(1, 4)), None, draws=draws)
    assert unsure["draw_agreement"] == pytest.approx(0.5) and "draw_dice" not in unsure
    assert "draw_agreement" not in score_slice(tensor(square(1, 4)), tensor(square(1, 4)), draws=draws[:1])
    rows = [{"open": True, **scores}, {"open": True, **scores, "draw_dices": [0.25, 1, 1]}]
    closed = score_slice(tensor(square(1, 4)) * 0, tensor(square(1, 4)), draws=draws * 0)
    assert math.isnan(closed["draw_agreement"]) and closed["draw_dices"] == [0, 0, 0]
    found = summarise_draws([*rows, {"open": False, **closed}, {"open": False, "marked": 0}])
    assert found["draw_agreement"] == pytest.approx(0.5) and found["draw_dice"] == pytest.approx(0.5)
    assert found["draw_dice_sd"] == pytest.approx(np.std([1.25 / 3, 2 / 3, 1.25 / 3], ddof=1))
    assert found["draw_dice_slice_sd"] == pytest.approx(0.4330127)
    assert summarise_draws([{"open": True, "marked": 3}]) == {}
    nothing = summarise_draws([{"open": False, **closed}])
    assert math.isnan(nothing["draw_agreement"]) and nothing["draw_dice"] == 0
    assert math.isnan(nothing["draw_dice_slice_sd"])


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


class Undecided(Bright):
    """Three draws, of which the last is the opposite of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.num_samples = 3

    def member_maps(self, slices, position):
        return torch.stack([slices[:, :1], slices[:, :1], 1 - slices[:, :1]])


def test_the_table_of_methods_says_what_chance_decides(tmp_path):
    """Only of methods with several draws, on the grid of the mask."""
    truth = square(2, 5)
    small = {"image": tensor(truth)[:, :8, :8], "label": tensor(truth), "class": 1, "patient": "a"}
    loader = DataLoader(Dataset([small]), batch_size=1)

    def padded(case: dict) -> dict:
        grown = {key: torch.nn.functional.pad(case[key], (0, 8, 0, 8)) for key in ("pred", "saliency")}
        return {**case, **grown}

    one, three = compare_methods({"one": Bright(), "three": Undecided()}, loader, padded, tmp_path)
    assert not [key for key in one if key.startswith("draw_")]
    assert three["dice"] == 1 and three["draw_dice"] == pytest.approx(2 / 3)  # the mean map is that of the two
    assert three["draw_dice_sd"] == pytest.approx(np.std([1, 1, 0], ddof=1))
    assert three["draw_agreement"] == pytest.approx(1 / 3)
    lines = (tmp_path / "methods.md").read_text(encoding="utf-8").splitlines()
    assert all(name in lines[0] for name in ("draw_agreement", "draw_dice", "draw_dice_sd"))
    with open(tmp_path / "methods_per_slice.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["draw_dice"] for row in rows] == ["", "0.666667"] and "draw_dices" not in rows[1]


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


def test_slices_of_equal_names_count_apart_and_repeated_ones_once_over_processes(tmp_path, monkeypatch):
    """Each process has a slice of its own called alike, as normal/slice.png and tumor/slice.png; one has both."""
    image = tensor(square(2, 5)) - 0.01

    def rows_of(folders: list[str]) -> dict:
        def case(folder: str) -> dict:
            label = MetaTensor(image.clone(), meta={"filename_or_obj": str(tmp_path / folder / "slice.png")})
            return {"image": image, "pred": torch.cat([1 - image, image]), "class": 1, "patient": "a", "label": label}

        engine = Engine(lambda engine, batch: batch)
        engine.state.device = torch.device("cpu")
        handler = WeakMetrics(tmp_path / "-".join(folders), Bright())
        handler.attach(engine)
        engine.run([[case(folder)] for folder in folders])
        return handler._rows

    parts = [rows_of(["normal"]), rows_of(["normal", "tumor"])]
    monkeypatch.setattr("shared_components.reporting.weak_handler.idist.all_gather", lambda own: parts)
    rows_of(["tumor"])
    with open(tmp_path / "tumor" / "weak_per_slice.csv", encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert [(row["case"], row["patient"]) for row in found] == [("slice", "a")] * 2


class Draws(Bright):
    """Draws that move the image to the right, one pixel a draw."""

    def __init__(self, num_samples: int = 3, combine: str = "mean") -> None:
        super().__init__()
        self.num_samples, self.combine = num_samples, combine

    def member_maps(self, slices, position):
        return torch.stack([slices[:, :1].roll(draw, 3) for draw in range(self.num_samples)])


def test_draws_are_what_each_would_mark_alone():
    image = torch.stack([tensor(square(2, 5)) - 0.01, -tensor(square(2, 5))])
    for combine in ("mean", "majority"):
        network = Draws(combine=combine).eval()
        found, plain = network.describe(image, draws=True), network.describe(image)
        assert torch.equal(found["pred"], plain["pred"]) and "draws" not in plain
        assert found["draws"].shape == (2, 3, 16, 16) and found["draws"][1].max() == 0  # the gate is closed
        for draw in range(3):
            assert torch.equal(found["draws"][0, draw] > 0.5, torch.from_numpy(np.roll(square(2, 5), draw, 1)))
        if combine == "majority":
            votes = (found["draws"][0] > 0.5).sum(0) >= 2
            assert torch.equal(found["pred"][0].argmax(0).bool(), votes)
    volume = Draws().describe(image.permute(1, 2, 3, 0)[None], draws=True)["draws"]
    assert volume.shape == (1, 3, 16, 16, 2) and torch.equal(volume[0, ..., 0], found["draws"][0])


def test_an_evaluation_tells_the_spread_on_the_grid_of_the_image(tmp_path):
    """The network sees images of half the size; draws come back to the image's own pixels, as the prediction does."""
    image = torch.zeros(1, 32, 32)
    image[:, 4:12, 4:12] = 1
    items = [{"image": MetaTensor(image - 0.01), "label": MetaTensor(image), "class": 1, "patient": "a"}]
    resize = Resized("image", (16, 16), mode="area")
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items, resize), batch_size=1),
        network=Draws(),
        inferer=DrawsInferer(),
        postprocessing=Compose([Invertd("pred", resize, "image", nearest_interp=False), SplitDrawsd()]),
        val_handlers=[WeakMetrics(tmp_path, Draws().eval())],
    )
    evaluator.run()
    (case,) = evaluator.state.output
    assert case["pred"].shape == (2, 32, 32) and case["draws"].shape == (3, 32, 32)
    summary = evaluator.state.weak_summary
    assert summary["draw_agreement"] == pytest.approx((0.75 + 0.75 + 0.5) / 3, abs=0.06)
    assert summary["draw_dice"] == pytest.approx(0.75, abs=0.06)
    with open(tmp_path / "weak_per_slice.csv", encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["draw_dice_sd"]) == pytest.approx(0.25, abs=0.05) and "draw_dices" not in row
