"""The single objects, such as nuclei, of a prediction."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type, convert_to_tensor
from scipy.ndimage import distance_transform_edt, gaussian_filter
from skimage.feature import peak_local_max
from skimage.measure import label as connected_components
from skimage.segmentation import relabel_sequential, watershed

from shared_components.errors import InputError

SPLITS = ("components", "distance", "probability")
_SMOOTHING = 1.0


def find_instances(
    foreground: np.ndarray,
    split: str = "distance",
    probability: np.ndarray | None = None,
    min_distance: int = 4,
    min_size: int = 0,
) -> np.ndarray:
    """Tell the objects of a mask apart and number them.

    "components" takes each connected part as one object. The others cut parts by a watershed that starts from
    the peaks of a map, smoothed a little: "distance" of the distance to the background (round objects that
    touch have a peak each), "probability" of the foreground's probability (for a network that is less sure
    where objects touch).

    Args:
        foreground: (*spatial) bool.
        split: "components", "distance" or "probability".
        probability: (*spatial) in [0, 1], for "probability".
        min_distance: least distance of two peaks along an axis, in pixels; about an object's smallest radius.
        min_size: objects of fewer pixels are left out.

    Returns:
        (*spatial) int64: 0 for the background, objects 1 to n without gaps.

    Raises:
        InputError: "probability" without a probability.
    """
    found = connected_components(foreground, connectivity=1)
    if split == "probability" and probability is None:
        raise InputError("split 'probability': the prediction is a label map; use 'distance' or 'components'")
    if split != "components" and found.any() and not foreground.all():
        height = distance_transform_edt(foreground) if split == "distance" else np.asarray(probability)
        height = gaussian_filter(height.astype(np.float64), _SMOOTHING)
        markers = _markers(height, found, min_distance)
        found = watershed(-height, markers, mask=foreground)
    found = np.where(np.bincount(found.ravel())[found] < min_size, 0, found)
    return relabel_sequential(found)[0].astype(np.int64)


def _markers(height: np.ndarray, components: np.ndarray, min_distance: int) -> np.ndarray:
    """Number the peaks of every component; one without a peak, such as a flat one, is its own marker."""
    peaks = tuple(peak_local_max(height, min_distance, exclude_border=False, labels=components).T)
    without = (components > 0) & ~np.isin(components, components[peaks])
    markers = np.where(without, components + len(peaks[0]), 0)
    markers[peaks] = np.arange(1, len(peaks[0]) + 1)
    return markers


class FindInstancesd(MapTransform):
    """Number the objects of a prediction and write the numbers beside it, for ``postprocessing`` of a bundle.

    All foreground classes count as one; objects are told apart by their shape (`find_instances`, "distance").

    Args:
        keys: key of channel-first (C, *spatial) class probabilities, background first.
        output_key: where to put the (1, *spatial) int32 numbers, 0 where there is no object.
        min_distance, min_size: as in `find_instances`.

    Raises:
        InputError: a size that is none.
    """

    def __init__(
        self, keys: KeysCollection = "pred", output_key: str = "instances", min_distance: int = 4, min_size: int = 10
    ) -> None:
        super().__init__(keys)
        check_sizes(min_distance, min_size)
        self.output_key, self.min_distance, self.min_size = output_key, min_distance, min_size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Number the objects of one case."""
        d = dict(data)
        for key in self.key_iterator(d):
            foreground = (convert_to_tensor(d[key], track_meta=False).argmax(dim=0) > 0).cpu().numpy()
            found = find_instances(foreground, min_distance=self.min_distance, min_size=self.min_size)
            d[self.output_key] = convert_to_dst_type(found[None].astype(np.int32), d[key], dtype=np.int32)[0]
        return d


def check_sizes(min_distance: int, min_size: int) -> None:
    """Refuse sizes that are none.

    Raises:
        InputError: a distance below 1 or a size below 0.
    """
    if min_distance < 1 or min_size < 0:
        raise InputError(f"min_distance {min_distance}, min_size {min_size}: expected at least 1 and at least 0")
