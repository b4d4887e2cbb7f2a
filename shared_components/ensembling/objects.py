"""How many separate objects a prediction may have, and which."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type, convert_to_tensor
from scipy import ndimage
from skimage.measure import label as connected_objects
from torch import Tensor

from shared_components.errors import InputError

logger = logging.getLogger(__name__)
_CENTRE_SIGMA = 0.2  # of an image's side
_SPECK = 0.01  # share of a reference's foreground up to which an object in it is a slip of the pen


def keep_central_objects(probabilities: Tensor, num_objects: int) -> Tensor:
    """Give all objects but the most central ones to the background.

    An object is a connected part of what is not background, whatever its classes, diagonal neighbours included. They
    are ranked by the voxel that is best in each: its probability of not being background, times a Gaussian of its
    distance from the image's centre (deviation: a fifth of each side). So a certain object beside the centre is
    preferred to a doubtful speck in it, and both to whatever lies at the border, however large.

    Where an object is given up, background and the most probable class exchange their probabilities: another label with
    the same entropy, so that the uncertainty map goes on showing what was nearly taken.

    Args:
        probabilities: (C, *spatial) in [0, 1], background first; one-hot label maps too.
        num_objects: objects to keep.

    Returns:
        (C, *spatial), with the metadata; the same tensor where nothing is given up.
    """
    values = convert_to_tensor(probabilities, track_meta=False)
    label = values.argmax(dim=0)
    objects, found = connected_objects((label > 0).cpu().numpy(), return_num=True)
    if found <= num_objects:
        return probabilities
    foreground = (1 - values[0].to(torch.float32)).cpu().numpy()
    best = ndimage.maximum(foreground * _centre_weight(foreground.shape), objects, np.arange(1, found + 1))
    kept = 1 + np.argsort(-best, kind="stable")[:num_objects]
    given_up = torch.as_tensor((objects > 0) & ~np.isin(objects, kept), device=values.device)
    exchanged = values.scatter(0, label[None], values[:1])
    exchanged[:1] = values.gather(0, label[None])
    return convert_to_dst_type(torch.where(given_up[None], exchanged, values), dst=probabilities)[0]


def _centre_weight(shape: tuple[int, ...]) -> np.ndarray:
    weight = np.ones(shape, dtype=np.float32)
    for axis, side in enumerate(shape):
        offset = (np.arange(side) + 0.5) / side - 0.5
        line = np.exp(-0.5 * (offset / _CENTRE_SIGMA) ** 2).astype(np.float32)
        weight *= line.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return weight


class KeepCentralObjectsd(MapTransform):
    """Keep only the most central objects of a prediction (`keep_central_objects`), for ``postprocessing`` of a bundle.

    For data with one structure in the middle of every picture, among other things that look like it: ink, patches, a
    second blemish. Use it after ``Invertd``, on the probabilities. Where a case has a reference with more objects than
    are kept, that is said once, since the rule is not for such data.

    Args:
        keys: keys of channel-first (C, *spatial) class probabilities or one-hot label maps, background first.
        num_objects: objects to keep; ``None`` keeps all.
        label_key: key of a reference (1, *spatial), which may be absent.

    Raises:
        InputError: ``num_objects`` is not a whole number of at least 1.
    """

    def __init__(
        self, keys: KeysCollection = "pred", num_objects: int | None = 1, label_key: Hashable = "label"
    ) -> None:
        super().__init__(keys)
        if num_objects is not None and (type(num_objects) is not int or num_objects < 1):
            raise InputError(f"num_objects is {num_objects!r}; expected a whole number of at least 1, or None for all")
        self.num_objects, self.label_key = num_objects, label_key
        self._told = False

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Keep the most central objects of one case."""
        d = dict(data)
        if self.num_objects is None:
            return d
        for key in self.key_iterator(d):
            d[key] = keep_central_objects(d[key], self.num_objects)
        if not self._told and d.get(self.label_key) is not None:
            self._compare(d[self.label_key], self.num_objects)
        return d

    def _compare(self, label: Any, num_objects: int) -> None:
        reference = convert_to_tensor(label)[0]
        sizes = np.bincount(connected_objects((reference > 0).cpu().numpy()).ravel())[1:]
        beyond = int(np.sort(sizes)[::-1][num_objects:].sum())
        if beyond > _SPECK * sizes.sum():
            self._told = True
            name = getattr(label, "meta", {}).get("filename_or_obj", "label")
            logger.warning(
                "%s: the reference has more than %d object(s), and num_objects keeps no more of a prediction; for such "
                "data give --num_objects '$None', to inference too",
                name,
                num_objects,
            )
