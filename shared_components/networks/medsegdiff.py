"""The denoisers of MedSegDiff V1 and V2, as their published code has them, repaired.

Wu et al.: "MedSegDiff: Medical Image Segmentation with Diffusion Probabilistic Model" (V1) and "MedSegDiff-V2:
Diffusion-Based Medical Image Segmentation with Transformer", AAAI 2024 (V2). The published code is not what the papers
describe: in both versions a U-Net on image and noisy mask has an ordinary U-Net, the highway, at its side.
"""

from functools import partial
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_components.networks.ff_parser import SpectralGate
from shared_components.networks.highway import Highway, initialise_he
from shared_components.networks.medsegdiff_blocks import check_counts, check_image_size, check_levels
from shared_components.networks.medsegdiff_unet import MedSegDiffUNet, refuse_huge
from shared_components.networks.sizes import check_size

MAX_TAPS = 4


class MedSegDiffV1(nn.Module):
    """Predict the noise of a noisy mask, its variance and a calibration map: MedSegDiff V1.

    A U-Net denoises the mask, looking at the image. The highway segments the image; the pooled outputs of its first
    stages are multiplied by gates made of the U-Net's features (`SpectralGate`), so what it sees depends on the noisy
    mask and the timestep. Its bottleneck is added to what the U-Net's encoder hands to the middle.

    Prediction and variance of a new network are exactly zero.

    Departures from the published code: all projections between the branches are registered, so that they train and are
    saved (published: some or all are drawn anew in every call); where they attach and how wide they are follows from
    the architecture, so any width, size, depth and number of channels works; the filters serve any size; ``bounded``
    gates, the highway's options, several mask channels and ``learned_variance=False`` are new.

    Args:
        in_channels: channels C of the mask.
        condition_channels: channels K of the image.
        image_size: size in pixels that the filters' base grids belong to, a multiple of ``2 ** (levels - 1)``; for
            other sizes the filters are interpolated.
        channels: base width of the U-Net.
        channel_mult: multiplier of the base width per level of the U-Net; three levels or more.
        num_res_blocks: residual blocks per level on the U-Net's way down.
        attention_factors: downsampling factors of the levels with self-attention.
        timestep_scale: factor of the timesteps before they are embedded; 1000 / T for ``rescale_timesteps``.
        learned_variance: whether the U-Net has a second head for the variance.
        highway_channels: base width of the `Highway`, which has one pooling for each downsampling of the U-Net.
        highway_dropout: probability that a channel of the highway's encoder is dropped.
        highway_norm: ``batch``, ``syncbatch``, ``instance`` or ``group``.
        gate: ``reference`` or ``bounded``, see `SpectralGate`.
        ff_init: ``reference`` or ``identity``, see `FFParser`.
        allow_huge: build networks of more than 2e9 parameters, too.
        **unet_options: further arguments of `MedSegDiffUNet`: ``num_heads``, ``num_heads_upsample``,
            ``num_head_channels``, ``use_scale_shift_norm``, ``resblock_updown``, ``dropout``,
            ``use_new_attention_order``, ``num_classes``, ``use_checkpoint``, ``num_bounded``.

    Raises:
        InputError: arguments do not fit together, or there would be more than 2e9 parameters.
    """

    def __init__(
        self,
        in_channels: int = 1,
        condition_channels: int = 3,
        image_size: int = 256,
        channels: int = 128,
        channel_mult: Sequence[int] = (1, 1, 2, 2, 4, 4),
        num_res_blocks: int = 2,
        attention_factors: Sequence[int] = (16,),
        timestep_scale: float = 1.0,
        learned_variance: bool = True,
        highway_channels: int = 32,
        highway_dropout: float = 0.5,
        highway_norm: str = "batch",
        gate: str = "reference",
        ff_init: str = "reference",
        allow_huge: bool = False,
        **unet_options: Any,
    ) -> None:
        super().__init__()
        check_levels(channel_mult, 3)
        multiple = 2 ** (len(channel_mult) - 1)
        check_image_size(image_size, multiple)
        unet_options.update(channels=channels, channel_mult=channel_mult, num_res_blocks=num_res_blocks)
        unet_options.update(attention_factors=attention_factors, timestep_scale=timestep_scale)
        highway_options = {"channels": highway_channels, "dropout": highway_dropout, "norm": highway_norm}
        self.in_channels = in_channels
        self.latent_dim = 0
        self.learned_variance = learned_variance
        self.calibrated = True
        self.unet, self.highway = _build_branches(
            in_channels, condition_channels, learned_variance, unet_options, highway_options, allow_huge
        )
        self.downsampling: int = self.unet.downsampling
        self.tap_stride: int = self.unet.tap_stride
        widths = self.highway.widths
        taps = self.unet.tap_channels(min(MAX_TAPS, len(widths) - 1))
        self.gates = nn.ModuleList(
            SpectralGate(tap, widths[depth], image_size // 2 ** (depth + 1), ff_init, gate)
            for depth, tap in enumerate(taps)
        )
        self.bottleneck_projection = nn.Conv2d(widths[-1], self.unet.last_channels, 1)
        self.gates.apply(initialise_he)
        self.bottleneck_projection.apply(initialise_he)

    @torch.jit.export
    def encode_condition(self, condition: Tensor) -> List[Tensor]:
        """Return what depends on the image (B, K, H, W) alone: [the highway's first stage (B, b, H, W)]."""
        return [self.highway.encode_first(condition)]

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        condition: Tensor,
        latent: Optional[Tensor] = None,
        condition_features: Optional[List[Tensor]] = None,
        class_labels: Optional[Tensor] = None,
    ) -> Tensor:
        """Predict the noise, its variance and the calibration map.

        Args:
            noisy: (B, C, H, W) noisy mask; H and W must be multiples of ``downsampling``.
            timesteps: (B,) steps, 0 to T - 1, int64 or fractions.
            condition: (B, K, H, W) image.
            latent: not used.
            condition_features: what `encode_condition` returned for the condition.
            class_labels: (B,) int64; a network with ``num_classes`` works without them, too.

        Returns:
            (B, N, H, W) float32: the prediction (C channels, unbounded), with ``learned_variance`` the variance head
            (C, unbounded), the calibration map (C, in (0, 1)).

        Raises:
            ValueError: H or W is no multiple of ``downsampling``, or labels are given to a network without classes.
        """
        check_size(noisy, self.downsampling)
        features = self.encode_condition(condition) if condition_features is None else condition_features
        time = self.unet.time_embedding(timesteps, class_labels)
        encoded = self.unet.encode(self.unet.stem(torch.cat([condition, noisy], dim=1)), time)
        factors: List[Tensor] = []
        for index, gate in enumerate(self.gates):
            factors.append(gate(encoded[(index + 1) * self.tap_stride]))
        bottleneck, skips = self.highway.encode(features[0], factors)
        calibration = self.highway.calibrate(self.highway.decode(bottleneck, skips)[0])
        output = self.unet.decode(encoded[-1] + self.bottleneck_projection(bottleneck), time, encoded)
        return torch.cat([output, calibration], dim=1)


class MedSegDiffV2(nn.Module):
    """Predict the noise of a noisy mask, its variance and a calibration map: MedSegDiff V2 as coded.

    The highway segments the image and sees nothing else. Two of its decoder's outputs, the anchors, are added to the
    first feature map of the denoising U-Net; they pass no gradient back. So calibration map and anchors are the same
    for every step and every member, and the highway learns from the calibration loss alone. (The transformer and the
    spectral filters of the paper are not in the published code.)

    Prediction and variance of a new network are exactly zero.

    Departures from the published code: only the two anchors that are used are computed; where their channels,
    ``4 * highway_channels``, are not the base width, a 1x1 convolution maps them to it (published: a width of 128
    only); the highway's options, several mask channels and ``learned_variance=False`` are new.

    Args:
        in_channels: channels C of the mask.
        condition_channels: channels K of the image.
        channels: base width of the U-Net.
        channel_mult: multiplier of the base width per level of the U-Net; four levels or more.
        num_res_blocks: residual blocks per level on the U-Net's way down.
        attention_factors: downsampling factors of the levels with self-attention.
        timestep_scale: factor of the timesteps before they are embedded; 1000 / T for ``rescale_timesteps``.
        learned_variance: whether the U-Net has a second head for the variance.
        highway_channels: base width of the `Highway`, which has one pooling for each downsampling of the U-Net.
        highway_dropout: probability that a channel of the highway's encoder is dropped.
        highway_norm: ``batch``, ``syncbatch``, ``instance`` or ``group``.
        highway_poolings: poolings of the highway, 2 or more; one for each downsampling of the U-Net when ``None``. The
            published highway has 5, also where the U-Net has another depth.
        allow_huge: build networks of more than 2e9 parameters, too.
        **unet_options: further arguments of `MedSegDiffUNet`, see `MedSegDiffV1`.

    Raises:
        InputError: arguments do not fit together, or there would be more than 2e9 parameters.
    """

    def __init__(
        self,
        in_channels: int = 1,
        condition_channels: int = 3,
        channels: int = 128,
        channel_mult: Sequence[int] = (1, 1, 2, 2, 4, 4),
        num_res_blocks: int = 2,
        attention_factors: Sequence[int] = (16,),
        timestep_scale: float = 1.0,
        learned_variance: bool = True,
        highway_channels: int = 32,
        highway_dropout: float = 0.5,
        highway_norm: str = "batch",
        highway_poolings: Optional[int] = None,
        allow_huge: bool = False,
        **unet_options: Any,
    ) -> None:
        super().__init__()
        check_levels(channel_mult, 4)
        unet_options.update(channels=channels, channel_mult=channel_mult, num_res_blocks=num_res_blocks)
        unet_options.update(attention_factors=attention_factors, timestep_scale=timestep_scale)
        highway_options = {"channels": highway_channels, "dropout": highway_dropout, "norm": highway_norm}
        self.in_channels = in_channels
        self.latent_dim = 0
        self.learned_variance = learned_variance
        self.calibrated = True
        self.unet, self.highway = _build_branches(
            in_channels,
            condition_channels,
            learned_variance,
            unet_options,
            highway_options,
            allow_huge,
            highway_poolings,
        )
        self.downsampling: int = max(self.unet.downsampling, self.highway.downsampling)
        fits = channels == 4 * highway_channels
        self.anchor_projection = None if fits else nn.Conv2d(3 * highway_channels, channels, 1)

    @torch.jit.export
    def encode_condition(self, condition: Tensor) -> List[Tensor]:
        """Return what depends on the image (B, K, H, W) alone.

        Returns:
            [what the anchors add to the stem (B, channels, H, W), the calibration map (B, C, H, W)].
        """
        calibration, outputs = self.highway(condition)
        size = [condition.shape[2], condition.shape[3]]
        fine = F.interpolate(outputs[1].detach(), size=size, mode="bilinear", align_corners=False)
        coarse = F.interpolate(outputs[2].detach(), size=size, mode="bilinear", align_corners=False)
        if self.anchor_projection is not None:
            return [self.anchor_projection(torch.cat([fine, coarse], dim=1)), calibration]
        return [torch.cat([fine, fine, coarse], dim=1), calibration]

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        condition: Tensor,
        latent: Optional[Tensor] = None,
        condition_features: Optional[List[Tensor]] = None,
        class_labels: Optional[Tensor] = None,
    ) -> Tensor:
        """Predict the noise, its variance and the calibration map; see `MedSegDiffV1.forward`."""
        check_size(noisy, self.downsampling)
        features = self.encode_condition(condition) if condition_features is None else condition_features
        time = self.unet.time_embedding(timesteps, class_labels)
        stem = self.unet.stem(torch.cat([condition, noisy], dim=1)) + features[0]
        encoded = self.unet.encode(stem, time)
        return torch.cat([self.unet.decode(encoded[-1], time, encoded), features[1]], dim=1)


def _build_branches(
    in_channels: int,
    condition_channels: int,
    learned_variance: bool,
    unet_options: Dict[str, Any],
    highway_options: Dict[str, Any],
    allow_huge: bool,
    num_poolings: Optional[int] = None,
) -> Tuple[MedSegDiffUNet, Highway]:
    """Return the two networks, after counting their parameters unless ``allow_huge``."""
    check_counts(in_channels=in_channels, condition_channels=condition_channels)
    heads = in_channels * (2 if learned_variance else 1)
    build_unet = partial(MedSegDiffUNet, in_channels + condition_channels, heads, **unet_options)
    if num_poolings is None:
        num_poolings = len(unet_options["channel_mult"]) - 1
    build_highway = partial(Highway, condition_channels, in_channels, num_poolings, **highway_options)
    if not allow_huge:
        refuse_huge(build_unet, build_highway)
    return build_unet(), build_highway()
