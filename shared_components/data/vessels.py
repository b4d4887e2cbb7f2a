"""Pictures of vessels of any modality brought to one form: grey, vessels bright, contrast evened out."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.transforms.utils import get_largest_connected_component_mask
from monai.utils import convert_to_dst_type
from scipy.ndimage import binary_fill_holes, distance_transform_edt, gaussian_filter
from skimage.exposure import equalize_adapthist, match_histograms

from shared_components.errors import InputError

POLARITIES = ("dark", "bright")
_GREEN = 1
_BINS = 256


class VesselContrastd(MapTransform):
    """Take the green channel, scale it, make vessels bright and even out the contrast.

    What the pictures of two modalities have in common is made alike by rule, so that only the rest has to be learnt:
    vessels are dark in colour fundus photographs and bright in OCT and fluorescein angiograms. The published AdaptDiff
    never inverts, since its targets are bright already, and relies on the source having been inverted before.

    Grey values are scaled between percentiles of the field of view, not of each crop: there a crop without vessels
    becomes stretched noise. Around a photograph's field of view, where it is black, its brightness goes on
    (`continued`), so that its border is no edge. A constant image becomes 0.

    Input: (1 or 3, W, H) of any range; output: (1, W, H) float32 in [0, 1], as MetaTensor where it was one.
    """

    def __init__(
        self,
        keys: KeysCollection,
        vessel_polarity: str,
        clip_limit: float = 5.0,
        lower: float = 0.5,
        upper: float = 99.5,
        field_threshold: float = 0.08,
        field_margin: float = 0.01,
        allow_missing_keys: bool = False,
    ) -> None:
        """Create the transform.

        Args:
            keys: entries to convert.
            vessel_polarity: ``dark``: vessels are darker than what surrounds them, the image is inverted; ``bright``.
            clip_limit: of contrast-limited adaptive histogram equalisation, in OpenCV's measure (times the height of a
                flat histogram of 256 bins); 0 leaves the contrast as it is.
            lower, upper: percentiles that become 0 and 1.
            field_threshold: of ``dark`` images: share of the brightest value below which a pixel that is connected to
                the image's border is outside of the field of view; 0 takes the whole image. The brightest channel
                decides: parts of a retina are as black as the surround in green, in red they are not.
            field_margin: of ``dark`` images: share of the longer side that the field of view is made narrower by along
                the surround; its rim darkens like a vessel.
            allow_missing_keys: leave out keys that the data does not have.

        Raises:
            InputError: an unknown polarity, or a number out of its range.
        """
        super().__init__(keys, allow_missing_keys)
        if vessel_polarity not in POLARITIES:
            raise InputError(
                f"vessel_polarity is {vessel_polarity!r}; expected one of {', '.join(POLARITIES)}: whether vessels are "
                "darker or brighter than what surrounds them"
            )
        if (
            clip_limit < 0
            or not 0 <= lower < upper <= 100
            or not 0 <= field_threshold < 1
            or not 0 <= field_margin < 0.5
        ):
            raise InputError(
                f"clip_limit {clip_limit}, percentiles {lower} and {upper}, field_threshold {field_threshold}, "
                f"field_margin {field_margin}: expected at least 0, two percentiles in order, shares below 1 and 0.5"
            )
        self.vessel_polarity = vessel_polarity
        self.clip_limit = clip_limit
        self.percentiles = (lower, upper)
        self.field_threshold = field_threshold
        self.field_margin = field_margin

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Convert the keys of ``data``.

        Raises:
            InputError: an image has another number of channels.
        """
        result = dict(data)
        for key in self.key_iterator(result):
            image = torch.as_tensor(result[key])
            if image.ndim != 3 or image.shape[0] not in (1, 3):
                raise InputError(
                    f"{key}: an image of shape {tuple(image.shape)}, expected 1 or 3 channels of a picture"
                )
            channels = np.asarray(image.cpu(), dtype=np.float64)
            made = self._contrast(channels[_GREEN if len(channels) == 3 else 0], channels.max(axis=0))
            result[key] = convert_to_dst_type(torch.as_tensor(made)[None], image, torch.float32)[0]
        return result

    def _contrast(self, grey: np.ndarray, brightness: np.ndarray) -> np.ndarray:
        inside = np.ones_like(grey, bool)
        if self.vessel_polarity == "dark":
            inside = field_of_view(brightness, self.field_threshold, self.field_margin)
        low, high = np.percentile(grey[inside], self.percentiles)
        if high <= low:
            return np.zeros_like(grey)
        scaled = np.clip((grey - low) / (high - low), 0, 1)
        if self.vessel_polarity == "dark":
            scaled = 1 - scaled
            scaled = continued(scaled, inside)
        if self.clip_limit == 0:
            return scaled
        return equalize_adapthist(scaled, clip_limit=self.clip_limit / _BINS, nbins=_BINS)


def field_of_view(grey: np.ndarray, threshold: float = 0.08, margin: float = 0.0) -> np.ndarray:
    """Mark the field of view of a photograph with a black surround, (rows, columns) bool.

    Args:
        grey: (rows, columns) grey values from 0 up.
        threshold: share of the brightest value below which a pixel is black; black regions that do not reach the
            border are inside.
        margin: share of the longer side; pixels nearer than that to the surround are outside, unless all would be.
    """
    bright = grey >= threshold * grey.max()
    field = binary_fill_holes(get_largest_connected_component_mask(bright, connectivity=1))
    if margin == 0 or field.all():
        return field
    inner = distance_transform_edt(field) > margin * max(field.shape)
    return inner if inner.any() else field


def continued(image: np.ndarray, inside: np.ndarray, blur: float = 0.02) -> np.ndarray:
    """Fill what is outside of a field by the smoothed brightness of the nearest place inside, (rows, columns).

    Args:
        image: (rows, columns).
        inside: (rows, columns) bool, somewhere true; what is inside stays as it is.
        blur: standard deviation of the Gaussian that smooths, as a share of the longer side.
    """
    if inside.all():
        return image
    sigma = blur * max(image.shape)
    weight = gaussian_filter(inside.astype(np.float64), sigma)
    smooth = gaussian_filter(np.where(inside, image, 0.0), sigma) / np.maximum(weight, 1e-6)
    rows, columns = distance_transform_edt(~inside, return_distances=False, return_indices=True)
    return np.where(inside, image, smooth[rows, columns])


class MatchHistogramd(MapTransform):
    """Give images the grey values of a template, ``skimage.exposure.match_histograms``, channel by channel.

    Input: (C, *spatial), with a template of any spatial shape and C channels; output float32.
    """

    def __init__(self, keys: KeysCollection, template_key: Hashable, allow_missing_keys: bool = False) -> None:
        """Create the transform; ``template_key`` is the entry with the template."""
        super().__init__(keys, allow_missing_keys)
        self.template_key = template_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Convert the keys of ``data``."""
        result = dict(data)
        template = np.asarray(torch.as_tensor(result[self.template_key]).cpu())
        for key in self.key_iterator(result):
            image = torch.as_tensor(result[key])
            matched = [match_histograms(np.asarray(a.cpu()), b) for a, b in zip(image, template, strict=True)]
            result[key] = convert_to_dst_type(torch.as_tensor(np.stack(matched)), image, torch.float32)[0]
        return result
