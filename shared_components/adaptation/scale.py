"""Whether vessels are equally wide in the source's masks and in the target, which adaptation depends on most."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.ndimage import uniform_filter
from skimage.morphology import skeletonize

from shared_components.adaptation.pairs import read_grey
from shared_components.reporting.overlays import encode_png


def mask_width(masks: Iterable[np.ndarray]) -> float:
    """Return the mean width of the vessels of masks in pixels, their area by the length of their centre lines.

    Args:
        masks: each (rows, columns), foreground where not 0. The centre line is scikit-image's skeleton, its length the
            number of its pixels, so that diagonal vessels come out up to 1.4 times too wide, everywhere alike.

    Returns:
        The width over all masks; NaN if there is no foreground.
    """
    area = length = 0
    for mask in masks:
        area += int(np.count_nonzero(mask))
        length += int(skeletonize(np.asarray(mask) != 0).sum())
    return area / length if length else math.nan


def folder_width(folder: str | os.PathLike) -> float:
    """Return `mask_width` of the PNG files of a folder; NaN if there are none."""
    return mask_width(read_grey(file) for file in sorted(Path(folder).glob("*.png")))


def target_sheet(images: Mapping[str, np.ndarray], labels_dir: str | os.PathLike, size: Sequence[int]) -> bytes:
    """Draw of every image of the target the window in which most is labelled, above its pseudo-label, as a PNG picture.

    Args:
        images: by the name of the pseudo-label's file, (rows, columns) in 0..255, on the pseudo-label's grid.
        labels_dir: folder of the pseudo-labels.
        size: rows and columns of the windows, in pixels of the network's grid; smaller images are padded with black.
    """
    columns = []
    for name, image in images.items():
        both = np.stack([np.clip(image, 0, 255), read_grey(Path(labels_dir) / name)])
        both = np.pad(both, [(0, 0), *((0, max(0, want - have)) for want, have in zip(size, image.shape))])
        share = uniform_filter((both[1] > 0).astype(np.float32), size)
        inside = tuple(slice(want // 2, have - (want - 1) // 2) for want, have in zip(size, share.shape))
        top, left = np.unravel_index(share[inside].argmax(), share[inside].shape)
        columns.append(np.concatenate(list(both[:, top : top + size[0], left : left + size[1]])))
    return encode_png(np.repeat(np.concatenate(columns, axis=1)[..., None], 3, axis=2).astype(np.uint8))
