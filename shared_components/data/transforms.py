"""Transforms that MONAI lacks or breaks: normalisation without a common scale, label values, spacing, sizes."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import (
    InvertibleTransform,
    MapTransform,
    RandomizableTransform,
    Resize,
    Resized,
    ScaleIntensityd,
    ScaleIntensityRanged,
    Spacingd,
)
from monai.transforms.spatial.functional import resize
from monai.transforms.utils_pytorch_numpy_unification import percentile
from monai.utils import InterpolateMode, TraceKeys, convert_to_dst_type, convert_to_tensor, fall_back_tuple

from shared_components.data.formats.scan import INTEGER_TOLERANCE
from shared_components.errors import InputError

logger = logging.getLogger(__name__)


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
        resampled = super().__call__({name: value for name, value in data.items() if name not in hidden}, lazy)
        return {**resampled, **hidden}


class AveragingResized(Resized):
    """`monai.transforms.Resized` that averages where it shrinks and interpolates where it enlarges.

    What MONAI 1.6 offers for pictures much larger than the network's input each has a fault: ``anti_aliasing`` pads
    with zeros and darkens the border, "bilinear" alone skips pixels, "area" enlarges in blocks, which it also does
    when `Invertd` brings probabilities back to the image's grid. Here "area" turns into linear interpolation for a call
    that enlarges and for the inverse, so inverted probabilities are smooth, stay in [0, 1] and sum to one. Other modes
    are MONAI's; "nearest-exact" suits label maps ("nearest" moves them by half a pixel).
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_size: Sequence[int] | int,
        size_mode: str = "all",
        mode: Sequence[str] | str = InterpolateMode.AREA,
        allow_missing_keys: bool = False,
    ) -> None:
        """Create the transform; see `monai.transforms.Resized` for the arguments."""
        super().__init__(keys, spatial_size, size_mode, mode, allow_missing_keys=allow_missing_keys)
        self.resizer = _AveragingResize(spatial_size, size_mode)


class _AveragingResize(Resize):
    def __call__(self, img: torch.Tensor, mode: str | None = None, **options: Any) -> torch.Tensor:
        if mode == InterpolateMode.AREA and self._enlarges(img.shape[1:]):
            mode = InterpolateMode.BILINEAR
        return super().__call__(img, mode=mode, **options)

    def _enlarges(self, shape: Sequence[int]) -> bool:
        if self.size_mode == "longest":
            return self.spatial_size > max(shape)
        return any(new > old for new, old in zip(fall_back_tuple(self.spatial_size, shape), shape))

    def inverse_transform(self, data: torch.Tensor, transform: dict) -> torch.Tensor:
        extra = transform[TraceKeys.EXTRA_INFO]
        mode = InterpolateMode.BILINEAR if extra["mode"] == InterpolateMode.AREA else extra["mode"]
        return super().inverse_transform(data, {**transform, TraceKeys.EXTRA_INFO: {**extra, "mode": mode}})


class AveragingScaled(AveragingResized):
    """Scale pictures of any size by one factor, by averaging as `AveragingResized` does; sizes are rounded.

    For models that see structures at one magnification, whatever the size of the picture.
    """

    def __init__(
        self,
        keys: KeysCollection,
        scale: float = 1.0,
        mode: Sequence[str] | str = InterpolateMode.AREA,
        allow_missing_keys: bool = False,
    ) -> None:
        """Create the transform.

        Args:
            keys: entries to scale.
            scale: new size of each axis relative to the old one, above 0.
            mode: as in `AveragingResized`.
            allow_missing_keys: leave out keys that the data does not have.

        Raises:
            InputError: the scale is not above 0.
        """
        super().__init__(keys, 1, mode=mode, allow_missing_keys=allow_missing_keys)
        if scale <= 0:
            raise InputError(f"scale {scale}: expected a number above 0, such as 0.5 for half the size")
        self.resizer = _AveragingScale(scale)


class _AveragingScale(_AveragingResize):
    def __init__(self, scale: float) -> None:
        super().__init__(spatial_size=1)
        self.scale = scale

    def __call__(self, img: torch.Tensor, mode: str | None = None, **_: Any) -> torch.Tensor:
        if mode == InterpolateMode.AREA and self.scale > 1:
            mode = InterpolateMode.BILINEAR
        size = [max(1, round(length * self.scale)) for length in img.shape[1:]]
        info = self.get_transform_info()
        return resize(img, size, mode, None, torch.float32, len(size), False, None, False, info)


class EnsureVolumed(MapTransform, InvertibleTransform):
    """Make a 2-D image a volume of one slice; volumes stay as they are.

    So one list of transforms, with spatial sizes for three axes, and one network serve folders of volumes and folders
    of single slices: (C, W, H) becomes (C, W, H, 1). ``Invertd`` takes the axis away again, so that results lie on the
    grid of the file. Input: `MetaTensor`, as the loaders of this package give.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        """Create the transform."""
        super().__init__(keys, allow_missing_keys)
        self.converter = _EnsureVolume()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Convert the keys of ``data``."""
        return {**data, **{key: self.converter(data[key]) for key in self.key_iterator(dict(data))}}

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Give slices their two axes back."""
        return {**data, **{key: self.converter.inverse(data[key]) for key in self.key_iterator(dict(data))}}


class _EnsureVolume(InvertibleTransform):
    def __call__(self, image: MetaTensor) -> MetaTensor:
        flat = image.ndim == 3
        volume = image.unsqueeze(-1) if flat else image.clone()
        volume.spatial_ndim = 3  # else the inverse of a resize takes this axis away, and then one of the picture goes
        self.push_transform(volume, extra_info={"flat": flat})
        return volume

    def inverse(self, volume: MetaTensor) -> MetaTensor:
        flat = self.pop_transform(volume)[TraceKeys.EXTRA_INFO]["flat"]
        return volume.squeeze(-1) if flat else volume


class RandSliceAxisd(RandomizableTransform, MapTransform):
    """Let one of several axes, drawn anew for each volume, change places with the last one.

    A network of slices so learns slices along each of them, as `shared_components.diffusion.DiffusionSegmenter` shows
    them with the same ``slice_axes``. For training: an affine is left as it is, and there is no inverse. Input:
    (C, X, Y, Z).

    Args:
        keys: entries of one case, which are all turned alike.
        slice_axes: some of 0, 1, 2; with one, nothing is drawn.

    Raises:
        InputError: no such axis, or none.
    """

    def __init__(self, keys: KeysCollection, slice_axes: Sequence[int], allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self)
        if not slice_axes or any(axis not in (0, 1, 2) for axis in slice_axes):
            raise InputError(f"slice_axes must be one or several of 0, 1, 2, not {list(slice_axes)}")
        self.slice_axes = list(slice_axes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Turn the keys of ``data``."""
        several = len(self.slice_axes) > 1
        axis = self.slice_axes[int(self.R.randint(len(self.slice_axes))) if several else 0]
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = torch.as_tensor(result[key]).transpose(axis + 1, 3)
        return result


class WatchedIntensityRanged(ScaleIntensityRanged):
    """`monai.transforms.ScaleIntensityRanged` that tells, once, of an image that is made for another range.

    An image above the range comes out white where it is, one that fills less than a hundredth of it black, and neither
    stops a run. Pictures are read as 0 to 255; NIfTI and NRRD keep whatever values they have.
    """

    _told = False

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scale the keys of ``data``; see `monai.transforms.ScaleIntensityRanged`."""
        low, high = self.scaler.a_min, self.scaler.a_max
        for key in self.key_iterator(dict(data)) if not self._told else ():
            least, most = float(data[key].min()), float(data[key].max())
            if most > high or least < most <= low + (high - low) / 100:
                self._told = True
                text = "%s: values %g to %g, expected %g to %g: scale the images, or give --intensity#a_max %g"
                logger.warning(text, file_or_key(data[key], key), least, most, low, high, most)
        return super().__call__(data)


class PercentileNormalized(MapTransform):
    """Clip each channel to percentiles of its own values, then subtract the mean and divide by the deviation.

    Mean and standard deviation are those of the clipped channel, so that one extreme voxel changes nothing
    and images of any intensity scale come out alike. A channel whose percentiles coincide (a constant image)
    becomes zero. Input: (C, *spatial), any real type; output: float32 of the same shape, as MetaTensor where
    it was one.
    """

    def __init__(
        self,
        keys: KeysCollection,
        lower: float = 0.5,
        upper: float = 99.5,
        allow_missing_keys: bool = False,
        nonzero: bool = False,
    ) -> None:
        """Create the transform.

        Args:
            keys: entries to normalise.
            lower, upper: percentiles, 0 <= lower < upper <= 100.
            allow_missing_keys: leave out keys that the data does not have.
            nonzero: take percentiles, mean and deviation of a channel's voxels that are not zero, and leave the zero
                ones zero (skull-stripped MR with a zero background), as `monai.transforms.NormalizeIntensityd` does.

        Raises:
            InputError: the percentiles are out of order or range.
        """
        super().__init__(keys, allow_missing_keys)
        if not 0 <= lower < upper <= 100:
            raise InputError(f"lower {lower}, upper {upper}: expected percentiles with 0 <= lower < upper <= 100")
        self.lower = lower
        self.upper = upper
        self.nonzero = nonzero

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Normalise the keys of ``data``.

        Raises:
            InputError: an image has a NaN or infinite voxel.
        """
        result = dict(data)
        for key in self.key_iterator(result):
            image = torch.as_tensor(result[key])
            values = convert_to_tensor(image)
            if not torch.isfinite(values).all():
                raise InputError(f"{file_or_key(image, key)}: NaN or infinite voxels; replace them by numbers")
            normalised = torch.stack([self._normalise(channel) for channel in values.to(torch.float64)])
            result[key] = convert_to_dst_type(normalised, image, dtype=torch.float32)[0]
        return result

    def _normalise(self, channel: torch.Tensor) -> torch.Tensor:
        inside = channel != 0 if self.nonzero else torch.ones_like(channel, dtype=torch.bool)
        result = torch.zeros_like(channel)
        if not inside.any():
            return result
        values = channel[inside]
        low, high = percentile(values, [self.lower, self.upper])
        if high > low:
            clipped = values.clamp(float(low), float(high))
            result[inside] = (clipped - clipped.mean()) / clipped.std(correction=0)
        return result


class MinMaxScaled(ScaleIntensityd):
    """`monai.transforms.ScaleIntensityd` that puts a constant image halfway between ``minv`` and ``maxv``.

    MONAI multiplies a constant image by ``minv``: 7 becomes -7, far outside the range, and a crop sampler that looks
    for values above ``minv`` finds no voxel.

    Args:
        keys: entries to scale, (C, *spatial).
        minv, maxv: what the smallest and the largest value of an image become.
    """

    def __init__(
        self, keys: KeysCollection, minv: float = 0.0, maxv: float = 1.0, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, minv, maxv, allow_missing_keys=allow_missing_keys)
        self.middle = (minv + maxv) / 2

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scale the keys of ``data``."""
        scaled = super().__call__(data)
        for key in self.key_iterator(dict(data)):
            image = torch.as_tensor(data[key])
            if image.min() == image.max():
                scaled[key] = torch.full_like(scaled[key], self.middle)
        return scaled


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
            rounded = rounded_labels(convert_to_tensor(label), file_or_key(label, key))
            result[key] = convert_to_dst_type(rounded, label)[0]
        return result


def rounded_labels(values: torch.Tensor, name: str) -> torch.Tensor:
    """Return label values rounded to whole numbers; the type stays.

    Raises:
        InputError: a value is further than 0.001 from a whole number; ``name`` is told.
    """
    rounded = torch.round(values) if values.is_floating_point() else values
    if not bool((torch.abs(values - rounded) <= INTEGER_TOLERANCE).all()):
        raise InputError(f"{name}: non-integer labels; resample them with nearest neighbour")
    return rounded


def file_or_key(image: torch.Tensor, key: Hashable) -> str:
    """Return the file that an image was read from, or else its key: what a message calls it."""
    return str(image.meta.get("filename_or_obj", key)) if isinstance(image, MetaTensor) else str(key)
