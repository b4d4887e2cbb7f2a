"""Rows b2 and b3: a picture, from preprocessed pixels to class probabilities, with MedSegDiff."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from monai.inferers import SimpleInferer
from torch import Tensor

from benchmarks.gates import exact_gate
from benchmarks.harness import Row, measure
from benchmarks.naive import FILTERS, NaiveSegmenter
from benchmarks.report import MANY_CALLS, content_of
from benchmarks.rows_inference import (
    BOUND,
    Predict,
    details_of,
    dice_of,
    inference_of,
    over_volumes,
    quality_gate,
    timed_volumes,
)
from benchmarks.subject import Subject
from shared_components.bundle_tools.settings import bfloat16_pays

MEMBERS = 5
CALLS = 50
GATE_CALLS = 5
NAIVE = "one member at a time, condition encoded at every call, attention by its formula, eager fp32"


def naive(subject: Subject, calls: int) -> Predict:
    """The naive path with five members, which are averaged."""
    network = subject.segmenter(num_samples=MEMBERS, num_inference_steps=calls, combine="mean")
    return inference_of(SimpleInferer(), NaiveSegmenter(network, FILTERS[0]))


def project(subject: Subject, calls: int, **settings) -> Predict:
    """The bundle's network with five members, which are averaged."""
    settings = {"num_samples": MEMBERS, "combine": "mean", **settings}
    return inference_of(SimpleInferer(), subject.segmenter(num_inference_steps=calls, **settings))


def picture(subject: Subject) -> Tensor:
    """A random picture (1, K, H, W) of the configured size."""
    generator = torch.Generator().manual_seed(subject.seed)
    parser = subject.config()
    size = parser.get_parsed_content("image_size")
    return torch.randn(1, int(parser["num_channels"]), *size, generator=generator).to(subject.device)


def exact_members(subject: Subject, calls: int = CALLS) -> Iterator[Row]:
    """Row b2: the same calls; the gate compares a run of a few of them."""
    image, few = picture(subject), min(calls, GATE_CALLS)
    what = f"probabilities of one picture after {MEMBERS} x {few} calls"
    gate = exact_gate([naive(subject, few)(image)], [project(subject, few)(image)], BOUND, what)
    row = Row("b2", content_of("b2", subject.bundle), NAIVE, subject.device, gate)
    row.details = _details(subject, "same work", calls) | {"volumes": 1, "size": tuple(image.shape[2:])}
    work = over_volumes(naive(subject, calls), [image]), over_volumes(project(subject, calls), [image])
    yield measure(row, *work, subject.pairs)


def fewer_calls(subject: Subject) -> Iterator[Row]:
    """Rows b3 (50 calls, fp32) and b3b (members, calls and precision of the bundle) against 1000 calls."""
    amp, own = bfloat16_pays(), subject.segmenter()
    configured = project(subject, own.num_inference_steps, num_samples=own.num_samples, amp=amp)
    variants = {
        "b3": (project(subject, CALLS), CALLS, "fp32"),
        "b3b": (configured, own.num_inference_steps, "bfloat16 autocast" if amp else "fp32"),
    }
    many = f"x {subject.many_calls} calls"
    for name, (predict, calls, precision) in variants.items():
        opponent = f"{MEMBERS} {many}, {NAIVE}"
        gate = quality_gate(subject, many_calls_dice, predict, opponent)
        content = content_of(name, subject.bundle).replace(f"x {MANY_CALLS} calls", many)
        row = Row(name, content, opponent, subject.device, gate)
        row.details = _details(subject, "default vs default", calls) | {"precision": precision}
        pictures = timed_volumes(subject) if gate.passed else []
        work = over_volumes(naive(subject, subject.many_calls), pictures), over_volumes(predict, pictures)
        yield measure(row, *work, subject.pairs)


@cache
def many_calls_dice(subject: Subject) -> list[float]:
    """Dice of 1000 calls; the project's batched members are equal to the naive ones, by the gate of b2."""
    return dice_of(subject, project(subject, subject.many_calls))


def _details(subject: Subject, kind: str, calls: int) -> dict:
    return details_of(subject, kind) | {"members": MEMBERS, "steps": calls}
