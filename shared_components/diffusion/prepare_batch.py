"""From a batch of image and label crops to what a label denoiser trains on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.engines import PrepareBatch
from monai.networks.schedulers.scheduler import Scheduler
from torch import Tensor

from shared_components.diffusion.label_coding import LabelCoding
from shared_components.diffusion.metadata import plain
from shared_components.diffusion.noising import TrainingNoise
from shared_components.diffusion.slices import volume_to_slices
from shared_components.diffusion.timestep_samplers import UniformTimestepSampler

Device = str | torch.device | None


def condition_and_label(
    batchdata: Mapping[str, Tensor], num_adjacent_slices: int, device: Device, non_blocking: bool
) -> tuple[Tensor, Tensor]:
    """Move a batch to the device and cut volumes into slices with their neighbours.

    Only slices whose neighbours lie in the crop are used, so a crop of depth S gives S - 2 ``num_adjacent_slices``.
    Where that leaves none, all are used, and the first and last stand for their missing neighbours, as at sampling.

    Returns:
        Condition (N, K, H, W) float32 of images (B, K', H, W[, D]), and label values (N, 1, H, W).
    """
    image = plain(batchdata["image"]).to(device, non_blocking=non_blocking, dtype=torch.float32)
    label = plain(batchdata["label"]).to(device, non_blocking=non_blocking)
    if image.ndim == 4:
        return image.contiguous(), label
    depth, reach = image.shape[4], num_adjacent_slices
    used = slice(reach, depth - reach) if depth > 2 * reach else slice(None)
    slices = volume_to_slices(image, reach).unflatten(0, (-1, depth))[:, used].flatten(0, 1)
    return slices.contiguous(), volume_to_slices(label[..., used])


class LabelDiffusionPrepareBatch(PrepareBatch):
    """Turn crops into (condition, clean) pairs: slices with their neighbours, and coded label maps.

    Only slices whose neighbours lie in the crop are used, so a crop of depth S gives S - 2 ``num_adjacent_slices``.

    Args:
        label_coding: how label values become the map that is diffused.
        num_adjacent_slices: as in `DiffusionSegmenter`.
    """

    def __init__(self, label_coding: LabelCoding, num_adjacent_slices: int = 0) -> None:
        self.label_coding = label_coding
        self.num_adjacent_slices = num_adjacent_slices

    def __call__(
        self, batchdata: Mapping[str, Tensor], device: Device = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return condition (N, K, H, W) and clean (N, C, H, W) of images (B, K, H, W[, D]) and labels (B, 1, ...)."""
        condition, label = condition_and_label(batchdata, self.num_adjacent_slices, device, non_blocking)
        return condition, self.label_coding.encode(label).contiguous()


class NoisePredictionPrepareBatch(PrepareBatch):
    """Turn crops into what a denoiser is called with and what `DenoisingLoss` compares its output with.

    With MONAI's ``SupervisedTrainer`` and ``SimpleInferer`` the network is called as
    ``denoiser(noisy, timesteps, condition)``. Timesteps and noise come from torch's global generators, so they are
    drawn afresh at every call and `EpochSeeder` makes them repeatable.

    Args:
        label_coding: how label values become the map that is diffused.
        scheduler: MONAI scheduler with the training schedule.
        timestep_sampler: draws the timesteps; all equally often when ``None``.
        num_adjacent_slices: as in `DiffusionSegmenter`.
        prediction_type: what the denoiser predicts: ``epsilon``, ``sample`` or ``v_prediction``.

    Raises:
        InputError: an unknown prediction type, or a timestep sampler of another number of timesteps.
    """

    def __init__(
        self,
        label_coding: LabelCoding,
        scheduler: Scheduler,
        timestep_sampler: UniformTimestepSampler | None = None,
        num_adjacent_slices: int = 0,
        prediction_type: str = "epsilon",
    ) -> None:
        self.noise = TrainingNoise(scheduler, timestep_sampler, prediction_type)
        self.label_coding = label_coding
        self.num_adjacent_slices = num_adjacent_slices

    def __call__(
        self, batchdata: Mapping[str, Tensor], device: Device = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, Tensor], dict[str, Any]]:
        """Draw timesteps and noise for images (B, K, H, W[, D]) and labels (B, 1, ...).

        Returns:
            noisy (N, C, H, W); targets ``target``, ``clean`` and ``presence`` (N, C, H, W), ``timesteps`` (N,) int64
            and ``weights`` (N,); arguments (timesteps, condition (N, K, H, W)); no keyword arguments.
        """
        condition, label = condition_and_label(batchdata, self.num_adjacent_slices, device, non_blocking)
        clean = self.label_coding.encode(label).contiguous()
        timesteps, weights, noise = self.noise.draw(clean)
        noisy, target = self.noise.apply(clean, timesteps, noise)
        targets = {
            "target": target,
            "clean": clean,
            "presence": self.label_coding.presence(clean),
            "timesteps": timesteps,
            "weights": weights,
        }
        return noisy, targets, (timesteps, condition), {}
