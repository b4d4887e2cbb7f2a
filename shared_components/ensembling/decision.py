"""Which class a voxel is given: by the greatest probability, above a threshold, or for the greatest expected Dice."""

import torch
from torch import Tensor

DECISIONS = ("argmax", "expected_dice")


def weigh_by_expected_dice(probabilities: Tensor) -> Tensor:
    """Scale the odds of the foreground classes so that the greatest of them makes the mask of the best expected Dice.

    The most probable class makes the fewest wrong voxels, not the greatest Dice: that is reached at a threshold of half
    the greatest Dice that can be expected (Lipton et al. 2014, "Optimal thresholding of classifiers to maximize F1
    measure"), so at 0.4 where a Dice of 0.8 can be. For every image and class the threshold t is the one of 0.1 to 0.5
    whose mask has the greatest expected Dice by the probabilities themselves, 2 * (their sum inside the mask) / (their
    sum + the size of the mask); no label is needed. The odds are then multiplied by (1 - t) / t, so with two classes
    the foreground is above 0.5 exactly where it was above t. A class that is above 0.5 nowhere keeps its odds: an image
    without the object gets no mask by this. Scripts.

    Args:
        probabilities: (B, C, *spatial) of C >= 2 classes that sum to 1, background first.

    Returns:
        The same shape, sums to 1 over C.
    """
    flat = probabilities.flatten(2)
    total = flat.sum(2)
    best = torch.zeros_like(total)
    threshold = torch.full_like(total, 0.5)
    for step in range(17):  # 0.5, 0.475, ..., 0.1
        tried = 0.5 - 0.025 * step
        mask = flat > tried
        expected = 2 * (flat * mask).sum(2) / (total + mask.sum(2)).clamp(min=1e-6)
        better = expected > best
        if step > 0:
            better = better & (best > 0)
        best = torch.where(better, expected, best)
        threshold = torch.where(better, torch.full_like(threshold, tried), threshold)
    return _weigh(flat, threshold).reshape(probabilities.shape)


def weigh_by_threshold(probabilities: Tensor, threshold: float) -> Tensor:
    """Scale the odds of the foreground classes so that, of two classes, 0.5 is where the threshold was. Scripts.

    For networks that are too sure of the foreground, as those trained with Dice are.

    Args:
        probabilities: (B, C, *spatial) of C >= 2 classes that sum to 1, background first.
        threshold: above 0 and below 1; 0.5 changes nothing.

    Returns:
        The same shape, sums to 1 over C.
    """
    flat = probabilities.flatten(2)
    return _weigh(flat, torch.full_like(flat[:, :, 0], threshold)).reshape(probabilities.shape)


def weigh_by_decision(probabilities: Tensor, decision: str, threshold: float) -> Tensor:
    """Return `weigh_by_expected_dice` of the probabilities, or of ``argmax`` `weigh_by_threshold`. Scripts.

    Args:
        probabilities: (B, C, *spatial) of C >= 2 classes that sum to 1, background first.
        decision: one of `DECISIONS`.
        threshold: of ``argmax``; 0.5 changes nothing.
    """
    if decision == "expected_dice":
        return weigh_by_expected_dice(probabilities)
    return probabilities if threshold == 0.5 else weigh_by_threshold(probabilities, threshold)


def _weigh(probabilities: Tensor, threshold: Tensor) -> Tensor:
    """Weigh classes (B, C, N) by thresholds (B, C), of which that of the background does not count."""
    odds = (1 - threshold) / threshold
    odds[:, 0] = 1
    weighed = probabilities * odds.unsqueeze(2)
    return weighed / weighed.sum(1, keepdim=True)
