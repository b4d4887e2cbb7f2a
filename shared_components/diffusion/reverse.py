"""One step of a reverse process: from what the network returned to the next noisy label map."""

from typing import Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from shared_components.diffusion.tables import ReverseTable, reverse_table
from shared_components.errors import InputError, check_choice

PREDICTION_TYPES = ("sample", "epsilon", "v_prediction")  # weights hold a place in this order


class ReverseProcess(nn.Module):
    """The steps of a reverse process, scriptable; ``process(step, output, noisy, previous_clean, noise)`` makes one.

    A sampling run is::

        clean = None
        for step in range(process.num_inference_steps):
            output = denoiser(noisy, process.timestep(step, len(noisy)), condition)
            noise = torch.randn_like(noisy) if process.stochastic else None
            noisy, clean = process(step, output, noisy, clean, noise)

    What the last step returns is the state of the process, the finished map; the published MedSegDiff returns the
    network's raw output after its DPM-Solver instead. All thresholds are per sample, so batches do not mix.

    The buffers are not part of the state dict: how to sample is not what was trained.

    Args:
        alphas_cumprod: (T,) of the training schedule, best in float64.
        num_inference_steps, sampler, spacing, eta, variance_type, lower_order_final: see `reverse_table`.
        prediction_type: what the network predicts: ``sample`` (the clean map), ``epsilon`` (the noise) or
            ``v_prediction`` (sqrt(abar) noise - sqrt(1 - abar) clean).
        learned_variance: the network's output holds the variance head v after the prediction; ``ddpm`` interpolates
            with it between the smallest and the largest log variance, the other samplers have no use for it.
        clip: (low, high) that the clean estimate is clipped to; ``None`` leaves it.
        dynamic_threshold: quantile of the clean estimate's magnitudes in a sample that it is clipped to and divided
            by, where it exceeds 1 (Saharia et al. 2022); so it clips to [-1, 1] or rescales. ``None`` does neither.
        recompute_noise: go on with the noise that belongs to the clipped estimate. Without it ``ddim`` goes on with
            the noise as predicted, as the field's pipelines do by default.
        clip_noisy: (low, high) that the noisy map is clipped to after every step, noise included. The published
            AdaptDiff does so, which costs an eighth of the contrast; for comparisons with it.

    Raises:
        InputError: see `reverse_table`; an unknown prediction type, ``epsilon`` on a schedule that leaves no signal,
            limits out of order, clip with dynamic_threshold, a threshold that is no quantile, or
            ``recompute_noise=False`` with another sampler than ``ddim``.
    """

    def __init__(
        self,
        alphas_cumprod: Tensor,
        num_inference_steps: Optional[int] = None,
        sampler: str = "ddpm",
        prediction_type: str = "sample",
        learned_variance: bool = False,
        clip: Optional[Sequence[float]] = None,
        spacing: str = "trailing",
        eta: float = 0.0,
        variance_type: str = "fixed_small",
        lower_order_final: bool = True,
        dynamic_threshold: Optional[float] = None,
        recompute_noise: bool = True,
        clip_noisy: Optional[Sequence[float]] = None,
    ) -> None:
        super().__init__()
        check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        _check_limits("clip", clip)
        _check_limits("clip_noisy", clip_noisy)
        if dynamic_threshold is not None and (clip is not None or not 0 < dynamic_threshold < 1):
            raise InputError(f"dynamic_threshold must lie in 0..1, without clip; found {dynamic_threshold}, {clip}")
        if not recompute_noise and sampler != "ddim":
            raise InputError(f"recompute_noise=False is for the sampler 'ddim', not {sampler!r}")
        table = reverse_table(
            alphas_cumprod, num_inference_steps, sampler, spacing, eta, variance_type, lower_order_final
        )
        if prediction_type == "epsilon" and float(table.alphas_cumprod.min()) <= 0:
            raise InputError(
                "prediction_type is 'epsilon', but the schedule leaves no signal at its last timestep, where noise "
                "tells nothing of the clean map; choose 'v_prediction' or 'sample'"
            )
        self.sampler = sampler
        self.num_inference_steps: int = len(table.timesteps)
        self.stochastic: bool = bool((table.coefficients[:, 2] > 0).any())
        self.multistep: bool = bool((table.coefficients[:, 3] != 0).any())
        self.prediction_type = prediction_type
        self.learned_variance: bool = learned_variance and sampler == "ddpm"
        self.clipped: bool = clip is not None
        self.low, self.high = (0.0, 0.0) if clip is None else (float(clip[0]), float(clip[1]))
        self.clips_noisy: bool = clip_noisy is not None
        self.noisy_low, self.noisy_high = (0.0, 0.0) if clip_noisy is None else tuple(map(float, clip_noisy))
        self.dynamic_threshold: float = dynamic_threshold or 0.0
        self.recompute_noise = recompute_noise
        self._register_table(table)

    def _register_table(self, table: ReverseTable) -> None:
        whole = not table.timesteps.is_floating_point()
        self.register_buffer("timesteps", table.timesteps if whole else table.timesteps.float(), persistent=False)
        self.register_buffer("coefficients", table.coefficients.float(), persistent=False)
        self.register_buffer("log_variance", table.log_variance.float(), persistent=False)
        signal, noise = table.alphas_cumprod.sqrt(), (1 - table.alphas_cumprod).sqrt()
        weights = {
            "sample": (torch.zeros_like(signal), torch.ones_like(signal)),
            "epsilon": (1 / signal, -noise / signal),
            "v_prediction": (signal, -noise),
        }[self.prediction_type]
        # of the noisy input and of the prediction in the clean estimate
        self.register_buffer("estimate_weights", torch.stack(weights, dim=1).float(), persistent=False)
        reached = table.coefficients[:, 0] + table.coefficients[:, 1] * signal + table.coefficients[:, 3]
        self.register_buffer("next_signal", reached.float(), persistent=False)

    @torch.jit.export
    def timestep(self, step: int, batch_size: int) -> Tensor:
        """Return what the network is shown at a step, (batch_size,) int64, or float32 where it is a fraction."""
        return self.timesteps[step].expand(batch_size)

    @torch.jit.export
    def clean_estimate(self, step: int, output: Tensor, noisy: Tensor) -> Tensor:
        """Return the clean estimate, clipped as the process clips, as ``noisy``.

        Args:
            step: row of the process, 0 first.
            output: (B, N, *spatial) of the network, the prediction in its first C channels.
            noisy: (B, C, *spatial) that the network was shown.
        """
        return self._limited(self._raw_estimate(step, output, noisy))

    def forward(
        self,
        step: int,
        output: Tensor,
        noisy: Tensor,
        previous_clean: Optional[Tensor] = None,
        noise: Optional[Tensor] = None,
    ) -> Tuple[Tensor, Tensor]:
        """Make one step.

        Args:
            step: row of the process, 0 first.
            output: (B, N, *spatial) of the network: prediction (C channels), then, with ``learned_variance``, the
                variance head (C); what follows is ignored.
            noisy: (B, C, *spatial) that the network was shown.
            previous_clean: clean estimate that the step before returned; ``None`` in the first.
            noise: standard normal, as ``noisy``; not used by the last step and where ``stochastic`` is false.

        Returns:
            The next noisy map, which the last step leaves finished, and the clean estimate; both as ``noisy``.

        Raises:
            ValueError: noise, the previous estimate or the variance head is needed and missing.
        """
        raw = self._raw_estimate(step, output, noisy)
        clean = self._limited(raw)
        weights = self.coefficients[step]
        if self.recompute_noise:
            moved = weights[0] * clean + weights[1] * noisy
        else:
            signal = self.next_signal[step]
            moved = signal * clean + (weights[0] - signal) * raw + weights[1] * noisy
        if self.multistep and step > 0:
            if previous_clean is None:
                raise ValueError(f"step {step} needs the clean estimate of the step before")
            moved = moved + weights[3] * previous_clean
        if self.stochastic and step + 1 < self.num_inference_steps:
            if noise is None:
                raise ValueError(f"step {step} needs noise")
            moved = moved + self.deviation(step, output, noisy) * noise
        if self.clips_noisy:
            moved = moved.clamp(self.noisy_low, self.noisy_high)
        return moved, clean

    def _raw_estimate(self, step: int, output: Tensor, noisy: Tensor) -> Tensor:
        prediction = output[:, : noisy.shape[1]].to(noisy.dtype)
        if self.prediction_type == "sample":
            return prediction
        weights = self.estimate_weights[step]
        return weights[0] * noisy + weights[1] * prediction

    def _limited(self, clean: Tensor) -> Tensor:
        if self.dynamic_threshold > 0:
            limit = torch.quantile(clean.abs().flatten(1), self.dynamic_threshold, dim=1).clamp(min=1.0)
            limit = limit.reshape([-1] + [1] * (clean.dim() - 1))
            return torch.minimum(torch.maximum(clean, -limit), limit) / limit
        if self.clipped:
            return clean.clamp(self.low, self.high)
        return clean

    @torch.jit.export
    def deviation(self, step: int, output: Tensor, noisy: Tensor) -> Tensor:
        """Return the standard deviation of a step's noise, a number or, where it is learned, as ``noisy``.

        Args:
            step, output, noisy: as in `forward`.
        """
        if not self.learned_variance:
            return self.coefficients[step, 2]
        channels = noisy.shape[1]
        if output.shape[1] < 2 * channels:
            raise ValueError(f"a learned variance needs {2 * channels} output channels, not {output.shape[1]}")
        share = (output[:, channels : 2 * channels].to(noisy.dtype) + 1) / 2
        bounds = self.log_variance[step]
        return torch.exp((share * bounds[0] + (1 - share) * bounds[1]) / 2)


def _check_limits(name: str, limits: Optional[Sequence[float]]) -> None:
    if limits is None:
        return
    numbers = isinstance(limits, (list, tuple)) and all(type(limit) in (int, float) for limit in limits)
    if not numbers or len(limits) != 2 or limits[0] >= limits[1]:
        raise InputError(f"{name} must be the two numbers low < high, not {limits!r}; give such as [-1.0,1.0]")
