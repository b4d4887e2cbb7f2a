"""Random rotation and scaling that keep shapes alike: one factor for all axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.config import KeysCollection
from monai.transforms import RandAffined
from monai.transforms.spatial.array import RandAffineGrid

from shared_components.errors import InputError


class RandSimilarityd(RandAffined):
    """Rotate and scale images at random about their centre; angles and proportions of what they show are kept.

    `monai.transforms.RandAffined` draws a factor for each axis, and enlarges by 1.25 what it draws 0.8 for. Here one
    factor is drawn for all axes, and objects get that many times as large: what torchvision's ``RandomAffine`` does.
    Input: (C, *spatial), 2-D or 3-D; all keys are changed alike, the size stays.
    """

    def __init__(
        self,
        keys: KeysCollection,
        rotate_range: float = 0.0,
        scale_range: Sequence[float] = (1.0, 1.0),
        prob: float = 1.0,
        mode: Sequence[str] | str = "bilinear",
        padding_mode: Sequence[str] | str = "zeros",
        allow_missing_keys: bool = False,
    ) -> None:
        """Create the transform.

        Args:
            keys: entries to change.
            rotate_range: greatest angle in radians, to either side; of volumes about the first axis.
            scale_range: least and greatest factor of an object's size.
            prob: of a change.
            mode, padding_mode: as in `monai.transforms.RandAffined`.
            allow_missing_keys: leave out keys that the data does not have.

        Raises:
            InputError: the factors are not above 0 or in the wrong order.
        """
        low, high = scale_range
        if not 0 < low <= high:
            raise InputError(f"scale_range {low} to {high}: expected two factors above 0, the smaller one first")
        super().__init__(keys, prob=prob, mode=mode, padding_mode=padding_mode, allow_missing_keys=allow_missing_keys)
        self.rand_affine.rand_affine_grid = _SimilarityGrid(rotate_range, (low, high))


class _SimilarityGrid(RandAffineGrid):
    def __init__(self, rotate_range: float, factors: tuple[float, float]) -> None:
        super().__init__(rotate_range=rotate_range)
        self.factors = factors

    def randomize(self, data: Any | None = None) -> None:
        super().randomize(data)
        self.scale_params = [1.0 / self.R.uniform(*self.factors)] * 3  # MONAI maps the result's pixels to the image's
