"""The denoiser of MedSegDiff: an ADM U-Net that can be entered and left between its parts."""

from functools import partial
from typing import Callable, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_components.errors import InputError
from shared_components.networks.medsegdiff_blocks import (
    Downsample,
    GroupNorm32,
    ResidualBlock,
    SelfAttention,
    Step,
    TimeEmbedding,
    Upsample,
    check_base_width,
    check_counts,
    check_dropout,
    check_levels,
    check_timestep_scale,
)
from shared_components.networks.sizes import check_size

MAX_PARAMETERS = 2_000_000_000


def count_parameters(*builders: Callable[[], nn.Module]) -> int:
    """Count the parameters of what the builders return, without allocating any memory for them."""
    with torch.device("meta"):
        return sum(parameter.numel() for build in builders for parameter in build().parameters())


def refuse_huge(*builders: Callable[[], nn.Module]) -> None:
    """Refuse networks of more than 2e9 parameters altogether, before any memory is allocated.

    Raises:
        InputError: there are more.
    """
    total = count_parameters(*builders)
    if total > MAX_PARAMETERS:
        raise InputError(
            f"the network would have {total:,} parameters ({4e-9 * total:.1f} GB in float32, about five times that in "
            f"training), more than {MAX_PARAMETERS:,}: choose smaller channels, channel_mult or num_res_blocks, "
            "or pass allow_huge=True"
        )


class DownLevel(nn.Module):
    """The steps of one resolution, then the way to the next one; every result becomes a skip connection."""

    def __init__(self, steps: Sequence[Step], downsample: Optional[nn.Module]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.downsample = downsample

    def forward(self, x: Tensor, time: Tensor, skips: List[Tensor]) -> Tensor:
        for step in self.steps:
            x = step(x, time)
            skips.append(x)
        if self.downsample is not None:
            x = self.downsample(x, time)
            skips.append(x)
        return x


class UpLevel(nn.Module):
    """The steps of one resolution with one skip connection each, then the way to the next one."""

    def __init__(self, steps: Sequence[Step], upsample: Optional[nn.Module]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.upsample = upsample

    def forward(self, x: Tensor, time: Tensor, skips: List[Tensor]) -> Tensor:
        for step in self.steps:
            x = step(torch.cat([x, skips.pop()], dim=1), time)
        if self.upsample is not None:
            x = self.upsample(x, time)
        return x


class MedSegDiffUNet(nn.Module):
    """The denoising U-Net of MedSegDiff V1 and V2 (the same in both), without what conditions it.

    A new network returns exactly zero. It is fully convolutional: height and width are any multiples of
    ``downsampling``. Methods of its own embed the time, encode and decode, so that others can add to the stem's output
    or the last encoder output and read the encoder's features at every resolution.

    Departures from the published code: attention belongs to a downsampling factor; a factor without a level is refused;
    one flag checkpoints residual blocks and attention (published: attention always); class labels are optional.

    Args:
        in_channels: channels of the input, image and noisy mask together.
        out_channels: channels of the output, variance included.
        channels: base width C; every width must be a multiple of 32.
        channel_mult: multiplier of the base width per level, finest first.
        num_res_blocks: residual blocks per level on the way down; the way up has one more.
        attention_factors: downsampling factors (1, 2, 4, ...) whose levels have self-attention after each residual
            block; the middle always has it.
        num_heads: attention heads.
        num_heads_upsample: attention heads on the way up; ``num_heads`` when ``None``.
        num_head_channels: width of a head; sets the number of heads everywhere when given.
        use_scale_shift_norm: the time scales and shifts normalisations instead of being added.
        resblock_updown: residual blocks change the resolution, not convolutions.
        dropout: probability in the residual blocks.
        use_new_attention_order: see `SelfAttention`.
        num_classes: number of class labels; ``None``: no class conditioning.
        use_checkpoint: recompute residual blocks and attention in the backward pass: less memory, more time.
        num_bounded: outputs, from the first on, that a tanh bounds to [-1, 1]; not in the published code. For the mask
            channels of a network that predicts the clean mask.
        timestep_scale: factor of the timesteps before they are embedded.

    Raises:
        InputError: arguments do not fit together.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: int = 128,
        channel_mult: Sequence[int] = (1, 1, 2, 2, 4, 4),
        num_res_blocks: int = 2,
        attention_factors: Sequence[int] = (16,),
        num_heads: int = 1,
        num_heads_upsample: Optional[int] = None,
        num_head_channels: Optional[int] = None,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        dropout: float = 0.0,
        use_new_attention_order: bool = False,
        num_classes: Optional[int] = None,
        use_checkpoint: bool = False,
        num_bounded: int = 0,
        timestep_scale: float = 1.0,
    ) -> None:
        super().__init__()
        _check_arguments(channels, channel_mult, num_res_blocks, attention_factors)
        check_dropout(dropout)
        check_timestep_scale(timestep_scale)
        if num_classes is not None:
            check_counts(num_classes=num_classes)
        widths = [channels * multiplier for multiplier in channel_mult]
        attending = [2**level in attention_factors for level in range(len(widths))]
        residual = partial(
            ResidualBlock,
            time_channels=4 * channels,
            dropout=dropout,
            use_scale_shift_norm=use_scale_shift_norm,
        )
        up_heads = num_heads if num_heads_upsample is None else num_heads_upsample
        attention = partial(_make_attention, num_head_channels, use_new_attention_order)
        self.downsampling = 2 ** (len(widths) - 1)
        self.last_channels = widths[-1]
        self.num_bounded = num_bounded
        self.tap_stride = num_res_blocks + 1

        self.time_embedding = TimeEmbedding(channels, num_classes, timestep_scale)
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1)
        step = partial(_make_step, residual, partial(attention, num_heads), use_checkpoint)
        self.down_levels, skips = _build_down_levels(step, channels, widths, num_res_blocks, attending, resblock_updown)
        self.middle1 = step(widths[-1], widths[-1], attend=True)
        self.middle2 = step(widths[-1], widths[-1])
        step = partial(_make_step, residual, partial(attention, up_heads), use_checkpoint)
        self.up_levels = _build_up_levels(step, skips, widths, num_res_blocks, attending, resblock_updown)
        self.output_norm = GroupNorm32(widths[0])
        self.output_conv = nn.Conv2d(widths[0], out_channels, 3, padding=1)
        nn.init.zeros_(self.output_conv.weight)
        nn.init.zeros_(self.output_conv.bias)

    @torch.jit.ignore
    def tap_channels(self, count: int) -> List[int]:
        """Return the widths of the encoder's outputs after its first ``count`` downsamplings."""
        return [level.steps[-1].residual.conv2.out_channels for level in self.down_levels][:count]

    def encode(self, stem: Tensor, time: Tensor) -> List[Tensor]:
        """Run the way down and return its outputs, the stem's (B, C, H, W) first.

        Output ``k * tap_stride`` is that of the k-th downsampling: H / 2^k, W / 2^k.
        """
        x, skips = stem, [stem]
        for level in self.down_levels:
            x = level(x, time, skips)
        return skips

    def decode(self, x: Tensor, time: Tensor, skips: List[Tensor]) -> Tensor:
        """Run the middle and the way up to the output (B, out_channels, H, W), float32.

        Args:
            x: the last encoder output, or what has been made of it.
            time: what ``time_embedding`` returned.
            skips: what `encode` returned; left as it is.
        """
        remaining = skips[:]
        x = self.middle2(self.middle1(x, time), time)
        for level in self.up_levels:
            x = level(x, time, remaining)
        output = self.output_conv(F.silu(self.output_norm(x))).float()
        if self.num_bounded > 0:
            return torch.cat([output[:, : self.num_bounded].tanh(), output[:, self.num_bounded :]], dim=1)
        return output

    def forward(self, x: Tensor, timesteps: Tensor, class_labels: Optional[Tensor] = None) -> Tensor:
        """Return (B, out_channels, H, W), the first ``num_bounded`` channels in [-1, 1].

        Args:
            x: (B, in_channels, H, W) image and noisy mask; H and W multiples of ``downsampling``.
            timesteps: (B,) integers or fractions, before scaling.
            class_labels: (B,) int64, or nothing: then a network with classes works without one.

        Raises:
            ValueError: H or W does not fit, or labels are given to a network without classes.
        """
        check_size(x, self.downsampling)
        time = self.time_embedding(timesteps, class_labels)
        skips = self.encode(self.stem(x), time)
        return self.decode(skips[-1], time, skips)


def _make_attention(
    num_head_channels: Optional[int], use_new_attention_order: bool, num_heads: int, channels: int
) -> SelfAttention:
    if num_head_channels is not None:
        if num_head_channels < 1 or channels % num_head_channels:
            raise InputError(f"num_head_channels is {num_head_channels}: it must divide the feature width {channels}")
        num_heads = channels // num_head_channels
    return SelfAttention(channels, num_heads, use_new_attention_order)


def _make_step(
    residual: Callable[..., ResidualBlock],
    attention: Callable[[int], SelfAttention],
    use_checkpoint: bool,
    in_channels: int,
    out_channels: int,
    attend: bool = False,
    resample: str = "none",
) -> Step:
    block = residual(in_channels, out_channels, resample=resample)
    return Step(block, attention(out_channels) if attend else None, use_checkpoint)


def _build_down_levels(
    step: Callable[..., Step],
    channels: int,
    widths: Sequence[int],
    num_res_blocks: int,
    attending: Sequence[bool],
    resblock_updown: bool,
) -> Tuple[nn.ModuleList, List[int]]:
    """Return the way down and the widths of the skip connections, in the order they are made."""
    levels, skips = nn.ModuleList(), [channels]
    for index, width in enumerate(widths):
        steps = []
        for _ in range(num_res_blocks):
            steps.append(step(skips[-1], width, attend=attending[index]))
            skips.append(width)
        downsample: Optional[nn.Module] = None
        if index + 1 < len(widths):
            downsample = step(width, width, resample="down") if resblock_updown else Downsample(width)
            skips.append(width)
        levels.append(DownLevel(steps, downsample))
    return levels, skips


def _build_up_levels(
    step: Callable[..., Step],
    skips: Sequence[int],
    widths: Sequence[int],
    num_res_blocks: int,
    attending: Sequence[bool],
    resblock_updown: bool,
) -> nn.ModuleList:
    """Return the way up, coarsest level first, for skip connections of the given widths."""
    levels, skips, previous = nn.ModuleList(), list(skips), widths[-1]
    for index in reversed(range(len(widths))):
        width = widths[index]
        steps = []
        for _ in range(num_res_blocks + 1):
            steps.append(step(previous + skips.pop(), width, attend=attending[index]))
            previous = width
        upsample: Optional[nn.Module] = None
        if index > 0:
            upsample = step(width, width, resample="up") if resblock_updown else Upsample(width)
        levels.append(UpLevel(steps, upsample))
    return levels


def _check_arguments(
    channels: int, channel_mult: Sequence[int], num_res_blocks: int, attention_factors: Sequence[int]
) -> None:
    check_levels(channel_mult, 1)
    check_base_width(channels)
    check_counts(num_res_blocks=num_res_blocks)
    levels = [2**level for level in range(len(channel_mult))]
    if not isinstance(attention_factors, (list, tuple)):
        raise InputError(f"attention_factors is {attention_factors!r}: give a list such as [16], [] for none")
    for factor in attention_factors:
        if factor not in levels:
            choices = ", ".join(str(level) for level in levels)
            raise InputError(f"attention_factors: {factor} is the downsampling factor of no level ({choices})")
