"""MedSegDiff-V2 as its paper describes it: an anchor at the denoiser's stem, a transformer at its bottleneck.

Wu, Ji, Fu, Xu, Jin, Xu: "MedSegDiff-V2: Diffusion-Based Medical Image Segmentation with Transformer", AAAI 2024. The
published code has neither: see `shared_components.networks.medsegdiff`.
"""

from functools import partial
from typing import Any, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from shared_components.networks.anchor_attention import AnchorAttention
from shared_components.networks.highway import Highway, highway_widths
from shared_components.networks.medsegdiff_blocks import check_counts, check_image_size, check_levels
from shared_components.networks.medsegdiff_unet import MedSegDiffUNet, refuse_huge
from shared_components.networks.sizes import check_size
from shared_components.networks.spectrum_attention import SpectrumTransformer


class MedSegDiffV2Paper(nn.Module):
    """Predict the noise of a noisy mask, its variance and a calibration map: MedSegDiff-V2 of the paper.

    The condition model, a U-Net, segments the image. Its last decoder output, the anchor, gates the first feature map
    of the denoising U-Net (`AnchorAttention`); its deepest features condition the denoiser's deepest ones
    (`SpectrumTransformer`). Neither is detached. The condition model sees the image alone, so what it makes is the
    same for every step and every member.

    Prediction and variance of a new network are exactly zero, and its transformer adds nothing.

    The paper was not at hand in full: what is known of it only from others' accounts, and what it leaves open, is an
    argument here.

    Args:
        in_channels: channels C of the mask.
        condition_channels: channels K of the image.
        image_size: height and width in pixels that the transformer's position embedding belongs to, a multiple of
            ``downsampling``; other sizes work.
        channels: base width of the U-Net; a multiple of 32.
        channel_mult: multiplier of the base width per level of the U-Net; two levels or more.
        num_res_blocks: residual blocks per level on the U-Net's way down.
        attention_factors: downsampling factors of the levels with self-attention.
        timestep_scale: factor of the timesteps before they are embedded; 1000 / T for ``rescale_timesteps``.
        learned_variance: whether the U-Net has a second head for the variance.
        image_in_stem: whether the U-Net's input holds the image, too, as in all published code; in the paper it is
            the noisy mask alone.
        highway_channels: base width of the condition model, a `Highway` without dropout.
        highway_norm: its normalisation: ``batch``, ``syncbatch``, ``instance`` or ``group``.
        anchor_kernel_size: window of the anchor's Gaussian; odd.
        num_transformer_blocks: 1 to 6.
        num_transformer_heads: attention heads of the transformer; must divide its width.
        ss_order: whose queries come first in a block, ``noise_first`` or ``condition_first``.
        normaliser: of the transformer's affinities: ``softmax`` or ``none``.
        allow_huge: build networks of more than 2e9 parameters, too.
        **unet_options: further arguments of `MedSegDiffUNet`: ``num_heads``, ``num_heads_upsample``,
            ``num_head_channels``, ``use_scale_shift_norm``, ``resblock_updown``, ``dropout``,
            ``use_new_attention_order``, ``num_classes``, ``use_checkpoint``.

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
        image_in_stem: bool = True,
        highway_channels: int = 32,
        highway_norm: str = "batch",
        anchor_kernel_size: int = 5,
        num_transformer_blocks: int = 2,
        num_transformer_heads: int = 8,
        ss_order: str = "noise_first",
        normaliser: str = "softmax",
        allow_huge: bool = False,
        **unet_options: Any,
    ) -> None:
        super().__init__()
        check_levels(channel_mult, 2)
        poolings = len(channel_mult) - 1
        _check_arguments(in_channels, condition_channels, image_size, poolings)
        unet_options.update(channels=channels, channel_mult=channel_mult, num_res_blocks=num_res_blocks)
        unet_options.update(attention_factors=attention_factors, timestep_scale=timestep_scale)
        self.in_channels = in_channels
        self.latent_dim = 0
        self.downsampling = 2**poolings
        self.learned_variance = learned_variance
        self.calibrated = True
        self.image_in_stem = image_in_stem
        inputs = in_channels + (condition_channels if image_in_stem else 0)
        build_unet = partial(MedSegDiffUNet, inputs, in_channels * (2 if learned_variance else 1), **unet_options)
        build_highway = partial(
            Highway, condition_channels, in_channels, poolings, highway_channels, dropout=0.0, norm=highway_norm
        )
        widths = highway_widths(poolings, highway_channels)
        build_anchor = partial(AnchorAttention, widths[0], anchor_kernel_size)
        build_transformer = partial(
            SpectrumTransformer,
            channels * channel_mult[-1],
            widths[-1],
            4 * channels,
            num_transformer_blocks,
            num_transformer_heads,
            image_size // self.downsampling,
            ss_order,
            normaliser,
        )
        if not allow_huge:
            refuse_huge(build_unet, build_highway, build_anchor, build_transformer)
        self.unet, self.highway = build_unet(), build_highway()
        self.anchor, self.transformer = build_anchor(), build_transformer()

    @torch.jit.export
    def encode_condition(self, condition: Tensor) -> List[Tensor]:
        """Return what depends on the image (B, K, H, W) alone.

        Returns:
            [the deepest features (B, A, H / downsampling, W / downsampling), the anchor's gate of the stem
            (B, 1, H, W) in (0, 1), the calibration map (B, C, H, W) in (0, 1)].
        """
        gates: List[Tensor] = []
        deepest, skips = self.highway.encode(self.highway.encode_first(condition), gates)
        anchor = self.highway.decode(deepest, skips)[0]
        return [deepest, self.anchor.gate(anchor), self.highway.calibrate(anchor)]

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
        stem = self.unet.stem(torch.cat([condition, noisy], dim=1) if self.image_in_stem else noisy)
        encoded = self.unet.encode(self.anchor.modulate(stem, features[1]), time)
        distinct, rows = _distinct(timesteps)
        deepest = self.transformer(encoded[-1], features[0], self.unet.time_embedding(distinct), rows)
        return torch.cat([self.unet.decode(deepest, time, encoded), features[2]], dim=1)


def _distinct(timesteps: Tensor) -> Tuple[Tensor, Tensor]:
    """Return the distinct timesteps and which of them each sample has; in sampling it is one for a whole batch."""
    if torch.jit.is_tracing():
        return timesteps, torch.arange(timesteps.shape[0], device=timesteps.device)
    return torch.unique(timesteps, return_inverse=True)


def _check_arguments(in_channels: int, condition_channels: int, image_size: int, poolings: int) -> None:
    check_counts(in_channels=in_channels, condition_channels=condition_channels)
    check_image_size(image_size, 2**poolings)
