"""Holes in the objects of a prediction that are too small to be anything."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type, convert_to_tensor
from skimage.morphology import remove_small_holes
from torch import Tensor

from shared_components.errors import InputError


def fill_small_holes(probabilities: Tensor, max_size: int) -> Tensor:
    """Give small holes in objects to the class that is most probable there, the background left out.

    A hole is a part of the background that foreground of any class encloses; parts that only touch at corners are
    apart. A large one, such as a gland's lumen within a ring of nuclei, stays. In a filled hole background and class
    exchange their probabilities: another label with the same entropy, so that the uncertainty map shows it still.

    Args:
        probabilities: (C, *spatial) in [0, 1], background first; one-hot label maps too.
        max_size: voxels of the largest hole that is filled.

    Returns:
        (C, *spatial), with the metadata; the same tensor where there is nothing to fill.
    """
    values = convert_to_tensor(probabilities, track_meta=False)
    foreground = (values.argmax(dim=0) > 0).cpu().numpy()
    filled = torch.as_tensor(remove_small_holes(foreground, max_size=max_size) & ~foreground, device=values.device)
    if not filled.any():
        return probabilities
    best = 1 + values[1:].argmax(dim=0, keepdim=True)
    exchanged = values.scatter(0, best, values[:1])
    exchanged[:1] = values.gather(0, best)
    return convert_to_dst_type(torch.where(filled[None], exchanged, values), dst=probabilities)[0]


class FillSmallHolesd(MapTransform):
    """Fill small holes in the objects of a prediction (`fill_small_holes`), for ``postprocessing`` of a bundle.

    MONAI's ``FillHolesd`` fills holes of any size and makes label maps; this leaves probabilities.

    Args:
        keys: keys of channel-first (C, *spatial) class probabilities or one-hot label maps, background first.
        max_size: voxels of the largest hole that is filled; ``None`` or 0 fills none.

    Raises:
        InputError: ``max_size`` is not a whole number of at least 0.
    """

    def __init__(self, keys: KeysCollection = "pred", max_size: int | None = None) -> None:
        super().__init__(keys)
        if max_size is not None and (type(max_size) is not int or max_size < 0):
            raise InputError(f"max_hole_size is {max_size!r}; expected a whole number of pixels, or None to fill none")
        self.max_size = max_size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Fill the holes of one case."""
        d = dict(data)
        for key in self.key_iterator(d) if self.max_size else ():
            d[key] = fill_small_holes(d[key], self.max_size)
        return d
