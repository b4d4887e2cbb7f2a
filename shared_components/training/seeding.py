"""Randomness that is a function of the seed and the epoch, so that a resumed run draws what an unbroken one does."""

from __future__ import annotations

import random

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch.utils.data import Dataset


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """Return a seed below 2**32 for an epoch of a run on a process."""
    return int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1)[0])


class EpochSeeder:
    """Seed every global generator anew at the start of each epoch, and tell the data set which epoch it is.

    A run that goes on from epoch n then needs no saved generator states: its noise, latents, augmentation and order
    of cases are those of a run that was never interrupted.

    Args:
        seed: of the run.
        dataset: with ``set_epoch(epoch)``, such as `SeededCacheDataset`.
    """

    def __init__(self, seed: int, dataset: Dataset | None = None) -> None:
        self.seed = seed
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        """Add the handler to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed Python's, NumPy's and torch's generators (torch's on every device)."""
        seed = epoch_seed(self.seed, engine.state.epoch, engine.state.rank)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(engine.state.epoch)
