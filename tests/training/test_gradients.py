"""Gradients are bounded before the optimiser sees them."""

from __future__ import annotations

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import nn

from shared_components.errors import InputError
from shared_components.training import ClipGradientNorm


@pytest.mark.parametrize(("max_norm", "moved"), [(1.0, 1.0), (0.25, 0.25), (None, 2 * 3 * 30.0), (1e6, 2 * 3 * 30.0)])
def test_a_step_is_no_longer_than_the_bound(max_norm: float | None, moved: float) -> None:
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(10.0)
    batch = {"image": torch.full((1, 1), 3.0), "label": torch.zeros(1, 1)}  # loss (3 w)^2, gradient 2 * 9 * w = 180
    trainer = SupervisedTrainer(
        torch.device("cpu"), 1, [batch], network, torch.optim.SGD(network.parameters(), 1.0), nn.MSELoss(),
        train_handlers=[ClipGradientNorm(network, max_norm)], decollate=False,
    )  # fmt: skip
    trainer.run()
    assert float(10 - network.weight) == pytest.approx(moved, rel=1e-4)


def test_accumulated_gradients_are_clipped_as_a_whole() -> None:
    """The first batch's gradient alone is above the bound; the mean of both is not, and so is left as it is."""
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.zero_()
    batches = [{"image": torch.ones(1, 1), "label": torch.full((1, 1), value)} for value in (4.0, -3.0)]
    trainer = SupervisedTrainer(
        torch.device("cpu"), 1, batches, network, torch.optim.SGD(network.parameters(), 1.0), nn.MSELoss(),
        train_handlers=[ClipGradientNorm(network, 1.0)], decollate=False, accumulation_steps=2,
    )  # fmt: skip
    trainer.run()
    assert float(network.weight) == pytest.approx(1.0)  # mean gradient (-8 + 6) / 2


def test_a_bound_is_positive() -> None:
    with pytest.raises(InputError, match="max_norm must be positive.*not 0"):
        ClipGradientNorm(nn.Linear(1, 1), 0)
