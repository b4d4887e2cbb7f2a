"""For the tests of AdaptDiff's networks: weights by a formula of their flat index, and a test image and mask."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


@torch.no_grad()
def fill(network: nn.Module) -> nn.Module:
    """weight_i = cos(1.3 i) / sqrt(fan), bias_i = 0.1 sin i; normalisations stay as built; evaluation mode."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            inputs = layer.weight.shape[0] if isinstance(layer, nn.ConvTranspose2d) else layer.weight.shape[1]
            fan = inputs * math.prod(layer.weight.shape[2:])
            index = torch.arange(layer.weight.numel(), dtype=torch.float64)
            layer.weight.copy_((torch.cos(1.3 * index) / math.sqrt(fan)).reshape(layer.weight.shape))
            layer.bias.copy_(0.1 * torch.sin(torch.arange(layer.bias.numel(), dtype=torch.float64)))
    return network.eval()


def ramps(height: int, width: int) -> tuple[Tensor, Tensor]:
    """An image of two ramps and a mask of a diagonal band, each (1, 1, height, width)."""
    rows = -1 + 2 * torch.arange(height) / (height - 1)
    columns = -1 + 2 * torch.arange(width) / (width - 1)
    image = 0.5 * rows[:, None] + 0.25 * columns
    mask = ((rows[:, None] + columns).abs() < 0.25).float()
    return image[None, None], mask[None, None]
