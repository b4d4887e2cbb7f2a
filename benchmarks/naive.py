"""The naive path: the project's own networks in the obvious way; plain correct code, nothing slowed down."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from shared_components.diffusion.noise import addressed_noise
from shared_components.diffusion.segmenter import DiffusionSegmenter
from shared_components.diffusion.slices import pad_to_multiple, slices_to_volume, volume_to_slices
from shared_components.ensembling.combine import combine_members
from shared_components.networks.fir import FIRDownsample, FIRStridedConv, FIRUpsample

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


class NaiveSegmenter(nn.Module):
    """What `DiffusionSegmenter` computes in eval mode, one member after the other and with nothing kept.

    Args:
        segmenter: whose denoiser (copied, with the naive filters), reverse process and noise are used.
        filters: one of `FILTERS`.
    """

    def __init__(self, segmenter: DiffusionSegmenter, filters: str) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.denoiser = use_naive_filters(copy.deepcopy(segmenter.denoiser), filters)

    def forward(self, image: Tensor) -> Tensor:
        """Return class probabilities (B, classes, H, W, D) of volumes (B, K, H, W, D)."""
        slices = volume_to_slices(image.as_subclass(Tensor), self.segmenter.num_adjacent_slices)
        condition, (top, left) = pad_to_multiple(slices, self.segmenter.downsampling)
        members = torch.stack(
            [self.member(condition, m, image.shape[4]) for m in range(self.segmenter.num_samples)]
        )
        members = members[..., top : top + image.shape[2], left : left + image.shape[3]]
        combined = combine_members(members, self.segmenter.combine)
        return slices_to_volume(combined, image.shape[4])

    def member(self, condition: Tensor, index: int, depth: int) -> Tensor:
        """Run one member's reverse process on slices (N, K, H, W) of volumes ``depth`` slices deep."""
        owner, count, size = self.segmenter, len(condition), condition.shape[2:]
        mirrored = owner.mirror_members and index % 2 == 1
        condition = condition.flip(2) if mirrored else condition
        member = torch.full((count,), index, device=condition.device)
        position = torch.arange(count, device=condition.device) % depth

        def noise(draw: int, channels: int, height: int, width: int) -> Tensor:
            return addressed_noise(owner.seed, draw, member, position, channels, height, width)

        noisy = noise(0, owner.num_classes, *size)
        for step in range(owner.num_inference_steps):
            latent = noise(2 * step + 1, owner.latent_dim, 1, 1).flatten(1)
            clean = self.denoiser(noisy, owner.process.timesteps[step].expand(count), condition, latent)
            weights = owner.process.coefficients[step]
            noisy = weights[0] * clean + weights[1] * noisy
            if step + 1 < owner.num_inference_steps:
                noisy = noisy + weights[2] * noise(2 * step + 2, owner.num_classes, *size)
        noisy = noisy.flip(2) if mirrored else noisy
        positive = ((noisy + 1) / 2).clamp(min=1e-6)
        return positive / positive.sum(dim=1, keepdim=True)


def cube_inferer(windows_at_once: int = 1) -> SlidingWindowInferer:
    """MONAI's sliding window over cubes of 32 with an overlap of 0.75 along every axis."""
    return SlidingWindowInferer((WINDOW,) * 3, sw_batch_size=windows_at_once, overlap=OVERLAP)


def column_inferer(windows_at_once: int = 1) -> SlidingWindowInferer:
    """MONAI's sliding window in the plane only: 32 x 32 pixels of every slice, each slice once a window."""
    return SlidingWindowInferer(
        (WINDOW, WINDOW, -1), sw_batch_size=windows_at_once, overlap=(OVERLAP, OVERLAP, 0.0)
    )


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
