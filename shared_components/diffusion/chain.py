"""The uses of a reverse process: one step, the whole chain, a jump to the clean image, snapshots and a grid of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from monai.networks.schedulers.scheduler import Scheduler
from torch import Tensor, nn

from shared_components.diffusion.reverse import ReverseProcess
from shared_components.errors import InputError

Noise = Callable[[int, Tensor], Tensor]


class Snapshot(NamedTuple):
    """The state of a chain after a step.

    Attributes:
        step: number of the step, 0 first.
        timestep: what the network was shown.
        noisy: (B, C, H, W) after the step; after the last one, the finished image.
        clean: (B, C, H, W) the step's estimate of the clean image.
    """

    step: int
    timestep: float
    noisy: Tensor
    clean: Tensor


def forward_sample(scheduler: Scheduler, clean: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the clean image (B, C, H, W) noised to timesteps (B,), and the noise that was drawn."""
    noise = torch.randn_like(clean)
    abar = scheduler.alphas_cumprod.to(clean.device, torch.float64)[timesteps].reshape(-1, *[1] * (clean.ndim - 1))
    return (abar.sqrt() * clean + (1 - abar).sqrt() * noise).to(clean.dtype), noise


def sampling_steps(
    denoiser: nn.Module,
    process: ReverseProcess,
    noisy: Tensor,
    condition: Tensor,
    noise: Noise | None = None,
    first: int = 0,
) -> Iterator[Snapshot]:
    """Run a reverse process and yield its state after every step; all functions here are this loop.

    What depends on the condition alone is computed once. The network is called once a step; it should be in evaluation
    mode, since in training mode the statistics of its normalisations would change.

    Args:
        denoiser: see `DiffusionSegmenter`.
        process: of N steps.
        noisy: (B, C, H, W) that the chain starts from: standard normal, or an image noised to step ``first``.
        condition: (B, K, H, W).
        noise: (step, noisy) to standard normal noise as ``noisy``; torch's own generator when ``None``.
        first: step to start at.
    """
    draw = (lambda _, like: torch.randn_like(like)) if noise is None else noise
    with torch.no_grad():
        features = denoiser.encode_condition(condition)
    clean: Tensor | None = None
    for step in range(first, process.num_inference_steps):
        with torch.no_grad():
            timesteps = process.timestep(step, len(noisy))
            output = denoiser(noisy, timesteps, condition, None, features)
            fresh = draw(step, noisy) if process.stochastic and step + 1 < process.num_inference_steps else None
            noisy, clean = process(step, output, noisy, clean, fresh)
        yield Snapshot(step, float(timesteps[0]), noisy, clean)


def reverse_step(
    denoiser: nn.Module,
    process: ReverseProcess,
    step: int,
    noisy: Tensor,
    condition: Tensor,
    noise: Noise | None = None,
) -> Snapshot:
    """Make one step of the chain, from an image at that step's noise level."""
    return next(sampling_steps(denoiser, process, noisy, condition, noise, step))


def sample(
    denoiser: nn.Module,
    process: ReverseProcess,
    noisy: Tensor,
    condition: Tensor,
    noise: Noise | None = None,
    first: int = 0,
) -> Tensor:
    """Run the chain to its end and return the image (B, C, H, W); the arguments are those of `sampling_steps`."""
    for state in sampling_steps(denoiser, process, noisy, condition, noise, first):
        noisy = state.noisy
    return noisy


@torch.no_grad()
def jump_to_clean(denoiser: nn.Module, process: ReverseProcess, step: int, noisy: Tensor, condition: Tensor) -> Tensor:
    """Return the estimate of the clean image (B, C, H, W) from an image at a step's noise level, in one call."""
    output = denoiser(noisy, process.timestep(step, len(noisy)), condition, None, None)
    return process.clean_estimate(step, output, noisy)


def snapshots(
    denoiser: nn.Module,
    process: ReverseProcess,
    noisy: Tensor,
    condition: Tensor,
    num_images: int,
    noise: Noise | None = None,
) -> list[Snapshot]:
    """Run the chain and return ``num_images`` of its states, evenly spaced, the last one the finished image.

    Raises:
        InputError: ``num_images`` is not in 1..N (the published code divides by zero for more images than steps).
    """
    count = process.num_inference_steps
    if not 1 <= num_images <= count:
        raise InputError(f"num_images must be in 1..{count} (the steps of the process), not {num_images}")
    kept = {round((i + 1) * count / num_images) - 1 for i in range(num_images)}
    return [state for state in sampling_steps(denoiser, process, noisy, condition, noise) if state.step in kept]


def snapshot_grid(states: list[Snapshot], image: int = 0) -> Tensor:
    """Lay out states as a picture: a column each, the noisy image above that step's estimate of the clean one.

    The published code estimates the clean image with the noise level of the step before.

    Args:
        states: of one chain.
        image: which one of the batch.

    Returns:
        (2 H, columns W) uint8 of the first channel, [-1, 1] to 0..255, clipped.
    """
    columns = [torch.cat([state.noisy[image, 0], state.clean[image, 0]]) for state in states]
    return to_bytes(torch.cat(columns, dim=1))


def to_bytes(image: Tensor) -> Tensor:
    """Return an image of values in [-1, 1] as uint8 0..255, clipped and rounded (0 is 128; published: cut to 127)."""
    return (127.5 * (image.clamp(-1, 1) + 1)).add(0.5).floor().to(torch.uint8)
