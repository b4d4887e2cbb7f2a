"""What an inference says of its cases."""

from __future__ import annotations

import csv
import math

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.engines import IterationEvents

from shared_components.reporting.inference_report import InferenceReportHandler, describe_case, inference_page


def test_volume_and_uncertainty_by_hand():
    affine = torch.diag(torch.tensor([2.0, 2.5, 4.0, 1.0]))
    labels, uncertainty = torch.zeros(1, 10, 10, 10), torch.zeros(1, 10, 10, 10)
    labels[0, :5, :5, :2], labels[0, 5:, 5:, 8:] = 1, 2
    uncertainty[0, :5, :5, :2], uncertainty[0, 0, 0, 9] = 0.25, 0.9
    row = describe_case(MetaTensor(labels, affine=affine), uncertainty, {"core": 1, "shell": 2, "rim": 3})
    assert row["size"] == "10x10x10"
    assert (row["volume_ml_core"], row["volume_ml_shell"], row["volume_ml_rim"]) == (1, 1, 0)  # 50 voxels of 20 mm3
    assert row["uncertainty_in_foreground"] == pytest.approx(0.125)
    assert row["uncertain_share"] == pytest.approx(0.001)


def test_a_picture_is_counted_in_pixels_and_an_empty_one_has_no_uncertainty_inside():
    image = MetaTensor(torch.zeros(1, 8, 6), meta={"filename_or_obj": "a.png"})
    row = describe_case(image, torch.ones(1, 8, 6), {"lesion": 1})
    assert row["area_px_lesion"] == 0 and math.isnan(row["uncertainty_in_foreground"]) and row["uncertain_share"] == 1
    page = inference_page("Inference", [{"case": "a", **row, "seconds": 1.0}], [], {"seed": 0}, ["b.png: truncated"])
    assert "Nothing was found in a." in page and "<li>b.png: truncated</li>" in page and "1 case " in page


def test_the_cases_to_look_at_first_are_those_of_the_lowest_expected_dice(tmp_path):
    cases = {"sure": 0.95, "unsure": 0.4, "empty": math.nan, "fair": 0.8}

    def infer(engine, name):
        label = MetaTensor(torch.ones(1, 8, 6), meta={"filename_or_obj": f"{name}.png"})
        return [{"pred": label, "uncertainty": torch.zeros(1, 8, 6), "expected_dice": cases[name]}]

    engine, drawn = Engine(infer), tmp_path / "overlay.png"
    engine.register_events(*IterationEvents)
    drawn.write_bytes(b"picture")
    handler = InferenceReportHandler(tmp_path, label_names={"lesion": 1}, pictures_per_end=2)
    handler.attach(engine)
    engine.state.overlays = {(f"{name}.png", 0): drawn for name in cases}
    engine.run(list(cases), 1)
    rows = {row["case"]: row for row in csv.DictReader(open(tmp_path / "inference_per_case.csv", encoding="utf-8"))}
    assert rows["unsure"]["expected_dice"] == "0.4" and rows["empty"]["expected_dice"] == "nan"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    order = [part.split("</figcaption>")[0] for part in page.split("<figcaption>")[1:]]
    assert [next(name for name in cases if f"</b> {name} " in part) for part in order] == [
        "empty",
        "unsure",
        "fair",
        "sure",
    ]
    assert [part.split("</b>")[0] for part in order] == ["<b>Least certain"] * 2 + ["<b>Most certain"] * 2
