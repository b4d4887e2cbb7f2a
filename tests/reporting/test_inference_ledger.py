"""An inference that was interrupted goes on: what it had finished is kept, shown and not done again."""

import csv
import json
import math
from types import SimpleNamespace

import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from torch import nn

from shared_components.errors import InputError
from shared_components.reporting import InferenceReportHandler, unfinished_cases
from shared_components.reporting.inference_ledger import LEDGER, InferenceLedger
from shared_components.training import CaseEvaluator


class Network(nn.Module):
    """Finds what is positive; fails on the images it is told to fail on."""

    def __init__(self, fails_on=()):
        super().__init__()
        self.num_samples, self.slice_axes, self.max_batch_size = 3, [2], 64
        self._fails_on, self._seen = fails_on, []

    def forward(self, image):
        number = int(image.max())
        self._seen.append(number)
        if number in self._fails_on:
            raise KeyboardInterrupt if self._fails_on[number] == "stop" else ValueError("a bad case")
        return torch.cat([(image <= 0).float(), (image > 0).float()], dim=1)


def load(item):
    image = torch.zeros(1, 8, 6)
    image[:, : item["number"]] = item["number"]
    return {"image": MetaTensor(image, meta={"filename_or_obj": item["image"]})}


def postprocess(case):
    prediction = case["pred"].argmax(0, keepdim=True)
    return {**case, "pred": prediction, "expected_dice": 0.5 if prediction.any() else math.nan}


ITEMS = [{"image": f"data/case_{number}.png", "number": number} for number in range(5)]


def infer(folder, network, resume=False, items=ITEMS):
    left, _ = unfinished_cases((items, []), folder, resume)
    evaluator = CaseEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(left, load), batch_size=1),
        network=network,
        postprocessing=postprocess,
    )
    InferenceReportHandler(folder, label_names={"lesion": 1}, overwrite=resume, resume=resume).attach(evaluator)
    evaluator.run()
    return network._seen


def table(folder):
    with open(folder / "inference_per_case.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def interrupted(folder, at=3):
    with pytest.raises(KeyboardInterrupt):
        infer(folder, Network({at: "stop"}))
    assert (folder / LEDGER).is_file() and not (folder / "report.html").exists()


def test_what_was_finished_is_not_done_again_and_the_report_has_all(tmp_path):
    infer(tmp_path / "whole", Network())
    interrupted(tmp_path / "parts")
    assert infer(tmp_path / "parts", Network(), resume=True) == [3, 4]
    assert table(tmp_path / "parts") == table(tmp_path / "whole") and len(table(tmp_path / "whole")) == 5
    page = (tmp_path / "parts" / "report.html").read_text(encoding="utf-8")
    assert "case_0" in page and "5 cases" in page
    assert not (tmp_path / "parts" / LEDGER).exists()


def test_cases_that_failed_are_tried_again(tmp_path):
    infer(tmp_path, Network({2: "fails"}))
    assert len(table(tmp_path)) == 4 and (tmp_path / LEDGER).is_file()
    assert infer(tmp_path, Network(), resume=True) == [2]
    assert [row["case"] for row in table(tmp_path)] == [f"case_{number}" for number in range(5)]


def test_a_missing_report_is_written_by_doing_the_last_case_once_more(tmp_path):
    interrupted(tmp_path, at=4)
    assert infer(tmp_path, Network(), resume=True, items=ITEMS[:4]) == [3]
    assert [row["case"] for row in table(tmp_path)] == [f"case_{number}" for number in range(4)]


def test_a_torn_line_is_a_case_that_is_not_finished(tmp_path):
    interrupted(tmp_path)
    text = (tmp_path / LEDGER).read_text(encoding="utf-8")
    (tmp_path / LEDGER).write_text(text[:-20], encoding="utf-8")
    assert infer(tmp_path, Network(), resume=True) == [2, 3, 4]
    assert len(table(tmp_path)) == 5


@pytest.mark.parametrize(
    "name, value, told", [("num_samples", 5, "num_samples 3, now 5"), ("slice_axes", [0, 2], r"slice_axes \[2\], now")]
)
def test_another_sampling_is_refused_before_a_case_is_done(tmp_path, name, value, told):
    interrupted(tmp_path)
    network = Network()
    setattr(network, name, value)
    with pytest.raises(InputError, match=f"other weights or settings .{told}"):
        infer(tmp_path, network, resume=True)
    assert network._seen == []
    kept = [json.loads(line) for line in (tmp_path / LEDGER).read_text(encoding="utf-8").splitlines()]
    assert len(kept) == 4  # the heading and three cases


def test_other_settings_are_refused_but_not_another_device(tmp_path):
    ledger, engine = InferenceLedger(tmp_path), SimpleNamespace(network=Network(), state=SimpleNamespace())
    ledger.open(engine, False, {"scale": 0.5, "device": "cpu"})
    engine.network.max_batch_size = 1
    ledger.open(engine, True, {"scale": 0.5, "device": "cuda"})
    with pytest.raises(InputError, match="settings .scale 0.5, now 1.0"):
        ledger.open(engine, True, {"scale": 1.0, "device": "cpu"})


def test_nothing_to_resume_is_refused(tmp_path):
    infer(tmp_path, Network())
    with pytest.raises(InputError, match="nothing to resume; leave --resume out"):
        infer(tmp_path, Network(), resume=True)


def test_without_resume_the_ledger_begins_anew(tmp_path):
    interrupted(tmp_path)
    assert unfinished_cases((ITEMS, ["x"]), tmp_path, False) == (ITEMS, ["x"])
    network = Network({1: "stop"})
    with pytest.raises(KeyboardInterrupt):
        infer(tmp_path, network)
    assert infer(tmp_path, Network(), resume=True) == [1, 2, 3, 4]
