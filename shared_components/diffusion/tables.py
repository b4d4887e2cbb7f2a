"""Reverse processes as tables: one row a step, so that every sampler is the same loop.

MONAI 1.6's few-step DDIM and strided DDPM step to another noise level than the one the network is told next, it has no
DPM-Solver, and none of its schedulers can be scripted. A table is computed once, in float64, from the training
schedule; the loop over its rows (`shared_components.diffusion.reverse`) is tensors only.
"""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from shared_components.diffusion.timesteps import noise_levels
from shared_components.errors import InputError, check_choice

SAMPLERS = ("ddpm", "ddim", "dpm_solver++")
VARIANCE_TYPES = ("fixed_small", "fixed_large")


class ReverseTable(NamedTuple):
    """Rows of a reverse process, first step first.

    Attributes:
        timesteps: (N,) what the network is shown at each step, int64 or, where they are fractions, float64.
        coefficients: (N, 4) float64, the weights of the clean estimate, of the noisy input, of fresh noise and of the
            previous step's clean estimate.
        alphas_cumprod: (N,) float64, abar of the noisy input of each step.
        log_variance: (N, 2) float64, logarithm of the largest variance (beta) and of the smallest (the posterior's) of
            each step, between which a learned variance lies. The posterior's is 0 where a step ends at the clean map;
            the one of the step before stands in for it, so that the logarithm exists.
    """

    timesteps: Tensor
    coefficients: Tensor
    alphas_cumprod: Tensor
    log_variance: Tensor


def reverse_table(
    alphas_cumprod: Tensor,
    num_inference_steps: Optional[int] = None,
    sampler: str = "ddpm",
    spacing: str = "trailing",
    eta: float = 0.0,
    variance_type: str = "fixed_small",
    lower_order_final: bool = True,
) -> ReverseTable:
    """Build the table of a reverse process over a training schedule.

    ``ddpm`` is the posterior q(x_prev | x0, x) with its variance, taken between the noise levels actually visited
    (Ho et al. 2020, equations 6 and 7, over the strided chain); with all T steps of `vp_few_step` it is cDAL's
    sampler. ``ddim`` is Song et al. 2021, equation 12. ``dpm_solver++`` is the second-order multistep solver with data
    prediction (Lu et al. 2022b, algorithm 2, midpoint form), whose first step is of first order, which is DDIM's; it
    runs on the training schedule, where the published MedSegDiff makes another schedule of N steps.

    No noise is added by the last step of any sampler.

    Args:
        alphas_cumprod: (T,) of the training schedule.
        num_inference_steps: 1..T; T, or what a respacing says, when ``None``.
        sampler: one of `SAMPLERS`.
        spacing: which noise levels are visited, see `noise_levels`.
        eta: 0..1, share of the posterior's noise in ``ddim``; 1 makes it ``ddpm``.
        variance_type: ``fixed_small`` (the posterior's) or ``fixed_large`` (beta), of ``ddpm``.
        lower_order_final: take the last step of ``dpm_solver++`` in first order, which is the better choice on the
            ``uniform`` spacing. A step to the clean map always is.

    Raises:
        InputError: an unknown name, a value outside its range, or a number of steps that the spacing cannot give.
    """
    check_choice("sampler", sampler, SAMPLERS)
    check_choice("variance_type", variance_type, VARIANCE_TYPES)
    if not 0 <= eta <= 1:
        raise InputError(f"eta must be in 0..1, not {eta}")
    timesteps, levels = noise_levels(alphas_cumprod, num_inference_steps, spacing)
    abar, previous = levels[:-1], levels[1:]
    if sampler == "ddpm":
        coefficients = _posterior(abar, previous, variance_type)
    elif sampler == "ddim":
        coefficients = _ddim(abar, previous, eta)
    else:
        coefficients = _dpm_solver(abar, previous, lower_order_final)
    coefficients[-1, 2] = 0
    return ReverseTable(timesteps, coefficients, abar, _log_variance(abar, previous))


def _posterior(abar: Tensor, previous: Tensor, variance_type: str) -> Tensor:
    alpha = abar / previous
    clean = previous.sqrt() * (1 - alpha) / (1 - abar)
    noisy = alpha.sqrt() * (1 - previous) / (1 - abar)
    noise = (1 - alpha).sqrt()
    if variance_type == "fixed_small":
        noise = ((1 - alpha) * (1 - previous) / (1 - abar)).sqrt()
    return torch.stack([clean, noisy, noise, torch.zeros_like(abar)], dim=1)


def _ddim(abar: Tensor, previous: Tensor, eta: float) -> Tensor:
    variance = eta**2 * (1 - abar / previous) * (1 - previous) / (1 - abar)
    noisy = ((1 - previous - variance) / (1 - abar)).sqrt()
    clean = previous.sqrt() - noisy * abar.sqrt()
    return torch.stack([clean, noisy, variance.sqrt(), torch.zeros_like(abar)], dim=1)


def _dpm_solver(abar: Tensor, previous: Tensor, lower_order_final: bool) -> Tensor:
    # h of each step; its last one is infinite where the process ends at the clean map
    step = (torch.logit(previous) - torch.logit(abar)) / 2
    extrapolation = torch.cat([torch.zeros(1, dtype=torch.float64), step[1:] / (2 * step[:-1])])
    if lower_order_final or previous[-1] == 1:
        extrapolation[-1] = 0
    clean = -previous.sqrt() * torch.expm1(-step)
    noisy = ((1 - previous) / (1 - abar)).sqrt()
    weights = [clean * (1 + extrapolation), noisy, torch.zeros_like(abar), -clean * extrapolation]
    return torch.stack(weights, dim=1)


def _log_variance(abar: Tensor, previous: Tensor) -> Tensor:
    largest = 1 - abar / previous
    smallest = largest * (1 - previous) / (1 - abar)
    if previous[-1] == 1:
        smallest[-1] = smallest[-2] if len(abar) > 1 else largest[-1]
    return torch.stack([largest, smallest], dim=1).log()
