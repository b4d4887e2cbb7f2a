"""What must hold before a ratio may be printed: equal results, or a Dice that is not worse."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics import compute_dice
from monai.networks.utils import one_hot
from torch import Tensor

from benchmarks.harness import Gate

MARGIN = 0.005
MIN_CASES = 40
RESAMPLES = 10000


def exact_gate(opponent: Sequence[Tensor], project: Sequence[Tensor], bound: float, what: str) -> Gate:
    """Demand that the largest absolute difference stays below a bound.

    Args:
        opponent, project: results on copied weights and noise, in the same order.
        bound: largest difference allowed.
        what: names the results in the gate's text.
    """
    pairs = list(zip(opponent, project, strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return Gate(False, f"{what}: the shapes differ")
    difference = max(float((a.double() - b.double()).abs().max()) for a, b in pairs)
    return Gate(difference < bound, f"{what}: max difference {difference:.1e}, bound {bound:.0e}")


def mean_dice(prediction: Tensor, label: Tensor, num_classes: int) -> float:
    """Mean Dice over the foreground classes of one case; 1 where both are empty.

    Args:
        prediction, label: (1, *spatial) class indices.
    """
    maps = [one_hot(value[None], num_classes) for value in (prediction, label)]
    return float(compute_dice(*maps, include_background=False, ignore_empty=False).mean())


def dice_gate(opponent: Sequence[float], project: Sequence[float], data: str, seed: int = 0) -> Gate:
    """Demand that the project's Dice is not worse: paired non-inferiority with a margin of 0.005.

    The lower end of a two-sided 95 % percentile bootstrap interval of the mean paired difference must lie
    above minus the margin.

    Args:
        opponent, project: Dice case by case.
        data: what the cases are; part of the gate's text.
        seed: of the bootstrap.
    """
    difference = np.asarray(project) - np.asarray(opponent)
    if len(difference) < MIN_CASES:
        return too_few(len(difference), data)
    draws = np.random.default_rng(seed).integers(0, len(difference), (RESAMPLES, len(difference)))
    low, high = np.percentile(difference[draws].mean(axis=1), [2.5, 97.5])
    return Gate(
        bool(low > -MARGIN),
        f"Dice {np.mean(project):.4f} against {np.mean(opponent):.4f} on {len(difference)} cases ({data}): "
        f"difference {difference.mean():+.4f}, 95 % interval {low:+.4f} to {high:+.4f}, margin {-MARGIN}",
    )


def too_few(cases: int, data: str) -> Gate:
    """The refusal of a Dice gate on fewer than `MIN_CASES` cases."""
    return Gate(False, f"Dice on {cases} cases ({data}); at least {MIN_CASES} are needed")


def argmax_labels(probability: Tensor) -> Tensor:
    """Class indices (1, *spatial) of one case's probabilities (1, C, *spatial)."""
    return torch.argmax(probability, dim=1)
