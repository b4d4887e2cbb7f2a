"""The schedule's tables against the published values (T = 1, 2, 4, 8), and the forward pair against a plain coding."""

from __future__ import annotations

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

from shared_components.diffusion.schedules import FewStepProcess, vp_few_step

ABAR = {  # signal levels sqrt(alphas_cumprod)
    1: [0.00657369],
    2: [0.280492, 0.00657190],
    4: [0.722319, 0.280492, 0.0585567, 0.00657194],
    8: [0.918452, 0.722319, 0.486426, 0.280492, 0.138497, 0.0585566, 0.0211996, 0.00657195],
}
BETA = {2: [0.921324, 0.999451], 4: [0.478255, 0.849206, 0.956418, 0.987404]}
POSTERIOR = {  # weight of the clean estimate, weight of the noisy input, variance
    2: ([1, 0.280351], [0, 0.0215874], [0, 0.920858]),
    4: ([1, 0.665778, 0.269191, 0.0578216], [0, 0.201576, 0.193001, 0.111852], [0, 0.440819, 0.884202, 0.984061]),
}


def few_step(timesteps: int) -> DDPMScheduler:
    return DDPMScheduler(timesteps, schedule="vp_few_step")


@pytest.mark.parametrize("timesteps", ABAR)
def test_signal_levels(timesteps):
    levels = few_step(timesteps).alphas_cumprod.sqrt()
    torch.testing.assert_close(levels, torch.tensor(ABAR[timesteps]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("timesteps", BETA)
def test_betas(timesteps):
    torch.testing.assert_close(vp_few_step(timesteps), torch.tensor(BETA[timesteps]), atol=1e-6, rtol=0)


def test_single_step_beta():
    assert vp_few_step(1).item() == pytest.approx(0.999957, abs=1e-6)


@pytest.mark.parametrize("timesteps", POSTERIOR)
def test_posterior(timesteps):
    process, zero, one = FewStepProcess(few_step(timesteps)), torch.zeros(timesteps, 1), torch.ones(timesteps, 1)
    t = torch.arange(timesteps)
    clean, noisy, variance = (torch.tensor(column).float() for column in POSTERIOR[timesteps])
    torch.testing.assert_close(process.posterior(one, zero, t, zero)[:, 0], clean, atol=1e-6, rtol=0)
    torch.testing.assert_close(process.posterior(zero, one, t, zero)[:, 0], noisy, atol=1e-6, rtol=0)
    torch.testing.assert_close(process.posterior(zero, zero, t, one)[:, 0] ** 2, variance, atol=1e-6, rtol=0)


def test_pair_of_the_first_step_is_the_clean_label():
    process, clean = FewStepProcess(few_step(4)), torch.randn(3, 2, 5, 4)
    label_t, noisy = process.pair(
        clean, torch.zeros(3, dtype=torch.long), torch.randn(3, 2, 5, 4), torch.zeros(3, 2, 5, 4)
    )
    assert torch.equal(label_t, clean)
    torch.testing.assert_close(noisy, 0.722319 * clean, atol=1e-6, rtol=1e-6)


def test_pair_composes_two_transitions():
    process, t = FewStepProcess(few_step(4)), torch.tensor([2])
    clean, noise, next_noise = (torch.randn(1, 1, 3, 3) for _ in range(3))
    label_t, noisy = process.pair(clean, t, noise, next_noise)
    expected = 0.280492 * clean + 0.959856 * noise
    torch.testing.assert_close(label_t, expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(noisy, 0.208764 * expected + 0.977966 * next_noise, atol=3e-6, rtol=0)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        vp_few_step(0)
