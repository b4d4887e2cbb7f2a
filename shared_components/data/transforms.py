"""Transforms that MONAI lacks or breaks, for volumes whose intensities have no common scale."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Spacingd
from monai.transforms.utils_pytorch_numpy_unification import percentile
from monai.utils import convert_to_dst_type

from shared_components.data.scan import INTEGER_TOLERANCE
from shared_components.errors import InputError


class SidecarSafeSpacingd(Spacingd):
    """`monai.transforms.Spacingd` that leaves other entries beside the image alone.

    Spacingd of MONAI 1.6 treats every entry named ``<key>_*`` as the metadata of a NIfTI image and fails on
    one that is no dictionary, such as the ``image_path`` that MONAI Label puts beside ``image``. Those
    entries are hidden during the call. ``Invertd`` goes through it as through Spacingd.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Resample the keys of ``data``; see `monai.transforms.Spacingd`."""
        prefixes = tuple(f"{key}_" for key in self.keys)
        hidden = {
            name: value
            for name, value in data.items()
            if name not in self.keys
            and (not isinstance(name, str) or (name.startswith(prefixes) and not isinstance(value, dict)))
        }
        resampled = super().__call__(
            {name: value for name, value in data.items() if name not in hidden}, lazy
        )
        return {**resampled, **hidden}


class PercentileNormalized(MapTransform):
    """Clip each channel to percentiles of its own values, then subtract the mean and divide by the deviation.

    Mean and standard deviation are those of the clipped channel, so that one extreme voxel changes nothing
    and images of any intensity scale come out alike. A channel whose percentiles coincide (a constant image)
    becomes zero. Input: (C, *spatial), any real type; output: float32 of the same shape, as MetaTensor where
    it was one.
    """

    def __init__(
        self, keys: KeysCollection, lower: float = 0.5, upper: float = 99.5, allow_missing_keys: bool = False
    ) -> None:
        """Create the transform.

        Args:
            keys: entries to normalise.
            lower, upper: percentiles, 0 <= lower < upper <= 100.
            allow_missing_keys: leave out keys that the data does not have.

        Raises:
            InputError: the percentiles are out of order or range.
        """
        super().__init__(keys, allow_missing_keys)
        if not 0 <= lower < upper <= 100:
            raise InputError(
                f"lower {lower}, upper {upper}: expected percentiles with 0 <= lower < upper <= 100"
            )
        self.lower = lower
        self.upper = upper

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Normalise the keys of ``data``.

        Raises:
            InputError: an image has a NaN or infinite voxel.
        """
        result = dict(data)
        for key in self.key_iterator(result):
            image = torch.as_tensor(result[key])
            values = image.as_tensor() if isinstance(image, MetaTensor) else image
            if not torch.isfinite(values).all():
                raise InputError(f"{_name(image, key)}: NaN or infinite voxels; replace them by numbers")
            normalised = torch.stack([self._normalise(channel) for channel in values.to(torch.float64)])
            result[key] = convert_to_dst_type(normalised, image, dtype=torch.float32)[0]
        return result

    def _normalise(self, channel: torch.Tensor) -> torch.Tensor:
        low, high = percentile(channel, [self.lower, self.upper])
        if not high > low:
            return torch.zeros_like(channel)
        clipped = channel.clamp(float(low), float(high))
        return (clipped - clipped.mean()) / clipped.std(correction=0)


class RoundLabelsd(MapTransform):
    """Round label maps that were stored as (scaled) floats to whole numbers; the type stays.

    Input: label map of any shape whose values lie within 0.001 of a whole number.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Round the keys of ``data``.

        Raises:
            InputError: a value is no label, such as one made by interpolation.
        """
        result = dict(data)
        for key in self.key_iterator(result):
            label = torch.as_tensor(result[key])
            values = label.as_tensor() if isinstance(label, MetaTensor) else label
            rounded = torch.round(values) if values.is_floating_point() else values
            if not bool((torch.abs(values - rounded) <= INTEGER_TOLERANCE).all()):
                raise InputError(
                    f"{_name(label, key)}: non-integer labels; resample them with nearest neighbour"
                )
            result[key] = convert_to_dst_type(rounded, label)[0]
        return result


def _name(tensor: torch.Tensor, key: Hashable) -> str:
    return str(tensor.meta.get("filename_or_obj", key)) if isinstance(tensor, MetaTensor) else str(key)
