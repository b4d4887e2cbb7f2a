"""A cached dataset whose random transforms depend on nothing but the seed, the epoch and the item."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset
from monai.transforms import Compose
from monai.transforms.traits import ThreadUnsafe
from torch.utils.data import ConcatDataset

logger = logging.getLogger(__name__)


class SeededCacheDataset(CacheDataset):
    """`monai.data.CacheDataset` whose augmentation is a function of (seed, epoch, index) alone.

    The number of workers, the order in which items are asked for and what was asked before make no
    difference, so a run that goes on from epoch n sees the items that an uninterrupted one sees. Each item
    is drawn with a random state of its own, by a copy of the random transforms that no other thread uses.

    Call `set_epoch` before the data loader's iterator for that epoch is made. The epoch lies in shared
    memory, so workers that stay alive between epochs see it too.

    A cache that would not fit into the machine's memory is told of when its first item is there.
    """

    def __init__(
        self,
        data: Sequence,
        transform: Sequence[Callable] | Callable | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        """Create the dataset and fill its cache.

        Args:
            data: datalist.
            transform: as in CacheDataset; what comes before the first random transform is cached.
            seed: at least 0.
            **options: other arguments of `monai.data.CacheDataset`.
        """
        self.seed = seed
        self._local = threading.local()
        self._size_known = False
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        super().__init__(data, transform, **options)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation is drawn from now on."""
        self._epoch.fill_(epoch)

    def _load_cache_item(self, idx: int) -> Any:
        item = super()._load_cache_item(idx)
        if not self._size_known:
            self._size_known = True
            _warn_of_size(_num_bytes(item), self.cache_num)
        return item

    def _transform(self, index: int) -> Any:
        entropy = np.random.SeedSequence((self.seed, int(self._epoch), index % len(self)))
        state = np.random.RandomState(np.random.MT19937(entropy))
        view = copy(self)
        view.transform = self._own_transform().set_random_state(state=state)
        return super(SeededCacheDataset, view)._transform(index)

    def _own_transform(self) -> Compose:
        """Return this thread's copy of the transforms; one for every item would take longer than they do."""
        if getattr(self._local, "source", None) is not self.transform:
            self._local.source = self.transform
            self._local.transform = _private_copy(self.transform)
        return self._local.transform

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_local"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._local = threading.local()


class SeededConcatDataset(ConcatDataset):
    """Several `SeededCacheDataset` one after another, each with transforms of its own, as one data set."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation is drawn from now on, in all of them."""
        for dataset in self.datasets:
            dataset.set_epoch(epoch)


def _num_bytes(item: Any) -> int:
    values = item.values() if isinstance(item, Mapping) else [item]
    return sum(getattr(value, "nbytes", 0) for value in values)


def _warn_of_size(num_bytes: int, count: int) -> None:
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    if num_bytes * count > available:
        logger.warning(
            "%d training cases of %.3g GiB each are kept in memory, where about %.3g GiB are for them; keep fewer with "
            "--train#dataset#cache_num %d: the others are loaded anew in every epoch",
            count,
            num_bytes / 2**30,
            available / 2**30,
            available // num_bytes,
        )


def _private_copy(compose: Compose) -> Compose:
    """Copy a Compose and those of its transforms that keep a state."""
    private = copy(compose)
    private.transforms = tuple(
        deepcopy(transform) if isinstance(transform, ThreadUnsafe) else transform for transform in compose.transforms
    )
    return private
