"""The denoiser of cDAL: a conditional U-Net whose group normalisations are modulated by a random latent code.

Hejrati, Banerjee, Glide-Hurst, Dong: "Conditional diffusion model with spatial attention and latent embedding
for medical image segmentation", MICCAI 2024.
"""

import math
from functools import partial
from typing import Callable, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_components.errors import check_choice
from shared_components.networks.cdal_blocks import (
    ConditionBlock,
    LatentMLP,
    ResidualBlock,
    SelfAttention,
    count_groups,
)
from shared_components.networks.embeddings import sinusoidal_timestep_embedding
from shared_components.networks.fir import FIRStridedConv
from shared_components.networks.initialisation import NEAR_ZERO, initialise_layer
from shared_components.networks.sizes import check_size

OUTPUT_ACTIVATIONS = ("tanh", "softmax")


class DownStep(nn.Module):
    """One residual block of the down path and the attention after it, if its level has any."""

    def __init__(self, residual: ResidualBlock, attention: nn.Module) -> None:
        super().__init__()
        self.residual = residual
        self.attention = attention

    def forward(self, x: Tensor, time: Tensor, latent: Tensor) -> Tensor:
        return self.attention(self.residual(x, time, latent))


class DownLevel(nn.Module):
    """Residual blocks of one resolution, then the step to the next one, where the pyramid is fused in."""

    def __init__(self, steps: Sequence[DownStep], downsample: Optional[ResidualBlock], pyramid_channels: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.downsample = downsample
        self.pyramid: Optional[FIRStridedConv] = None
        if downsample is not None:
            self.pyramid = FIRStridedConv(pyramid_channels, downsample.conv1.out_channels)
            initialise_layer(self.pyramid.conv, "average")

    def forward(
        self, x: Tensor, pyramid: Tensor, time: Tensor, latent: Tensor, skips: List[Tensor]
    ) -> Tuple[Tensor, Tensor]:
        for step in self.steps:
            x = step(x, time, latent)
            skips.append(x)
        if self.downsample is not None and self.pyramid is not None:
            x = (self.pyramid(pyramid) + self.downsample(x, time, latent)) / math.sqrt(2.0)
            skips.append(x)
        return x, x


class UpLevel(nn.Module):
    """Residual blocks with one skip connection each, attention, then the step to the next resolution."""

    def __init__(
        self, blocks: Sequence[ResidualBlock], attention: nn.Module, upsample: Optional[ResidualBlock]
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attention = attention
        self.upsample = upsample

    def forward(self, x: Tensor, time: Tensor, latent: Tensor, skips: List[Tensor]) -> Tensor:
        for block in self.blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), time, latent)
        x = self.attention(x)
        if self.upsample is not None:
            x = self.upsample(x, time, latent)
        return x


class CDALGenerator(nn.Module):
    """Estimate the clean label map from a noisy one, the step, the image and a random latent code.

    A U-Net in the manner of denoising diffusion GANs. The image is encoded at full resolution and *added*
    to the first feature map, which is also the last skip connection; the noisy label map enters every
    resolution through a low-passed pyramid; the latent code modulates every group normalisation of the
    U-Net. The network is fully convolutional: it accepts any height and width that are multiples of
    ``2 ** (levels - 1)``.

    A new network returns almost zero for any input ("tanh" head).

    Departures from the published code: attention belongs to a level, not to a feature width in pixels, so
    that other sizes than the nominal one work; the condition's channels are an argument, not derived from
    the data set's name; the "softmax" head and the choice of normalisation groups in the condition encoder
    are new (published: "tanh", 32).

    Args:
        in_channels: channels C of the label map.
        condition_channels: channels K of the image.
        channels: feature width per level; the first one is also the width of the condition encoder.
        num_res_blocks: residual blocks per level on the down path; the up path has one more.
        attention_levels: per level, whether self-attention follows each residual block on the way down and
            the last one on the way up. The middle, between the two paths, always has it.
        num_condition_blocks: residual blocks of the condition encoder, at full resolution; may be 0.
        condition_norm_groups: normalisation groups in the condition encoder; must divide ``channels[0]``.
        latent_dim: length Z of the latent code.
        latent_embedding_dim: width of the latent embedding.
        num_latent_layers: hidden layers of the latent network, after its first one.
        output_activation: "tanh" (each channel by itself, as published) or "softmax" (``2 * softmax - 1``
            over the channels: exclusive classes for one-hot label maps coded in {-1, +1}).

    Raises:
        ValueError: the arguments do not fit together.
    """

    def __init__(
        self,
        in_channels: int,
        condition_channels: int,
        channels: Sequence[int] = (32, 64, 64, 64),
        num_res_blocks: int = 1,
        attention_levels: Sequence[bool] = (False, True, False, False),
        num_condition_blocks: int = 6,
        condition_norm_groups: int = 32,
        latent_dim: int = 50,
        latent_embedding_dim: int = 128,
        num_latent_layers: int = 3,
        output_activation: str = "tanh",
    ) -> None:
        super().__init__()
        _check_arguments(channels, attention_levels, num_res_blocks, condition_norm_groups)
        check_choice("output_activation", output_activation, OUTPUT_ACTIVATIONS)
        if output_activation == "softmax" and in_channels < 2:
            raise ValueError(f"in_channels is {in_channels}: the softmax head needs 2, background included")
        base, deepest, time_channels = channels[0], channels[-1], 4 * channels[0]
        block = partial(ResidualBlock, time_channels=time_channels, latent_embedding_dim=latent_embedding_dim)
        self.in_channels = in_channels
        self.latent_dim = latent_dim
        self.embedding_dim = base
        self.downsampling = 2 ** (len(channels) - 1)
        self.output_activation = output_activation

        # Registered in the order of the published checkpoints' tensors.
        self.time_embedding = nn.Sequential(
            nn.Linear(base, time_channels), nn.SiLU(), nn.Linear(time_channels, time_channels)
        )
        self.condition_conv = nn.Conv2d(condition_channels, base, 3, padding=1)
        self.condition_blocks = nn.ModuleList(
            ConditionBlock(base, condition_norm_groups) for _ in range(num_condition_blocks)
        )
        self.input_conv = nn.Conv2d(in_channels, base, 3, padding=1)
        self.down_levels, skips = _build_down_levels(block, in_channels, channels, num_res_blocks, attention_levels)
        self.middle_block1 = block(deepest, deepest)
        self.middle_attention = SelfAttention(deepest)
        self.middle_block2 = block(deepest, deepest)
        self.up_levels = _build_up_levels(block, skips, channels, num_res_blocks, attention_levels)
        self.output_norm = nn.GroupNorm(count_groups(base), base, eps=1e-6)
        self.output_conv = nn.Conv2d(base, in_channels, 3, padding=1)
        self.latent_embedding = LatentMLP(latent_dim, latent_embedding_dim, num_latent_layers)

        for layer in (self.time_embedding[0], self.time_embedding[2], self.input_conv):
            initialise_layer(layer, "average")
        initialise_layer(self.output_conv, "average", NEAR_ZERO)

    @torch.jit.export
    def encode_condition(self, condition: Tensor) -> List[Tensor]:
        """Features of the image, the same for every step: (B, K, H, W) to one tensor (B, channels[0], H, W)."""
        features = self.condition_conv(condition)
        for block in self.condition_blocks:
            features = block(features)
        return [features]

    @torch.jit.export
    def embed_latent(self, latent: Tensor) -> Tensor:
        """Embedding of the latent code, (B, latent_dim) standard normal to (B, latent_embedding_dim)."""
        return self.latent_embedding(latent)

    @torch.jit.export
    def logits(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        condition: Tensor,
        latent: Optional[Tensor] = None,
        condition_features: Optional[List[Tensor]] = None,
    ) -> Tensor:
        """What `forward` computes, before the output activation: (B, C, H, W), unbounded."""
        check_size(noisy, self.downsampling)
        if latent is None:
            latent = torch.zeros(noisy.shape[0], self.latent_dim, dtype=noisy.dtype, device=noisy.device)
        if condition_features is None:
            condition_features = self.encode_condition(condition)
        modulation = self.embed_latent(latent)
        embedding = sinusoidal_timestep_embedding(timesteps, self.embedding_dim).to(noisy.dtype)
        # Every block applies the same activation to the time embedding: once is enough.
        time = F.silu(self.time_embedding(embedding))

        x, pyramid = self.input_conv(noisy) + condition_features[0], noisy
        skips = [x]
        for level in self.down_levels:
            x, pyramid = level(x, pyramid, time, modulation, skips)
        x = self.middle_attention(self.middle_block1(x, time, modulation))
        x = self.middle_block2(x, time, modulation)
        for up_level in self.up_levels:
            x = up_level(x, time, modulation, skips)
        return self.output_conv(F.silu(self.output_norm(x)))

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        condition: Tensor,
        latent: Optional[Tensor] = None,
        condition_features: Optional[List[Tensor]] = None,
    ) -> Tensor:
        """Estimate the clean label map.

        Args:
            noisy: (B, C, H, W) noisy label map; H and W must be multiples of ``2 ** (levels - 1)``.
            timesteps: (B,) step indices, int64: the index of the *cleaner* member of the pair, 0 to T - 1.
            condition: (B, K, H, W) image in [-1, 1].
            latent: (B, latent_dim) standard normal code; ``None`` stands for zeros.
            condition_features: what `encode_condition` returned; ``condition`` is then not looked at.

        Returns:
            (B, C, H, W) in [-1, 1].

        Raises:
            ValueError: H or W is not a multiple of ``2 ** (levels - 1)``.
        """
        logits = self.logits(noisy, timesteps, condition, latent, condition_features)
        if self.output_activation == "softmax":
            return 2.0 * torch.softmax(logits, dim=1) - 1.0
        return torch.tanh(logits)


def _build_down_levels(
    block: Callable[..., ResidualBlock],
    in_channels: int,
    channels: Sequence[int],
    num_res_blocks: int,
    attention_levels: Sequence[bool],
) -> Tuple[nn.ModuleList, List[int]]:
    """Return the down path and the widths of the skip connections, in the order they are made."""
    levels, skips, pyramid = nn.ModuleList(), [channels[0]], in_channels
    for index, width in enumerate(channels):
        steps = []
        for _ in range(num_res_blocks):
            attention = SelfAttention(width) if attention_levels[index] else nn.Identity()
            steps.append(DownStep(block(skips[-1], width), attention))
            skips.append(width)
        is_last = index == len(channels) - 1
        levels.append(DownLevel(steps, None if is_last else block(width, width, resample="down"), pyramid))
        if not is_last:
            skips.append(width)
            pyramid = width
    return levels, skips


def _build_up_levels(
    block: Callable[..., ResidualBlock],
    skips: Sequence[int],
    channels: Sequence[int],
    num_res_blocks: int,
    attention_levels: Sequence[bool],
) -> nn.ModuleList:
    """Return the up path, coarsest level first, for skip connections of the given widths."""
    levels, skips, previous = nn.ModuleList(), list(skips), channels[-1]
    for index in reversed(range(len(channels))):
        width = channels[index]
        blocks = []
        for _ in range(num_res_blocks + 1):
            blocks.append(block(previous + skips.pop(), width))
            previous = width
        attention = SelfAttention(width) if attention_levels[index] else nn.Identity()
        levels.append(UpLevel(blocks, attention, block(width, width, resample="up") if index > 0 else None))
    return levels


def _check_arguments(
    channels: Sequence[int],
    attention_levels: Sequence[bool],
    num_res_blocks: int,
    condition_norm_groups: int,
) -> None:
    if not channels or len(channels) != len(attention_levels):
        raise ValueError(
            f"channels has {len(channels)} entries and attention_levels {len(attention_levels)}: "
            "give both one entry a level"
        )
    if num_res_blocks < 1:
        raise ValueError(f"num_res_blocks is {num_res_blocks}: it must be at least 1")
    if channels[0] % 2 or channels[0] % condition_norm_groups:
        raise ValueError(
            f"channels[0] is {channels[0]}: it must be even and a multiple of condition_norm_groups "
            f"({condition_norm_groups})"
        )
