"""How sure a prediction is, and whether it is right to be so."""

import math
from typing import Hashable, Mapping, Optional

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy of the class probabilities, divided by that of the uniform distribution (log C).

    Args:
        probabilities: (B, C, *spatial) in [0, 1], summing to 1 over C.

    Returns:
        (B, 1, *spatial) in [0, 1]: 0 where one class is certain, 1 where all are equally probable.
    """
    classes = probabilities.shape[1]
    total = torch.special.entr(probabilities.clamp(0.0, 1.0)).sum(dim=1, keepdim=True)
    return (total / math.log(max(classes, 2))).clamp(0.0, 1.0)


class PredictiveEntropyd(MapTransform):
    """Write the normalised entropy of class probabilities beside them, for ``postprocessing`` of a bundle.

    The map is (1, *spatial) float32 in [0, 1] and keeps the metadata, so that ``Invertd`` and ``SaveImaged``
    treat it as they treat the prediction. Use it after ``Invertd`` (on the probabilities) and before
    ``AsDiscreted``.

    Args:
        keys: keys of channel-first (C, *spatial) class probabilities.
        output_keys: where to put the maps, one for each of ``keys``.
        allow_missing_keys: leave out a key that is not there.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        output_keys: KeysCollection = "uncertainty",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_keys = (output_keys,) if isinstance(output_keys, str) else tuple(output_keys)
        if len(self.output_keys) != len(self.keys):
            raise ValueError(f"output_keys: expected one for each of {self.keys}, found {self.output_keys}")

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict:
        d = dict(data)
        for key, output_key in self.key_iterator(d, self.output_keys):
            d[output_key] = entropy(d[key].unsqueeze(0).to(torch.float32)).squeeze(0)
        return d


def expected_dice(probabilities: Tensor) -> Tensor:
    """Dice that the mask of the most probable class can be expected to have, by the probabilities themselves.

    For a class with the mask m it is 2 * sum(p * m) / (sum(p) + sum(m)), the ratio of the expectations of Dice's two
    parts (Lipton et al. 2014). It needs no reference, so it says which cases of many to look at first. How well it
    orders them is a matter of calibration: evaluations state its rank correlation with the Dice that was reached.
    Probabilities that `weigh_by_expected_dice` has weighed give higher numbers, in much the same order.

    Args:
        probabilities: (B, C, *spatial) in [0, 1], summing to 1 over C, background first.

    Returns:
        (B, C - 1) in [0, 1], NaN for a class that is nowhere the most probable one.
    """
    flat = probabilities.flatten(2)
    predicted, found = flat.argmax(dim=1), []
    for index in range(1, flat.shape[1]):
        probability, mask = flat[:, index].double(), predicted == index
        dice = 2 * (probability * mask).sum(dim=1) / (probability.sum(dim=1) + mask.sum(dim=1))
        found.append(torch.where(mask.any(dim=1), dice, torch.nan))
    return torch.stack(found, dim=1).float()


class ExpectedDiced(MapTransform):
    """Write the `expected_dice` of class probabilities beside them: one number, the mean of the classes that are found.

    Use it where `PredictiveEntropyd` is used. NaN where nothing is found.

    Args:
        keys: key of channel-first (C, *spatial) class probabilities.
        output_key: where to put the number.
    """

    def __init__(self, keys: KeysCollection = "pred", output_key: str = "expected_dice") -> None:
        super().__init__(keys)
        self.output_key = output_key

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict:
        d = dict(data)
        for key in self.key_iterator(d):
            d[self.output_key] = float(expected_dice(torch.as_tensor(d[key])[None]).nanmean())
        return d


def calibration_bins(
    probabilities: Tensor, labels: Tensor, num_bins: int = 20, mask: Optional[Tensor] = None
) -> Tensor:
    """Sort voxels by the probability of their predicted class, for a reliability diagram.

    Counted in float64: MONAI's `calibration_binning` counts in float32 and stops at 2 ** 24 voxels in a bin,
    which the background of one CT volume exceeds.

    Args:
        probabilities: (B, C, *spatial) in [0, 1], summing to 1 over C.
        labels: (B, 1, *spatial) class indices.
        num_bins: equally wide bins of [0, 1], each with its upper limit.
        mask: (B, 1, *spatial), not zero where voxels count; all of them without it.

    Returns:
        (3, num_bins) float64: number of voxels, sum of their confidence, number of correct ones.
    """
    confidence, predicted = probabilities.max(dim=1, keepdim=True)
    correct = predicted == labels
    if mask is not None:
        confidence, correct = confidence[mask != 0], correct[mask != 0]
    confidence = confidence.flatten().to(torch.float64)
    # shares of votes lie on the limits of bins; float32 puts 3/5 a little above 0.6
    index = (torch.ceil(confidence * num_bins - 1e-4).long() - 1).clamp(0, num_bins - 1)
    rows = [torch.ones_like(confidence), confidence, correct.flatten().to(torch.float64)]
    return torch.stack([torch.bincount(index, weights=row, minlength=num_bins) for row in rows])


def calibration_error(bins: Tensor) -> float:
    """Expected calibration error (ECE) of the predicted class, of `calibration_bins`.

    The mean over voxels of ``|accuracy - mean confidence|`` of the voxel's bin (Guo et al., "On Calibration
    of Modern Neural Networks", ICML 2017). 0 is best; NaN without voxels.
    """
    count, confidence, correct = bins
    return float((correct - confidence).abs().sum() / count.sum())


def error_detection_auroc(uncertainty: Tensor, wrong: Tensor, mask: Optional[Tensor] = None) -> float:
    """Area under the ROC curve of the uncertainty as a detector of wrongly labelled voxels.

    The probability that a wrong voxel is more uncertain than a right one, ties counting half (the
    Mann-Whitney statistic). 0.5 is chance, 1 is best; NaN where no voxel, or every voxel, is wrong.

    Args:
        uncertainty: any shape; larger means less sure.
        wrong: same shape, not zero where the label is wrong.
        mask: same shape, not zero where voxels count; all of them without it.
    """
    wrong = wrong != 0
    if mask is not None:
        uncertainty, wrong = uncertainty[mask != 0], wrong[mask != 0]
    values, inverse = torch.unique(uncertainty.flatten(), return_inverse=True)
    errors = torch.bincount(inverse, weights=wrong.flatten().to(torch.float64), minlength=len(values))
    right = torch.bincount(inverse, minlength=len(values)).to(torch.float64) - errors
    pairs = errors.sum() * right.sum()
    if pairs == 0:
        return math.nan
    below = right.cumsum(0) - right
    return float((errors * (below + 0.5 * right)).sum() / pairs)
