from __future__ import annotations

import math

import pytest
import torch

from shared_components.diffusion.losses import CleanLabelLoss


def coded(probability: list[float]) -> torch.Tensor:
    return 2 * torch.tensor(probability).reshape(1, 2, 2, 1) - 1


def test_value_by_hand():
    clean, estimate = coded([1, 0, 0, 1]), coded([0.8, 0.4, 0.2, 0.6])
    entropy = -(math.log(0.8) + math.log(0.6)) / 2
    dice = [1 - (2 * 0.8 + 1e-5) / (1 + 1.2 + 1e-5), 1 - (2 * 0.6 + 1e-5) / (1 + 0.8 + 1e-5)]
    assert CleanLabelLoss()(estimate, clean).item() == pytest.approx(entropy + sum(dice) / 2, abs=1e-5)
    assert CleanLabelLoss(dice_weight=0)(estimate, clean).item() == pytest.approx(entropy, abs=1e-5)


def test_weight_moves_the_cross_entropy():
    clean, estimate = coded([1, 0, 0, 1]), coded([0.8, 0.4, 0.2, 0.6])
    weight = torch.tensor([2.0, 0.0]).reshape(1, 1, 2, 1)
    loss = CleanLabelLoss(dice_weight=0)(estimate, clean, weight)
    assert loss.item() == pytest.approx(-math.log(0.8), abs=1e-5)


def test_a_certain_mistake_is_finite():
    assert torch.isfinite(CleanLabelLoss()(coded([0, 1, 1, 0]), coded([1, 0, 0, 1])))
