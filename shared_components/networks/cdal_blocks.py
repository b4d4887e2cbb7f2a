"""Building blocks of the cDAL generator."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_components.networks.fir import FIRDownsample, FIRUpsample
from shared_components.networks.initialisation import NEAR_ZERO, initialise_layer


def count_groups(channels: int) -> int:
    """Number of normalisation groups for a width: four channels each, at most 32 groups."""
    groups = max(1, min(channels // 4, 32))
    if channels % groups:
        raise ValueError(
            f"a feature width of {channels} cannot be normalised in {groups} groups: "
            "choose channels so that every width is a multiple of 4, and of 32 above 128 "
            "(sums of neighbouring entries count too: skip connections are concatenated)"
        )
    return groups


class ModulatedGroupNorm(nn.Module):
    """Group normalisation whose scale and shift are linear functions of the latent embedding (AdaGN)."""

    def __init__(self, channels: int, latent_embedding_dim: int) -> None:
        super().__init__()
        self.groups = count_groups(channels)
        self.modulation = nn.Linear(latent_embedding_dim, 2 * channels)
        initialise_layer(self.modulation, "out")
        with torch.no_grad():
            self.modulation.bias[:channels] = 1.0

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        scale, shift = self.modulation(latent).chunk(2, dim=1)
        # The batch laid out as channels gives every sample its own affine weights inside one fused kernel.
        batch, _, height, width = x.shape
        normalised = F.group_norm(
            x.reshape(1, -1, height, width),
            self.groups * batch,
            scale.reshape(-1),
            shift.reshape(-1),
            eps=1e-6,
        )
        return normalised.reshape(x.shape)


class ResidualBlock(nn.Module):
    """Residual block with latent and time modulation.

    A resampling block resamples both paths before their first convolution.

    Args:
        in_channels: width of the input.
        out_channels: width of the output.
        time_channels: width of the time embedding.
        latent_embedding_dim: width of the latent embedding.
        resample: "none", "down" or "up" (by two). Unless "none", the shortcut always has a convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_channels: int,
        latent_embedding_dim: int,
        resample: str = "none",
    ) -> None:
        super().__init__()
        self.norm1 = ModulatedGroupNorm(in_channels, latent_embedding_dim)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_projection = nn.Linear(time_channels, out_channels)
        self.norm2 = ModulatedGroupNorm(out_channels, latent_embedding_dim)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels or resample != "none":
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1)
            initialise_layer(self.shortcut, "average")
        self.resample: nn.Module = nn.Identity()
        if resample == "down":
            self.resample = FIRDownsample(in_channels)
        elif resample == "up":
            self.resample = FIRUpsample(in_channels)
        initialise_layer(self.conv1, "average")
        initialise_layer(self.time_projection, "average")
        initialise_layer(self.conv2, "average", NEAR_ZERO)

    def forward(self, x: Tensor, time: Tensor, latent: Tensor) -> Tensor:
        hidden = self.resample(F.silu(self.norm1(x, latent)))
        hidden = self.conv1(hidden) + self.time_projection(time)[:, :, None, None]
        hidden = self.conv2(F.silu(self.norm2(hidden, latent)))
        return (self.shortcut(self.resample(x)) + hidden) / math.sqrt(2.0)


class SelfAttention(nn.Module):
    """Single-head attention among all positions of a map, with a residual sum: (B, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(count_groups(channels), channels, eps=1e-6)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        for layer in (self.query, self.key, self.value):
            initialise_layer(layer, "average", 0.1)
        initialise_layer(self.output, "average", NEAR_ZERO)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        query, key, value = self.query(tokens), self.key(tokens), self.value(tokens)
        attended = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]
        return (x + self.output(attended).transpose(1, 2).reshape(x.shape)) / math.sqrt(2.0)


class ConditionBlock(nn.Module):
    """Residual block of the condition encoder; no time, no latent; it starts as the identity."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(hidden)))


class LatentMLP(nn.Module):
    """Scale a normal latent code to unit mean square and map it to the embedding of the normalisations."""

    def __init__(self, latent_dim: int, embedding_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [latent_dim] + [embedding_dim] * (num_layers + 1)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip(widths[:-1], widths[1:]))
        for layer in self.layers:
            initialise_layer(layer, "out")

    def forward(self, latent: Tensor) -> Tensor:
        latent = latent * torch.rsqrt(latent.square().mean(dim=1, keepdim=True) + 1e-8)
        for layer in self.layers:
            latent = F.silu(layer(latent))
        return latent
