"""How the cost of inference grows: members, steps and depth of volumes, size of pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from monai.inferers import SimpleInferer
from torch import Tensor

from benchmarks.harness import peak_memory, timed
from benchmarks.rows_inference import inference_of
from benchmarks.rows_tiles import picture
from benchmarks.subject import Subject
from shared_components.bundle_tools.settings import bfloat16_pays

MEMBERS = (1, 2, 5, 10)
STEPS = (1, 2)
DEPTHS = (16, 32, 48, 64)
IN_PLANE = (40, 56)
SIZES = (256, 512, 1024, 1536, 2048)


def sweeps(subject: Subject, members=MEMBERS, steps=STEPS, depths=DEPTHS) -> list[dict[str, Any]]:
    """Time the three axes on random volumes; inference costs the same whatever they show."""
    volume = _volume(subject, 32)

    def over(setting: str) -> Callable[[int], tuple[Callable, Tensor]]:
        return lambda value: (inference_of(SimpleInferer(), subject.segmenter(**{setting: value})), volume)

    whole = inference_of(SimpleInferer(), subject.segmenter())
    return [
        sweep(subject, "members", members, over("num_samples")),
        sweep(subject, "steps", steps, over("num_inference_steps")),
        sweep(subject, "depth", depths, lambda depth: (whole, _volume(subject, depth))),
    ]


def size_sweep(subject: Subject, sizes=SIZES) -> dict[str, Any]:
    """Time one member on random square pictures, as configured, with a line through their area in megapixels."""
    network = subject.segmenter(num_samples=1, amp=bfloat16_pays())
    predict = inference_of(SimpleInferer(), network)

    def case(size: int) -> tuple[Callable, Tensor]:
        return predict, picture(subject, (size, size))

    found = sweep(subject, f"{subject.bundle}, one member: image size", sizes, case, lambda size: size**2 / 1e6)
    return found | {"unit": "picture", "line_over": "each megapixel"}


def sweep(
    subject: Subject,
    axis: str,
    points,
    case: Callable[[int], tuple[Callable, Tensor]],
    cost: Callable[[int], float] = float,
) -> dict[str, Any]:
    """Time one axis, its points interleaved, and fit a straight line through the medians.

    Args:
        subject: what is run, and how often.
        axis: its name.
        points: along the axis.
        case: function and input of a point.
        cost: what the line runs over, of a point.

    Returns:
        ``axis``, ``points``, ``samples`` (seconds, point by point), ``median_s``, ``peak_mb``, and of the
        line ``slope_s`` and ``intercept_s`` and ``misfit``, the largest relative distance from it.
    """
    cases = [case(point) for point in points]
    peaks = []
    for predict, volume in cases:
        with peak_memory(subject.device) as peak:
            predict(volume)
        peaks.append(peak["mb"])
    samples: list[list[float]] = [[] for _ in points]
    for _ in range(subject.pairs):
        for taken, (predict, volume) in zip(samples, cases, strict=True):
            taken.append(timed(lambda p=predict, v=volume: p(v), subject.device).seconds)
    medians = [float(np.median(taken)) for taken in samples]
    costs = [cost(point) for point in points]
    slope, intercept = np.polyfit(costs, medians, 1)
    line = slope * np.asarray(costs) + intercept
    return {
        "axis": axis,
        "device": subject.device,
        "points": list(points),
        "samples": samples,
        "median_s": medians,
        "peak_mb": peaks,
        "slope_s": float(slope),
        "intercept_s": float(intercept),
        "misfit": float(np.abs(line / medians - 1).max()),
    }


def _volume(subject: Subject, depth: int) -> Tensor:
    generator = torch.Generator().manual_seed(subject.seed)
    return torch.randn(1, 1, *IN_PLANE, depth, generator=generator).to(subject.device)
