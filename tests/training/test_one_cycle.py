"""One cycle of the learning rate against PyTorch's, and where PyTorch has none."""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from shared_components.training import OneCycle


def rates(kind, steps: int, share: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = kind(optimizer, max_lr=1.0, total_steps=steps, pct_start=share)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step() if len(found) < steps else None
    return found


@pytest.mark.parametrize("steps", [2, 5, 9, 11, 40])
def test_it_is_that_of_pytorch(steps):
    assert rates(OneCycle, steps, 0.1) == rates(OneCycleLR, steps, 0.1)


@pytest.mark.parametrize(("steps", "share"), [(10, 0.1), (5, 0.2), (20, 0.05)])
def test_a_warm_up_of_a_single_step(steps, share):
    with pytest.raises(ZeroDivisionError):
        rates(OneCycleLR, steps, share)
    found = rates(OneCycle, steps, share)
    assert 0.9 < found[0] <= 1 and found[-1] < 1e-4
    assert found == sorted(found, reverse=True)


def test_a_training_of_one_step_can_be_planned():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    assert OneCycle(optimizer, 1.0, 1).total_steps == 2
