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


class PlainConditionBranch(nn.Module):
    """A denoiser's condition branch alone, as a denoiser that sees the image and nothing else.

    MedSegDiff's highway segments the image by itself, and much of the published result is its own. Trained alone, the
    same way, it is what the diffusion beside it has to beat.

    Args:
        branch: returns a map (B, C, H, W) in [0, 1] of the image first, and anything after it, as `Highway` does.
        in_channels: channels C.
    """

    def __init__(self, branch: nn.Module, in_channels: int) -> None:
        super().__init__()
        self.branch = branch
        self.in_channels = in_channels
        self.latent_dim = 0
        self.downsampling: int = branch.downsampling

    @torch.jit.export
    def encode_condition(self, condition: Tensor) -> List[Tensor]:
        """Return the branch's map of the image (B, K, H, W), coded in [-1, 1]."""
        return [2 * self.branch(condition)[0].float() - 1]

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        condition: Tensor,
        latent: Optional[Tensor] = None,
        condition_features: Optional[List[Tensor]] = None,
    ) -> Tensor:
        """Return the label map (B, C, H, W) in [-1, 1]; only ``condition`` matters."""
        return self.encode_condition(condition)[0] if condition_features is None else condition_features[0]
