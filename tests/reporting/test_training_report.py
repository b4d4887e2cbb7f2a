"""The training page and table: what they say, and that a resumed run goes on with them."""

import csv

import pytest
import torch
from ignite.engine import Engine, Events

from shared_components.errors import InputError
from shared_components.reporting import TrainingReportHandler
from shared_components.reporting.charts import line_chart, reliability_chart, strip_chart, ticks


def train(folder, epochs, start=0, **settings):
    """A trainer whose loss is epoch + iteration / 2, validated every second epoch."""
    trainer = Engine(lambda e, _: [{"loss": torch.tensor(e.state.epoch + e.state.iteration % 2 / 2), "image": 0}])
    evaluator = Engine(lambda *_: None)

    @evaluator.on(Events.COMPLETED)
    def score(engine):
        engine.state.metrics = {"dice": trainer.state.epoch / 10, "per_class": torch.tensor([0.1, 0.2])}

    @trainer.on(Events.EPOCH_COMPLETED(every=2))
    def validate(_):
        evaluator.run([0])

    handler = TrainingReportHandler(folder, "Training <1>", ["loss", "attention_size"], evaluator, **settings)
    handler.attach(trainer)
    if start:
        trainer.load_state_dict({"epoch": start, "max_epochs": epochs, "epoch_length": 2})
        trainer.run([0, 0], epochs)
    else:
        trainer.run([0, 0], epochs, epoch_length=2)


def history(folder):
    with open(folder / "training_history.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_history_and_page(tmp_path):
    train(tmp_path, 4, settings={"seed": 3})
    rows = history(tmp_path)
    assert [float(row["loss"]) for row in rows] == [1.25, 2.25, 3.25, 4.25]
    assert [row["validation dice"] for row in rows] == ["", "0.2", "", "0.4"]
    assert [row["validation per_class_1"] for row in rows] == ["", "0.2", "", "0.2"]
    assert "attention_size" not in rows[0] and all(float(row["seconds"]) >= 0 for row in rows)
    page = (tmp_path / "training.html").read_text(encoding="utf-8")
    assert "Training &lt;1&gt;" in page and "epoch 4 of 4" in page and page.count("<polyline") == 5
    assert "<td>seed</td><td>3</td>" in page


def test_a_resumed_run_goes_on_with_the_table(tmp_path):
    train(tmp_path, 3)
    train(tmp_path, 5, start=2)
    rows = history(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert [row["validation dice"] for row in rows] == ["", "0.2", "", "0.4", ""]


def test_another_run_is_not_overwritten(tmp_path):
    train(tmp_path, 1)
    with pytest.raises(InputError, match="is there already"):
        train(tmp_path, 1)
    train(tmp_path, 2, overwrite=True)
    assert len(history(tmp_path)) == 2


def test_ticks_are_round():
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(0, 7.3) == [0, 2, 4, 6]
    assert ticks(-0.012, 0.012) == [-0.01, -0.005, 0, 0.005, 0.01]
    assert ticks(3, 3) == [3]


def test_charts_have_a_mark_per_value():
    nan = float("nan")
    strip = strip_chart({"a": {"x": 0.5, "y": nan, "z": 0.7}, "b": {"x": nan, "y": nan, "z": nan}}, "Dice", 1.0)
    assert strip.count("<circle") == 2 and strip.count("<rect") == 1 and "<title>z: 0.700</title>" in strip
    assert line_chart([(1, 0.5), (2, nan), (3, 0.25)], "loss").count("<circle") == 2
    assert "no value yet" in line_chart([(1, nan)], "loss")
    assert line_chart([(1, 2.0)], "loss").count("<circle") == 1
    assert reliability_chart([[0, 4], [0, 3.6], [0, 3]]).count("<circle") == 1
