"""The condition branch of MedSegDiff: an ordinary U-Net ("highway") that reads the clean image."""

import math
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_components.errors import InputError, check_choice

NEGATIVE_SLOPE = 0.01
WIDEST = 15  # times the base width: 480 for the published 32


class ScriptableSyncBatchNorm(nn.SyncBatchNorm):
    """`SyncBatchNorm` that scripts: a scripted network normalises by the running statistics."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return self._synchronised(x)

    @torch.jit.unused
    def _synchronised(self, x: Tensor) -> Tensor:
        return super().forward(x)


HIGHWAY_NORMS: Dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "syncbatch": ScriptableSyncBatchNorm,
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    "group": lambda channels: nn.GroupNorm(math.gcd(8, channels), channels),
}


def initialise_he(module: nn.Module) -> None:
    """Fill a convolution from He's normal distribution for the leaky slope, its bias with zeros; for `Module.apply`."""
    # without memory there is nothing to fill, and asking for it would load much of torch's compiler
    if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
        nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def highway_widths(num_poolings: int, channels: int) -> List[int]:
    """Return the widths of the stages: doubled from ``channels``, at most 15 times it."""
    return [min(channels * 2**depth, WIDEST * channels) for depth in range(num_poolings)]


class Highway(nn.Module):
    """A U-Net from the image to a coarse mask, the calibration map, which shares its features on the way.

    Its parts run one by one: `encode_first` and, when the first stage has been gated, `encode`, then `decode` and
    `calibrate`; `forward` runs them all without gates. Height and width must be multiples of ``2 ** num_poolings``.

    Departures from the published code: number of poolings, widths, dropout and normalisation are arguments.

    Args:
        in_channels: channels of the image.
        out_channels: channels of the calibration map.
        num_poolings: poolings P, at least 1 (published: 5).
        channels: base width b (published: 32); stage d has ``min(b * 2 ** d, 15 * b)``.
        dropout: probability that a channel of the encoder or the bottleneck is dropped.
        norm: ``batch``, ``syncbatch`` (over processes, which must use GPUs then), ``instance`` or ``group``: the last
            two for small batches.

    Raises:
        InputError: an argument outside the valid ones.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_poolings: int = 5,
        channels: int = 32,
        dropout: float = 0.5,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        _check_arguments(num_poolings, channels, dropout, norm)
        self.downsampling = 2**num_poolings
        self.widths = highway_widths(num_poolings, channels)
        inputs = [in_channels] + self.widths[:-1]
        self.encoder = nn.ModuleList(_units([i, w, w], norm, dropout) for i, w in zip(inputs, self.widths))
        self.bottleneck = _units([self.widths[-1]] * 3, norm, dropout)
        self.decoder, width = nn.ModuleList(), self.widths[-1]
        for depth in reversed(range(num_poolings)):
            skip, following = self.widths[depth], self.widths[max(depth - 1, 0)]
            self.decoder.append(_units([width + skip, skip, following], norm))
            width = following
        self.head = nn.Conv2d(width, out_channels, 1, bias=False)
        self.apply(initialise_he)

    def encode_first(self, image: Tensor) -> Tensor:
        """Run the first stage: (B, in_channels, H, W) to (B, b, H, W), before its pooling and its gate."""
        return self.encoder[0](image)

    def encode(self, first: Tensor, gates: List[Tensor]) -> Tuple[Tensor, List[Tensor]]:
        """Run the encoder from the second stage on, and the bottleneck.

        Args:
            first: what `encode_first` returned.
            gates: factors of the pooled outputs of the first stages, (B, w_d, H / 2^(d+1), W / 2^(d+1)) each; those
                of the last stages may be missing.

        Returns:
            The bottleneck's output (B, w_last, H / 2^P, W / 2^P) and the skip connections, finest first.
        """
        x, skips = first, [first]
        for depth, stage in enumerate(self.encoder):
            if depth > 0:
                x = stage(x)
                skips.append(x)
            x = F.max_pool2d(x, 2)
            if depth < len(gates):
                x = x * gates[depth]
        return self.bottleneck(x), skips

    def decode(self, bottleneck: Tensor, skips: List[Tensor]) -> List[Tensor]:
        """Return the decoder's outputs, finest first: (B, w_0, H, W), (B, w_0, H/2, W/2), (B, w_1, H/4, W/4), ..."""
        outputs: List[Tensor] = []
        remaining, x = skips[:], bottleneck
        for stage in self.decoder:
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = stage(torch.cat([x, remaining.pop()], dim=1))
            outputs.insert(0, x)
        return outputs

    def calibrate(self, decoded: Tensor) -> Tensor:
        """Return the calibration map (B, out_channels, H, W) in (0, 1), float32, of the decoder's finest output."""
        return torch.sigmoid(self.head(decoded).float())

    def forward(self, image: Tensor) -> Tuple[Tensor, List[Tensor]]:
        """Return the calibration map and the decoder's outputs, finest first; nothing is gated."""
        gates: List[Tensor] = []
        bottleneck, skips = self.encode(self.encode_first(image), gates)
        outputs = self.decode(bottleneck, skips)
        return self.calibrate(outputs[0]), outputs


def _units(widths: Sequence[int], norm: str, dropout: Optional[float] = None) -> nn.Sequential:
    """Return convolution, dropout, normalisation and activation for each pair of neighbouring widths."""
    layers: List[nn.Module] = []
    for in_channels, out_channels in zip(widths[:-1], widths[1:]):
        layers.append(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        if dropout is not None:
            layers.append(nn.Dropout2d(dropout))
        layers += [HIGHWAY_NORMS[norm](out_channels), nn.LeakyReLU(NEGATIVE_SLOPE)]
    return nn.Sequential(*layers)


def _check_arguments(num_poolings: int, channels: int, dropout: float, norm: str) -> None:
    if num_poolings < 1:
        raise InputError(f"the highway has {num_poolings} poolings: it needs 1; give channel_mult 2 levels or more")
    if channels < 1:
        raise InputError(f"highway_channels is {channels}: it must be at least 1")
    if not 0 <= dropout < 1:
        raise InputError(f"highway_dropout is {dropout}: it must be at least 0 and less than 1")
    check_choice("highway_norm", norm, HIGHWAY_NORMS)
