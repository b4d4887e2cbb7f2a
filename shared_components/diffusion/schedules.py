"""Noise schedules registered with MONAI, and the few-step diffusion process that training draws from.

A schedule registered here is named in a configuration as any of MONAI's:
``{"_target_": "monai.networks.schedulers.DDPMScheduler", "num_train_timesteps": 4, "schedule": "vp_few_step"}``.

``linear_rescaled`` and ``cosine_double`` are MONAI's ``linear_beta`` and ``cosine`` in double precision, which the
variances of the cleanest timesteps need: in single precision the cosine's first beta is 0.1 % off. So are ``linear``,
``quad`` and ``sigmoid``, the names of AdaptDiff's code for MONAI's ``linear_beta``, ``scaled_linear_beta`` and
``sigmoid_beta``.
"""

from __future__ import annotations

import math

import torch
from monai.networks.schedulers.scheduler import NoiseSchedules, Scheduler
from monai.utils import unsqueeze_right
from torch import Tensor

from shared_components.diffusion.tables import reverse_table
from shared_components.errors import InputError


@NoiseSchedules.add_def("vp_few_step", "Variance-preserving curve cut into a few large steps")
def vp_few_step(num_train_timesteps: int, beta_min: float = 0.1, beta_max: float = 20.0, start: float = 1e-3) -> Tensor:
    """Betas of the continuous variance-preserving curve cut into ``num_train_timesteps`` equal pieces.

    With s_i = start + (1 - start) i / T and log abar(s) = -(beta_max - beta_min) s^2 / 2 - beta_min s, step i has
    beta_i = 1 - abar(s_i) / abar(s_{i-1}). This is the schedule of denoising diffusion GANs (Xiao et al. 2022) and of
    cDAL, meant for T of 1 to 8. The chain starts at s = ``start``, so abar_T is abar(1) / abar(start).

    Returns:
        Betas of steps 1..T, (T,), computed in float64 and rounded to float32 as the published ones are. cDAL's
        tables carry an artificial beta of 1e-8 in front, which rounds to nothing in single precision; it is left out,
        so index t here is index t + 1 there.
    """
    if num_train_timesteps < 1:
        raise ValueError(f"num_train_timesteps must be at least 1, not {num_train_timesteps}")
    s = start + (1 - start) * torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
    log_abar = -0.5 * (beta_max - beta_min) * s**2 - beta_min * s
    return -torch.expm1(log_abar[1:] - log_abar[:-1]).float()


@NoiseSchedules.add_def("linear_rescaled", "Linear betas, scaled so that the curve of 1000 steps is cut into T steps")
def linear_rescaled(num_train_timesteps: int, beta_start: float = 1e-4, beta_end: float = 2e-2) -> Tensor:
    """Betas from ``beta_start`` to ``beta_end`` times 1000 / T, (T,) float64.

    The schedule of guided diffusion (Dhariwal and Nichol 2021) and of MedSegDiff.

    Raises:
        InputError: so few steps that a beta reaches 1, after which no signal is left; with the default range, 20.
    """
    if num_train_timesteps <= 1000 * beta_end:
        raise InputError(
            f"num_train_timesteps must be more than {math.floor(1000 * beta_end)} for the schedule linear_rescaled "
            f"(its last step would leave no signal), not {num_train_timesteps}: train on more steps and set "
            "num_inference_steps to sample in few"
        )
    scale = 1000 / num_train_timesteps
    return torch.linspace(scale * beta_start, scale * beta_end, num_train_timesteps, dtype=torch.float64)


@NoiseSchedules.add_def("cosine_double", "Cosine schedule in double precision")
def cosine_double(num_train_timesteps: int, offset: float = 8e-3, max_beta: float = 0.999) -> Tensor:
    """Betas of abar(u) = cos^2((u + offset) / (1 + offset) pi / 2), at most ``max_beta``, (T,) float64.

    Nichol and Dhariwal 2021, equation 17.
    """
    u = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
    abar = torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - abar[1:] / abar[:-1]).clamp(max=max_beta)


@NoiseSchedules.add_def("linear", "Linear betas in double precision")
def linear(num_train_timesteps: int, beta_start: float = 1e-4, beta_end: float = 2e-2) -> Tensor:
    """Betas evenly from ``beta_start`` to ``beta_end``, (T,) float64; at T = 300 AdaptDiff's.

    At T = 300 the noisiest image still holds 22 % of the clean one's signal, while sampling starts from none of it.
    ``linear_rescaled`` cuts the whole curve into T steps instead.
    """
    return torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64)


@NoiseSchedules.add_def("quad", "Betas whose square roots are linear, in double precision")
def quad(num_train_timesteps: int, beta_start: float = 1e-4, beta_end: float = 2e-2) -> Tensor:
    """Squares of even steps from sqrt(``beta_start``) to sqrt(``beta_end``), (T,) float64."""
    return torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float64) ** 2


@NoiseSchedules.add_def("const", "One beta for all timesteps")
def const(num_train_timesteps: int, beta_end: float = 2e-2) -> Tensor:
    """``beta_end`` at every timestep, (T,) float64."""
    return torch.full((num_train_timesteps,), beta_end, dtype=torch.float64)


@NoiseSchedules.add_def("jsd", "Betas 1/T, 1/(T - 1), ..., 1")
def jsd(num_train_timesteps: int) -> Tensor:
    """beta_t = 1 / (T - t), (T,) float64 (Sohl-Dickstein et al. 2015): abar falls evenly, to 0 at the last timestep.

    No signal is left there, so that noise says nothing of the clean image: a network has to predict the image itself
    (``sample``) or ``v_prediction``.
    """
    return 1.0 / torch.arange(num_train_timesteps, 0, -1, dtype=torch.float64)


@NoiseSchedules.add_def("sigmoid", "Betas along a logistic curve, in double precision")
def sigmoid(
    num_train_timesteps: int, beta_start: float = 1e-4, beta_end: float = 2e-2, sig_range: float = 6.0
) -> Tensor:
    """Betas from ``beta_start`` to ``beta_end`` along the logistic curve over +-``sig_range``, (T,) float64."""
    curve = torch.linspace(-sig_range, sig_range, num_train_timesteps, dtype=torch.float64).sigmoid()
    return beta_start + (beta_end - beta_start) * curve


class FewStepProcess:
    """The forward transitions and the posteriors of a few-step schedule, for a timestep per sample.

    Index t names the pair (x_t, x_{t+1}); x_0 is the clean label map, and networks shown x_{t+1} are told t.

    Args:
        scheduler: MONAI scheduler with ``alphas_cumprod`` (T,).
    """

    def __init__(self, scheduler: Scheduler) -> None:
        abar = scheduler.alphas_cumprod.detach().cpu().double()
        self.num_timesteps = len(abar)
        self._levels = torch.cat([torch.ones(1, dtype=torch.float64), abar])
        self._posterior = reverse_table(abar, len(abar), "ddpm").coefficients[:, :3].flip(0)

    def pair(self, clean: Tensor, timesteps: Tensor, noise: Tensor, next_noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draw (x_t, x_{t+1}): from the clean label map to level t, then one transition on.

        Args:
            clean: x_0 in [-1, 1], (B, C, *spatial).
            timesteps: t in 0..T-1, (B,).
            noise: standard normal, as ``clean``; without effect at t = 0, where x_t is x_0.
            next_noise: standard normal, as ``clean``.
        """
        abar = self._gather(self._levels, timesteps, clean)
        alpha = self._gather(self._levels[1:] / self._levels[:-1], timesteps, clean)
        label_t = abar.sqrt() * clean + (1 - abar).sqrt() * noise
        return label_t, alpha.sqrt() * label_t + (1 - alpha).sqrt() * next_noise

    def posterior(self, clean: Tensor, noisy: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """Draw x_t from q(x_t | x_0 = ``clean``, x_{t+1} = ``noisy``); at t = 0 that is ``clean`` itself."""
        weights = [self._gather(column, timesteps, clean) for column in self._posterior.T]
        return weights[0] * clean + weights[1] * noisy + weights[2] * noise

    @staticmethod
    def _gather(values: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
        return unsqueeze_right(values.to(like.device, torch.float32)[timesteps], like.ndim)
