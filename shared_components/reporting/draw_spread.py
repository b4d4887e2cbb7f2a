"""How far the noise draws of a saliency network agree: what chance, and not the slice, has decided in a mask."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

# what the columns of the summary mean, in its order
MEANINGS = {
    "draw_agreement": "mean over slices of the Dice of two draws' masks with each other, of all pairs; 1 where chance "
    "decides nothing; slices in which no draw marks anything are left out",
    "draw_dice": "mean Dice of the mask of a single draw, of positive slices: what one draw gives",
    "draw_dice_sd": "standard deviation of that over the draws: by how much the figure of one draw is chance",
    "draw_dice_slice_sd": "mean over positive slices that the gate opens of the standard deviation over the draws",
}


def score_draws(draws: np.ndarray, truth: np.ndarray | None) -> dict[str, Any]:
    """Score the masks that the noise draws of a slice make alone.

    Args:
        draws: (M, H, W) bool; with fewer than two draws there is nothing to say.
        truth: (H, W) bool; ``None`` where there is no mask, or it is empty.

    Returns:
        ``draw_agreement``, the mean Dice of all pairs of draws, which does not depend on M as the share of pixels
        on which all agree does; NaN where none marks anything. With a mask ``draw_dices``, M numbers, their mean
        ``draw_dice`` and their (unbiased) standard deviation ``draw_dice_sd``.
    """
    if len(draws) < 2:
        return {}
    sizes = draws.sum(axis=(1, 2))
    pairs = [
        2 * float((draws[one] & draws[other]).sum()) / float(sizes[one] + sizes[other])
        for one, other in combinations(range(len(draws)), 2)
        if sizes[one] + sizes[other] > 0
    ]
    scores: dict[str, Any] = {"draw_agreement": sum(pairs) / len(pairs) if pairs else math.nan}
    if truth is not None:
        common = (draws & truth).sum(axis=(1, 2))
        dices = 2 * common / (sizes + truth.sum())
        scores["draw_dices"] = dices.tolist()
        scores["draw_dice"], scores["draw_dice_sd"] = float(dices.mean()), float(dices.std(ddof=1))
    return scores


def summarise_draws(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the columns of `MEANINGS` that can be told; none where slices have one draw.

    Args:
        rows: slices with what `score_draws` says of each, and ``open``, the gate's decision.
    """
    agreements = [row["draw_agreement"] for row in rows if "draw_agreement" in row]
    summary = {"draw_agreement": mean_of_numbers(agreements)} if agreements else {}
    scored = [row for row in rows if "draw_dices" in row]
    if scored:
        of_draws = np.mean([row["draw_dices"] for row in scored], axis=0)
        summary["draw_dice"], summary["draw_dice_sd"] = float(of_draws.mean()), float(of_draws.std(ddof=1))
        summary["draw_dice_slice_sd"] = mean_of_numbers([row["draw_dice_sd"] for row in scored if row["open"]])
    return summary


def mean_of_numbers(values: Sequence[float]) -> float:
    """Return the mean of the values that are numbers, NaN of none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
