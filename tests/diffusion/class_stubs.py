"""Denoisers and classifiers whose maps are known in closed form."""

from __future__ import annotations

import torch
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, nn

import shared_components.diffusion.schedules  # noqa: F401 (registers the schedules)


def scheduler(num_train_timesteps: int = 4000, schedule: str = "linear_rescaled") -> DDPMScheduler:
    return DDPMScheduler(num_train_timesteps, schedule=schedule)


class StubDenoiser(nn.Module):
    """Predicts the noise ``weights @ table``, one picture a class, whatever it is shown."""

    def __init__(self, table: Tensor, learned_variance: bool = False, null_class: bool = False) -> None:
        super().__init__()
        self.register_buffer("table", table)
        self.in_channels = table.shape[1]
        self.num_class_weights = table.shape[0]
        self.downsampling = 1
        self.timestep_scale = 1.0
        self.learned_variance = learned_variance
        self.null_class = null_class
        self.timesteps: list[list[float]] = []

    def forward(self, noisy: Tensor, timesteps: Tensor, class_weights: Tensor | None = None) -> Tensor:
        self.timesteps.append(timesteps.tolist())
        noise = torch.einsum("bk,kchw->bchw", class_weights, self.table)
        return torch.cat([noise, torch.zeros_like(noise)], dim=1) if self.learned_variance else noise


class LinearClassifier(nn.Module):
    """Logits that are linear in the image: class 1's is ``margin`` times the sum, class 0's is 0."""

    def __init__(self, margin: float) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        logit = self.margin * noisy.sum(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(logit), logit], dim=1)
