"""Label maps as the condition of an image denoiser, and the classes deleted from them."""

from typing import List, Optional, Sequence

import torch
from torch import Tensor, nn

from shared_components.errors import InputError, check_choice

ENCODINGS = ("onehot", "scaled", "legacy255")


class MaskEncoding(nn.Module):
    """Encode label maps as the channels that a denoiser is shown; a map without labels is zero in every encoding.

    * ``onehot``: a channel for every class but the background, 0 or 1. Classes have no order and are as large as the
      image's own values, so the condition is learned fast.
    * ``scaled``: one channel, (index of the class) / (number of classes), the last class at 1.
    * ``legacy255``: one channel, (label value) / 255, as in the published code, where an 8-bit file is divided by 255:
      classes differ by 0.004. For published weights.

    Several kinds of masks, or a slice's neighbours, are several channels of label maps; each is encoded on its own.

    Args:
        label_values: the value of every class but the background.
        encoding: one of `ENCODINGS`.

    Attributes:
        num_channels: channels of one encoded label map.

    Raises:
        InputError: an unknown encoding; no values, a value twice, the background's 0, or one above 255 (``legacy255``).
    """

    def __init__(self, label_values: Sequence[int], encoding: str = "onehot") -> None:
        super().__init__()
        values = [int(value) for value in label_values]
        check_choice("mask_encoding", encoding, ENCODINGS)
        if not values or len(set(values)) < len(values) or min(values) < 1:
            raise InputError(f"label_values {values}: expected different whole numbers of at least 1")
        if encoding == "legacy255" and max(values) > 255:
            raise InputError(f"label_values {values}: mask_encoding legacy255 takes values up to 255")
        self.label_values: List[int] = values
        self.encoding = encoding
        self.num_channels: int = len(values) if encoding == "onehot" else 1

    def forward(self, label: Tensor) -> Tensor:
        """Encode label maps.

        Args:
            label: (B, A, *spatial) label values, A maps an item; a value that is no class's counts as background, but
                for ``legacy255``, which shows it to the denoiser.

        Returns:
            (B, A * num_channels, *spatial) float32, map by map.
        """
        label = label.float()
        if self.encoding == "legacy255":
            return label / 255
        presence = torch.stack([(label == value).float() for value in self.label_values], dim=2)
        if self.encoding == "onehot":
            return presence.flatten(1, 2)
        steps = torch.arange(1, len(self.label_values) + 1, device=label.device) / len(self.label_values)
        return (presence * steps.reshape([1, 1, -1] + [1] * (label.dim() - 2))).sum(dim=2)


def draw_ablation(
    batch_size: int, num_classes: int, probability: float = 0.5, generator: Optional[torch.Generator] = None
) -> Tensor:
    """Draw which classes every item loses: mask-ablated training (Konz et al. 2024).

    One uniform number for each class of each item, deleted if it is below ``probability``: a Bernoulli draw, so at 0.5
    all subsets of the classes are equally likely. The published code makes one draw for a whole batch and, in sampling,
    another one in every step; here each image has its own, and sampling has none.

    Args:
        batch_size: items B.
        num_classes: classes without the background.
        probability: of losing a class, 0..1.
        generator: of the CPU; torch's global one when ``None``.

    Returns:
        (B, num_classes) bool on the CPU.

    Raises:
        InputError: the probability is not in 0..1.
    """
    if not 0 <= probability <= 1:
        raise InputError(f"ablation must be a probability from 0 to 1, not {probability}")
    return torch.rand((batch_size, num_classes), generator=generator) < probability


def delete_classes(label: Tensor, dropped: Tensor, label_values: Sequence[int]) -> Tensor:
    """Return label maps (B, A, *spatial) in which the classes that ``dropped`` (B or 1, classes) marks are background.

    Values that are no class's, such as the 255 of a mask of 0 and 255, stay as they are.
    """
    kept = torch.ones_like(label, dtype=torch.bool)
    for index, value in enumerate(label_values):
        lost = dropped[:, index].to(label.device).reshape([-1] + [1] * (label.dim() - 1))
        kept = kept & ~((label == value) & lost)
    return torch.where(kept, label, torch.zeros_like(label))
