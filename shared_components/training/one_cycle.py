"""The learning rate of a training in one cycle, whatever its length."""

from __future__ import annotations

import torch
from torch.optim.lr_scheduler import OneCycleLR


class OneCycle(OneCycleLR):
    """PyTorch's one cycle of the learning rate, for short trainings too.

    Where the warm-up is exactly one step long, as in ten steps of which a tenth warms up, PyTorch divides by its length
    less one. Such a training has no warm-up, as shorter ones have none; all others are as PyTorch has them.

    Args:
        optimizer: whose learning rate is set.
        max_lr: learning rate at the end of the warm-up.
        total_steps: optimizer steps of the training; at least 2 are planned.
        pct_start: share of them that warms up.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, max_lr: float, total_steps: int, pct_start: float = 0.1
    ) -> None:
        total_steps = max(2, total_steps)
        one_step = float(pct_start * total_steps) == 1
        super().__init__(optimizer, max_lr, total_steps, pct_start=0.5 / total_steps if one_step else pct_start)
