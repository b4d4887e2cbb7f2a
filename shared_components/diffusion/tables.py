"""Reverse processes as tables: one row a step, so that every sampler is the same loop.

MONAI 1.6's few-step DDIM and strided DDPM step to another noise level than the one the network is told next, and none
of its schedulers can be scripted. A table is computed once, in float64, from the training schedule; the loop over its
rows (`shared_components.diffusion.segmenter`) is tensors only.
"""

from typing import NamedTuple

import torch
from torch import Tensor

SAMPLERS = ("ddpm", "ddim")


class ReverseTable(NamedTuple):
    """Rows of a reverse process, first step first.

    Attributes:
        timesteps: (N,) int64, what the network is shown at each step.
        coefficients: (N, 3) float64, the weights of the clean estimate, of the noisy input and of fresh noise.
    """

    timesteps: Tensor
    coefficients: Tensor


def strided_timesteps(num_train_timesteps: int, num_inference_steps: int) -> Tensor:
    """Return ``num_inference_steps`` of the training timesteps, the last one first ("trailing" spacing).

    Raises:
        ValueError: when the number of steps is not in 1..num_train_timesteps.
    """
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise ValueError(
            f"num_inference_steps must be in 1..{num_train_timesteps} (the steps of the training schedule), "
            f"not {num_inference_steps}"
        )
    stride = num_train_timesteps / num_inference_steps
    steps = torch.arange(num_inference_steps, dtype=torch.float64)
    return (num_train_timesteps - steps * stride).round().long() - 1


def reverse_table(alphas_cumprod: Tensor, num_inference_steps: int, sampler: str = "ddpm") -> ReverseTable:
    """Build the table of a reverse process over a training schedule.

    ``ddpm`` is the posterior q(x_prev | x0, x) with its variance, taken between the noise levels actually visited
    (Ho et al. 2020, equations 6 and 7, over the strided chain); with all T steps of `vp_few_step` it is cDAL's
    sampler. ``ddim`` is its deterministic counterpart (Song et al. 2021, equation 12 with sigma = 0).

    Args:
        alphas_cumprod: (T,) of the training schedule.
        num_inference_steps: 1..T.
        sampler: one of `SAMPLERS`.

    Raises:
        ValueError: an unknown sampler, or a number of steps outside 1..T.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, not {sampler!r}")
    alphas_cumprod = alphas_cumprod.detach().cpu().double()
    timesteps = strided_timesteps(len(alphas_cumprod), num_inference_steps)
    abar = alphas_cumprod[timesteps]
    previous = torch.cat([abar[1:], torch.ones(1, dtype=torch.float64)])
    if sampler == "ddpm":
        alpha = abar / previous
        clean = previous.sqrt() * (1 - alpha) / (1 - abar)
        noisy = alpha.sqrt() * (1 - previous) / (1 - abar)
        noise = ((1 - alpha) * (1 - previous) / (1 - abar)).sqrt()
    else:
        noisy = ((1 - previous) / (1 - abar)).sqrt()
        clean = previous.sqrt() - noisy * abar.sqrt()
        noise = torch.zeros_like(abar)
    return ReverseTable(timesteps, torch.stack([clean, noisy, noise], dim=1))
