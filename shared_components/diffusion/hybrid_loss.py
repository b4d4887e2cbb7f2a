"""Losses of a denoiser that predicts noise, its variance and a calibration map of the condition branch."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from monai.losses import DiceLoss
from monai.networks.schedulers.scheduler import Scheduler
from monai.utils import unsqueeze_right
from torch import Tensor, nn

from shared_components.diffusion.label_coding import unknown_voxels
from shared_components.diffusion.reverse import PREDICTION_TYPES
from shared_components.diffusion.tables import VARIANCE_TYPES, reverse_table
from shared_components.diffusion.timestep_samplers import UniformTimestepSampler
from shared_components.errors import InputError, check_choice, check_count

OBJECTIVES = ("hybrid", "hybrid_rescaled", "variational")
CALIBRATION_KINDS = ("mse", "dice_ce")


class HybridLoss(nn.Module):
    """Mean squared error of a prediction plus the variational bound of a learned variance (Nichol and Dhariwal 2021).

    ``hybrid`` is L_mse + L_vb, ``hybrid_rescaled`` is L_mse + T / 1000 L_vb, the same at T = 1000. In both the
    prediction is detached inside L_vb, which so trains the variance head alone; without a learned variance L_mse is all
    there is. ``variational`` is T L_vb with gradients into the prediction too (``use_kl``).

    L_vb is in bits per pixel: at t >= 1 the KL divergence of the posterior q(x_{t-1} | x_t, x_0) from the predicted
    step, whose mean comes from the clean estimate, not clipped; at t = 0 the negative log-likelihood of the clean map,
    discretised to bins of half-width 1 / 255 that end at -1 and 1. For maps coded in {0, 1} the value 0 is an inner
    bin, as published.

    Args:
        scheduler: MONAI scheduler with the training schedule.
        prediction_type: ``epsilon``, ``sample`` or ``v_prediction``.
        learned_variance: the output holds the variance head v, whose (v + 1) / 2 interpolates between the logarithms
            of the posterior's variance and of beta.
        objective: one of `OBJECTIVES`.
        variance_type: of ``variational`` without a learned variance: ``fixed_large`` (beta) or ``fixed_small`` (the
            posterior's); either is the posterior's of t = 1 at t = 0.

    Raises:
        InputError: an unknown name.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        prediction_type: str = "epsilon",
        learned_variance: bool = True,
        objective: str = "hybrid",
        variance_type: str = "fixed_large",
    ) -> None:
        super().__init__()
        check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        check_choice("objective", objective, OBJECTIVES)
        check_choice("variance_type", variance_type, VARIANCE_TYPES)
        self.learned_variance = learned_variance
        self.objective = objective
        self.variance_type = variance_type
        table = reverse_table(scheduler.alphas_cumprod)
        self.num_train_timesteps = len(table.timesteps)
        abar = table.alphas_cumprod
        # by how much the clean estimate misses where the prediction is 1 too high
        miss = {"epsilon": -(1 / abar - 1).sqrt(), "sample": torch.ones_like(abar), "v_prediction": -(1 - abar).sqrt()}
        mean_miss = table.coefficients[:, 0] * miss[prediction_type]
        columns = torch.cat([mean_miss.unsqueeze(1), table.log_variance], dim=1).flip(0)
        self.register_buffer("_columns", columns.float(), persistent=False)

    def forward(
        self, output: Tensor, target: Tensor, clean: Tensor, timesteps: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the scalar loss and the losses of the samples.

        Args:
            output: (B, N, *spatial) of the network: prediction (C channels), then, with ``learned_variance``, the
                variance head (C); what follows is ignored.
            target: (B, C, *spatial) what the prediction should be.
            clean: (B, C, *spatial) clean map.
            timesteps: (B,) int64.
            weights: (B,) importance weights of the samples; 1 when ``None``.

        Returns:
            The mean of the weighted losses, and (B,) losses without the weights, as timestep samplers want them.
        """
        channels = target.shape[1]
        prediction, target = output[:, :channels].float(), target.float()
        if self.objective == "variational":
            losses = self.num_train_timesteps * self._bound(prediction - target, output, clean, timesteps)
        else:
            losses = _per_sample((prediction - target) ** 2)
            if self.learned_variance:
                factor = self.num_train_timesteps / 1000 if self.objective == "hybrid_rescaled" else 1.0
                losses = losses + factor * self._bound((prediction - target).detach(), output, clean, timesteps)
        return (losses if weights is None else losses * weights).mean(), losses

    def _bound(self, error: Tensor, output: Tensor, clean: Tensor, timesteps: Tensor) -> Tensor:
        """L_vb (B,) in bits per pixel, of a prediction that is ``error`` too high."""
        if self._columns.device != error.device:
            self._columns = self._columns.to(error.device)
        rows = self._columns[timesteps]
        mean_miss, log_beta, log_posterior = (unsqueeze_right(column, error.ndim) for column in rows.T)
        first = unsqueeze_right(timesteps == 0, error.ndim)
        if self.learned_variance:
            share = (output[:, error.shape[1] : 2 * error.shape[1]].float() + 1) / 2
            log_variance = share * log_beta + (1 - share) * log_posterior
        elif self.variance_type == "fixed_large":
            log_variance = torch.where(first, log_posterior, log_beta)
        else:
            log_variance = log_posterior
        miss = mean_miss * error
        divergence = gaussian_kl(miss, log_posterior, log_variance)
        likelihood = discretised_log_likelihood(clean.float(), clean.float() + miss, log_variance / 2)
        return _per_sample(torch.where(first, -likelihood, divergence)) / math.log(2)


class CalibrationLoss(nn.Module):
    """Loss of the condition branch's own segmentation.

    ``mse`` is the published code's, 10 times the mean squared error at every step. ``dice_ce`` is the second paper's:
    Dice plus ``cross_entropy_weight`` times the cross-entropy of every channel, only for samples whose timestep is a
    multiple of ``interval``; the others count as 0.

    Args:
        kind: ``mse`` or ``dice_ce``.
        weight: factor of the whole; 10 for ``mse``, 1 for ``dice_ce`` when ``None``.
        cross_entropy_weight: beta of the second paper.
        interval: alpha of the second paper; 1 counts every sample. 1 for ``mse``, 5 for ``dice_ce`` when ``None``.

    Raises:
        InputError: an unknown kind, or an interval that is no positive whole number.
    """

    def __init__(
        self,
        kind: str = "mse",
        weight: float | None = None,
        cross_entropy_weight: float = 10.0,
        interval: int | None = None,
    ) -> None:
        super().__init__()
        check_choice("kind", kind, CALIBRATION_KINDS)
        published = {"mse": (10.0, 1), "dice_ce": (1.0, 5)}[kind]
        self.kind = kind
        self.weight = published[0] if weight is None else weight
        self.interval = published[1] if interval is None else interval
        check_count("interval", self.interval)
        self.cross_entropy_weight = cross_entropy_weight
        self.dice = DiceLoss(reduction="none")

    def forward(self, calibration: Tensor, presence: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scalar loss, the mean over the batch, and the losses of the samples (B,).

        Args:
            calibration: (B, C, *spatial) probabilities in [0, 1].
            presence: (B, C, *spatial) in {0, 1}.
            timesteps: (B,) int64.
        """
        calibration, presence = calibration.float(), presence.float()
        if self.kind == "mse":
            losses = _per_sample((calibration - presence) ** 2)
        else:
            likelihood = torch.where(presence > 0.5, calibration, 1 - calibration)
            entropy = -torch.log(likelihood.clamp(min=1e-6))
            dice = self.dice(calibration, presence)
            losses = _per_sample(dice) + self.cross_entropy_weight * _per_sample(entropy)
        losses = self.weight * losses * (timesteps % self.interval == 0)
        return losses.mean(), losses


class DenoisingLoss(nn.Module):
    """The loss of (output, targets) that MONAI's ``SupervisedTrainer`` calls, beside `NoisePredictionPrepareBatch`.

    Voxels that nobody judged have no part in it.

    Args:
        prediction: loss of the prediction and of the variance head.
        calibration: loss of the calibration map, the output's last channels; for a ``calibrated`` denoiser. The
            importance weights do not touch it.
        timestep_sampler: the one that draws the timesteps, if it learns from the losses.
    """

    def __init__(
        self,
        prediction: HybridLoss,
        calibration: CalibrationLoss | None = None,
        timestep_sampler: UniformTimestepSampler | None = None,
    ) -> None:
        super().__init__()
        self.prediction = prediction
        self.calibration = calibration
        self.timestep_sampler = timestep_sampler

    def forward(self, output: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Return the scalar loss.

        Args:
            output: (B, N, *spatial) of the denoiser: prediction, variance head, calibration map, as far as it has them.
            targets: ``target``, ``clean`` and ``presence`` (B, C, *spatial), ``timesteps`` and ``weights`` (B,).

        Raises:
            InputError: the output's channels are not those of these losses.
        """
        target, timesteps = targets["target"], targets["timesteps"]
        parts = 1 + int(self.prediction.learned_variance) + int(self.calibration is not None)
        if output.shape[1] != parts * target.shape[1]:
            raise InputError(
                f"the denoiser returned {output.shape[1]} channels, its losses want {parts} x {target.shape[1]}: "
                "learned_variance and the calibration loss must be set as the denoiser is"
            )
        if "presence" in targets:
            output, targets = self._of_known_voxels(output, targets)
        loss, losses = self.prediction(output, target, targets["clean"], timesteps, targets["weights"])
        if self.timestep_sampler is not None:
            self.timestep_sampler.update(timesteps, losses)
        if self.calibration is not None:
            loss = loss + self.calibration(output[:, -target.shape[1] :], targets["presence"], timesteps)[0]
        return loss

    def _of_known_voxels(self, output: Tensor, targets: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Give an output no error and no gradient in voxels of the label map that nobody judged."""
        channels, unknown = targets["target"].shape[1], unknown_voxels(targets["presence"])
        right = output.detach().clone()
        right[:, :channels] = targets["target"]
        if self.calibration is not None:
            right[:, -channels:] = 0
        presence = targets["presence"].masked_fill(unknown, 0)
        return torch.where(unknown, right, output), {**targets, "presence": presence}


def gaussian_kl(difference: Tensor, log_variance: Tensor, other_log_variance: Tensor) -> Tensor:
    """Return KL(N(m, v) || N(m', v')) in nats for m' - m = ``difference``, elementwise."""
    ratio = log_variance - other_log_variance
    return 0.5 * (torch.exp(ratio) - 1 - ratio + difference**2 * torch.exp(-other_log_variance))


def discretised_log_likelihood(values: Tensor, means: Tensor, log_deviation: Tensor) -> Tensor:
    """Return the log-probability (nats) of a normal distribution in bins of half-width 1 / 255 around ``values``.

    Beyond -0.999 and 0.999 the outer bins take the whole tail. Probabilities are at least 1e-12. The normal
    distribution function is the usual tanh approximation.
    """
    centred, inverse = values - means, torch.exp(-log_deviation)
    upper, lower = _normal_cdf((centred + 1 / 255) * inverse), _normal_cdf((centred - 1 / 255) * inverse)
    probability = torch.where(values < -0.999, upper, torch.where(values > 0.999, 1 - lower, upper - lower))
    return torch.log(probability.clamp(min=1e-12))


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _per_sample(values: Tensor) -> Tensor:
    return values.flatten(1).mean(dim=1)
