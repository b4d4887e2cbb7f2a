"""Denoisers of images that are told a class, or a mixture of classes."""

from typing import Any, List, Optional, Sequence

from torch import Tensor, nn

from shared_components.errors import InputError
from shared_components.networks.class_embedding import SoftClassEmbedding
from shared_components.networks.medsegdiff_unet import MedSegDiffUNet
from shared_components.networks.monai_denoiser import MONAIDenoiser
from shared_components.networks.sizes import check_size


class ClassConditionedDenoiser(MONAIDenoiser):
    """MONAI's diffusion U-Net, conditioned on class weights; without an image to look at.

    The classes' embedding is added to that of the timestep. Departure from the published CDM, whose residual blocks are
    scaled and shifted by it (`ClassConditionedADM`): MONAI's blocks add it.

    Args:
        in_channels: channels C of the images.
        num_classes: classes K; 0 for a network without classes.
        null_class: one more row of the table, the last, for "no class": what classifier-free guidance needs.
        channels: widths of the levels; each a multiple of ``norm_num_groups``.
        attention_levels: whether a level has self-attention; the middle always has.
        **options: further arguments of `MONAIDenoiser`.

    Attributes:
        num_class_weights: how many class weights the network takes, K, or K + 1 with a null class.
        null_class: whether the last of them is the null class.

    Raises:
        InputError: see `MONAIDenoiser`; a null class without classes.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        null_class: bool = False,
        channels: Sequence[int] = (32, 64, 128, 128),
        attention_levels: Sequence[bool] = (False, False, False, True),
        **options: Any,
    ) -> None:
        rows = _num_class_weights(num_classes, null_class)
        super().__init__(
            in_channels,
            condition_channels=0,
            channels=channels,
            attention_levels=attention_levels,
            num_class_embeds=rows or None,
            **options,
        )
        if rows:
            self.unet.class_embedding = SoftClassEmbedding(rows, 4 * channels[0])
        self.num_class_weights = rows
        self.null_class = null_class

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        condition: Optional[Tensor] = None,
        latent: Optional[Tensor] = None,
        condition_features: Optional[List[Tensor]] = None,
        class_weights: Optional[Tensor] = None,
    ) -> Tensor:
        """Return the prediction.

        Args:
            noisy: (B, C, H, W), sizes multiples of ``downsampling``.
            timesteps: (B,) int64 or float32.
            condition, latent, condition_features: not used.
            class_weights: (B, num_class_weights) weights, or (B,) int64 labels; needed by a network with classes.

        Returns:
            (B, C, H, W), or (B, 2 C, H, W) with ``learned_variance``: the prediction, then the variance head.

        Raises:
            ValueError: a size is no multiple of ``downsampling``; the classes are missing, or not expected.
        """
        check_size(noisy, self.downsampling)
        _check_presence(self.num_class_weights, class_weights)
        return self.unet(noisy, timesteps * self.timestep_scale, class_labels=class_weights)


class ClassConditionedADM(nn.Module):
    """The U-Net of the published CDM: that of guided diffusion, conditioned on class weights.

    The sum of both embeddings scales and shifts the normalisation of every residual block. A new network returns 0.

    Args:
        in_channels: channels C of the images.
        num_classes: classes K; 0 for a network without classes.
        null_class: as in `ClassConditionedDenoiser`.
        num_embeddings: rows of the table, at least as many as class weights; the published networks have 1000.
        learned_variance: a second C channels of output, the variance head.
        timestep_scale: factor of the timesteps before the embedding.
        use_scale_shift_norm: see above; without it the embedding is added.
        **options: of `MedSegDiffUNet`: ``channels``, ``channel_mult``, ``num_res_blocks``, ``attention_factors``, ...

    Attributes:
        num_class_weights, null_class: as in `ClassConditionedDenoiser`.

    Raises:
        InputError: see `MedSegDiffUNet`; a null class without classes; fewer rows than class weights.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        null_class: bool = False,
        num_embeddings: Optional[int] = None,
        learned_variance: bool = False,
        timestep_scale: float = 1.0,
        use_scale_shift_norm: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        weights = _num_class_weights(num_classes, null_class)
        rows = weights if num_embeddings is None else num_embeddings
        if rows < weights:
            raise InputError(f"num_embeddings is {rows}; expected at least {weights}, the number of class weights")
        self.unet = MedSegDiffUNet(
            in_channels,
            2 * in_channels if learned_variance else in_channels,
            use_scale_shift_norm=use_scale_shift_norm,
            timestep_scale=timestep_scale,
            **options,
        )
        if weights:
            embedding = self.unet.time_embedding
            embedding.label_embedding = SoftClassEmbedding(rows, embedding.linear2.out_features)
        self.in_channels = in_channels
        self.latent_dim = 0
        self.downsampling: int = self.unet.downsampling
        self.learned_variance = learned_variance
        self.calibrated = False
        self.timestep_scale = timestep_scale
        self.num_class_weights = weights
        self.null_class = null_class

    def encode_condition(self, condition: Tensor) -> List[Tensor]:
        """Return an empty list: there is no image to look at."""
        return []

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        condition: Optional[Tensor] = None,
        latent: Optional[Tensor] = None,
        condition_features: Optional[List[Tensor]] = None,
        class_weights: Optional[Tensor] = None,
    ) -> Tensor:
        """Return the prediction; see `ClassConditionedDenoiser.forward`."""
        _check_presence(self.num_class_weights, class_weights)
        return self.unet(noisy, timesteps, class_weights)


def _num_class_weights(num_classes: int, null_class: bool) -> int:
    if num_classes < 0 or (null_class and num_classes == 0):
        raise InputError(f"num_classes is {num_classes}; expected at least 0, and at least 1 with null_class")
    return num_classes + int(null_class)


def _check_presence(expected: int, class_weights: Optional[Tensor]) -> None:
    if (class_weights is None) != (expected == 0):
        found = "none" if class_weights is None else f"a tensor {tuple(class_weights.shape)}"
        raise ValueError(f"class_weights: expected {f'(B, {expected})' if expected else 'none'}, found {found}")
