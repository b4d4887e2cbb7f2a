"""Reverse tables against diffusers' schedulers and closed forms."""

from __future__ import annotations

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

from shared_components.diffusion.tables import reverse_table, strided_timesteps

diffusers = pytest.importorskip("diffusers", reason="pip install diffusers")

OPTIONS = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 2e-2,
    "prediction_type": "sample",
    "clip_sample": False,
    "timestep_spacing": "trailing",
}
ALPHAS = DDPMScheduler(1000, schedule="linear_beta").alphas_cumprod


def estimate(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """A stand-in denoiser: any fixed function of its input and the timestep."""
    return torch.tanh(0.7 * noisy + torch.sin(timestep.double() / 100))


def run(table, noisy: torch.Tensor, noise: list[torch.Tensor]) -> torch.Tensor:
    for timestep, weights, fresh in zip(table.timesteps, table.coefficients, noise):
        noisy = weights[0] * estimate(noisy, timestep) + weights[1] * noisy + weights[2] * fresh
    return noisy


@pytest.mark.parametrize("steps", [1, 2, 4, 10, 50, 1000])
def test_ddim_equals_diffusers(steps):
    torch.manual_seed(0)
    start = torch.randn(2, 3, 4, dtype=torch.float64)
    peer = diffusers.DDIMScheduler(set_alpha_to_one=True, **OPTIONS)
    peer.set_timesteps(steps)
    expected = start
    for timestep in peer.timesteps:
        expected = peer.step(estimate(expected, timestep), timestep, expected, eta=0.0).prev_sample
    table = reverse_table(ALPHAS, steps, "ddim")
    assert table.timesteps.tolist() == peer.timesteps.tolist()
    torch.testing.assert_close(run(table, start, [start] * steps), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", [4, 50, 1000])
def test_ddpm_equals_diffusers(steps):
    """diffusers' DDPM draws its own noise, so mean and deviation are compared row by row."""
    peer = diffusers.DDPMScheduler(variance_type="fixed_small", **OPTIONS)
    peer.set_timesteps(steps)
    table = reverse_table(ALPHAS, steps, "ddpm")
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    for row, timestep in enumerate(peer.timesteps):
        if timestep == 0:
            continue
        generator = torch.Generator().manual_seed(1)
        noise = peer.step(zero, timestep, zero, generator=generator).prev_sample
        fresh = torch.randn(1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        for column, (clean, noisy) in enumerate([(one, zero), (zero, one)]):
            generator = torch.Generator().manual_seed(1)
            moved = peer.step(clean, timestep, noisy, generator=generator).prev_sample - noise
            torch.testing.assert_close(table.coefficients[row, column], moved[0, 0], atol=1e-5, rtol=5e-4)
        torch.testing.assert_close(table.coefficients[row, 2], (noise / fresh)[0, 0], atol=1e-5, rtol=5e-4)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("steps", [1, 3, 7])
def test_last_step_returns_the_estimate(sampler, steps):
    row = reverse_table(ALPHAS, steps, sampler).coefficients[-1]
    torch.testing.assert_close(row, torch.tensor([1.0, 0.0, 0.0]).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_true_label_stays_on_the_forward_marginal(sampler):
    """Fed the true clean label, every step must land on its level's signal weight and total variance."""
    table = reverse_table(ALPHAS, 7, sampler)
    abar = ALPHAS.double()[table.timesteps]
    signal, variance = abar[0].sqrt(), 1 - abar[0]
    for row, level in zip(table.coefficients[:-1], abar[1:]):
        signal, variance = row[0] + row[1] * signal, row[1] ** 2 * variance + row[2] ** 2
        torch.testing.assert_close(signal, level.sqrt())
        torch.testing.assert_close(variance, 1 - level)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_outside_the_schedule_are_refused(steps):
    with pytest.raises(ValueError, match=rf"1\.\.1000 .* not {steps}"):
        strided_timesteps(1000, steps)


def test_unknown_sampler_is_refused():
    with pytest.raises(ValueError, match="ddpm, ddim, not 'euler'"):
        reverse_table(ALPHAS, 4, "euler")
