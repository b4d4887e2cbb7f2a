"""From a batch of image and label crops to what a label denoiser trains on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.engines import PrepareBatch
from monai.networks.utils import one_hot
from torch import Tensor

from shared_components.diffusion.slices import volume_to_slices


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


class LabelDiffusionPrepareBatch(PrepareBatch):
    """Turn crops into (condition, clean) pairs: slices with their neighbours, and label maps coded in {-1, +1}.

    Only slices whose neighbours lie in the crop are used, so a crop of depth S gives S - 2 ``num_adjacent_slices``.

    Args:
        num_classes: channels of the label map, background included.
        num_adjacent_slices: as in `DiffusionSegmenter`.
    """

    def __init__(self, num_classes: int, num_adjacent_slices: int = 0) -> None:
        self.num_classes = num_classes
        self.num_adjacent_slices = num_adjacent_slices

    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Return condition (N, K, H, W) and clean (N, C, H, W) of images (B, K, H, W[, D]) and labels (B, 1, ...)."""
        image = _plain(batchdata["image"]).to(device, non_blocking=non_blocking, dtype=torch.float32)
        label = _plain(batchdata["label"]).to(device, non_blocking=non_blocking)
        if image.ndim == 5:
            image, label = self._slices(image, label)
        clean = 2 * one_hot(label, self.num_classes, dtype=torch.float32) - 1
        return image.contiguous(), clean.contiguous()

    def _slices(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        depth, reach = image.shape[4], self.num_adjacent_slices
        if depth <= 2 * reach:
            raise ValueError(f"crops need more than {2 * reach} slices for {reach} neighbours a side, not {depth}")
        slices = volume_to_slices(image, reach).unflatten(0, (-1, depth))[:, reach : depth - reach].flatten(0, 1)
        return slices, volume_to_slices(label[..., reach : depth - reach])
