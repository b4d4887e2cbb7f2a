"""A classifier of noisy images: the way down of the denoiser's U-Net, and a head."""

from functools import partial
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_components.errors import InputError, check_choice
from shared_components.networks.medsegdiff_blocks import GroupNorm32, ResidualBlock, SelfAttention, Step, TimeEmbedding

POOLS = ("attention", "average")


class EncoderClassifier(nn.Module):
    """Tell the class of an image at any noise level (Dhariwal and Nichol 2021), for classifier guidance.

    Residual blocks change the resolution; they are scaled and shifted by the timestep's embedding. With the defaults it
    is the published CDM's encoder at 128 pixels, 42,055,301 parameters. The ``average`` head takes images of any size.

    Args:
        in_channels: channels C of the images.
        num_classes: outputs. The published one has 5 for two classes; the others are never trained.
        image_size: height and width in pixels, for the ``attention`` head, whose table of positions fixes them.
        channels: base width; every width must be a multiple of 32.
        channel_mult: multiplier of the base width per level, finest first.
        num_res_blocks: residual blocks per level.
        attention_factors: downsampling factors whose levels have self-attention; the middle always has it.
        num_head_channels: width of an attention head.
        pool: head, one of `POOLS`.
        timestep_scale: factor of the timesteps before the embedding; as the denoiser's, if both share a schedule.

    Attributes:
        downsampling: sizes must be multiples of it.

    Raises:
        InputError: an unknown pool, or a size that does not divide.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        image_size: int = 128,
        channels: int = 128,
        channel_mult: Sequence[int] = (1, 1, 2, 3, 4),
        num_res_blocks: int = 2,
        attention_factors: Sequence[int] = (4, 8, 16),
        num_head_channels: int = 64,
        pool: str = "attention",
        timestep_scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_choice("pool", pool, POOLS)
        self.downsampling: int = 2 ** (len(channel_mult) - 1)
        if image_size % self.downsampling:
            raise InputError(f"image_size is {image_size}; expected a multiple of {self.downsampling}")
        self.num_classes = num_classes
        self.timestep_scale = timestep_scale
        self.time_embedding = TimeEmbedding(channels, timestep_scale=timestep_scale)
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1)
        residual = partial(ResidualBlock, time_channels=4 * channels, use_scale_shift_norm=True)
        self.steps, width = nn.ModuleList(), channels
        for level, multiplier in enumerate(channel_mult):
            attends = 2**level in attention_factors
            for _ in range(num_res_blocks):
                block = residual(width, channels * multiplier)
                width = channels * multiplier
                self.steps.append(Step(block, _attention(width, num_head_channels) if attends else None))
            if level + 1 < len(channel_mult):
                self.steps.append(Step(residual(width, width, resample="down")))
        self.middle1 = Step(residual(width, width), _attention(width, num_head_channels))
        self.middle2 = Step(residual(width, width))
        self.output_norm = GroupNorm32(width)
        self.head: nn.Module = AveragePool(width, num_classes)
        if pool == "attention":
            size = image_size // self.downsampling
            self.head = AttentionPool(size * size, width, num_head_channels, num_classes)

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Return logits (B, num_classes).

        Args:
            noisy: (B, C, H, W), sizes multiples of ``downsampling``.
            timesteps: (B,) int64 or float32; 0 for an image as it is.
        """
        time = self.time_embedding(timesteps)
        x = self.stem(noisy)
        for step in self.steps:
            x = step(x, time)
        x = self.middle2(self.middle1(x, time), time)
        return self.head(F.silu(self.output_norm(x))).float()


class AveragePool(nn.Module):
    """Mean over all positions and a linear layer: (B, F, H, W) to (B, outputs)."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean(dim=(2, 3)))


class AttentionPool(nn.Module):
    """Attention of all positions' mean to all positions (Radford et al. 2021): (B, F, H, W) to (B, outputs).

    The projection holds the queries of all heads, then all keys, then all values. So it is in guided diffusion's
    ``AttentionPool2d``, which the published classifier is built on, and other than in its attention blocks, where every
    head has its own query, key and value in turn (`SelfAttention`). The shapes of a published file, 3 F rows, fit both
    orders; no file with published values was at hand to tell them apart by its results.

    Args:
        positions: H * W.
        channels: F.
        num_head_channels: width of a head.
        outputs: width of the result.
    """

    def __init__(self, positions: int, channels: int, num_head_channels: int, outputs: int) -> None:
        super().__init__()
        self.num_head_channels = num_head_channels
        self.positional_embedding = nn.Parameter(torch.randn(channels, positions + 1) / channels**0.5)
        self.query_key_value = nn.Conv1d(channels, 3 * channels, 1)
        self.output = nn.Conv1d(channels, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)
        if tokens.shape[2] + 1 != self.positional_embedding.shape[1]:
            raise ValueError(
                f"the image has {tokens.shape[2]} positions at the head, the table "
                f"{self.positional_embedding.shape[1] - 1}: give images of image_size, or pool='average'"
            )
        tokens = torch.cat([tokens.mean(dim=2, keepdim=True), tokens], dim=2)
        projected = self.query_key_value(tokens + self.positional_embedding.to(tokens.dtype)).transpose(1, 2)
        query, key, value = projected.unflatten(2, (3, -1, self.num_head_channels)).permute(2, 0, 3, 1, 4)
        pooled = F.scaled_dot_product_attention(query[:, :, :1], key, value)
        return self.output(pooled.transpose(2, 3).flatten(1, 2))[:, :, 0]


def _attention(channels: int, num_head_channels: int) -> SelfAttention:
    if channels % num_head_channels:
        raise InputError(f"num_head_channels is {num_head_channels}: it must divide the feature width {channels}")
    return SelfAttention(channels, channels // num_head_channels)
