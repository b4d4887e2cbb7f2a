"""The vessel segmentation network of AdaptDiff: a residual U-Net."""

from typing import List, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_components.errors import InputError
from shared_components.networks.sizes import check_size


class ResidualConvBlock(nn.Module):
    """ReLU of a 1x1 convolution plus two 3x3 convolutions on its result: (B, a, H, W) to (B, b, H, W).

    Args:
        in_channels: a.
        out_channels: b.
        final_relu: apply the ReLU.
    """

    def __init__(self, in_channels: int, out_channels: int, final_relu: bool = True) -> None:
        super().__init__()
        self.final_relu = final_relu
        self.align = nn.Conv2d(in_channels, out_channels, 1)
        self.convolutions = nn.Sequential(
            nn.Conv2d(out_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ELU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        aligned = self.align(x)
        x = aligned + self.convolutions(aligned)
        return F.relu(x) if self.final_relu else x


class ResidualUNet(nn.Module):
    """Segment an image: (B, in_channels, H, W) to logits (B, out_channels, H, W).

    With the default widths and ``final_relu`` it is the network of the published AdaptDiff, 743,150 parameters. There
    the last block ends in a ReLU as all others do, so that its logits are never negative; here that is an option, off
    unless published weights are to be used. Convolutions start with weights of variance 1 / fan-in and without bias;
    published is torch's own default, whose signal fades from layer to layer.

    Args:
        in_channels: channels of the image.
        out_channels: classes, the background included.
        channels: widths; the image is halved once for each.
        final_relu: end in a ReLU.

    Raises:
        InputError: no widths.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        channels: Sequence[int] = (8, 32, 32, 64, 64, 16),
        final_relu: bool = False,
    ) -> None:
        super().__init__()
        if not channels:
            raise InputError("channels is empty: expected one width for each halving of the image")
        self.out_channels = out_channels
        self.downsampling = 2 ** len(channels)
        widths = list(channels)
        outputs = [*widths[-2::-1], out_channels]
        self.encoder = nn.ModuleList(ResidualConvBlock(a, b) for a, b in zip([in_channels, *widths], widths))
        self.downsample = nn.ModuleList(_resample(nn.Conv2d, width) for width in widths)
        self.upsample = nn.ModuleList(_resample(nn.ConvTranspose2d, width) for width in reversed(widths))
        self.decoder = nn.ModuleList(
            ResidualConvBlock(2 * a, b, final_relu or i + 1 < len(widths))
            for i, (a, b) in enumerate(zip(reversed(widths), outputs))
        )
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
                nn.init.zeros_(layer.bias)

    def encode(self, image: Tensor) -> Tuple[Tensor, List[Tensor]]:
        """Return the bottleneck (B, channels[-1], H / 2^n, W / 2^n) and the skip connections, finest first.

        Raises:
            ValueError: H or W is no multiple of ``downsampling``.
        """
        check_size(image, self.downsampling)
        x = image
        skips: List[Tensor] = []
        for block, down in zip(self.encoder, self.downsample):
            x = block(x)
            skips.append(x)
            x = down(x)
        return x, skips

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits; see the class."""
        x, skips = self.encode(image)
        for up, block in zip(self.upsample, self.decoder):
            x = block(torch.cat([up(x), skips.pop()], dim=1))
        return x


def _resample(convolution: type, channels: int) -> nn.Sequential:
    return nn.Sequential(convolution(channels, channels, 4, stride=2, padding=1), nn.BatchNorm2d(channels), nn.ELU())
