"""Building blocks of the MedSegDiff denoiser: those of the ablated diffusion model (ADM) U-Net."""

from typing import Optional, Sequence

import torch
import torch.nn.functional as F
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shared_components.errors import InputError, check_count

NORM_GROUPS = 32


class GroupNorm32(nn.GroupNorm):
    """Group normalisation in 32 groups, computed in float32 whatever the precision of its input."""

    def __init__(self, channels: int) -> None:
        if channels % NORM_GROUPS:
            raise InputError(
                f"a feature width of {channels} cannot be normalised in {NORM_GROUPS} groups: "
                f"choose channels and channel_mult so that every width is a multiple of {NORM_GROUPS}"
            )
        super().__init__(NORM_GROUPS, channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        normalised = F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps)
        return normalised.to(x.dtype)


class LabelEmbedding(nn.Embedding):
    """An embedding of class labels (B,) int64, to which -1, "not known", is zero."""

    def forward(self, labels: Tensor) -> Tensor:
        embedded = F.embedding(labels.clamp(min=0), self.weight)
        return embedded * (labels >= 0).to(embedded.dtype).unsqueeze(1)


class TimeEmbedding(nn.Module):
    """Embed timesteps, and class labels where there are any (-1: not known): (B,) to (B, 4 * channels).

    Cosines, then sines, of frequencies ``10000 ** (-i / (channels / 2))``, and two linear layers. What is returned
    has gone through the activation that every residual block would apply to it: once is enough.

    Args:
        channels: base width of the network; even.
        num_classes: number of class labels; ``None``: the network is not conditioned on a class.
        timestep_scale: factor of the timesteps before they are embedded; 1000 / T shows a network that is trained
            with T steps the range it would see with 1000. Being part of the network, it is the same in training and
            sampling (the published code rescales in sampling alone).
    """

    def __init__(self, channels: int, num_classes: Optional[int] = None, timestep_scale: float = 1.0) -> None:
        super().__init__()
        self.embedding_dim = channels
        self.timestep_scale = timestep_scale
        self.linear1 = nn.Linear(channels, 4 * channels)
        self.linear2 = nn.Linear(4 * channels, 4 * channels)
        labels = None
        if num_classes is not None:
            # as nn.Embedding starts, but cheap on the meta device, too
            labels = LabelEmbedding(num_classes, 4 * channels, _weight=torch.randn(num_classes, 4 * channels))
        self.label_embedding = labels

    def forward(self, timesteps: Tensor, class_labels: Optional[Tensor] = None) -> Tensor:
        embedding = get_timestep_embedding(timesteps.float() * self.timestep_scale, self.embedding_dim)
        embedding = self.linear2(F.silu(self.linear1(embedding.to(self.linear1.weight.dtype))))
        if class_labels is not None:
            if self.label_embedding is None:
                raise ValueError("class_labels are given to a network without classes: build it with num_classes")
            embedding = embedding + self.label_embedding(class_labels)
        return F.silu(embedding)


class ResidualBlock(nn.Module):
    """Residual block with time modulation: (B, in_channels, H, W) to (B, out_channels, H', W').

    The last convolution starts at zero, so a new block is its shortcut.

    Args:
        in_channels: width of the input; a multiple of 32.
        out_channels: width of the output; a multiple of 32.
        time_channels: width of the (activated) time embedding.
        dropout: probability in front of the last convolution.
        use_scale_shift_norm: the time scales and shifts the second normalisation instead of being added before it.
        resample: "none", "down" (average) or "up" (nearest neighbour), by two, after the first activation and on
            the shortcut.
        use_checkpoint: recompute the block in the backward pass; for blocks outside a `Step`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_channels: int,
        dropout: float = 0.0,
        use_scale_shift_norm: bool = False,
        resample: str = "none",
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.use_scale_shift_norm = use_scale_shift_norm
        self.norm1 = GroupNorm32(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_projection = nn.Linear(time_channels, out_channels * (2 if use_scale_shift_norm else 1))
        self.norm2 = GroupNorm32(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1)
        self.resample: nn.Module = nn.Identity()
        if resample == "down":
            self.resample = nn.AvgPool2d(2)
        elif resample == "up":
            self.resample = nn.Upsample(scale_factor=2.0, mode="nearest")
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if self.use_checkpoint and torch.is_grad_enabled():
                return checkpoint(self._run, x, time, use_reentrant=False)
        return self._run(x, time)

    def _run(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = self.conv1(self.resample(F.silu(self.norm1(x))))
        modulation = self.time_projection(time)[:, :, None, None]
        if self.use_scale_shift_norm:
            scale, shift = modulation.chunk(2, dim=1)
            hidden = self.norm2(hidden) * (1 + scale) + shift
        else:
            hidden = self.norm2(hidden + modulation)
        return self.shortcut(self.resample(x)) + self.conv2(self.dropout(F.silu(hidden)))


class SelfAttention(nn.Module):
    """Multi-head attention among all positions of a map, with a residual sum: (B, C, H, W) to the same.

    The output projection starts at zero. The softmax is taken in float32 in any precision.

    Args:
        channels: width C; a multiple of 32 and of ``num_heads``.
        num_heads: attention heads.
        use_new_attention_order: whether the 3 C channels of the projection are queries, keys, values of all heads
            in turn; otherwise every head's query, key and value lie side by side.
    """

    def __init__(self, channels: int, num_heads: int = 1, use_new_attention_order: bool = False) -> None:
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            raise InputError(
                f"a feature width of {channels} cannot be shared by {num_heads} attention heads: "
                "choose num_heads or num_head_channels that divide it"
            )
        self.num_heads = num_heads
        self.use_new_attention_order = use_new_attention_order
        self.norm = GroupNorm32(channels)
        self.query_key_value = nn.Conv1d(channels, 3 * channels, 1)
        self.output = nn.Conv1d(channels, channels, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[0], x.shape[1]
        projected = self.query_key_value(self.norm(x).flatten(2)).transpose(1, 2)
        width = channels // self.num_heads
        if self.use_new_attention_order:
            projected = projected.reshape(batch, -1, 3, self.num_heads, width).permute(2, 0, 3, 1, 4)
        else:
            projected = projected.reshape(batch, -1, self.num_heads, 3, width).permute(3, 0, 2, 1, 4)
        attended = F.scaled_dot_product_attention(projected[0], projected[1], projected[2])
        attended = attended.transpose(2, 3).reshape(batch, channels, -1)
        return x + self.output(attended).reshape(x.shape)


class Step(nn.Module):
    """A residual block and the attention after it, if its level has any.

    Args:
        residual: the residual block.
        attention: `SelfAttention`, or nothing.
        use_checkpoint: recompute both in the backward pass instead of keeping what they computed.
    """

    def __init__(
        self, residual: ResidualBlock, attention: Optional[SelfAttention] = None, use_checkpoint: bool = False
    ) -> None:
        super().__init__()
        self.residual = residual
        self.attention: nn.Module = nn.Identity() if attention is None else attention
        self.use_checkpoint = use_checkpoint

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if self.use_checkpoint and torch.is_grad_enabled():
                return checkpoint(self._run, x, time, use_reentrant=False)
        return self._run(x, time)

    def _run(self, x: Tensor, time: Tensor) -> Tensor:
        return self.attention(self.residual(x, time))


class Downsample(nn.Module):
    """Halve a map by a strided convolution; the time is not looked at."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Double a map by its nearest neighbours and a convolution; the time is not looked at."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def check_counts(**counts: int) -> None:
    """Raise InputError unless every value is a whole number of at least 1."""
    for name, value in counts.items():
        check_count(name, value)


def check_levels(channel_mult: Sequence[int], minimum: int) -> None:
    """Raise InputError unless ``channel_mult`` holds a positive whole number for each of enough levels."""
    listed = isinstance(channel_mult, (list, tuple))
    if not listed or not channel_mult or any(type(m) is not int or m < 1 for m in channel_mult):
        raise InputError(f"channel_mult is {channel_mult!r}: give one positive whole number a level")
    if len(channel_mult) < minimum:
        raise InputError(f"channel_mult has {len(channel_mult)} entries: this network needs {minimum} levels or more")


def check_base_width(channels: int) -> None:
    """Raise InputError unless ``channels`` can be normalised in groups."""
    if type(channels) is not int or channels < 1 or channels % NORM_GROUPS:
        raise InputError(f"channels is {channels!r}: it must be a positive multiple of {NORM_GROUPS}, a whole number")


def check_timestep_scale(timestep_scale: float) -> None:
    """Raise InputError unless timesteps stay apart when multiplied by ``timestep_scale``."""
    if type(timestep_scale) not in (int, float) or not timestep_scale > 0:
        raise InputError(f"timestep_scale is {timestep_scale!r}: it must be a positive number, 1000 / T or 1")


def check_dropout(dropout: float) -> None:
    """Raise InputError unless ``dropout`` is a probability that leaves something."""
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise InputError(f"dropout is {dropout!r}: it must be at least 0 and less than 1")


def check_image_size(image_size: int, multiple: int) -> None:
    """Raise InputError unless ``image_size`` is a number of pixels that the levels of a network can halve."""
    if type(image_size) is not int or image_size < 1 or image_size % multiple:
        raise InputError(f"image_size is {image_size!r}: it must be a positive multiple of {multiple}, a whole number")
