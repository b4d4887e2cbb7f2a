"""One map out of a diffusion sample and the calibration map of the condition branch (MedSegDiff V1)."""

import torch
from torch import Tensor, nn

from shared_components.errors import check_choice

RULES = ("agreement", "z_score")


class CalibrationFusion(nn.Module):
    """Blend what was sampled with what the condition branch predicts; scriptable, every sample and channel by itself.

    ``agreement`` (the published code's rule for its ancestral sampler): if the Dice of sample > 0 and calibration map
    is below ``min_agreement``, the calibration map plus ``correction`` of the sample; else ``share`` of the calibration
    map and the rest of the sample. The published rule takes one Dice over the batch and is NaN where both are empty;
    here an empty pair agrees.

    ``z_score`` (its rule for DPM-Solver): the calibration map plus ``correction`` of the standardised sample.

    Args:
        rule: one of `RULES`.
        min_agreement: Dice below which the calibration map is trusted.
        correction: weight of the sample beside a trusted calibration map.
        share: weight of the calibration map beside a sample that agrees with it.

    Raises:
        InputError: an unknown rule.
    """

    def __init__(
        self, rule: str = "agreement", min_agreement: float = 0.65, correction: float = 0.25, share: float = 0.5
    ) -> None:
        super().__init__()
        check_choice("rule", rule, RULES)
        self.rule = rule
        self.min_agreement = min_agreement
        self.correction = correction
        self.share = share

    def forward(self, sample: Tensor, calibration: Tensor) -> Tensor:
        """Return presences (B, C, *spatial) in [0, 1], for `LabelCoding.probabilities`.

        Args:
            sample: (B, C, *spatial) finished clean map, coded in {0, 1} or {-1, 1}.
            calibration: (B, C, *spatial) in [0, 1].
        """
        if self.rule == "z_score":
            return (calibration + self.correction * standardised(sample)).clamp(0.0, 1.0)
        trusted = calibration + self.correction * sample
        blended = self.share * calibration + (1 - self.share) * sample
        agrees = soft_dice(sample > 0, calibration) >= self.min_agreement
        return torch.where(agrees, blended, trusted).clamp(0.0, 1.0)


def soft_dice(mask: Tensor, probability: Tensor) -> Tensor:
    """Return the Dice, 2 sum(m p) / sum(m + p), of a mask and a probability map per sample and channel.

    Args:
        mask: (B, C, *spatial) bool.
        probability: (B, C, *spatial) in [0, 1].

    Returns:
        As the inputs, with every spatial size 1; 1 where both are empty.
    """
    hard, soft = mask.float().flatten(2), probability.float().flatten(2)
    total = (hard + soft).sum(dim=2)
    dice = torch.where(total > 0, 2 * (hard * soft).sum(dim=2) / total.clamp(min=1e-12), torch.ones_like(total))
    return dice.reshape(list(dice.shape) + [1] * (mask.dim() - 2))


def standardised(sample: Tensor) -> Tensor:
    """Return a sample with mean 0 and (unbiased) deviation 1 per sample and channel; 0 where it is constant."""
    values = sample.flatten(2)
    deviation, mean = torch.std_mean(values, dim=2, keepdim=True)
    return ((values - mean) / deviation.clamp(min=1e-12)).reshape(sample.shape)
