from __future__ import annotations

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler
from torch import nn

import shared_components.diffusion.schedules  # noqa: F401  registers the schedule
from shared_components.diffusion.inferers import RecyclingInferer

SCHEDULER = DDPMScheduler(100, schedule="cosine_double")


class Recorder(nn.Module):
    """Returns the condition as its prediction and keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.calls: list[tuple] = []

    def forward(self, noisy, timesteps, condition):
        self.calls.append((noisy.detach().clone(), timesteps.clone(), torch.is_grad_enabled()))
        return torch.cat([self.scale * condition, torch.full_like(condition, 7.0)], dim=1)


def call(share: float, timesteps: list[int]) -> tuple[Recorder, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    network, inferer = Recorder(), RecyclingInferer(SCHEDULER, share=share)
    condition = torch.rand(len(timesteps), 1, 200, 200) * 3 - 1.5
    noisy = torch.full_like(condition, 5.0)
    output = inferer(noisy, network, torch.tensor(timesteps), condition)
    assert output.requires_grad and torch.equal(output[:, :1].detach(), condition)
    return network, condition, noisy


def test_the_second_call_sees_the_noised_estimate_of_the_first():
    network, condition, _ = call(1.0, [0, 50, 99])
    (start, first, with_gradient), (noisy, second, trained) = network.calls
    assert first.tolist() == [99, 99, 99] and second.tolist() == [0, 50, 99]
    assert trained and not with_gradient
    assert start.mean().abs() < 0.02 and start.std() == pytest.approx(1, abs=0.02)
    abar = SCHEDULER.alphas_cumprod[[0, 50, 99]]
    for index, level in enumerate(abar):
        noise = noisy[index] - level.sqrt() * condition[index].clamp(-1, 1)
        assert noise.mean().abs() < 0.02
        assert noise.std().item() == pytest.approx((1 - level).sqrt().item(), abs=0.02)


def test_a_share_keeps_the_given_input():
    network, _, noisy = call(0.0, [10, 20])
    assert len(network.calls) == 1 and torch.equal(network.calls[0][0], noisy)
    network, _, noisy = call(0.5, [50] * 12)
    kept = (network.calls[1][0] == noisy).flatten(1).all(dim=1)
    assert 0 < kept.sum() < 12


def test_bfloat16_on_the_cpu():
    layer = nn.Conv2d(1, 1, 1)
    for amp, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        seen = []
        network = lambda noisy, timesteps, condition: seen.append(layer(condition)) or seen[-1]  # noqa: E731, B023
        inferer = RecyclingInferer(SCHEDULER, share=0, amp=amp)
        inferer(torch.zeros(1, 1, 4, 4), network, torch.tensor([3]), torch.ones(1, 1, 4, 4))
        assert seen[0].dtype == dtype
