"""MONAI's diffusion U-Net as a denoiser: the condition is concatenated to what is denoised."""

from typing import Any, List, Optional, Sequence

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from shared_components.errors import InputError
from shared_components.networks.sizes import check_size


class MONAIDenoiser(nn.Module):
    """`monai.networks.nets.DiffusionModelUNet` with a denoiser's interface.

    With the defaults and one condition channel it is the network of segmentation-guided diffusion (Konz et al. 2024):
    113,669,761 parameters, equal to the published ``diffusers.UNet2DModel`` block by block. Its output convolution
    starts at zero, where diffusers' does not: a new network predicts 0.

    MONAI's U-Net cannot be scripted; networks with this denoiser are exported by tracing.

    Args:
        in_channels: channels C of what is denoised.
        condition_channels: channels K of the condition; 0 for a network without one.
        channels: widths of the levels; each a multiple of ``norm_num_groups``.
        num_res_blocks: residual blocks a level on the way down; one more on the way up.
        attention_levels: whether a level has self-attention; the middle always has.
        num_head_channels: width of an attention head.
        norm_num_groups, norm_eps: of the group normalisations (MONAI's default eps is 1e-6, the published one 1e-5).
        learned_variance: a second C channels of output, the variance head.
        timestep_scale: factor of the timesteps before the embedding, so that training and sampling cannot disagree.
        spatial_dims: 2, or 3 for volumes.
        **unet_options: further arguments of `DiffusionModelUNet`, such as ``use_flash_attention``.

    Attributes:
        in_channels: channels C of the prediction.
        latent_dim: 0, there is no latent code.
        downsampling: sizes must be multiples of it, 2 ** (levels - 1).
        learned_variance: whether the output holds the variance head.
        calibrated: false.

    Raises:
        InputError: as many ``attention_levels`` as ``channels`` are expected; a width that the
            groups, or with attention the heads, do not divide.
    """

    def __init__(
        self,
        in_channels: int = 1,
        condition_channels: int = 1,
        channels: Sequence[int] = (128, 128, 256, 256, 512, 512),
        num_res_blocks: int = 2,
        attention_levels: Sequence[bool] = (False, False, False, False, True, False),
        num_head_channels: int = 8,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        learned_variance: bool = False,
        timestep_scale: float = 1.0,
        spatial_dims: int = 2,
        **unet_options: Any,
    ) -> None:
        super().__init__()
        if len(channels) != len(attention_levels):
            raise InputError(f"attention_levels has {len(attention_levels)} entries, channels has {len(channels)}")
        if any(width % norm_num_groups for width in channels):
            raise InputError(f"channels {list(channels)}: each must be a multiple of norm_num_groups {norm_num_groups}")
        attending = {width for width, attends in zip(channels, [*attention_levels[:-1], True]) if attends}
        if any(width % num_head_channels for width in attending):
            raise InputError(
                f"channels {list(channels)}: the last, and each with attention, must be a multiple of "
                f"num_head_channels {num_head_channels}"
            )
        self.unet = DiffusionModelUNet(
            spatial_dims=spatial_dims,
            in_channels=in_channels + condition_channels,
            out_channels=2 * in_channels if learned_variance else in_channels,
            num_res_blocks=num_res_blocks,
            channels=tuple(channels),
            attention_levels=tuple(attention_levels),
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            num_head_channels=num_head_channels,
            **unet_options,
        )
        self.in_channels = in_channels
        self.condition_channels = condition_channels
        self.latent_dim = 0
        self.downsampling: int = 2 ** (len(channels) - 1)
        self.learned_variance = learned_variance
        self.calibrated = False
        self.timestep_scale = timestep_scale

    def encode_condition(self, condition: Tensor) -> List[Tensor]:
        """Return an empty list: the U-Net sees the condition from its first layer on, nothing depends on it alone."""
        return []

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        condition: Optional[Tensor] = None,
        latent: Optional[Tensor] = None,
        condition_features: Optional[List[Tensor]] = None,
    ) -> Tensor:
        """Return the prediction.

        Args:
            noisy: (B, C, H, W), sizes multiples of ``downsampling``.
            timesteps: (B,) int64 or float32.
            condition: (B, K, H, W); not looked at by a network without ``condition_channels``.
            latent, condition_features: not used.

        Returns:
            (B, C, H, W), or (B, 2 C, H, W) with ``learned_variance``: the prediction, then the variance head.

        Raises:
            ValueError: a size is no multiple of ``downsampling``; the condition is missing.
        """
        check_size(noisy, self.downsampling)
        if self.condition_channels > 0:
            if condition is None:
                raise ValueError(f"the denoiser expects a condition of {self.condition_channels} channels")
            noisy = torch.cat([noisy, condition.to(noisy.dtype)], dim=1)
        if self.timestep_scale != 1.0:
            timesteps = timesteps * self.timestep_scale
        return self.unet(noisy, timesteps)
