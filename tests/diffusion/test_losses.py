from __future__ import annotations

import math

import pytest
import torch

from shared_components.diffusion.label_coding import LabelCoding
from shared_components.diffusion.losses import AbsoluteErrorLoss, CleanLabelLoss, PresenceLoss


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


@pytest.mark.parametrize("value_range", ["01", "pm1"])
def test_presence_loss_by_hand(value_range):
    coding = LabelCoding([1], value_range=value_range)
    probability, presence = torch.tensor([0.8, 0.4, 0.2, 0.6]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    output, clean = (
        (2 * values - 1 if value_range == "pm1" else values).reshape(1, 1, 2, 2) for values in (probability, presence)
    )
    output = torch.cat([output, torch.full_like(output, 9.0)], dim=1)
    entropy = -(math.log(0.8) + math.log(0.6) + math.log(0.8) + math.log(0.6)) / 4
    dice = 1 - (2 * 1.4 + 1e-5) / (2 + 2 + 1e-5)
    both = [torch.cat([values, values]) for values in (output, clean)]
    loss, losses = PresenceLoss(coding)(both[0], both[1], both[1], torch.zeros(2), torch.tensor([0.0, 3.0]))
    assert losses.tolist() == pytest.approx([entropy + dice] * 2, abs=1e-5)
    assert loss.item() == pytest.approx(1.5 * (entropy + dice), abs=1e-5)
    assert PresenceLoss(coding, dice_weight=0)(output, clean, clean, torch.zeros(1))[0].item() == pytest.approx(
        entropy, abs=1e-5
    )


def test_presence_loss_of_a_certain_mistake_is_finite():
    coding = LabelCoding([1])
    right, wrong = torch.ones(1, 1, 2, 2), -torch.ones(1, 1, 2, 2)
    assert torch.isfinite(PresenceLoss(coding)(wrong, right, right, torch.zeros(1))[0])


def clean_label_loss(output: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    return CleanLabelLoss()(output, clean)


def presence_loss(output: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    return PresenceLoss(LabelCoding([1]))(output, clean, clean, torch.zeros(1))[0]


@pytest.mark.parametrize("loss, coding", [(clean_label_loss, "classes"), (presence_loss, "channels")])
def test_voxels_that_nobody_judged_count_in_no_term(loss, coding):
    label = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).reshape(1, 1, 2, 2)
    encode, nobody = LabelCoding([1], coding).encode, torch.full_like(label, -1)
    clean = encode(torch.cat([label, nobody], dim=2))
    output = (1.8 * torch.rand_like(clean) - 0.9).requires_grad_()
    value = loss(output, clean)
    torch.testing.assert_close(value, loss(output[:, :, :2], encode(label)))
    (gradient,) = torch.autograd.grad(value, output)
    assert (gradient[:, :, 2:] == 0).all() and (gradient[:, :, :2] != 0).all()
    assert torch.isfinite(loss(torch.zeros_like(encode(nobody)), encode(nobody)))


def test_absolute_error():
    output, target = torch.tensor([[[1.0, 5.0]], [[0.0, 0.0]]]), torch.tensor([[[2.0, 2.0]], [[1.0, 0.0]]])
    loss, each = AbsoluteErrorLoss()(output, target, target, torch.zeros(2))
    assert each.tolist() == [2.0, 0.5] and loss.item() == 1.25
    assert AbsoluteErrorLoss()(output, target, target, torch.zeros(2), torch.tensor([0.0, 4.0]))[0].item() == 1.0
