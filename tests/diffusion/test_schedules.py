"""The schedule's tables against the published values (T = 1, 2, 4, 8), and the forward pair against a plain coding."""

from __future__ import annotations

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

from shared_components.diffusion.schedules import FewStepProcess, cosine_double, linear_rescaled, vp_few_step
from shared_components.errors import InputError

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


LINEAR_ABAR = {  # of linear_rescaled, by timestep
    1000: {0: 0.9999, 499: 0.07858724288, 999: 4.035829765e-05},
    100: {49: 0.07419699672, 99: 2.039008976e-05},
    50: {24: 0.06908898306, 49: 7.744765699e-06},
}


@pytest.mark.parametrize("timesteps", LINEAR_ABAR)
def test_rescaled_linear_schedule(timesteps):
    scheduler = DDPMScheduler(timesteps, schedule="linear_rescaled")
    assert scheduler.alphas_cumprod.dtype == torch.float64
    found = {t: scheduler.alphas_cumprod[t].item() for t in LINEAR_ABAR[timesteps]}
    assert found == pytest.approx(LINEAR_ABAR[timesteps], rel=1e-9)
    ends = (scheduler.betas[0].item(), scheduler.betas[-1].item())
    assert ends == pytest.approx((0.1 / timesteps, 20 / timesteps))


def test_cosine_schedule():
    scheduler = DDPMScheduler(1000, schedule="cosine_double")
    assert (scheduler.betas[0].item(), scheduler.betas[-1].item()) == pytest.approx((4.128422482e-05, 0.999), rel=1e-9)
    found = (scheduler.alphas_cumprod[499].item(), scheduler.alphas_cumprod[999].item())
    assert found == pytest.approx((0.4938435904, 2.428766907e-09), rel=1e-9)


CDM_SCHEDULES = {  # of its specification, to eight digits: first and last beta, and abar by timestep
    ("linear_rescaled", 4000): (
        (2.5e-5, 5e-3),
        {390: 0.90064303, 399: 0.89646581, 400: 0.89599729, 700: 0.72408106, 3999: 4.2466523e-5},
    ),
    ("linear_rescaled", 1000): ((1e-4, 2e-2), {0: 0.9999, 399: 0.19514644, 400: 0.19357201, 999: 4.0358298e-5}),
    ("cosine_double", 4000): ((9.8658188e-6, 0.999), {400: 0.97196390, 1999: 0.49384359}),
    ("cosine_double", 1000): ((4.1284225e-5, 0.999), {400: 0.64598817, 700: 0.20186889}),
}


@pytest.mark.parametrize("name, timesteps", CDM_SCHEDULES)
def test_schedules_of_cdm(name, timesteps):
    scheduler = DDPMScheduler(timesteps, schedule=name)
    ends, levels = CDM_SCHEDULES[name, timesteps]
    assert (scheduler.betas[0].item(), scheduler.betas[-1].item()) == pytest.approx(ends, rel=3e-8)
    assert {t: scheduler.alphas_cumprod[t].item() for t in levels} == pytest.approx(levels, rel=3e-8)


def test_sum_of_cdms_linear_betas():
    assert linear_rescaled(4000).sum().item() == pytest.approx(10.05, rel=1e-12)


def test_schedules_are_monais_in_double_precision():
    for own, theirs in ((linear_rescaled(1000), "linear_beta"), (cosine_double(1000), "cosine")):
        torch.testing.assert_close(own.float(), DDPMScheduler(1000, schedule=theirs).betas, atol=2e-7, rtol=1e-4)


@pytest.mark.parametrize("timesteps", [20, 4, 0])
def test_linear_schedule_that_leaves_no_signal_is_refused(timesteps):
    with pytest.raises(InputError, match=f"more than 20 .* not {timesteps}: .* num_inference_steps"):
        DDPMScheduler(timesteps, schedule="linear_rescaled")
    assert linear_rescaled(21)[-1] < 1


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        vp_few_step(0)
