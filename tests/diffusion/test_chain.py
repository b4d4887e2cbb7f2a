"""The uses of a reverse process, held to closed forms and to AdaptDiff's reference values."""

from __future__ import annotations

import math

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, nn

import shared_components.diffusion.schedules  # noqa: F401  registers the schedules
from shared_components.diffusion.chain import (
    forward_sample,
    jump_to_clean,
    reverse_step,
    sample,
    sampling_steps,
    snapshot_grid,
    snapshots,
    to_bytes,
)
from shared_components.diffusion.reverse import ReverseProcess
from shared_components.errors import InputError
from tests.networks.adaptdiff_oracles import ramps

SCHEDULER = DDPMScheduler(300, schedule="linear")
ABAR = SCHEDULER.alphas_cumprod


class Stub(nn.Module):
    """A denoiser that answers by a function of (noisy, timesteps), and counts."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer
        self.calls, self.encoded = 0, 0

    def encode_condition(self, condition: Tensor) -> list[Tensor]:
        self.encoded += 1
        return [condition]

    def forward(self, noisy, timesteps, condition, latent=None, features=None) -> Tensor:
        self.calls += 1
        return self.answer(noisy, timesteps)


def exact(mean: float, deviation: float) -> Stub:
    """The exact prediction of noise for images of independent N(mean, deviation^2) pixels."""

    def answer(noisy: Tensor, timesteps: Tensor) -> Tensor:
        abar = ABAR[timesteps[0]].to(noisy)
        return (1 - abar).sqrt() * (noisy - abar.sqrt() * mean) / (abar * deviation**2 + 1 - abar)

    return Stub(answer)


def test_one_jump_returns_to_the_clean_image():
    clean = ramps(16, 16)[0]
    torch.manual_seed(0)
    noisy, noise = forward_sample(SCHEDULER, clean, torch.tensor([120]))
    expected = ABAR[120].sqrt().float() * clean + (1 - ABAR[120]).sqrt().float() * noise
    torch.testing.assert_close(noisy, expected)
    process = ReverseProcess(ABAR, prediction_type="epsilon")
    stub = Stub(lambda *_: noise)
    torch.testing.assert_close(jump_to_clean(stub, process, 179, noisy, clean), clean, atol=1e-6, rtol=0)
    state = reverse_step(stub, process, 179, noisy, clean, lambda _, like: torch.zeros_like(like))
    alpha = ABAR[120] / ABAR[119]
    mean = (noisy - (1 - alpha) / (1 - ABAR[120]).sqrt() * noise) / alpha.sqrt()  # from the noise, as published
    torch.testing.assert_close(state.noisy, mean.float(), atol=1e-6, rtol=0)
    assert (state.step, state.timestep) == (179, 120)


def test_same_step_as_monai():
    clean = ramps(16, 16)[0]
    torch.manual_seed(0)
    noisy, noise = forward_sample(SCHEDULER, clean, torch.tensor([120]))
    monai = DDPMScheduler(300, "linear_beta", beta_start=1e-4, beta_end=0.02, clip_sample=False)
    torch.testing.assert_close(monai.alphas_cumprod, ABAR.float(), rtol=1e-5, atol=0)
    process = ReverseProcess(ABAR, prediction_type="epsilon")
    ours = reverse_step(Stub(lambda *_: noise), process, 179, noisy, clean, lambda _, like: torch.zeros_like(like))
    generator = torch.Generator().manual_seed(1)
    theirs, _ = monai.step(noise, 120, noisy, generator=generator)
    fresh = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(1))
    variance = process.coefficients[179, 2] ** 2
    assert variance.item() == pytest.approx(monai._get_variance(120).item(), abs=1e-9)
    torch.testing.assert_close(theirs - variance.sqrt() * fresh, ours.noisy, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("mean", "deviation", "plain", "legacy", "clipped"),
    [
        (-0.6, 0.2, (-0.5988, 0.1939), (-0.570, 0.177), (-0.597, 0.190)),
        (0.0, 0.35, (0.0, 0.3436), (0.0, 0.317), (0.001, 0.342)),
        (0.5, 0.2, (0.4990, 0.1939), (0.479, 0.183), (0.498, 0.193)),
    ],
)
def test_what_clipping_costs_an_exact_denoiser(mean, deviation, plain, legacy, clipped):
    """Clipping the noisy image after every step, as published, costs an eighth of the contrast."""
    torch.manual_seed(0)
    start = torch.randn(1, 1, 400, 500)  # 2e5 pixels
    assert closed_form(mean, deviation) == pytest.approx(plain, abs=1e-4)
    for options, expected in (({}, plain), ({"clip_noisy": (-1, 1)}, legacy), ({"clip": (-1, 1)}, clipped)):
        process = ReverseProcess(ABAR, prediction_type="epsilon", **options)
        found = sample(exact(mean, deviation), process, start, start)
        assert (found.mean().item(), found.std().item()) == pytest.approx(expected, abs=3e-3)
        if "clip_noisy" in options:
            assert found.abs().max() <= 1


def closed_form(mean: float, deviation: float) -> tuple[float, float]:
    m, variance = 0.0, 1.0
    for t in range(299, -1, -1):
        abar, previous = float(ABAR[t]), float(ABAR[t - 1]) if t else 1.0
        alpha = abar / previous
        k = math.sqrt(1 - abar) / (abar * deviation**2 + 1 - abar)
        c = (1 - alpha) / math.sqrt(1 - abar)
        m = ((1 - c * k) * m + c * k * math.sqrt(abar) * mean) / math.sqrt(alpha)
        variance = (1 - c * k) ** 2 * variance / alpha + (1 - alpha) * (1 - previous) / (1 - abar)
    return m, math.sqrt(variance)


def test_one_image_is_300_calls_and_one_look_at_the_mask():
    stub, start = exact(0.0, 0.3), torch.randn(1, 1, 4, 4)
    sample(stub, ReverseProcess(ABAR, prediction_type="epsilon"), start, start)
    assert (stub.calls, stub.encoded) == (300, 1)
    sample(stub, ReverseProcess(ABAR, 20, prediction_type="epsilon"), start, start)
    assert (stub.calls, stub.encoded) == (320, 2)


def test_snapshots_are_evenly_spaced_and_end_with_the_finished_image():
    process, start = ReverseProcess(ABAR, 12, "ddim", "epsilon"), torch.randn(2, 1, 4, 4)
    states = list(sampling_steps(exact(0.2, 0.3), process, start, start))
    found = snapshots(exact(0.2, 0.3), process, start, start, 5)
    assert [state.step for state in found] == [1, 4, 6, 9, 11]
    assert torch.equal(found[-1].noisy, sample(exact(0.2, 0.3), process, start, start))
    assert torch.equal(found[1].clean, states[4].clean)
    every = snapshots(exact(0.2, 0.3), process, start, start, 12)
    assert [state.step for state in every] == list(range(12))
    for number in (0, 13):
        with pytest.raises(InputError, match=f"num_images must be in 1..12.*not {number}"):
            snapshots(exact(0.2, 0.3), process, start, start, number)


def test_a_grid_has_a_column_a_state_and_its_own_estimate():
    """The estimate belongs to the noise level that the network was shown, not to the one before."""
    clean = ramps(16, 16)[0]
    process = ReverseProcess(ABAR, 10, prediction_type="epsilon")

    def perfect(noisy: Tensor, timesteps: Tensor) -> Tensor:
        abar = ABAR[timesteps[0]].to(noisy)
        return (noisy - abar.sqrt() * clean) / (1 - abar).sqrt()

    grid = snapshot_grid(snapshots(Stub(perfect), process, torch.randn(1, 1, 16, 16), clean, 5))
    assert grid.shape == (32, 80) and grid.dtype == torch.uint8
    for column in range(5):
        assert (grid[16:, 16 * column : 16 * column + 16].int() - to_bytes(clean[0, 0]).int()).abs().max() <= 1


def test_bytes_are_rounded():
    assert to_bytes(torch.tensor([-1.0, 0.0, 1.0, 1.5, -2.0])).tolist() == [0, 128, 255, 255, 0]


@pytest.mark.parametrize("limits", [(1, -1), (0,)])
def test_limits_out_of_order(limits):
    with pytest.raises(InputError, match="clip_noisy"):
        ReverseProcess(ABAR, clip_noisy=limits)
