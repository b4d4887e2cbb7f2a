"""The spatial attention map that a time-dependent discriminator's features make."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ATTENTION_CHOICES = ("raw", "normalised", "residual", "none")


def scale_attention(mean_feature: Tensor, attention: str) -> Tensor:
    """Turn channel-averaged features (B, 1, H, W) into the map that multiplies a label map.

    * ``raw``: as they are. This is the published method's map: signed and about 0.01 in size, so that the label it
      multiplies all but vanishes under the noise.
    * ``normalised``: the size |A| over its largest value in the image, in [0, 1].
    * ``residual``: 1 + ``normalised``, over its mean in the image: attended places gain, none is lost.
    * ``none``: ones.
    """
    if attention == "raw":
        return mean_feature
    if attention == "none":
        return torch.ones_like(mean_feature)
    size = mean_feature.abs()
    size = size / size.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-8)
    if attention == "normalised":
        return size
    residual = 1 + size
    return residual / residual.mean(dim=(1, 2, 3), keepdim=True)


@torch.no_grad()
def attention_map(
    discriminator: nn.Module,
    label_t: Tensor,
    timesteps: Tensor,
    noisy: Tensor,
    condition: Tensor | None,
    level: int,
    attention: str,
) -> Tensor:
    """Return the attention map (B, 1, H, W) of the pair (x_t, x_{t+1}); it carries no gradient.

    The features of one level are averaged over their channels and brought to the label map's size by bilinear
    interpolation (half-pixel centres).

    Args:
        discriminator: with ``features(label, timesteps, noisy, condition, level)``.
        label_t, noisy: x_t and x_{t+1}, (B, C, H, W).
        timesteps: (B,).
        condition: the image, for a discriminator that sees it.
        level: index of the features in the discriminator's list.
        attention: one of `ATTENTION_CHOICES`.
    """
    if attention == "none":
        return torch.ones_like(label_t[:, :1])
    features = discriminator.features(label_t, timesteps, noisy, condition, level=level)
    mean = features.float().mean(dim=1, keepdim=True)
    mean = F.interpolate(mean, size=label_t.shape[2:], mode="bilinear", align_corners=False)
    return scale_attention(mean, attention)
