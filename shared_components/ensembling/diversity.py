"""What the members of an ensemble say about ambiguity: how far they are from one another and from the reference."""

import math
from typing import Dict, NamedTuple

import torch
from torch import Tensor


class _Overlap(NamedTuple):
    """Dice and IoU of every mask with every other, (N, N) float64 each, and their sizes (N,)."""

    dice: Tensor
    iou: Tensor
    size: Tensor


def score_members(members: Tensor, label: Tensor, classes: int) -> Dict[str, float]:
    """Score the hard masks of an ensemble's members against the reference and against one another.

    With d(A, B) = 1 - IoU(A, B), averaged over the foreground classes, members S, S' and the reference Y:

    * ``ged``: squared generalised energy distance 2 E[d(S, Y)] - E[d(S, S')] - E[d(Y, Y')] (Kohl et al. 2018, "A
      probabilistic U-Net"; GED^2 there), whose last term is 0, as there is one reference. Both means are over all
      members and all M * M ordered pairs, a member's pair with itself included, as in the published figures. 0 where
      all members are the reference; 2 d for M equal members at distance d. It rewards members that differ as much as
      they err, and figures of different M are not comparable.
    * ``member_dice``: mean Dice of the pairs of different members, averaged over the classes; 1 where all agree.
    * ``volume_cv``: coefficient of variation of a class's area or volume over the members (standard deviation with
      M - 1, divided by the mean), averaged over the classes that a member marks; NaN where no member marks any.

    Two empty masks have a Dice and an IoU of 1, an empty and another one 0, as everywhere in the project.

    Args:
        members: (M, *spatial) class indices, M >= 2.
        label: (*spatial) class indices.
        classes: number of classes, the background (0) included.

    Raises:
        ValueError: fewer than two members, or another shape of the label.
    """
    if members.shape[0] < 2 or members.shape[1:] != label.shape:
        raise ValueError(f"expected 2 or more members and a label of their shape, got {members.shape}, {label.shape}")
    maps = torch.cat([members, label[None].to(members.dtype)]).flatten(1)
    maps = maps[:, (maps > 0).any(dim=0)]  # a voxel that is background in all changes nothing
    count, others = len(members), ~torch.eye(len(members), dtype=torch.bool)
    of_classes = [_overlap(maps == index) for index in range(1, classes)]
    distance = 1 - torch.stack([found.iou for found in of_classes]).mean(dim=0)
    agreement = torch.stack([found.dice for found in of_classes]).mean(dim=0)
    spreads = [_variation(found.size[:count]) for found in of_classes]
    known = [spread for spread in spreads if math.isfinite(spread)]
    return {
        "ged": float(2 * distance[:count, count].mean() - distance[:count, :count].mean()),
        "member_dice": float(agreement[:count, :count][others].mean()),
        "volume_cv": sum(known) / len(known) if known else math.nan,
    }


def _overlap(masks: Tensor) -> _Overlap:
    """Compare (N, V) binary masks with one another, one row after the other to save memory."""
    both = torch.stack([(masks & mask).sum(dim=1) for mask in masks]).double()
    size = both.diagonal()
    total = size[:, None] + size[None]
    one = torch.ones_like(both)
    dice = torch.where(total > 0, 2 * both / total.clamp(min=1), one)
    iou = torch.where(total > 0, both / (total - both).clamp(min=1), one)
    return _Overlap(dice, iou, size)


def _variation(sizes: Tensor) -> float:
    mean = float(sizes.mean())
    return float(sizes.std()) / mean if mean > 0 else math.nan
