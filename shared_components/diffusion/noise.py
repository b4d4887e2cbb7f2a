"""Standard normal noise as a function of what it is for: (seed, draw, member, slice, channel, row, column).

A generator's stream depends on how the work was cut into batches. Here every number is the hash of its own address, so
an ensemble member of a slice is the same whatever the batch size, the chunking, the order or the number of devices, and
the code scripts.
"""

import math

import torch
from torch import Tensor


def _mix(x: Tensor) -> Tensor:
    """Mix the bits of int32 values (Wellons' ``lowbias32``); products wrap, shifts are made logical by a mask."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * -0x7B935975
    return x ^ ((x >> 16) & 0xFFFF)


def _uniform(bits: Tensor) -> Tensor:
    return (((bits >> 8) & 0xFFFFFF).float() + 0.5) * (1.0 / 16777216.0)


def addressed_noise(
    seed: int, draw: int, member: Tensor, position: Tensor, channels: int, height: int, width: int
) -> Tensor:
    """Standard normal noise for a batch of (member, slice) pairs.

    Args:
        seed: of the whole case.
        draw: counts the uses of noise for one member (the start, the latent of step 0, ...).
        member: (N,) int64, index of the ensemble member.
        position: (N,) int64, index of the slice in its volume; 0 for an image.
        channels, height, width: of the noise; up to 256 x 4096 x 4096.

    Returns:
        (N, channels, height, width) float32. Two uniform numbers make one normal number (Box and Muller 1958).
    """
    key = _mix(torch.full_like(member, seed).to(torch.int32) + draw * 0x1F123BB5)
    key = _mix(key ^ _mix(member.to(torch.int32) + 0x3C6EF372))
    key = _mix(key ^ _mix(position.to(torch.int32) * 2 + 0x2545F491)).reshape(-1, 1, 1, 1)
    options = torch.arange(max(channels, height, width), device=member.device, dtype=torch.int32)
    address = options[:channels].reshape(1, -1, 1, 1) * 4096 + options[:height].reshape(1, 1, -1, 1)
    address = _mix(address * 4096 + options[:width].reshape(1, 1, 1, -1))
    radius = torch.sqrt(-2.0 * torch.log(_uniform(_mix(address ^ key))))
    return radius * torch.cos(2.0 * math.pi * _uniform(_mix(_mix(address + 0x632BE5AB) ^ key)))
