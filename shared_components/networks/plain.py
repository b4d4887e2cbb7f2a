"""A denoiser's backbone as a plain segmentation network: the opponent every diffusion result is compared with."""

from typing import List, Optional

import torch
from torch import Tensor, nn


class PlainDenoiser(nn.Module):
    """Run a denoiser without diffusion: zeros for the noisy label map, for the latent code and for the timestep.

    What remains is the same backbone trained directly from image to label map. It has a denoiser's interface, so it
    trains, evaluates and exports through the same configuration; use it with one timestep and one member.

    Args:
        denoiser: the backbone, with the attributes that `DiffusionSegmenter` reads.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.in_channels: int = denoiser.in_channels
        self.latent_dim: int = denoiser.latent_dim
        self.downsampling: int = denoiser.downsampling

    @torch.jit.export
    def encode_condition(self, condition: Tensor) -> List[Tensor]:
        """Return the backbone's features of the condition."""
        return self.denoiser.encode_condition(condition)

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        condition: Tensor,
        latent: Optional[Tensor] = None,
        condition_features: Optional[List[Tensor]] = None,
    ) -> Tensor:
        """Return the label map (B, C, H, W) in [-1, 1]; only ``condition`` matters."""
        return self.denoiser(torch.zeros_like(noisy), torch.zeros_like(timesteps), condition, None, condition_features)
