"""Label maps as the numbers that are diffused, and back to class probabilities."""

from typing import List, Sequence, Union

import torch
from torch import Tensor, nn

from shared_components.errors import InputError, check_choice

CODINGS = ("classes", "channels", "nested")
VALUE_RANGES = ("01", "pm1")
UNKNOWN = 0.5


class LabelCoding(nn.Module):
    """Code label maps as channels of two values, and decode noisy guesses of them; decoding scripts.

    * ``classes``: one channel for every class, background first (cDAL). Decoded by taking the values for
      probabilities, at least 1e-6, divided by their sum.
    * ``channels``: one channel for every structure (MedSegDiff). The probability of the background is 1 less that of
      the most probable structure, then all are divided by their sum: background is the most probable class exactly
      where no structure reaches 0.5.
    * ``nested``: one channel for every region, each inside the one before (whole tumour, tumour core, enhancing
      tumour). A region is at most as probable as the one around it; the classes are the parts that lie in one region
      but not in the next, so their probabilities are differences and sum to 1 without a division.

    A voxel that nobody judged (a label value below 0) is coded halfway, present as much as absent, in every channel;
    losses leave it out (`unknown_voxels`).

    Args:
        label_values: for every structure or region, in the order of the channels, the value or the values it has in
            the label map; all other values are background.
        coding: one of `CODINGS`.
        value_range: ``01`` codes absence and presence by 0 and 1 (MedSegDiff), ``pm1`` by -1 and 1 (cDAL), twice the
            amplitude against the same noise.
        inverted: code presence by the lower value and absence by the upper one, as the published cDAL does for lungs.

    Attributes:
        num_channels: diffused channels.
        num_classes: classes of the probabilities, background included: one more than there are ``label_values``.

    Raises:
        InputError: an unknown name; no labels; classes that share a value; a region not inside the one before.
    """

    def __init__(
        self,
        label_values: Sequence[Union[int, Sequence[int]]],
        coding: str = "channels",
        value_range: str = "pm1",
        inverted: bool = False,
    ) -> None:
        super().__init__()
        check_choice("coding", coding, CODINGS)
        check_choice("value_range", value_range, VALUE_RANGES)
        self.label_values: List[List[int]] = [[v] if isinstance(v, int) else list(v) for v in label_values]
        _check_values(self.label_values, coding)
        self.coding = coding
        self.signed: bool = value_range == "pm1"
        self.inverted = inverted
        self.num_classes: int = len(self.label_values) + 1
        self.num_channels: int = self.num_classes if coding == "classes" else self.num_classes - 1

    @torch.jit.unused
    def encode(self, label: Tensor) -> Tensor:
        """Return the clean map (B, num_channels, *spatial) float32 of label values (B, 1, *spatial)."""
        label = label.long()
        present = [torch.isin(label, torch.tensor(values, device=label.device)) for values in self.label_values]
        coded = torch.cat(present, dim=1)
        if self.coding == "classes":
            coded = torch.cat([~coded.any(dim=1, keepdim=True), coded], dim=1)
        coded = ~coded if self.inverted else coded
        presence = coded.float().masked_fill(label < 0, UNKNOWN)
        return 2 * presence - 1 if self.signed else presence

    @torch.jit.unused
    def classes(self, label: Tensor) -> Tensor:
        """Return class indices, 0 to ``num_classes`` - 1, of label values (1, *spatial), in their type.

        This is what a prediction of these classes is compared with: values of one structure are merged, and of nested
        regions a voxel belongs to the innermost one that holds its value. Values below 0 stay.
        """
        coded = self.decode(self.encode(label[None]))[0]
        return torch.where(label < 0, label, coded.argmax(dim=0, keepdim=True).to(label.dtype))

    @torch.jit.export
    def presence(self, clean: Tensor) -> Tensor:
        """Return a clean map or an estimate of it with absence at 0 and presence at 1, float32, not clipped."""
        upper = (clean.float() + 1) / 2 if self.signed else clean.float()
        return 1 - upper if self.inverted else upper

    @torch.jit.export
    def probabilities(self, presence: Tensor) -> Tensor:
        """Return class probabilities (B, num_classes, *spatial) of presences (B, num_channels, *spatial)."""
        if self.coding == "classes":
            positive = presence.clamp(min=1e-6)
            return positive / positive.sum(dim=1, keepdim=True)
        foreground = presence.clamp(0.0, 1.0)
        if self.coding == "nested":
            regions = torch.cummin(foreground, dim=1)[0]
            outer = torch.cat([torch.ones_like(regions[:, :1]), regions], dim=1)
            return outer - torch.cat([regions, torch.zeros_like(regions[:, :1])], dim=1)
        highest = foreground.amax(dim=1, keepdim=True)
        # at 0.5 the structure wins, as it does when one thresholds; equal numbers would leave it to argmax
        background = torch.where(highest < 0.5, 1 - highest, (1 - highest).clamp(max=0.4999999))
        both = torch.cat([background, foreground], dim=1)
        return both / both.sum(dim=1, keepdim=True)

    @torch.jit.export
    def decode(self, clean: Tensor) -> Tensor:
        """Return class probabilities of a clean estimate.

        Args:
            clean: (B, num_channels, *spatial) around the values of the coding.

        Returns:
            (B, num_classes, *spatial) float32 in [0, 1] that sum to 1 over the classes.
        """
        return self.probabilities(self.presence(clean))

    def forward(self, clean: Tensor) -> Tensor:
        """Decode."""
        return self.decode(clean)


def unknown_voxels(presence: Tensor) -> Tensor:
    """Tell which voxels of presences (B, C, *spatial) of a clean map nobody judged, (B, 1, *spatial) bool."""
    return (presence == UNKNOWN).any(dim=1, keepdim=True)


def _check_values(label_values: List[List[int]], coding: str) -> None:
    if not label_values or not all(label_values):
        raise InputError(f"label_values must name one or more values for every structure, not {label_values}")
    if coding == "nested":
        for outer, inner in zip(label_values, label_values[1:]):
            if not set(inner) < set(outer):
                raise InputError(f"label_values: nested regions must each hold the next one; {outer} does not {inner}")
    elif len({v for values in label_values for v in values}) < sum(len(values) for values in label_values):
        raise InputError(f"label_values: a value of {label_values} belongs to several structures")
