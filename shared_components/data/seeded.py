"""A cached dataset whose random transforms depend on nothing but the seed, the epoch and the item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset
from monai.transforms import Compose
from monai.transforms.traits import ThreadUnsafe


class SeededCacheDataset(CacheDataset):
    """`monai.data.CacheDataset` that draws the same augmentation for (seed, epoch, index) in any circumstances.

    The number of workers, the order in which items are asked for and what was asked before make no difference, so
    a run that goes on from epoch n sees the items that an uninterrupted one sees. Every item gets its own copy of
    the random transforms with a random state made from (seed, epoch, index); workers and threads share nothing.

    Call `set_epoch` before the data loader's iterator for that epoch is made. The epoch lies in shared memory, so
    workers that stay alive between epochs see it too.
    """

    def __init__(
        self, data: Sequence, transform: Sequence[Callable] | Callable | None = None, seed: int = 0, **options: Any
    ) -> None:
        """Create the dataset and fill its cache.

        Args:
            data: datalist.
            transform: as in CacheDataset; what comes before the first random transform is cached.
            seed: at least 0.
            **options: other arguments of `monai.data.CacheDataset`.
        """
        self.seed = seed
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        super().__init__(data, transform, **options)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation is drawn from now on."""
        self._epoch.fill_(epoch)

    def _transform(self, index: int) -> Any:
        entropy = np.random.SeedSequence((self.seed, int(self._epoch), index % len(self)))
        state = np.random.RandomState(np.random.MT19937(entropy))
        view = copy(self)
        view.transform = _private_copy(self.transform).set_random_state(state=state)
        return super(SeededCacheDataset, view)._transform(index)


def _private_copy(compose: Compose) -> Compose:
    """Copy a Compose and those of its transforms that keep a state."""
    private = copy(compose)
    private.transforms = tuple(
        deepcopy(transform) if isinstance(transform, ThreadUnsafe) else transform
        for transform in compose.transforms
    )
    return private
