"""Masks polluted on purpose, to study what a weak label may get wrong."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ImageMetaKey, convert_to_dst_type

from shared_components.errors import InputError


def pollute(mask: np.ndarray, fp: float, fn: float, rng: np.random.Generator) -> np.ndarray:
    """Return a mask with background pixels set and foreground pixels cleared, drawn from the original ones.

    Args:
        mask: any shape, 0 or not; it is not changed (the published code edits it in place).
        fp: share of the background set to 1: floor(fp * background) pixels.
        fn: share of the foreground set to 0: floor(fn * foreground) pixels.
        rng: draws the pixels, independently of each other.

    Raises:
        InputError: a share is not in 0..1.
    """
    if not (0 <= fp <= 1 and 0 <= fn <= 1):
        raise InputError(f"label_noise fp {fp}, fn {fn}: expected shares from 0 to 1")
    polluted = (mask != 0).astype(mask.dtype)
    background, foreground = np.flatnonzero(mask == 0), np.flatnonzero(mask)
    polluted.flat[rng.choice(background, int(fp * len(background)), replace=False)] = 1
    polluted.flat[rng.choice(foreground, int(fn * len(foreground)), replace=False)] = 0
    return polluted


class LabelNoised(MapTransform):
    """Pollute masks, each image's always in the same way: drawn from the seed and the file's name.

    AdaptDiff's study of "feasible conditions for the noisy label": a generator still learns from masks with errors.
    Both shares are 0.2 by default in the published code.
    """

    def __init__(
        self, keys: KeysCollection, fp: float = 0.2, fn: float = 0.2, seed: int = 0, allow_missing_keys: bool = False
    ) -> None:
        """Create the transform; `pollute` explains the shares.

        Raises:
            InputError: a share is not in 0..1.
        """
        super().__init__(keys, allow_missing_keys)
        pollute(np.zeros(1), fp, fn, np.random.default_rng(0))
        self.fp, self.fn, self.seed = fp, fn, seed

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Pollute the keys of ``data``."""
        result = dict(data)
        for key in self.key_iterator(result):
            mask = torch.as_tensor(result[key])
            name = str(mask.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "")) if isinstance(mask, MetaTensor) else ""
            name = name.replace("\\", "/").rpartition("/")[2]
            rng = np.random.default_rng((self.seed, zlib.crc32(name.encode())))
            polluted = pollute(np.asarray(mask.cpu()), self.fp, self.fn, rng)
            result[key] = convert_to_dst_type(torch.as_tensor(polluted), mask)[0]
        return result
