"""Spatially adaptive normalisation (Park et al. 2019) whose part that depends on the mask alone can be kept."""

from typing import List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_components.errors import check_choice

RESIZE_CHOICES = ("nearest", "area", "max")


def resize_mask(mask: Tensor, size: Tuple[int, int], mode: str = "nearest") -> Tensor:
    """Bring a mask (B, K, h, w) to another size.

    Args:
        mask: values in [0, 1].
        size: (H, W).
        mode: ``nearest`` keeps one pixel of each cell, so that a line of one pixel survives halving with a chance of
            one half; ``area`` averages the cell; ``max`` takes its largest value, so that no line is lost. All are the
            same where nothing shrinks.
    """
    if mask.shape[2] == size[0] and mask.shape[3] == size[1]:
        return mask
    enlarges = mask.shape[2] < size[0] or mask.shape[3] < size[1]
    if mode == "nearest" or enlarges:
        return F.interpolate(mask, size=[size[0], size[1]], mode="nearest")
    if mode == "area":
        return F.adaptive_avg_pool2d(mask, [size[0], size[1]])
    return F.adaptive_max_pool2d(mask, [size[0], size[1]])


class SpadeModulation(nn.Module):
    """The maps 1 + gamma and beta that a mask gives to one normalisation.

    MONAI's ``SPADE`` block is another layer: it has a leaky ReLU, and its gamma and beta are normalised themselves, so
    that their mean over an image is zero whatever the mask.

    Args:
        condition_channels: channels K of the mask.
        channels: channels C of what is normalised.
        hidden_channels: width between the mask and the maps.
    """

    def __init__(self, condition_channels: int, channels: int, hidden_channels: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Conv2d(condition_channels, hidden_channels, 3, padding=1)
        self.gamma = nn.Conv2d(hidden_channels, channels, 3, padding=1)
        self.beta = nn.Conv2d(hidden_channels, channels, 3, padding=1)

    def forward(self, mask: Tensor) -> List[Tensor]:
        """Return 1 + gamma and beta, each (B, C, H, W), of a mask (B, K, H, W)."""
        hidden = F.relu(self.embedding(mask))
        return [1 + self.gamma(hidden), self.beta(hidden)]


def instance_norm(x: Tensor) -> Tensor:
    """Normalise each channel of each image; one channel a group of ``group_norm``, which is faster on processors."""
    return F.group_norm(x, x.shape[1])


def modulate(normalised: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return SiLU(``normalised * scale + shift``)."""
    return F.silu(torch.addcmul(shift, normalised, scale), inplace=True)


class SpadeResidualBlock(nn.Module):
    """A residual block of 1x1 convolutions whose three normalisations a mask modulates.

    Main path: SPADE, SiLU, 1x1, SPADE, SiLU, 1x1; shortcut: SPADE, SiLU, 1x1. The normalisation itself is over each
    channel of each image, without parameters.

    Args:
        in_channels: channels a of the input.
        out_channels: channels b of the output; between the convolutions there are min(a, b).
        condition_channels: channels K of the mask.
        hidden_channels: of `SpadeModulation`.
        mask_resize: how the mask is brought to the block's size, see `resize_mask`.

    Raises:
        InputError: an unknown way to resize.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        condition_channels: int = 1,
        hidden_channels: int = 128,
        mask_resize: str = "nearest",
    ) -> None:
        super().__init__()
        check_choice("mask_resize", mask_resize, RESIZE_CHOICES)
        middle = min(in_channels, out_channels)
        self.mask_resize = mask_resize
        self.modulation1 = SpadeModulation(condition_channels, in_channels, hidden_channels)
        self.modulation2 = SpadeModulation(condition_channels, middle, hidden_channels)
        self.modulation3 = SpadeModulation(condition_channels, in_channels, hidden_channels)
        self.conv1 = nn.Conv2d(in_channels, middle, 1)
        self.conv2 = nn.Conv2d(middle, out_channels, 1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    @torch.jit.export
    def encode_condition(self, mask: Tensor, size: Tuple[int, int]) -> List[Tensor]:
        """Return the six maps that a mask (B, K, h, w) gives to the three normalisations at ``size``."""
        resized = resize_mask(mask, size, self.mask_resize)
        return self.modulation1(resized) + self.modulation2(resized) + self.modulation3(resized)

    def forward(self, x: Tensor, maps: List[Tensor]) -> Tensor:
        """Return (B, b, H, W).

        Args:
            x: (B, a, H, W).
            maps: what `encode_condition` returned for the size of ``x``.
        """
        normalised = instance_norm(x)
        main = self.conv1(modulate(normalised, maps[0], maps[1]))
        main = self.conv2(modulate(instance_norm(main), maps[2], maps[3]))
        return main + self.shortcut(modulate(normalised, maps[4], maps[5]))
