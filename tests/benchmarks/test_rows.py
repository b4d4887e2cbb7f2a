"""Rows of training and inference on tiny networks and phantoms."""

from __future__ import annotations

import pytest
import torch

from benchmarks.rows_inference import exact_volumes, whole_slices
from benchmarks.rows_training import datasets, losses_of, optimiser_step, seeded_item
from benchmarks.subject import Subject
from benchmarks.sweeps import sweep

TINY = {
    "backbone#channels": [8, 8],
    "backbone#attention_levels": [False, False],
    "backbone#condition_norm_groups": 4,
    "discriminator_def#channels": [8, 8, 8],
    "discriminator_def#downsample": [False, True],
    "num_samples": 2,
    "batch_size": 1,
}


@pytest.fixture(scope="module")
def subject(tmp_path_factory) -> Subject:
    folder = tmp_path_factory.mktemp("benchmarks")
    return Subject(folder, pairs=1, volumes=1, num_phantoms=6, overrides=TINY)


def test_naive_training_step_has_equal_losses(subject):
    batches = subject.batches(2)
    plain, ours = (losses_of(subject, naive, False, batches) for naive in ("one-channel", None))
    assert len(plain) == len(ours) == 2
    assert torch.allclose(torch.tensor(plain), torch.tensor(ours), atol=1e-4)


def test_cached_items_equal_uncached_ones(subject):
    cached, uncached = datasets(subject, 2)
    for index in range(2):
        item = seeded_item(uncached, cached.seed, index)
        assert torch.equal(item["image"], cached[index][0]["image"].as_tensor())
        assert torch.equal(item["label"], cached[index][0]["label"].as_tensor())


def test_optimiser_row_passes_its_gate(subject):
    row = optimiser_step(subject)
    assert row.gate.passed and row.ratio()["ratio"] > 0


def test_exact_row_passes_its_gate(subject, monkeypatch):
    monkeypatch.setattr(subject, "volume", lambda index, label=False: (torch.randn(1, 1, 32, 32, 32), None))
    rows = list(exact_volumes(subject))
    assert len({row.opponent for row in rows}) == 2
    assert all(row.gate.passed and row.ratio()["ratio"] > 0 for row in rows)
    assert rows[0].details["members"] == 2 and rows[0].details["weights"] == "random"


def test_whole_slices_without_weights_have_no_ratio(subject):
    (row,) = whole_slices(subject)
    assert not row.gate.passed and row.ratio() is None and not row.project_samples


def test_phantoms_are_called_phantoms(subject):
    assert subject.data_name.startswith("phantoms")
    assert len(subject.test_items) == 1


def test_sweep_fits_a_line(subject, monkeypatch):
    class Clock:
        seconds = 0.0

    monkeypatch.setattr("benchmarks.sweeps.timed", lambda work, device: (work(), Clock)[1])

    def predict(points: int) -> None:
        Clock.seconds = 2.0 * points + 1.0

    found = sweep(subject, "members", (1, 2, 5), lambda point: (predict, point))
    assert found["slope_s"] == pytest.approx(2.0) and found["intercept_s"] == pytest.approx(1.0)
    assert found["misfit"] < 1e-9
