"""The published recipes of cDAL's presets, value by value, and the defaults beside them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from torch.utils.data import RandomSampler, SequentialSampler

from shared_components.data.affine import RandSimilarityd
from shared_components.training import JointSchedule

BUNDLES = Path(__file__).parents[2] / "bundles"
LUNGS, NUCLEI, HIPPOCAMPUS = "cdal_lung_cxr", "cdal_monuseg", "cdal_hippocampus"
PARAMETER = "$[torch.zeros(1, requires_grad=True)]"
OPTIMIZERS = {"optimizer#params": PARAMETER, "discriminator_optimizer#params": PARAMETER}
COSINE = {0: 2e-4, 125: 1.721751e-4, 250: 1.05e-4, 375: 3.78249e-5, 500: 1e-5, 750: 1.05e-4, 1000: 2e-4}


def parser(bundle: str, *names: str, **overrides: Any) -> ConfigParser:
    made = ConfigParser()
    made.read_config([str(BUNDLES / bundle / "configs" / f"{name}.json") for name in ("train", *names)])
    made.update({"device": "cpu", "bundle_root": str(BUNDLES / bundle), **overrides})
    return made


def handler_number(made: ConfigParser, name: str) -> int:
    return next(i for i, handler in enumerate(made["train"]["handlers"]) if handler["_target_"] == name)


def rates_by_epoch(bundle: str) -> dict[str, list[float]]:
    """The rates of both optimizers at the start of 1001 epochs of two iterations."""
    made = parser(bundle, "paper", **OPTIMIZERS)
    optimizers = {name: made.get_parsed_content(name) for name in ("optimizer", "discriminator_optimizer")}
    engine = Engine(lambda engine, batch: [optimizer.step() for optimizer in optimizers.values()] and None)
    made.get_parsed_content(f"train#handlers#{handler_number(made, 'LrScheduleHandler')}").attach(engine)
    rates: dict[str, list[float]] = {name: [] for name in optimizers}

    def note() -> None:
        for name, optimizer in optimizers.items():
            rates[name].append(optimizer.param_groups[0]["lr"])

    note()
    engine.add_event_handler(Events.EPOCH_COMPLETED, note)
    engine.run([0, 1], max_epochs=1000)
    return rates


@pytest.mark.parametrize("bundle", [LUNGS, NUCLEI])
def test_the_rate_falls_by_a_cosine_of_epochs_and_climbs_again(bundle):
    rates = rates_by_epoch(bundle)["optimizer"]
    assert {epoch: rates[epoch] for epoch in COSINE} == pytest.approx(COSINE, rel=2e-6)  # printed to six digits


def test_the_nuclei_discriminators_rate_falls_too_and_that_of_the_lungs_has_nowhere_to_fall():
    nuclei, lungs = (rates_by_epoch(bundle)["discriminator_optimizer"] for bundle in (NUCLEI, LUNGS))
    assert [nuclei[epoch] for epoch in (0, 250, 500, 1000)] == pytest.approx([1e-4, 5.5e-5, 1e-5, 1e-4])
    assert set(lungs) == {1e-5}


def test_schedules_go_on_together_from_a_saved_state():
    made = [parser(NUCLEI, "paper", **OPTIMIZERS) for _ in range(2)]
    first, second = (one.get_parsed_content("lr_scheduler") for one in made)
    optimizers = [one.get_parsed_content("discriminator_optimizer") for one in made]
    assert isinstance(first, JointSchedule)
    for _ in range(125):
        for one in ("optimizer", "discriminator_optimizer"):
            made[0].get_parsed_content(one).step()
        first.step()
    second.load_state_dict(first.state_dict())
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    for optimizer, schedule in zip(optimizers, (first, second)):
        optimizer.step()
        schedule.step()
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    assert rates[0] == rates[1] and 1e-5 < rates[0] < 1e-4


@pytest.mark.parametrize(
    "bundle, overlays, interval",
    [
        (LUNGS, (), 10),
        (LUNGS, ("paper",), 1),
        (NUCLEI, (), 10),
        (NUCLEI, ("paper",), 10),
        (HIPPOCAMPUS, (), 10),
        (HIPPOCAMPUS, ("paper",), 10),
        (HIPPOCAMPUS, ("paper_released",), 10),
    ],
)
def test_how_often_the_gradient_penalty_is_due(bundle, overlays, interval):
    small = {"backbone#channels": [32] * 5, "backbone#attention_levels": [False] * 5, "discriminator_def": None}
    networks = {**small, "discriminator": "$torch.nn.Linear(1, 1)", "optimizer#params": PARAMETER}
    made = parser(bundle, *overlays, **networks, discriminator_optimizer=None)
    made.update({"train#trainer#train_data_loader": [], "train#trainer#train_handlers": None})
    assert made.get_parsed_content("train#trainer").r1_interval == interval


@pytest.mark.parametrize("overlays", [(), ("paper",)])
@pytest.mark.parametrize("bundle", [LUNGS, NUCLEI, HIPPOCAMPUS])
def test_published_loaders_keep_the_order_and_drop_what_fills_no_batch(bundle, overlays):
    made = parser(bundle, *overlays, **{"train#dataset": list(range(11)), "batch_size": 4})
    loader = made.get_parsed_content("train#dataloader")
    assert isinstance(loader.sampler, SequentialSampler if overlays else RandomSampler)
    assert len(loader) == (2 if overlays else 3)


@pytest.mark.parametrize("bundle", [LUNGS, NUCLEI])
def test_published_scaling_has_one_factor_for_both_axes(bundle):
    transforms = parser(bundle, "paper").get_parsed_content("random_transforms")
    (affine,) = [transform for transform in transforms if isinstance(transform, RandSimilarityd)]
    affine.set_random_state(0)
    rows = torch.arange(101.0) - 50
    disc = (rows[:, None] ** 2 + rows[None] ** 2 <= 400).float()[None]
    radii = []
    for _ in range(100):
        result = affine({"image": disc.clone(), "label": disc.clone()})["label"][0] > 0.5
        assert abs(int(result.any(0).sum()) - int(result.any(1).sum())) <= 2
        radii.append(math.sqrt(float(result.sum()) / math.pi))
    assert 14.8 < min(radii) < 15.5 and 24.5 < max(radii) < 25.2


@pytest.mark.parametrize("preset", ["paper", "paper_released"])
@pytest.mark.parametrize("base", ["train", "inference"])
def test_the_hippocampus_is_segmented_by_five_votes_and_many_slices_at_once(base, preset):
    """The training batch of one volume is not the number of slices in a call of the network."""
    made = ConfigParser()
    made.read_config([str(BUNDLES / HIPPOCAMPUS / "configs" / f"{name}.json") for name in (base, preset)])
    made.update({"device": "cpu", "bundle_root": str(BUNDLES / HIPPOCAMPUS)})
    network = made.get_parsed_content("network_def")
    assert (network.num_samples, network.max_batch_size) == (5, 64)
