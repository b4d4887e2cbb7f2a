"""Losses between a denoiser's clean estimate and the label map."""

from __future__ import annotations

import torch
from monai.losses import DiceLoss
from torch import Tensor, nn

from shared_components.diffusion.label_coding import LabelCoding, unknown_voxels

_LEAST_SHARE = 1e-6  # of known voxels: a crop may have none


class CleanLabelLoss(nn.Module):
    """Dice plus cross-entropy on a clean estimate, in place of the mean squared error of the published cDAL.

    The estimate's channels are read as class probabilities (x + 1) / 2, so the denoiser should end in a softmax.
    Dice is taken over the batch, since many slices of a volume hold none of a class. Voxels that nobody judged count in
    neither term.

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
        known = (~unknown_voxels(target)).float()
        target = target * known
        entropy = -(target * torch.log(probability.clamp(min=1e-6))).sum(dim=1, keepdim=True)
        if weight is not None:
            entropy = entropy * weight
        entropy = entropy.mean() / known.mean().clamp(min=_LEAST_SHARE)
        return self.dice_weight * self.dice(probability * known, target) + self.cross_entropy_weight * entropy


class PresenceLoss(nn.Module):
    """Dice plus binary cross-entropy of every channel of a clean estimate; a prediction loss of `DenoisingLoss`.

    For denoisers that predict the clean map (``sample``) with one channel a structure; their prediction should be
    bounded to the range of the coding. In place of the published mean squared error, which hardly sees small ones.
    Voxels that nobody judged count in neither term.

    Args:
        label_coding: how the map is coded.
        dice_weight: factor of the Dice term.
        cross_entropy_weight: factor of the cross-entropy term.
    """

    learned_variance = False

    def __init__(self, label_coding: LabelCoding, dice_weight: float = 1.0, cross_entropy_weight: float = 1.0) -> None:
        super().__init__()
        self.label_coding = label_coding
        self.dice = DiceLoss(reduction="none")
        self.dice_weight = dice_weight
        self.cross_entropy_weight = cross_entropy_weight

    def forward(
        self, output: Tensor, target: Tensor, clean: Tensor, timesteps: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the mean of the weighted losses, and the samples' losses (B,).

        Args:
            output: (B, N, *spatial) of the network, the prediction in its first C channels.
            target, clean: (B, C, *spatial) the clean map.
            timesteps: (B,), without effect.
            weights: (B,) importance weights; 1 when ``None``.
        """
        probability = self.label_coding.presence(output[:, : clean.shape[1]]).clamp(1e-6, 1 - 1e-6)
        presence = self.label_coding.presence(clean)
        known = (~unknown_voxels(presence)).float()
        entropy = -(presence * probability.log() + (1 - presence) * (1 - probability).log()) * known
        entropy = entropy.flatten(1).mean(dim=1) / known.flatten(1).mean(dim=1).clamp(min=_LEAST_SHARE)
        dice = self.dice(probability * known, presence * known).flatten(1).mean(dim=1)
        losses = self.dice_weight * dice + self.cross_entropy_weight * entropy
        return (losses if weights is None else losses * weights).mean(), losses


class AbsoluteErrorLoss(nn.Module):
    """Mean absolute error of a prediction; a prediction loss of `DenoisingLoss`, the published AdaptDiff's."""

    learned_variance = False

    def forward(
        self, output: Tensor, target: Tensor, clean: Tensor, timesteps: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the mean of the weighted losses, and the samples' losses (B,).

        Args:
            output: (B, N, *spatial) of the network, the prediction in its first C channels.
            target: (B, C, *spatial) what the prediction should be.
            clean: without effect.
            timesteps: (B,), without effect.
            weights: (B,) importance weights; 1 when ``None``.
        """
        losses = (output[:, : target.shape[1]].float() - target.float()).abs().flatten(1).mean(dim=1)
        return (losses if weights is None else losses * weights).mean(), losses
