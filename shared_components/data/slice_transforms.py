"""Transforms for slices with image-level labels."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.transforms.utils_pytorch_numpy_unification import percentile
from monai.utils import convert_to_dst_type, convert_to_tensor

from shared_components.data.formats.readers import PICTURE_FORMAT
from shared_components.data.formats.scan import FULL_SCALE
from shared_components.data.transforms import file_or_key
from shared_components.errors import InputError


def is_foreground(volume: torch.Tensor) -> torch.Tensor:
    """Tell, as bool, which voxels are not background.

    Background is the value that all corners hold, zero mostly, another one where someone has standardised the volume
    before; zero where the corners differ.
    """
    corners = volume[tuple(slice(None, None, max(1, size - 1)) for size in volume.shape)].flatten()
    is_one_value = ((corners - corners[0]).abs() <= 1e-5 * corners[0].abs()).all()  # resampling rounds
    background = corners[0] if is_one_value else torch.zeros_like(corners[0])
    return (volume - background).abs() > 1e-5 * background.abs()


class ForegroundScaled(MapTransform):
    """Scale grey values to [-1, 1], or another range, the background to the lowest of it.

    A volume is clipped to percentiles of its voxels that are not background (`is_foreground`), all its slices by the
    same. A picture goes from 0 to 255: whoever wrote it has scaled it, `shared_components.data.slice_folder` in this
    way, and a slice alone would be scaled otherwise than among its neighbours. Input: (C, *spatial) `MetaTensor`, as
    the loaders give; output float32.

    Args:
        keys: entries to scale.
        lower, upper: percentiles of volumes.
        window: lowest and highest grey value of volumes instead, for CT.
        value_range: what to scale to; the published CDM was fed [0, 1].
    """

    def __init__(
        self,
        keys: KeysCollection,
        lower: float = 0.5,
        upper: float = 99.5,
        window: tuple[float, float] | None = None,
        value_range: tuple[float, float] = (-1.0, 1.0),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.bottom, self.top = value_range
        self.lower, self.upper, self.window = lower, upper, window

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scale the keys of ``data``.

        Raises:
            InputError: an image has a NaN or infinite voxel.
        """
        result = dict(data)
        for key in self.key_iterator(result):
            image = torch.as_tensor(result[key])
            values = convert_to_tensor(image, torch.float64)
            if not torch.isfinite(values).all():
                raise InputError(f"{file_or_key(image, key)}: NaN or infinite voxels; replace them by numbers")
            is_picture = PICTURE_FORMAT in getattr(image, "meta", {})
            scaled = torch.stack([self._scaled(channel, is_picture) for channel in values])
            result[key] = convert_to_dst_type(scaled, image, torch.float32)[0]
        return result

    def _scaled(self, channel: torch.Tensor, is_picture: bool) -> torch.Tensor:
        inside = channel != 0 if is_picture else is_foreground(channel)
        low, high = 0.0, 255.0
        if self.window is not None and not is_picture:
            (low, high), inside = self.window, channel > self.window[0]
        elif not is_picture:
            if not inside.any():
                return torch.full_like(channel, self.bottom)
            low, high = (float(value) for value in percentile(channel[inside], [self.lower, self.upper]))
        if not high > low:
            return torch.where(inside, self.top, self.bottom).to(channel.dtype)
        share = torch.where(inside, ((channel - low) / (high - low)).clamp(0, 1), torch.zeros_like(channel))
        return self.bottom + (self.top - self.bottom) * share


def object_pixels(mask: torch.Tensor, values: Sequence[int]) -> torch.Tensor:
    """Tell, as bool, where a label map has one of the values or is white: 255, or 65535 of 16 bits."""
    return torch.isin(mask, torch.tensor([*values, *FULL_SCALE], dtype=mask.dtype, device=mask.device))


class ObjectMaskd(MapTransform):
    """Make a label map a mask: 1 where it has one of the object's values, or is white; else 0.

    Args:
        keys: entries of loaded label maps; those that are missing are left out.
        values: that are the object.
    """

    def __init__(self, keys: KeysCollection, values: Sequence[int]) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.values = list(values)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Convert the keys of ``data``; type and metadata stay."""
        result = dict(data)
        for key in self.key_iterator(result):
            mask = object_pixels(convert_to_tensor(result[key]), self.values)
            result[key] = convert_to_dst_type(mask, result[key])[0]
        return result


class MaskOrEmptyd(MapTransform):
    """Give a slice without a mask an empty one, if its image-level label says that the object is absent.

    To be used after loading: the mask is on the image's grid, (1, *spatial).

    Args:
        keys: entries of masks.
        image_key: the loaded image.
        class_key: the image-level label, 0 or 1.
    """

    def __init__(self, keys: KeysCollection = "label", image_key: str = "image", class_key: str = "class") -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.image_key, self.class_key = image_key, class_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add what is missing to ``data``.

        Raises:
            InputError: a positive slice has no mask.
        """
        result = dict(data)
        for key in self.keys:
            if key in result:
                continue
            image = result[self.image_key]
            if int(result[self.class_key]) == 1:
                name = file_or_key(image, "a slice")
                raise InputError(f"{name}: positive, but it has no mask to be scored with; add it, or leave it out")
            result[key] = convert_to_dst_type(torch.zeros_like(convert_to_tensor(image)[:1]), image)[0]
        return result
