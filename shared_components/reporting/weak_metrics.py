"""How good a weakly supervised segmentation is: its gate, what it marks where nothing is, its masks, each by itself.

Dice of all slices together would hide all three: an empty mask of a negative slice scores 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import Tensor

from shared_components.ensembling.uncertainty import error_detection_auroc
from shared_components.reporting import draw_spread
from shared_components.reporting.draw_spread import mean_of_numbers, score_draws, summarise_draws
from shared_components.reporting.metrics import as_array

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
# what the columns of the summary mean, in its order
MEANINGS = {
    "slices": "slices scored",
    "gate_accuracy": "share of slices whose image-level label the gate tells right",
    "gate_sensitivity": "the same of positive slices",
    "gate_specificity": "the same of negative slices",
    "gate_auroc": "area under the ROC curve of the gate's probability",
    "false_positive_share": "mean share of a negative slice's pixels that is marked",
    "negative_slices_marked": "share of negative slices with anything marked",
    "dice": "mean Dice of positive slices; a slice that the gate misses has 0",
    "iou": "mean intersection over union of positive slices",
    "hd95_directed_px": "mean over positive slices of the larger of both directed 95th percentiles (MONAI), in pixels",
    "hd95_pooled_px": "mean of the 95th percentile of the pooled surface distances (medpy), in pixels",
    "hd95_empty": "positive slices without a distance, because nothing is marked; left out of both means",
    "dice_3d": "mean over patients with an object of Dice over all of a patient's slices",
    "dice_best_threshold": "mean Dice of positive slices at the fixed threshold of the scaled map that is best for "
    "these very slices: what another threshold could give at most, not a result",
    "best_threshold": "that threshold",
    **draw_spread.MEANINGS,
    "seconds": "mean time of a slice",
}


LISTS = ("dice_at", "draw_dices")  # what a slice has several numbers of, left out of tables


def score_slice(
    prediction: Tensor, mask: Tensor | None, saliency: Tensor | None = None, draws: Tensor | None = None
) -> dict[str, Any]:
    """Score one slice, on the grid of its mask.

    Args:
        prediction: (2, H, W) probabilities of background and object, or a (1, H, W) mask.
        mask: (1, H, W), above 0 in the object; ``None`` where there is no mask.
        saliency: (1, H, W) in [0, 1], for the best fixed threshold.
        draws: (M, H, W) probabilities of the noise draws alone, for how far they agree.

    Returns:
        ``marked`` and ``pixels``; with a mask ``object`` and ``common`` (pixels), for one that is not empty ``dice``,
        ``iou``, ``hd95_directed_px``, ``hd95_pooled_px`` (NaN where nothing is marked) and ``dice_at`` of every one of
        `THRESHOLDS`. With draws what `score_draws` says.
    """
    found = as_array(prediction)
    found = found.argmax(0) > 0 if len(found) > 1 else found[0] > 0.5
    scores: dict[str, Any] = {"marked": int(found.sum()), "pixels": found.size}
    truth = None if mask is None else as_array(mask)[0] > 0
    if draws is not None:
        scores.update(score_draws(as_array(draws) > 0.5, truth if truth is not None and truth.any() else None))
    if truth is None:
        return scores
    scores.update({"object": int(truth.sum()), "common": int((found & truth).sum())})
    if truth.any():
        scores["dice"] = _dice(found, truth)
        scores["iou"] = scores["common"] / int((found | truth).sum())
        scores["hd95_directed_px"], scores["hd95_pooled_px"] = hausdorff_distances(found, truth)
        if saliency is not None:
            scaled = as_array(saliency)[0]
            scores["dice_at"] = [_dice(scaled > threshold, truth) for threshold in THRESHOLDS]
    return scores


def hausdorff_distances(found: np.ndarray, truth: np.ndarray, percentile: float = 95) -> tuple[float, float]:
    """Return two Hausdorff distances of masks (H, W) in pixels, NaN where either is empty.

    The first is the larger of the two directed percentiles, as MONAI has it, the second the percentile of the distances
    of both directions pooled, as medpy has it and the published tables use it. A surface is a mask without its erosion
    by the four neighbours.

    Args:
        found, truth: (H, W) bool.
        percentile: of the surface distances, in 0..100; 100 is the Hausdorff distance itself, for which both agree.
    """
    if not found.any() or not truth.any():
        return math.nan, math.nan
    surfaces = [mask & ~binary_erosion(mask) for mask in (found, truth)]
    to_other = [distance_transform_edt(~other)[own] for own, other in (surfaces, surfaces[::-1])]
    tensors = [torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (found, truth)]
    directed = compute_hausdorff_distance(*tensors, include_background=True, percentile=percentile)
    return float(directed), float(np.percentile(np.concatenate(to_other), percentile))


def summarise_slices(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the summary of slices, with the columns of `MEANINGS` that can be told.

    Args:
        rows: of `score_slice`, each with ``class`` (0 or 1), ``positive`` (the gate's probability), ``open`` (its
            decision), ``patient`` and ``seconds``.
    """
    positive, negative = ([row for row in rows if row["class"] == kind] for kind in (1, 0))
    summary: dict[str, float] = {"slices": len(rows)}
    summary["gate_accuracy"] = mean_of_numbers([row["open"] == (row["class"] == 1) for row in rows])
    summary["gate_sensitivity"] = mean_of_numbers([row["open"] for row in positive])
    summary["gate_specificity"] = mean_of_numbers([not row["open"] for row in negative])
    said, truth = (torch.tensor([float(row[key]) for row in rows]).double() for key in ("positive", "class"))
    summary["gate_auroc"] = error_detection_auroc(said, truth)
    summary["false_positive_share"] = mean_of_numbers([row["marked"] / row["pixels"] for row in negative])
    summary["negative_slices_marked"] = mean_of_numbers([row["marked"] > 0 for row in negative])
    scored = [row for row in positive if "dice" in row]
    if scored:
        for name in ("dice", "iou", "hd95_directed_px", "hd95_pooled_px"):
            summary[name] = mean_of_numbers([row[name] for row in scored])
        summary["hd95_empty"] = sum(math.isnan(row["hd95_pooled_px"]) for row in scored)
        summary["dice_3d"] = mean_of_numbers(list(patient_dice(rows).values()))
    swept = [row["dice_at"] for row in scored if "dice_at" in row]
    if swept:
        means = np.mean(swept, axis=0)
        summary["dice_best_threshold"] = float(means.max())
        summary["best_threshold"] = THRESHOLDS[int(means.argmax())]
    summary.update(summarise_draws(rows))
    summary["seconds"] = mean_of_numbers([row["seconds"] for row in rows])
    return summary


def patient_dice(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return Dice over all scored slices of each patient with an object; slices without a mask do not count."""
    sums: dict[str, np.ndarray] = {}
    for row in rows:
        if "object" in row:
            counts = np.array([row["common"], row["marked"], row["object"]], dtype=float)
            sums[row["patient"]] = sums.get(row["patient"], np.zeros(3)) + counts
    return {name: 2 * common / (marked + present) for name, (common, marked, present) in sums.items() if present > 0}


def _dice(found: np.ndarray, truth: np.ndarray) -> float:
    return 2 * float((found & truth).sum()) / float(found.sum() + truth.sum())
