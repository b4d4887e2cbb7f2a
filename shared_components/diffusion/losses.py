"""Losses between a denoiser's clean estimate and the label map, both coded in [-1, 1]."""

from __future__ import annotations

import torch
from monai.losses import DiceLoss
from torch import Tensor, nn


class CleanLabelLoss(nn.Module):
    """Dice plus cross-entropy on a clean estimate, in place of the mean squared error of the published cDAL.

    The estimate's channels are read as class probabilities (x + 1) / 2, so the denoiser should end in a softmax.
    Dice is taken over the batch, since many slices of a volume hold none of a class.

    Args:
        dice_weight: factor of the Dice term.
        cross_entropy_weight: factor of the cross-entropy term.
    """

    def __init__(self, dice_weight: float = 1.0, cross_entropy_weight: float = 1.0) -> None:
        super().__init__()
        self.dice = DiceLoss(include_background=True, batch=True)
        self.dice_weight = dice_weight
        self.cross_entropy_weight = cross_entropy_weight

    def forward(self, estimate: Tensor, clean: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the scalar loss.

        Args:
            estimate, clean: (B, C, *spatial) in [-1, 1].
            weight: (B, 1, *spatial) importance of each pixel in the cross-entropy term, mean 1.
        """
        probability = (estimate.float() + 1) / 2
        target = (clean.float() + 1) / 2
        entropy = -(target * torch.log(probability.clamp(min=1e-6))).sum(dim=1, keepdim=True)
        if weight is not None:
            entropy = entropy * weight
        return self.dice_weight * self.dice(probability, target) + self.cross_entropy_weight * entropy.mean()
