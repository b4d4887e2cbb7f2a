"""The naive path: the project's own networks in the obvious way; plain correct code, nothing slowed down."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from shared_components.diffusion.noise import addressed_noise
from shared_components.diffusion.segmenter import DiffusionSegmenter
from shared_components.diffusion.slices import pad_to_multiple, slices_to_volume, volume_to_slices
from shared_components.diffusion.tiles import TiledDenoiser
from shared_components.ensembling.combine import combine_members
from shared_components.ensembling.decision import weigh_by_decision
from shared_components.networks.fir import FIRDownsample, FIRStridedConv, FIRUpsample
from shared_components.networks.medsegdiff_blocks import SelfAttention

WINDOW = 32
OVERLAP = 0.75
FILTERS = ("one-channel", "depthwise")


def filter_map(
    x: Tensor, gain: float, filters: str, up: int = 1, down: int = 1, padding: tuple[int, int] = (0, 0)
) -> Tensor:
    """Insert zeros, pad, convolve with the 4x4 low-pass filter, keep every ``down``-th pixel.

    Args:
        x: (B, C, H, W).
        gain: sum of the filter's entries.
        filters: one of `FILTERS`: the channels laid out as a batch of one-channel maps, which is the usual
            way and slow on a CPU, or one group for each channel.
        padding: zeros before and after, of either axis.
    """
    batch, channels, height, width = x.shape
    if up > 1:
        spread = x.new_zeros(batch, channels, height, up, width, up)
        spread[:, :, :, 0, :, 0] = x
        x = spread.reshape(batch, channels, height * up, width * up)
    x = F.pad(x, (*padding, *padding))
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device, dtype=x.dtype)
    kernel = (torch.outer(taps, taps) * (gain / 64))[None, None]
    if filters == "depthwise":
        x = F.conv2d(x, kernel.repeat(channels, 1, 1, 1), groups=channels)
    else:
        x = F.conv2d(x.reshape(batch * channels, 1, *x.shape[2:]), kernel)
        x = x.reshape(batch, channels, *x.shape[2:])
    return x[:, :, ::down, ::down]


class NaiveDownsample(nn.Module):
    """`FIRDownsample`, by filtering at full resolution."""

    def __init__(self, filters: str) -> None:
        super().__init__()
        self.filters = filters

    def forward(self, x: Tensor) -> Tensor:
        return filter_map(x, 1.0, self.filters, down=2, padding=(1, 1))


class NaiveUpsample(nn.Module):
    """`FIRUpsample`, by zero insertion."""

    def __init__(self, filters: str) -> None:
        super().__init__()
        self.filters = filters

    def forward(self, x: Tensor) -> Tensor:
        return filter_map(x, 4.0, self.filters, up=2, padding=(2, 1))


class NaiveStridedConv(nn.Module):
    """`FIRStridedConv`, its filter as in the other two."""

    def __init__(self, filters: str, conv: nn.Module) -> None:
        super().__init__()
        self.filters = filters
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(filter_map(x, 1.0, self.filters, padding=(2, 2)))


def use_naive_filters(network: nn.Module, filters: str) -> nn.Module:
    """Replace every FIR module of a network, in place, by one that inserts zeros; the weights stay.

    Args:
        network: with modules of `shared_components.networks.fir`.
        filters: one of `FILTERS`.
    """
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, FIRDownsample):
                setattr(module, name, NaiveDownsample(filters))
            elif isinstance(child, FIRUpsample):
                setattr(module, name, NaiveUpsample(filters))
            elif isinstance(child, FIRStridedConv):
                setattr(module, name, NaiveStridedConv(filters, child.conv))
    return network


class NaiveAttention(nn.Module):
    """`SelfAttention` of MedSegDiff by its formula, softmax(Q K^T / sqrt(d)) V.

    Args:
        attention: whose weights are used.
    """

    def __init__(self, attention: SelfAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        owner, batch, channels = self.attention, x.shape[0], x.shape[1]
        projected = owner.query_key_value(owner.norm(x).flatten(2))
        if owner.use_new_attention_order:
            projected = projected.reshape(batch, 3, owner.num_heads, channels // owner.num_heads, -1).transpose(1, 2)
        else:
            projected = projected.reshape(batch, owner.num_heads, 3, channels // owner.num_heads, -1)
        query, key, value = projected.unbind(2)
        weights = torch.softmax(query.transpose(2, 3) @ key / query.shape[2] ** 0.5, dim=3)
        attended = (value @ weights.transpose(2, 3)).reshape(batch, channels, -1)
        return x + owner.output(attended).reshape(x.shape)


def use_naive_attention(network: nn.Module) -> nn.Module:
    """Replace every attention of MedSegDiff, in place, by its formula; the weights stay."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, SelfAttention):
                setattr(module, name, NaiveAttention(child))
    return network


class NaiveTiles(nn.Module):
    """What `TiledDenoiser` returns, one image and one tile at a time, the condition encoded at every call.

    Args:
        denoiser: for one tile.
        size: height and width of a tile.
        overlap: least share of a tile that it has in common with the next.
    """

    def __init__(self, denoiser: nn.Module, size: int, overlap: float) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.size = size
        self.overlap = overlap

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor, latent: Tensor | None = None) -> Tensor:
        """Return the mean of the tiles, weighted by how far a pixel is from the border of each."""
        outputs = []
        for index in range(len(noisy)):
            one = slice(index, index + 1)
            code = None if latent is None else latent[one]
            outputs.append(self.blended(noisy[one], timesteps[one], condition[one], code))
        return torch.cat(outputs)

    def blended(self, noisy: Tensor, timesteps: Tensor, condition: Tensor, latent: Tensor | None) -> Tensor:
        """Run all tiles of one image."""
        total, weights = 0.0, 0.0
        for top in self.starts(noisy.shape[2]):
            for left in self.starts(noisy.shape[3]):
                bottom, right = top + self.size, left + self.size
                part = noisy[:, :, top:bottom, left:right]
                output = self.denoiser(part, timesteps, condition[:, :, top:bottom, left:right], latent)
                rows, columns = (tent(length, noisy.device) for length in part.shape[2:])
                weight = rows[:, None] * columns
                around = (left, noisy.shape[3] - left - part.shape[3], top, noisy.shape[2] - top - part.shape[2])
                total = total + F.pad(weight * output, around)
                weights = weights + F.pad(weight, around)
        return total / weights

    def starts(self, length: int) -> list[int]:
        """First pixel of every tile along an axis, spread evenly from end to end."""
        rest = max(length - self.size, 0)
        steps = math.ceil(rest / (self.size * (1 - self.overlap)))
        return [round(rest * index / steps) for index in range(steps + 1)] if steps else [0]


def tent(length: int, device: torch.device) -> Tensor:
    """Weights that rise from the ends of an axis to its middle."""
    position = torch.arange(length, device=device) + 0.5
    return torch.minimum(position, length - position) / (length / 2)


def naive_denoiser(denoiser: nn.Module, filters: str) -> nn.Module:
    """A copy of a denoiser in plain parts.

    Args:
        filters: one of `FILTERS`; without effect on a denoiser that has none.
    """
    plain = use_naive_attention(use_naive_filters(copy.deepcopy(denoiser), filters))
    if isinstance(plain, TiledDenoiser):
        return NaiveTiles(plain.denoiser, plain.tile_size, plain.overlap)
    return plain


class NaiveSegmenter(nn.Module):
    """What `DiffusionSegmenter` computes in eval mode, one member after the other and with nothing kept.

    Args:
        segmenter: whose denoiser (copied, in plain parts), reverse process and noise are used; without a fusion.
        filters: one of `FILTERS`.
    """

    def __init__(self, segmenter: DiffusionSegmenter, filters: str) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.denoiser = naive_denoiser(segmenter.denoiser, filters)

    def forward(self, image: Tensor) -> Tensor:
        """Return class probabilities (B, classes, H, W[, D]) of images (B, K, H, W) or volumes (B, K, H, W, D)."""
        image = image.as_subclass(Tensor)
        depth = image.shape[4] if image.ndim == 5 else 1
        slices = volume_to_slices(image, self.segmenter.num_adjacent_slices) if image.ndim == 5 else image
        condition, (top, left) = pad_to_multiple(slices, self.segmenter.downsampling)
        members = torch.stack([self.member(condition, m, depth) for m in range(self.segmenter.num_samples)])
        members = members[..., top : top + image.shape[2], left : left + image.shape[3]]
        combined = combine_members(members, self.segmenter.combine)
        combined = slices_to_volume(combined, depth) if image.ndim == 5 else combined
        return weigh_by_decision(combined, self.segmenter.decision, self.segmenter.threshold)

    def member(self, condition: Tensor, index: int, depth: int) -> Tensor:
        """Run one member's reverse process on slices (N, K, H, W) of volumes ``depth`` slices deep."""
        owner, count, size = self.segmenter, len(condition), condition.shape[2:]
        # bit i of a member's number says whether it is mirrored along the i-th of the axes
        axes = [axis + 2 for i, axis in enumerate(owner.mirror_axes) if owner.mirror_members and index >> i & 1]
        condition = condition.flip(axes) if axes else condition
        member = torch.full((count,), index, device=condition.device)
        position = torch.arange(count, device=condition.device) % depth

        def noise(draw: int, channels: int, height: int, width: int) -> Tensor:
            return addressed_noise(owner.seed, draw, member, position, channels, height, width)

        process = owner.process
        noisy = noise(0, owner.channels, *size)
        clean = noisy
        for step in range(process.num_inference_steps):
            latent = noise(2 * step + 1, owner.latent_dim, 1, 1).flatten(1) if owner.latent_dim else None
            output = self.denoiser(noisy, process.timesteps[step].expand(count), condition, latent)
            last = step + 1 == process.num_inference_steps
            fresh = None if last or not process.stochastic else noise(2 * step + 2, owner.channels, *size)
            noisy, clean = process(step, output, noisy, clean, fresh)
        return owner.label_coding.decode(noisy.flip(axes) if axes else noisy)


def cube_inferer(windows_at_once: int = 1) -> SlidingWindowInferer:
    """MONAI's sliding window over cubes of 32 with an overlap of 0.75 along every axis."""
    return SlidingWindowInferer((WINDOW,) * 3, sw_batch_size=windows_at_once, overlap=OVERLAP)


def column_inferer(windows_at_once: int = 1) -> SlidingWindowInferer:
    """MONAI's sliding window in the plane only: 32 x 32 pixels of every slice, each slice once a window."""
    return SlidingWindowInferer((WINDOW, WINDOW, -1), sw_batch_size=windows_at_once, overlap=(OVERLAP, OVERLAP, 0.0))


def tile_inferer(size: int, overlap: float) -> SlidingWindowInferer:
    """MONAI's sliding window over pictures, every tile sampled by itself."""
    return SlidingWindowInferer((size, size), sw_batch_size=1, overlap=overlap)


def ema_loop(averages: nn.Module, weights: nn.Module, momentum: float) -> None:
    """Move every average towards its weight, one parameter at a time."""
    with torch.no_grad():
        for average, weight in zip(averages.parameters(), weights.parameters(), strict=True):
            average.mul_(1 - momentum).add_(weight, alpha=momentum)


def voxel_staple(votes: Tensor, max_iterations: int = 100, tolerance: float = 1e-7) -> Tensor:
    """STAPLE by expectation-maximisation over all voxels, as in the paper's formulas.

    Args:
        votes: (M, *voxels), zero or not zero.

    Returns:
        (*voxels) float64 posterior probability.
    """
    marks = votes.reshape(len(votes), -1).double()
    posterior = marks.mean(dim=0)
    prior = posterior.mean()
    last = torch.zeros(2, len(votes), dtype=torch.float64)
    for _ in range(max_iterations):
        sensitivity = (marks @ posterior) / posterior.sum()
        specificity = ((1 - marks) @ (1 - posterior)) / (1 - posterior).sum()
        p, q = sensitivity[:, None], specificity[:, None]
        inside = prior * torch.where(marks > 0, p, 1 - p).prod(dim=0)
        outside = (1 - prior) * torch.where(marks > 0, 1 - q, q).prod(dim=0)
        posterior = inside / (inside + outside)
        now = torch.stack([sensitivity, specificity])
        if (now - last).abs().max() <= tolerance:
            break
        last = now
    return posterior.reshape(votes.shape[1:])
