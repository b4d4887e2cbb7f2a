"""How good a segmentation is, case by case, and the tables of it.

Conventions, the same wherever the project states a number. Dice is 1 where prediction and reference are both
empty and 0 where one of them is. Surface distances are NaN where either is empty, and NaN is left out of the
summary, which counts it.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
)
from monai.networks import one_hot
from monai.utils import convert_to_numpy, convert_to_tensor
from scipy.ndimage import distance_transform_edt, find_objects
from scipy.stats import spearmanr
from torch import Tensor

from shared_components.ensembling.uncertainty import (
    calibration_bins,
    calibration_error,
    entropy,
    error_detection_auroc,
    expected_dice,
)
from shared_components.errors import InputError
from shared_components.reporting.files import write_atomically

UNITS = ("mm", "px")
_FEWEST_ORDERED = 5
SUMMARY_FIELDS = ("metric", "mean", "std", "median", "min", "max", "cases", "nan")


def spacing_of(image: Tensor) -> list[float]:
    """Return the voxel size of a (C, *spatial) `MetaTensor` from its affine, 1 for a plain tensor."""
    axes = image.ndim - 1
    if not isinstance(image, MetaTensor):
        return [1.0] * axes
    return [float(size) for size in affine_to_spacing(image.affine, r=axes)]


def as_array(item: Tensor) -> np.ndarray:
    """Return a tensor of any type and device as a float32 array, without metadata."""
    return convert_to_numpy(convert_to_tensor(item, torch.float32))


def class_probabilities(prediction: Tensor, classes: int) -> Tensor:
    """Return a (C, *spatial) prediction as float32 on the CPU, a (1, *spatial) label map as one-hot."""
    prediction = convert_to_tensor(prediction, device="cpu").detach()
    if prediction.shape[0] == 1:
        return one_hot(prediction.round(), num_classes=classes, dim=0)
    return prediction.to(torch.float32)


def class_indices(label: Tensor, classes: int) -> Tensor:
    """Return a (1, *spatial) label map or (C, *spatial) one-hot reference as (1, *spatial) int64 on the CPU.

    Raises:
        InputError: for a label that the model does not predict.
    """
    label = convert_to_tensor(label, device="cpu")
    label = label.argmax(dim=0, keepdim=True) if label.shape[0] > 1 else label.round().long()
    if label.min() < 0 or label.max() >= classes:
        raise InputError(
            f"label: found values {int(label.min())} to {int(label.max())}, "
            f"the model predicts 0 to {classes - 1}; correct the label file or label_names"
        )
    return label


def near_foreground(foreground: np.ndarray, spacing: Sequence[float], margin: float) -> np.ndarray:
    """Mark the voxels within ``margin`` (in units of ``spacing``) of the foreground, itself included."""
    boxes = find_objects(foreground.astype(np.uint8))
    near = np.zeros(foreground.shape, dtype=bool)
    if not boxes:
        return near
    pads = [math.ceil(margin / size) + 1 for size in spacing]
    box = tuple(slice(max(edge.start - pad, 0), edge.stop + pad) for edge, pad in zip(boxes[0], pads))
    near[box] = distance_transform_edt(~foreground[box], sampling=spacing) <= margin
    return near


def surface_distances(prediction: Tensor, label: Tensor, spacing: Sequence[float]) -> tuple[float, float]:
    """Return HD95 and ASSD of two binary masks, in units of ``spacing``, by MONAI.

    HD95 is the larger of the two directed 95th percentiles, ASSD the mean over both surfaces. An axis of one
    voxel is left out: every voxel of a single slice would count as surface.

    Args:
        prediction: (*spatial) bool.
        label: (*spatial) bool.
        spacing: voxel size per axis.

    Returns:
        The two distances, NaN where either mask is empty.
    """
    if not prediction.any() or not label.any():
        return math.nan, math.nan
    kept = [axis for axis, size in enumerate(label.shape) if size > 1]
    if len(kept) >= 2:
        prediction, label = prediction.squeeze(), label.squeeze()
        spacing = [spacing[axis] for axis in kept]
    inputs = {"y_pred": prediction[None, None], "y": label[None, None], "include_background": True}
    hd95 = compute_hausdorff_distance(**inputs, percentile=95, spacing=list(spacing))
    assd = compute_average_surface_distance(**inputs, symmetric=True, spacing=list(spacing))
    return float(hd95), float(assd)


def score_case(
    prediction: Tensor,
    label: Tensor,
    names: Mapping[int, str],
    spacing: Sequence[float] | None = None,
    unit: str = "mm",
    margin: float = 5.0,
    num_bins: int = 20,
    iou: bool = False,
    regions: Mapping[str, Sequence[int]] | None = None,
    expected: bool = True,
    ignored: Tensor | None = None,
) -> tuple[dict[str, float], Tensor]:
    """Score one case.

    Uncertainty is judged *near the foreground*: in the voxels within ``margin`` of what the prediction or the
    reference marks. The far background is easy, and as large as the field of view happens to be; over the
    whole image it would decide both numbers.

    Args:
        prediction: (C, *spatial) class probabilities or one-hot, or a (1, *spatial) label map.
        label: (1, *spatial) label map or (C, *spatial) one-hot, on the same grid.
        names: class index to name, without the background.
        spacing: voxel size per axis; from the label's affine without it.
        unit: unit of ``spacing``, for the names of the distances.
        margin: in the same unit.
        num_bins: bins of the calibration error.
        iou: whether to add the intersection over union, which has Dice's conventions.
        regions: name to class indices, of unions of classes that are scored too.
        expected: whether to add the expected Dice.
        ignored: (1, *spatial) bool, voxels that nobody judged, background in both; uncertainty is not judged there.

    Returns:
        The scores: ``dice_<name>``, ``dice_mean`` (of the classes), with ``iou`` ``iou_<name>`` and ``iou_mean``,
        ``hd95_<unit>_<name>``, ``assd_<unit>_<name>``,
        ``ece_near_foreground`` (expected calibration error), ``error_auroc_near_foreground`` (area under the
        ROC curve of the entropy as a detector of wrong voxels), with ``expected`` ``expected_dice`` (without the
        reference, mean of the classes that are found; 1 for a hard prediction). And the `calibration_bins` near the
        foreground.

    Raises:
        InputError: if the grids differ, or for a label or a name of a class that the model does not predict.
    """
    classes = prediction.shape[0] if prediction.shape[0] > 1 else max(names) + 1
    if max(names) >= classes:
        raise InputError(f"label_names: found class {max(names)}, the prediction has 0 to {classes - 1}")
    if prediction.shape[1:] != label.shape[1:]:
        raise InputError(
            f"prediction of shape {tuple(prediction.shape[1:])} and label of shape {tuple(label.shape[1:])}: "
            "they must be on one grid; invert the prediction's preprocessing (Invertd)"
        )
    spacing = spacing_of(label) if spacing is None else list(spacing)
    probabilities, truth = class_probabilities(prediction, classes), class_indices(label, classes)
    predicted = probabilities.argmax(dim=0, keepdim=True)
    scores = _overlaps(predicted, truth, names, classes, iou)
    scores.update(_distances(predicted, truth, names, spacing, unit))
    scores.update(_of_regions(predicted, truth, regions or {}, spacing, unit, iou))
    foreground = ((predicted > 0) | (truth > 0))[0].numpy()
    region = torch.from_numpy(near_foreground(foreground, spacing, margin))[None, None]
    region = region if ignored is None else region & ~torch.as_tensor(ignored).cpu()[None]
    bins = calibration_bins(probabilities[None], truth[None], num_bins, region)
    scores["ece_near_foreground"] = calibration_error(bins)
    wrong = (predicted != truth)[None]
    scores["error_auroc_near_foreground"] = error_detection_auroc(entropy(probabilities[None]), wrong, region)
    if expected:
        scores["expected_dice"] = float(expected_dice(probabilities[None]).nanmean())
    return scores, bins


def _overlaps(predicted: Tensor, truth: Tensor, names: Mapping[int, str], classes: int, iou: bool) -> dict[str, float]:
    """Dice, and if asked for the intersection over union, of every class and their means."""
    hot = [one_hot(labels[None], num_classes=classes) for labels in (predicted, truth)]
    scores: dict[str, float] = {}
    for metric, compute in (("dice", compute_dice), ("iou", compute_iou))[: 1 + iou]:
        values = compute(*hot, include_background=True, ignore_empty=False)[0]
        of_class = {f"{metric}_{name}": float(values[index]) for index, name in names.items()}
        scores.update(of_class)
        scores[f"{metric}_mean"] = float(np.mean(list(of_class.values())))
    return scores


def _distances(
    predicted: Tensor, truth: Tensor, names: Mapping[int, str], spacing: Sequence[float], unit: str
) -> dict[str, float]:
    """Surface distances of every class."""
    distances = {
        name: surface_distances(predicted[0] == index, truth[0] == index, spacing) for index, name in names.items()
    }
    return {
        f"{metric}_{unit}_{name}": pair[number]
        for number, metric in enumerate(("hd95", "assd"))
        for name, pair in distances.items()
    }


def _of_regions(
    predicted: Tensor,
    truth: Tensor,
    regions: Mapping[str, Sequence[int]],
    spacing: Sequence[float],
    unit: str,
    iou: bool,
) -> dict[str, float]:
    """Overlaps and surface distances of unions of classes."""
    scores: dict[str, float] = {}
    for name, indices in regions.items():
        masks = [torch.isin(labels, torch.tensor(list(indices))).long() for labels in (predicted, truth)]
        overlaps = _overlaps(*masks, {1: name}, 2, iou)
        scores.update({key: value for key, value in overlaps.items() if not key.endswith("_mean")})
        scores.update(_distances(*masks, {1: name}, spacing, unit))
    return scores


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Summarise every numeric column of the case table; a case that lacks one has NaN there.

    Returns:
        One row per metric with the fields `SUMMARY_FIELDS`: NaN is left out of the statistics and counted in
        ``nan``; ``std`` is the sample's (n - 1); ``cases`` counts all cases.
    """
    columns = {key: None for row in rows for key, value in row.items() if isinstance(value, (int, float))}
    return [{"metric": column, **_describe([float(row.get(column, math.nan)) for row in rows])} for column in columns]


def expected_dice_order(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Say how well ``expected_dice`` orders the cases by the Dice that they reached, as a row of the summary.

    Returns:
        One row ``expected_dice_order`` whose ``mean`` is Spearman's rank correlation of the two over the cases that
        have both; 1 where the order is the same, 0 where one says nothing of the other. None with fewer than five such
        cases, or where either is the same in all.
    """
    pairs = [(float(row.get("expected_dice", math.nan)), float(row["dice_mean"])) for row in rows]
    known = np.asarray([pair for pair in pairs if math.isfinite(pair[0])])
    if len(known) < _FEWEST_ORDERED or (np.ptp(known, axis=0) == 0).any():
        return []
    counts = {"cases": len(pairs), "nan": len(pairs) - len(known)}
    blank = dict.fromkeys(SUMMARY_FIELDS[2:6], math.nan)
    return [{"metric": "expected_dice_order", "mean": float(spearmanr(*known.T).statistic), **blank, **counts}]


def _describe(values: Sequence[float]) -> dict[str, Any]:
    known = np.asarray([value for value in values if math.isfinite(value)])
    counts = {"cases": len(values), "nan": len(values) - len(known)}
    if len(known) == 0:
        return {**dict.fromkeys(SUMMARY_FIELDS[1:6], math.nan), **counts}
    return {
        "mean": float(known.mean()),
        "std": float(known.std(ddof=1)) if len(known) > 1 else math.nan,
        "median": float(np.median(known)),
        "min": float(known.min()),
        "max": float(known.max()),
        **counts,
    }


def write_table(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as a comma-separated table, its columns in the order of their first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)
    return write_atomically(path, text.getvalue())
