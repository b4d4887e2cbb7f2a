"""The discriminator of cDAL: tells real from generated noisy label maps; its features make the attention.

Hejrati, Banerjee, Glide-Hurst, Dong: "Conditional diffusion model with spatial attention and latent embedding
for medical image segmentation", MICCAI 2024.
"""

import math
from typing import Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_components.errors import check_choice
from shared_components.networks.embeddings import sinusoidal_timestep_embedding
from shared_components.networks.fir import FIRDownsample
from shared_components.networks.initialisation import NEAR_ZERO, initialise_layer

INITIALISATIONS = ("fan_out", "normal")


def leaky_relu(x: Tensor) -> Tensor:
    """The activation of the discriminator: slope 0.2 below zero."""
    return F.leaky_relu(x, negative_slope=0.2)


class DownBlock(nn.Module):
    """Residual block with time modulation and no normalisation, optionally halving the resolution."""

    def __init__(self, in_channels: int, out_channels: int, time_channels: int, downsample: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.time_projection = nn.Linear(time_channels, out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.downsample_hidden: nn.Module = FIRDownsample(out_channels) if downsample else nn.Identity()
        self.downsample_input: nn.Module = FIRDownsample(in_channels) if downsample else nn.Identity()
        for layer in (self.conv1, self.time_projection, self.shortcut):
            initialise_layer(layer, "out")
        initialise_layer(self.conv2, "out", NEAR_ZERO)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = self.conv1(leaky_relu(x)) + self.time_projection(time)[:, :, None, None]
        hidden = self.conv2(self.downsample_hidden(leaky_relu(hidden)))
        return (hidden + self.shortcut(self.downsample_input(x))) / math.sqrt(2.0)


def append_minibatch_std(x: Tensor) -> Tensor:
    """Append one channel that holds how much the samples of a group differ: (B, C, H, W) to (B, C + 1, H, W).

    A group has g samples, the largest divisor of B up to 4 (the published code fails where that is neither 4
    nor B), taken at a stride: sample i belongs to group ``i % (B // g)``. The channel is the group's standard
    deviation (population), averaged over all features; it is constant in space.
    """
    batch = x.shape[0]
    size = 4
    while batch % size != 0:
        size -= 1
    groups = x.reshape(size, batch // size, -1)
    deviation = torch.sqrt(groups.var(dim=0, unbiased=False) + 1e-8).mean(dim=1)
    channel = deviation.repeat(size)[:, None, None, None].expand(batch, 1, x.shape[2], x.shape[3])
    return torch.cat([x, channel], dim=1)


class CDALDiscriminator(nn.Module):
    """Judge whether a label map, noised to one step, is real, given its noisier successor and the step.

    Args:
        in_channels: channels C of one label map; the network sees two of them.
        channels: width of the stem, then of each block.
        downsample: per block, whether it halves the resolution.
        time_embedding_dim: width of the time embedding.
        condition_channels: channels of an image to look at as well; 0 as published, where none is shown.
        initialisation: "fan_out" (as published for 32 x 32 maps: variance scaling by fan-out, second
            convolutions and the last one almost zero, so that logits start at 0) or "normal" (as published
            for 256 x 256 maps: every convolution weight is redrawn from N(0, 0.02^2); logits start far from
            0).

    Raises:
        ValueError: the arguments do not fit together.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int] = (128, 128, 256, 512, 512),
        downsample: Sequence[bool] = (False, True, True, True),
        time_embedding_dim: int = 128,
        condition_channels: int = 0,
        initialisation: str = "fan_out",
    ) -> None:
        super().__init__()
        if len(channels) != len(downsample) + 1:
            raise ValueError(
                f"channels has {len(channels)} entries and downsample {len(downsample)}: "
                "channels needs one for the stem and one for each entry of downsample"
            )
        check_choice("initialisation", initialisation, INITIALISATIONS)
        self.condition_channels = condition_channels
        self.time_embedding_dim = time_embedding_dim
        self.time_embedding = nn.Sequential(
            nn.Linear(time_embedding_dim, time_embedding_dim),
            nn.LeakyReLU(0.2),
            nn.Linear(time_embedding_dim, time_embedding_dim),
            nn.LeakyReLU(0.2),
        )
        self.stem = nn.Conv2d(2 * in_channels + condition_channels, channels[0], 1)
        self.blocks = nn.ModuleList(
            DownBlock(narrow, wide, time_embedding_dim, down)
            for narrow, wide, down in zip(channels[:-1], channels[1:], downsample)
        )
        self.final_conv = nn.Conv2d(channels[-1] + 1, channels[-1], 3, padding=1)
        self.final_linear = nn.Linear(channels[-1], 1)

        for layer in (self.time_embedding[0], self.time_embedding[2], self.stem, self.final_linear):
            initialise_layer(layer, "out")
        initialise_layer(self.final_conv, "out", NEAR_ZERO)
        if initialisation == "normal":
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.normal_(module.weight, std=0.02)

    @torch.jit.export
    def features(
        self,
        label: Tensor,
        timesteps: Tensor,
        noisy: Tensor,
        condition: Optional[Tensor] = None,
        level: int = -1,
    ) -> Tensor:
        """Return the features of one level, and compute no more than they need.

        Args:
            label: (B, C, H, W) label map to judge, noised to step t.
            timesteps: (B,) step indices t, int64.
            noisy: (B, C, H, W) its noisier successor, at step t + 1.
            condition: (B, condition_channels, H, W) image; needed where the network has condition channels.
            level: 0 is the stem's output, l that of the l-th block; -1 is the last one.

        Returns:
            (B, channels[level], h, w); h and w are H and W, halved by each downsampling block up to the
            level.

        Raises:
            ValueError: there is no such level, or the condition is missing.
        """
        if level < -1 or level > len(self.blocks):
            raise ValueError(f"level is {level}: the discriminator has levels 0 to {len(self.blocks)}")
        x = torch.cat([label, noisy], dim=1)
        if self.condition_channels > 0:
            if condition is None:
                raise ValueError(f"the image of {self.condition_channels} condition channels is missing")
            x = torch.cat([x, condition], dim=1)
        embedding = sinusoidal_timestep_embedding(timesteps, self.time_embedding_dim).to(label.dtype)
        time = self.time_embedding(embedding)
        x = self.stem(x)
        for index, block in enumerate(self.blocks):
            if level == -1 or index < level:
                x = block(x, time)
        return x

    def forward(self, label: Tensor, timesteps: Tensor, noisy: Tensor, condition: Optional[Tensor] = None) -> Tensor:
        """Return the logit of "real", (B, 1); arguments as for `features`."""
        x = append_minibatch_std(self.features(label, timesteps, noisy, condition, -1))
        x = leaky_relu(self.final_conv(x))
        return self.final_linear(x.sum(dim=(2, 3)))
