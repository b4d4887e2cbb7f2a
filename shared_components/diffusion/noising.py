"""Timesteps and noise of a training step, and what the denoiser is to predict of them."""

from __future__ import annotations

import copy

import torch
from monai.networks.schedulers.scheduler import Scheduler
from torch import Tensor

from shared_components.diffusion.reverse import PREDICTION_TYPES
from shared_components.diffusion.timestep_samplers import UniformTimestepSampler
from shared_components.errors import InputError, check_choice


class TrainingNoise:
    """The forward process of a training.

    Args:
        scheduler: MONAI scheduler with the training schedule.
        timestep_sampler: draws the timesteps; all equally often when ``None``.
        prediction_type: what the denoiser predicts: ``epsilon``, ``sample`` or ``v_prediction``.

    Raises:
        InputError: an unknown prediction type, or a timestep sampler of another number of timesteps.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        timestep_sampler: UniformTimestepSampler | None = None,
        prediction_type: str = "epsilon",
    ) -> None:
        check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        self.num_train_timesteps = scheduler.num_train_timesteps
        self.timestep_sampler = timestep_sampler or UniformTimestepSampler(self.num_train_timesteps)
        if self.timestep_sampler.num_train_timesteps != self.num_train_timesteps:
            raise InputError(
                f"the timestep sampler has num_train_timesteps {self.timestep_sampler.num_train_timesteps}, "
                f"the scheduler {self.num_train_timesteps}: they must be the same"
            )
        # a copy, because add_noise rounds the scheduler's table to the precision of the images
        self._scheduler = copy.deepcopy(scheduler)
        self.prediction_type = prediction_type

    def draw(self, clean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw for images (N, C, *spatial), from torch's global generators.

        Returns:
            timesteps (N,) int64; weights (N,) of their losses; noise, as ``clean``.
        """
        timesteps, weights = self.timestep_sampler.sample(len(clean), clean.device)
        return timesteps, weights, torch.randn_like(clean)

    def apply(self, clean: Tensor, timesteps: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noisy images and what is to be predicted of them, both as ``clean`` (N, C, *spatial)."""
        noisy = self._scheduler.add_noise(clean, noise, timesteps)
        if self.prediction_type == "v_prediction":
            return noisy, self._scheduler.get_velocity(clean, noise, timesteps)
        return noisy, clean if self.prediction_type == "sample" else noise
