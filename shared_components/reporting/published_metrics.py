"""Dice and intersection over union as the published MedSegDiff counts them, for comparisons with its tables."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

PUBLISHED_THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


def published_overlaps(
    prediction: Tensor, truth: Tensor, thresholds: Sequence[float] = PUBLISHED_THRESHOLDS
) -> tuple[float, float]:
    """Return one image's Dice and intersection over union, each the mean over the thresholds.

    The prediction is divided by its own maximum, then prediction and truth alike are cut at every threshold; the
    published script cuts the truth too, because it resizes it bilinearly. It has NaN for a prediction that is 0
    everywhere, which here marks nothing. The project's own scores are those of `score_case`.

    Args:
        prediction: (*spatial) soft mask, 0 or more.
        truth: (*spatial) in [0, 1], on the same grid.
        thresholds: what exceeds one is marked.

    Raises:
        ValueError: the two are not of the same shape.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and truth {tuple(truth.shape)} differ in shape")
    prediction, truth = prediction.double(), truth.double()
    if prediction.max() > 0:
        prediction = prediction / prediction.max()
    dice, iou = [], []
    for threshold in thresholds:
        found, wanted = prediction > threshold, truth > threshold
        common, either = int((found & wanted).sum()), int((found | wanted).sum())
        dice.append((2 * common + 1e-4) / (common + either + 1e-4))
        iou.append((common + 1e-6) / (either + 1e-6))
    return sum(dice) / len(dice), sum(iou) / len(iou)
