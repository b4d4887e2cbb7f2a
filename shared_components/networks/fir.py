"""Resampling by a factor of two with a short low-pass filter (finite impulse response, FIR).

The filter is the outer product of ``[1, 3, 3, 1]`` with itself, divided by 64. Borders are padded with
zeros and not renormalised, as in the published cDAL: a constant map gets darker at its rim. All three
modules are plain convolutions, so they script, export and can be differentiated twice (the discriminator's
gradient penalty needs it). Depthwise convolution is also the fastest of the exact forms on a CPU (separable
slices, repeated average pooling, bilinear interpolation and banded matrices were timed).

The filters are buffers that stay out of the state dict: they are constants, not weights.
"""

import torch
from torch import Tensor, nn


def fir_kernel(channels: int, gain: float = 1.0) -> Tensor:
    """Return the depthwise filter, (channels, 1, 4, 4); its entries sum to ``gain``."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return (torch.outer(taps, taps) * (gain / 64.0)).repeat(channels, 1, 1, 1)


def fir_filter(x: Tensor, kernel: Tensor, stride: int, padding: int, transposed: bool = False) -> Tensor:
    """Filter every channel of (B, C, H, W) with its (C, 1, 4, 4) kernel, in the kernel's precision.

    Depthwise convolutions in bfloat16 are several times slower than in float32 on a CPU. `torch.convolution` is what
    ``F.conv2d`` and ``F.conv_transpose2d`` call; unlike them it is left alone by autocast on the CPU.
    """
    same, strides, paddings = x.to(kernel.dtype), [stride, stride], [padding, padding]
    filtered = torch.convolution(same, kernel, None, strides, paddings, [1, 1], transposed, [0, 0], kernel.shape[0])
    return filtered.to(x.dtype)


class FIRDownsample(nn.Module):
    """Halve height and width: (B, channels, H, W) to (B, channels, H // 2, W // 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("kernel", fir_kernel(channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return fir_filter(x, self.kernel, stride=2, padding=1)


class FIRUpsample(nn.Module):
    """Double height and width: (B, channels, H, W) to (B, channels, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("kernel", fir_kernel(channels, gain=4.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return fir_filter(x, self.kernel, stride=2, padding=1, transposed=True)


class FIRStridedConv(nn.Module):
    """Low-pass filter, then a 3x3 convolution of stride 2: (B, C, H, W) to (B, out_channels, H // 2, W // 2).

    With an identity convolution it equals `FIRDownsample`.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2)
        self.register_buffer("kernel", fir_kernel(in_channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(fir_filter(x, self.kernel, stride=1, padding=2))
