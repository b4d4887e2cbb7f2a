"""MedSegDiff as its paper describes it: separate encoders of image and noisy mask, one gating the other.

Wu, Fu, Fang, Zhang, Yang, Xiong, Liu, Xu: "MedSegDiff: Medical Image Segmentation with Diffusion Probabilistic
Model", arXiv 2211.00611. The published code is another network: see `shared_components.networks.medsegdiff`.
"""

from functools import partial
from typing import Any, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shared_components.errors import check_choice
from shared_components.networks.ff_parser import FFParser
from shared_components.networks.medsegdiff_blocks import (
    Downsample,
    GroupNorm32,
    ResidualBlock,
    TimeEmbedding,
    Upsample,
    check_base_width,
    check_counts,
    check_dropout,
    check_image_size,
    check_levels,
    check_timestep_scale,
)
from shared_components.networks.medsegdiff_unet import refuse_huge
from shared_components.networks.sizes import check_size

VARIANTS = {"S": (1, 1, 2, 2, 4), "B": (1, 1, 2, 2, 4, 4), "L": (1, 1, 2, 2, 4, 4, 4)}
FUSE_LEVELS = ("middle", "all")

STAGE_BLOCKS = (3, 4, 6, 3)
"""Residual blocks of the four stages, as in ResNet-34; the encoders share the last."""


class EncoderBlock(nn.Module):
    """Residual block without time: (B, in_channels, H, W) to (B, out_channels, H, W); it starts as its shortcut."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0, use_checkpoint: bool = False) -> None:
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.dropout = nn.Dropout(dropout)
        self.norm1 = GroupNorm32(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm32(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if self.use_checkpoint and torch.is_grad_enabled():
                return checkpoint(self._run, x, use_reentrant=False)
        return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(hidden))))


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of a map (B, C, H, W), position by position."""

    def forward(self, x: Tensor) -> Tensor:
        normalised = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return normalised.permute(0, 3, 1, 2)


class DynamicFusion(nn.Module):
    """Gate the image's features by the noisy mask's: ``LN(image) * LN(FF-Parser(mask)) * image``.

    The axes of the layer normalisation are not in the paper; here it is over the channels at each position.

    Args:
        channels: width C of both.
        grid: base grid of the FF-Parser.
        ff_init: its initialisation.
    """

    def __init__(self, channels: int, grid: int, ff_init: str) -> None:
        super().__init__()
        self.parser = FFParser(channels, grid, ff_init)
        self.image_norm = ChannelNorm(channels)
        self.mask_norm = ChannelNorm(channels)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return self.image_norm(image) * self.mask_norm(self.parser(mask)) * image


class DualLevel(nn.Module):
    """One resolution of both encoders: the way to it, residual blocks, and the fusion if there is one."""

    def __init__(self, image: nn.Module, mask: nn.Module, fusion: Optional[DynamicFusion]) -> None:
        super().__init__()
        self.image = image
        self.mask = mask
        self.fusion = fusion


class DecoderLevel(nn.Module):
    """Step up to one resolution, where the encoders' sum is concatenated, and residual blocks."""

    def __init__(
        self, in_channels: int, channels: int, time_channels: int, num_blocks: int, **block_options: Any
    ) -> None:
        super().__init__()
        self.upsample = Upsample(in_channels)
        widths = [in_channels + channels] + [channels] * num_blocks
        self.blocks = nn.ModuleList(
            ResidualBlock(i, o, time_channels, **block_options) for i, o in zip(widths[:-1], widths[1:])
        )

    def forward(self, x: Tensor, skip: Tensor, time: Tensor) -> Tensor:
        x = torch.cat([self.upsample(x, time), skip], dim=1)
        for block in self.blocks:
            x = block(x, time)
        return x


class MedSegDiffV1Paper(nn.Module):
    """Denoise a mask while looking at the image, through two encoders and a decoder.

    Both encoders have the first three stages of a ResNet-34 each and share the fourth, which reads their sum and the
    time. At the middle two of the four stages the image's features, multiplied by a gate made of themselves and of
    the noisy mask's, go on in the image's place. The decoder, which reads the time in every block, is given the sum
    of both encoders at each resolution. A new network returns exactly zero.

    The image's encoder up to its first fusion does not depend on the noisy mask or the step: that is what
    `encode_condition` computes once.

    What the paper leaves open, and what is done here: the four stages are the four coarsest resolutions (as in a
    ResNet-34, whose fourth stage has 5 downsamplings before it), finer ones have ``num_stem_blocks`` residual blocks;
    the encoders' blocks have no time; variance, where learned, is a second output per channel; the FF-Parser keeps
    half of the spectrum, which is all of it for real features, and may start as the identity.

    Args:
        in_channels: channels C of the mask.
        condition_channels: channels K of the image.
        image_size: height and width in pixels that the FF-Parser's weights belong to; a multiple of ``downsampling``.
            Other sizes work.
        channels: base width; a multiple of 32.
        variant: "S", "B" or "L": 4, 5 or 6 downsamplings, with the multipliers of `VARIANTS`. (The paper's "++" is L
            with more of what it does not state.)
        channel_mult: multipliers of the base width per resolution, finest first, in place of the variant's; at least 4.
        num_stem_blocks: residual blocks of each encoder at each resolution finer than the four stages.
        num_decoder_blocks: residual blocks of the decoder at each resolution.
        fuse_levels: "middle" (stages 2 and 3) or "all" (every resolution of the two encoders).
        ff_init: initialisation of the FF-Parser, "identity" or "reference" (see `FFParser`).
        learned_variance: whether the output has a variance head.
        timestep_scale: factor of the timesteps before they are embedded.
        num_classes: number of class labels; ``None``: no class conditioning.
        dropout: probability in the residual blocks.
        use_checkpoint: recompute residual blocks in the backward pass: less memory, more time.
        allow_huge: build networks of more than 2e9 parameters, too.

    Raises:
        InputError: the arguments do not fit together, or there would be more than 2e9 parameters.
    """

    def __init__(
        self,
        in_channels: int = 1,
        condition_channels: int = 3,
        image_size: int = 256,
        channels: int = 128,
        variant: str = "B",
        channel_mult: Optional[Sequence[int]] = None,
        num_stem_blocks: int = 1,
        num_decoder_blocks: int = 2,
        fuse_levels: str = "middle",
        ff_init: str = "identity",
        learned_variance: bool = True,
        timestep_scale: float = 1.0,
        num_classes: Optional[int] = None,
        dropout: float = 0.0,
        use_checkpoint: bool = False,
        allow_huge: bool = False,
    ) -> None:
        super().__init__()
        if not allow_huge:
            arguments = (in_channels, condition_channels, image_size, channels, variant, channel_mult, num_stem_blocks)
            arguments += (num_decoder_blocks, fuse_levels, ff_init, learned_variance, timestep_scale, num_classes)
            refuse_huge(partial(MedSegDiffV1Paper, *arguments, dropout=dropout, allow_huge=True))
        counts = {"in_channels": in_channels, "condition_channels": condition_channels}
        counts.update(num_stem_blocks=num_stem_blocks, num_decoder_blocks=num_decoder_blocks)
        widths = _level_widths(channels, variant, channel_mult)
        check_timestep_scale(timestep_scale)
        check_dropout(dropout)
        if num_classes is not None:
            counts["num_classes"] = num_classes
        block_options = {"dropout": dropout, "use_checkpoint": use_checkpoint}
        dual_levels = len(widths) - 1
        _check_arguments(image_size, 2**dual_levels, fuse_levels, **counts)
        self.in_channels = in_channels
        self.latent_dim = 0
        self.downsampling = 2**dual_levels
        self.learned_variance = learned_variance
        self.calibrated = False
        self.first_fused = 0 if fuse_levels == "all" else dual_levels - 2

        blocks = [num_stem_blocks] * (len(widths) - len(STAGE_BLOCKS)) + list(STAGE_BLOCKS)
        self.levels = nn.ModuleList()
        for index in range(dual_levels):
            fusion: Optional[DynamicFusion] = None
            if index >= self.first_fused:
                fusion = DynamicFusion(widths[index], image_size // 2**index, ff_init)
            encoders = [
                _encoder_level(inputs, widths, index, blocks[index], **block_options)
                for inputs in (condition_channels, in_channels)
            ]
            self.levels.append(DualLevel(encoders[0], encoders[1], fusion))

        time_channels, (shallow, deep) = 4 * channels, widths[-2:]
        self.time_embedding = TimeEmbedding(channels, num_classes, timestep_scale)
        self.time_projection = nn.Linear(time_channels, shallow)
        self.downsample = Downsample(shallow)
        shared = [shallow] + [deep] * blocks[-1]
        self.shared = nn.ModuleList(
            ResidualBlock(i, o, time_channels, **block_options) for i, o in zip(shared[:-1], shared[1:])
        )
        self.decoder = nn.ModuleList(
            DecoderLevel(widths[index + 1], widths[index], time_channels, num_decoder_blocks, **block_options)
            for index in reversed(range(dual_levels))
        )
        self.output_norm = GroupNorm32(widths[0])
        self.output_conv = nn.Conv2d(widths[0], in_channels * (2 if learned_variance else 1), 3, padding=1)
        nn.init.zeros_(self.output_conv.weight)
        nn.init.zeros_(self.output_conv.bias)

    @torch.jit.export
    def encode_condition(self, condition: Tensor) -> List[Tensor]:
        """Return the image's features at every resolution up to the first fused one, before the fusion.

        Args:
            condition: (B, K, H, W) image.

        Returns:
            (B, width, H / 2^i, W / 2^i) each, finest first.
        """
        features: List[Tensor] = []
        for index, level in enumerate(self.levels):
            if index <= self.first_fused:
                condition = level.image(condition)
                features.append(condition)
        return features

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        condition: Tensor,
        latent: Optional[Tensor] = None,
        condition_features: Optional[List[Tensor]] = None,
        class_labels: Optional[Tensor] = None,
    ) -> Tensor:
        """Predict what the noisy mask is made of.

        Args:
            noisy: (B, C, H, W) noisy mask; H and W must be multiples of ``downsampling``.
            timesteps: (B,) steps, integers or fractions, before scaling.
            condition: (B, K, H, W) image.
            latent: not looked at; there is none.
            condition_features: what `encode_condition` returned; ``condition`` is then not looked at.
            class_labels: (B,) int64; a network with ``num_classes`` works without them, too.

        Returns:
            (B, C, H, W) prediction, then as many channels of the variance head if there is one; unbounded, float32.

        Raises:
            ValueError: H or W is not a multiple of ``downsampling``, or labels are given to a network without classes.
        """
        check_size(noisy, self.downsampling)
        if condition_features is None:
            condition_features = self.encode_condition(condition)
        time = self.time_embedding(timesteps, class_labels)
        skips = self._encode(noisy, condition_features)
        x = self.downsample(skips[-1] + self.time_projection(time)[:, :, None, None], time)
        for block in self.shared:
            x = block(x, time)
        for level in self.decoder:
            x = level(x, skips.pop(), time)
        return self.output_conv(F.silu(self.output_norm(x))).float()

    def _encode(self, noisy: Tensor, condition_features: List[Tensor]) -> List[Tensor]:
        """Return the sum of both encoders at each resolution, finest first."""
        image, mask = condition_features[0], noisy
        sums: List[Tensor] = []
        for index, level in enumerate(self.levels):
            mask = level.mask(mask)
            image = condition_features[index] if index <= self.first_fused else level.image(image)
            if level.fusion is not None:
                image = level.fusion(image, mask)
            sums.append(image + mask)
        return sums


def _encoder_level(
    in_channels: int, widths: Sequence[int], index: int, num_blocks: int, **block_options: Any
) -> nn.Sequential:
    """Return the way to a resolution, a convolution, and the residual blocks there."""
    first = widths[max(index - 1, 0)]
    entry = nn.Conv2d(in_channels if index == 0 else first, first, 3, stride=1 if index == 0 else 2, padding=1)
    inputs = [first] + [widths[index]] * (num_blocks - 1)
    return nn.Sequential(entry, *(EncoderBlock(width, widths[index], **block_options) for width in inputs))


def _level_widths(channels: int, variant: str, channel_mult: Optional[Sequence[int]]) -> Tuple[int, ...]:
    if channel_mult is None:
        check_choice("variant", variant, VARIANTS)
        channel_mult = VARIANTS[variant]
    check_levels(channel_mult, len(STAGE_BLOCKS))
    check_base_width(channels)
    return tuple(channels * multiplier for multiplier in channel_mult)


def _check_arguments(image_size: int, downsampling: int, fuse_levels: str, **counts: int) -> None:
    check_image_size(image_size, downsampling)
    check_counts(**counts)
    check_choice("fuse_levels", fuse_levels, FUSE_LEVELS)
