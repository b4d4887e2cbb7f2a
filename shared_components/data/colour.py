"""Random changes of a picture's colours."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type
from skimage.color import hsv2rgb, rgb2hsv

from shared_components.data.formats.pictures import LUMINANCE
from shared_components.errors import InputError

_WHITE = 255.0


class RandColorJitterd(RandomizableTransform, MapTransform):
    """Change brightness, contrast, saturation and hue of colour pictures at random, in random order.

    What torchvision's ``ColorJitter`` does, for pictures as MONAI holds them. Stain and exposure of histology slides
    differ that much between laboratories. Input: (3, *spatial), 0 to 255; output: float32 in the same range, not
    rounded, as MetaTensor where it was one. All keys get the same change.
    """

    def __init__(
        self,
        keys: KeysCollection,
        brightness: Sequence[float] = (0.6, 1.4),
        contrast: Sequence[float] = (0.6, 1.4),
        saturation: Sequence[float] = (0.6, 1.4),
        hue: Sequence[float] = (-0.1, 0.1),
        prob: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        """Create the transform; the default ranges are those of the published cDAL for MoNuSeg.

        Args:
            keys: entries to change.
            brightness: lowest and highest factor of all values.
            contrast: of the distance to the picture's mean grey value.
            saturation: of the distance to each pixel's grey value.
            hue: lowest and highest turn of the hue, in full turns, -0.5 to 0.5.
            prob: of a change.
            allow_missing_keys: leave out keys that the data does not have.

        Raises:
            InputError: a range that is upside down, a negative factor or more than half a turn.
        """
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.ranges = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
        for name, (low, high) in self.ranges.items():
            least, most = (-0.5, 0.5) if name == "hue" else (0.0, float("inf"))
            if not least <= low <= high <= most:
                raise InputError(f"{name} {low} to {high}: expected a range within {least} to {most}")
        self.changes: list[tuple[str, float]] = []

    def randomize(self, data: Any = None) -> None:
        """Draw whether to change, the order and the amounts."""
        super().randomize(data)
        amounts = {name: self.R.uniform(low, high) for name, (low, high) in self.ranges.items()}
        self.changes = [(name, amounts[name]) for name in self.R.permutation(list(amounts))]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Change the keys of ``data``.

        Raises:
            InputError: a picture without three channels.
        """
        result = dict(data)
        self.randomize()
        if not self._do_transform:
            return result
        for key in self.key_iterator(result):
            picture = torch.as_tensor(result[key])
            if picture.shape[0] != 3:
                raise InputError(f"{key}: {picture.shape[0]} channels, expected a colour picture with 3")
            values = picture.detach().cpu().numpy().astype(np.float32)
            for name, amount in self.changes:
                values = _CHANGES[name](values, amount)
            result[key] = convert_to_dst_type(values, picture, dtype=torch.float32)[0]
        return result


def _grey(values: np.ndarray) -> np.ndarray:
    return np.tensordot(np.array(LUMINANCE, dtype=np.float32), values, axes=1)


def _blend(values: np.ndarray, other: np.ndarray | float, factor: float) -> np.ndarray:
    return np.clip(other + factor * (values - other), 0.0, _WHITE)


def _turn_hue(values: np.ndarray, turn: float) -> np.ndarray:
    hsv = rgb2hsv(values / _WHITE, channel_axis=0)
    hsv[0] = (hsv[0] + turn) % 1.0
    return (hsv2rgb(hsv, channel_axis=0) * _WHITE).astype(np.float32)


_CHANGES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "brightness": lambda values, factor: _blend(values, 0.0, factor),
    "contrast": lambda values, factor: _blend(values, float(_grey(values).mean()), factor),
    "saturation": lambda values, factor: _blend(values, _grey(values), factor),
    "hue": _turn_hue,
}
