"""Rows a1, b1, h and e: the training step, its optimiser and average, and the data it is fed."""

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
from monai.engines import SupervisedTrainer, Trainer
from torch import Tensor

from benchmarks.gates import exact_gate
from benchmarks.harness import Gate, Row, measure, timed
from benchmarks.naive import FILTERS, ema_loop, use_naive_attention, use_naive_filters
from benchmarks.report import content_of
from benchmarks.subject import Subject, randomise
from shared_components.spatial_attention.trainer import SpatialAttentionTrainer

LOSS_BOUND = 1e-4
AMP_BOUND = 0.05
WEIGHT_BOUND = 1e-6
NAIVE_STEPS = {
    "a": "eager fp32, FIR by zero insertion, per-parameter EMA loop (ignite EMAHandler)",
    "b": "eager fp32, attention by its formula, per-parameter EMA loop (ignite EMAHandler)",
}


class Side:
    """One side of row a1: networks, optimisers, average and trainer of the default configuration.

    Args:
        filters: of the naive path, one of `FILTERS`, with ignite's `EMAHandler`, which loops over the
            parameters; the project's own for ``None``.
        amp: bfloat16 autocast; the default configuration's choice when ``None``.
        loader: of batches; only their number is needed here.
    """

    def __init__(self, subject: Subject, filters: str | None, amp: bool | None, loader: Sequence | DataLoader) -> None:
        parser = subject.config(**({} if amp is None else {"amp": amp}))
        torch.manual_seed(subject.seed)
        names = [name for name in ("network", "discriminator") if parser.get(name) is not None]
        for network in [parser.get_parsed_content(name) for name in names]:
            randomise(network)
            if filters is not None:
                use_naive_attention(use_naive_filters(network, filters))
        self.trainer = make_trainer(parser, loader, filters is not None)
        self.losses: list[float] = []
        self.trainer.add_event_handler("ITERATION_COMPLETED", self._note)

    def _note(self, engine: Engine) -> None:
        self.losses.append(float(torch.as_tensor(engine.state.output["loss"]).detach()))

    def __call__(self) -> None:
        """Train through the loader once."""
        self.trainer.state.max_epochs = (self.trainer.state.epoch or 0) + 1
        self.trainer.run()


def make_trainer(parser: ConfigParser, loader: Any, naive: bool) -> Trainer:
    """The configuration's trainer with no handler but the average's: nothing is validated or written."""
    content = parser.get_parsed_content
    network = content("network")
    momentum = parser["ema"]["momentum"]
    average = EMAHandler(network, momentum=momentum) if naive else content("ema")
    chosen = parser["train#trainer"]
    names = [key for key in chosen if key not in {"_target_", "train_data_loader", "train_handlers", "max_epochs"}]
    cdal = chosen["_target_"].endswith(SpatialAttentionTrainer.__name__)
    kind = SpatialAttentionTrainer if cdal else SupervisedTrainer
    return kind(
        max_epochs=1,
        train_data_loader=loader,
        train_handlers=[average],
        **{name: content(f"train#trainer#{name}") for name in names},
    )


def losses_of(subject: Subject, filters: str | None, amp: bool, batches: list) -> list[float]:
    """Losses of the first steps from the same weights, batches and draws."""
    side = Side(subject, filters, amp, batches)
    torch.manual_seed(subject.seed + 1)
    side()
    return side.losses


def training_step(subject: Subject) -> Iterator[Row]:
    """Rows a1 (fp32, equal losses), a1b (as configured: bfloat16 where it pays), a1e (with loading).

    For MedSegDiff they are called b1 and b1b; it has no filters whose form would matter, and no b1e.
    """
    batches = subject.batches(subject.steps)
    amp = bool(subject.config().get_parsed_content("amp"))
    ours = losses_of(subject, None, False, batches)
    mixed = losses_of(subject, None, True, batches) if amp else ours
    for filters in FILTERS if _family(subject) == "a" else FILTERS[:1]:
        plain = losses_of(subject, filters, False, batches)
        what = f"losses of {subject.steps} fp32 steps"
        gate = exact_gate([torch.tensor(plain)], [torch.tensor(ours)], LOSS_BOUND, what)
        yield _step_row(subject, "1", filters, gate, batches, False)
        if amp:
            gap = float(np.abs(np.array(mixed) / np.array(plain) - 1).max())
            text = f"losses within {gap:.2%}, bound {AMP_BOUND:.0%}; not exact"
            loose = Gate(gate.passed and gap < AMP_BOUND, text)
            yield _step_row(subject, "1b", filters, loose, batches, True)
        if _family(subject) == "a":
            yield with_loading(subject, filters, gate, amp)


def _family(subject: Subject) -> str:
    """First letter of the rows: a for cDAL, b for MedSegDiff."""
    return "b" if subject.bundle.startswith("medsegdiff") else "a"


def _opponent(subject: Subject, filters: str) -> str:
    family = _family(subject)
    return NAIVE_STEPS[family] + (f" ({filters})" if family == "a" else "")


def _step_row(subject: Subject, name: str, filters: str, gate: Gate, batches: list, amp: bool) -> Row:
    name = _family(subject) + name
    row = Row(name, content_of(name, subject.bundle), _opponent(subject, filters), subject.device, gate)
    row.details = _details(subject, "same work", amp) | {"batch": tuple(batches[0]["image"].shape)}
    slow, fast = Side(subject, filters, False, batches), Side(subject, None, amp, batches)
    return measure(row, slow, fast, subject.pairs)


def with_loading(subject: Subject, filters: str, gate: Gate, amp: bool) -> Row:
    """Row a1e: a short epoch, transform chain and naive step against cached data and the default step."""
    opponent = f"{_opponent(subject, filters)}, no cached data"
    row = Row("a1e", content_of("a1e", subject.bundle), opponent, subject.device, gate)
    row.details = _details(subject, "default vs default", amp)
    size = int(subject.config().get_parsed_content("batch_size"))
    cached, uncached = datasets(subject, subject.steps * size)
    slow = Side(subject, filters, False, DataLoader(uncached, batch_size=size, shuffle=True))
    fast = Side(subject, None, amp, DataLoader(cached, batch_size=size, shuffle=True))
    return measure(row, slow, fast, subject.pairs)


def _details(subject: Subject, kind: str, amp: bool) -> dict[str, Any]:
    return {"kind": kind, "steps_timed": subject.steps, "precision": "bf16" if amp else "fp32", "compile": False,
            "data": subject.data_name}  # fmt: skip


def datasets(subject: Subject, cases: int) -> tuple[Any, Dataset]:
    """The configuration's cached dataset of the first training cases, and the same without a cache."""
    cached = subject.training_data(cases)
    return cached, Dataset(cached.data, cached.transform)


def loading(subject: Subject) -> Row:
    """Row e: cases through the training transforms, the chain from file against the cache."""
    kept: list[Any] = []
    filling = timed(lambda: kept.extend(datasets(subject, 2 * int(subject.config().get_parsed_content("batch_size")))))
    cached, uncached = kept
    gate = exact_gate(
        [seeded_item(uncached, cached.seed, index)["image"] for index in range(min(4, len(cached)))],
        [_single(cached[index])["image"].as_tensor() for index in range(min(4, len(cached)))],
        1e-6,
        "images of four cases from the same random state",
    )
    row = Row("e", content_of("e", subject.bundle), "the transform chain from file", "cpu", gate)
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
            options = {key: value for key, value in self.optimizer.defaults.items() if key in {"lr", "betas", "eps"}}
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
        content_of("h", subject.bundle),
        "Adam(foreach=False), EMA one parameter at a time",
        subject.device,
        gate,
    )
    row.details = {"kind": "same work", "steps_timed": 10, "precision": "fp32"}
    return measure(row, slow, fast, subject.pairs)
