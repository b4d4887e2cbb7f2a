"""A volume as a batch of its slices, each with its neighbours as channels, and as many of them as one call takes."""

from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor


def volume_to_slices(volume: Tensor, num_adjacent_slices: int = 0) -> Tensor:
    """Cut a volume into the slices of its last axis.

    Args:
        volume: (B, K, H, W, D).
        num_adjacent_slices: neighbours on each side that a slice takes along as channels. Beyond the first and the
            last slice the outermost one is repeated.

    Returns:
        (B * D, K * (2 * num_adjacent_slices + 1), H, W): slices of case 0 first; channels ordered by neighbour,
        lowest slice first, and within one by the volume's channel.
    """
    batch, channels, height, width, depth = volume.shape
    slices = volume.permute(0, 4, 1, 2, 3)
    if num_adjacent_slices > 0:
        index = torch.arange(depth, device=volume.device)
        offsets = torch.arange(-num_adjacent_slices, num_adjacent_slices + 1, device=volume.device)
        neighbours = (index.unsqueeze(1) + offsets.unsqueeze(0)).clamp(0, depth - 1)
        slices = slices[:, neighbours]
    return slices.reshape(batch * depth, -1, height, width)


def slices_to_volume(slices: Tensor, depth: int) -> Tensor:
    """Stack (B * depth, C, H, W) slices to (B, C, H, W, depth) volumes."""
    count, channels, height, width = slices.shape
    return slices.reshape(count // depth, depth, channels, height, width).permute(0, 2, 3, 4, 1)


def pad_to_multiple(slices: Tensor, multiple: int) -> Tuple[Tensor, Tuple[int, int]]:
    """Pad the last two axes on both sides to multiples of ``multiple`` by repeating the border.

    Returns:
        The padded (N, K, H', W') and the rows above and columns left of the original.
    """
    height, width = slices.shape[2], slices.shape[3]
    rows, columns = (-height) % multiple, (-width) % multiple
    top, left = rows // 2, columns // 2
    if rows > 0 or columns > 0:
        slices = F.pad(slices, [left, columns - left, top, rows - top], mode="replicate")
    return slices, (top, left)


def images_per_call(most: int, images: Tensor) -> int:
    """Return how many of the images (N, K, H, W) one call of a network should get.

    As many as are allowed, but on a CPU no more than 65,536 pixels together, or one image. With more, what a layer
    writes has left the processor's caches when the next one reads it, and the same work takes up to twice as long; with
    fewer, calls cost more than they save. No result depends on it but for rounding. Scripts; a trace, which would keep
    the number of its calls, gets what is allowed.

    Args:
        most: images that are allowed, for the sake of memory.
        images: of which only device, height and width are looked at.
    """
    if images.device.type != "cpu" or torch.jit.is_tracing():
        return most
    return max(1, min(most, 65536 // (images.shape[2] * images.shape[3])))
