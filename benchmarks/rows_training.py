"""Rows a1, h and e: the training step, its optimiser and average, and the data it is fed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from ignite.handlers import EMAHandler
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from torch import Tensor

from benchmarks.gates import exact_gate
from benchmarks.harness import Gate, Row, measure, timed
from benchmarks.naive import ema_loop, use_naive_filters
from benchmarks.subject import Subject, randomise
from shared_components.spatial_attention.trainer import SpatialAttentionTrainer

STEPS = 4
LOSS_BOUND = 1e-4
AMP_BOUND = 0.05
WEIGHT_BOUND = 1e-6
NAIVE_STEP = "eager fp32, FIR by zero insertion, per-parameter EMA loop (ignite EMAHandler)"


class Side:
    """One side of row a1: networks, optimisers, average and trainer of the default configuration.

    Args:
        naive: FIR by zero insertion, and ignite's `EMAHandler`, which loops over the parameters.
        amp: bfloat16 autocast; the default configuration's choice when ``None``.
        loader: of batches; only their number is needed here.
    """

    def __init__(
        self, subject: Subject, naive: bool, amp: bool | None, loader: Sequence | DataLoader
    ) -> None:
        parser = subject.config(**({} if amp is None else {"amp": amp}))
        torch.manual_seed(subject.seed)
        networks = parser.get_parsed_content("network"), parser.get_parsed_content("discriminator")
        for network in networks:
            randomise(network)
            if naive:
                use_naive_filters(network)
        self.trainer = make_trainer(parser, loader, naive)
        self.losses: list[float] = []
        self.trainer.add_event_handler("ITERATION_COMPLETED", self._note)

    def _note(self, engine: Engine) -> None:
        self.losses.append(engine.state.output["loss"])

    def __call__(self) -> None:
        """Train through the loader once."""
        self.trainer.state.max_epochs = (self.trainer.state.epoch or 0) + 1
        self.trainer.run()


def make_trainer(parser: ConfigParser, loader: Any, naive: bool) -> SpatialAttentionTrainer:
    """The configuration's trainer with no handler but the average's: nothing is validated or written."""
    content = parser.get_parsed_content
    network = content("network")
    momentum = parser["ema"]["momentum"]
    average = EMAHandler(network, momentum=momentum) if naive else content("ema")
    chosen = parser["train#trainer"]
    names = [
        key for key in chosen if key not in {"_target_", "train_data_loader", "train_handlers", "max_epochs"}
    ]
    return SpatialAttentionTrainer(
        max_epochs=1,
        train_data_loader=loader,
        train_handlers=[average],
        **{name: content(f"train#trainer#{name}") for name in names},
    )


def losses_of(subject: Subject, naive: bool, amp: bool, batches: list) -> list[float]:
    """Losses of the first steps from the same weights, batches and draws."""
    side = Side(subject, naive, amp, batches)
    torch.manual_seed(subject.seed + 1)
    side()
    return side.losses


def training_step(subject: Subject) -> Iterator[Row]:
    """Rows a1 (fp32, equal losses), a1b (as configured: bfloat16 where it pays), a1e (with loading)."""
    batches = subject.batches(STEPS)
    plain, ours = (losses_of(subject, naive, False, batches) for naive in (True, False))
    gate = exact_gate(
        [torch.tensor(plain)], [torch.tensor(ours)], LOSS_BOUND, f"losses of {STEPS} fp32 steps"
    )
    amp = bool(subject.config().get_parsed_content("amp"))
    yield _step_row(subject, "a1", "fp32 training step G + D + EMA, prepared batches", gate, batches, False)
    if amp:
        mixed = losses_of(subject, False, True, batches)
        gap = float(np.abs(np.array(mixed) / np.array(plain) - 1).max())
        loose = Gate(
            gate.passed and gap < AMP_BOUND, f"losses within {gap:.1%}, bound {AMP_BOUND:.0%}; not exact"
        )
        yield _step_row(subject, "a1b", "the same as configured: bfloat16 autocast", loose, batches, True)
    yield with_loading(subject, gate, amp)


def _step_row(subject: Subject, name: str, content: str, gate: Gate, batches: list, amp: bool) -> Row:
    row = Row(name, content, NAIVE_STEP, subject.device, gate)
    row.details = _details(subject, "same work", amp) | {"batch": tuple(batches[0]["image"].shape)}
    return measure(
        row, Side(subject, True, False, batches), Side(subject, False, amp, batches), subject.pairs
    )


def with_loading(subject: Subject, gate: Gate, amp: bool) -> Row:
    """Row a1e: a short epoch, transform chain and naive step against cached data and the default step."""
    row = Row(
        "a1e", "training step and its data, end to end", NAIVE_STEP + ", no cached data", subject.device, gate
    )
    row.details = _details(subject, "default vs default", amp)
    cached, uncached = datasets(subject, STEPS * int(subject.config()["batch_size"]))
    size = subject.config()["batch_size"]
    slow = Side(subject, True, False, DataLoader(uncached, batch_size=size, shuffle=True))
    fast = Side(subject, False, amp, DataLoader(cached, batch_size=size, shuffle=True))
    return measure(row, slow, fast, subject.pairs)


def _details(subject: Subject, kind: str, amp: bool) -> dict[str, Any]:
    return {"kind": kind, "steps_timed": STEPS, "precision": "bf16" if amp else "fp32", "compile": False,
            "data": subject.data_name}  # fmt: skip


def datasets(subject: Subject, cases: int) -> tuple[Any, Dataset]:
    """The configuration's cached dataset of the first training cases, and the same without a cache."""
    cached = subject.training_data(cases)
    return cached, Dataset(cached.data, cached.transform)


def loading(subject: Subject) -> Row:
    """Row e: cases through the training transforms, the chain from file against the cache."""
    kept: list[Any] = []
    filling = timed(lambda: kept.extend(datasets(subject, 2 * int(subject.config()["batch_size"]))))
    cached, uncached = kept
    gate = exact_gate(
        [seeded_item(uncached, cached.seed, index)["image"] for index in range(min(4, len(cached)))],
        [_single(cached[index])["image"].as_tensor() for index in range(min(4, len(cached)))],
        1e-6,
        "images of four cases from the same random state",
    )
    row = Row("e", "training transforms, epochs 2 and later", "the transform chain from file", "cpu", gate)
    row.details = {"kind": "same crops", "cases": len(cached), "data": subject.data_name,
                   "seconds_to_check_and_cache": filling.seconds}  # fmt: skip

    def through(dataset: Dataset) -> Callable[[], None]:
        return lambda: [dataset[index] for index in range(len(dataset))] and None

    return measure(row, through(uncached), through(cached), subject.pairs)


def seeded_item(dataset: Dataset, seed: int, index: int, epoch: int = 0) -> dict[str, Tensor]:
    """An item of an uncached dataset, drawn with the random state that `SeededCacheDataset` gives it."""
    entropy = np.random.SeedSequence((seed, epoch, index))
    state = np.random.RandomState(np.random.MT19937(entropy))
    transform = copy.deepcopy(dataset.transform).set_random_state(state=state)
    item = _single(transform(dataset.data[index]))
    return {key: item[key].as_tensor() for key in ("image", "label")}


def _single(items: Any) -> Any:
    """The first crop of a case."""
    return items[0] if isinstance(items, list) else items


class OptimiserStep:
    """One side of row h: steps of the denoiser's optimiser and average, with constant gradients."""

    def __init__(self, subject: Subject, naive: bool) -> None:
        parser = subject.config()
        torch.manual_seed(subject.seed)
        self.network = parser.get_parsed_content("network")
        randomise(self.network)
        chosen = parser["optimizer"]
        self.optimizer = parser.get_parsed_content("optimizer")
        if naive:
            options = {
                key: value for key, value in self.optimizer.defaults.items() if key in {"lr", "betas", "eps"}
            }
            kind = getattr(torch.optim, chosen["_target_"].rsplit(".", 1)[-1])
            options["weight_decay"] = chosen.get("weight_decay", 0.0)
            self.optimizer = kind(self.network.denoiser.parameters(), foreach=False, **options)
        for parameter in self.network.denoiser.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.momentum = parser["ema"]["momentum"]
        self.average = copy.deepcopy(self.network) if naive else parser.get_parsed_content("ema")
        self.naive = naive

    def __call__(self) -> None:
        """Take ten steps."""
        for _ in range(10):
            self.optimizer.step()
            if self.naive:
                ema_loop(self.average, self.network, self.momentum)
            else:
                self.average._update_ema_model(_LATE, "ema_momentum")

    @property
    def averages(self) -> list[Tensor]:
        """The averaged parameters."""
        module = self.average if self.naive else self.average.ema_model
        return [parameter.detach() for parameter in module.parameters()]


_LATE = Engine(lambda engine, batch: None)
_LATE.state.iteration = 10**6


def optimiser_step(subject: Subject) -> Row:
    """Row h: optimiser and average alone."""
    slow, fast = OptimiserStep(subject, True), OptimiserStep(subject, False)
    for side in (slow, fast):
        side()
    gate = exact_gate(slow.averages, fast.averages, WEIGHT_BOUND, "averaged weights after ten steps")
    row = Row(
        "h",
        "optimiser and EMA step",
        "Adam(foreach=False), EMA one parameter at a time",
        subject.device,
        gate,
    )
    row.details = {"kind": "same work", "steps_timed": 10, "precision": "fp32"}
    return measure(row, slow, fast, subject.pairs)
