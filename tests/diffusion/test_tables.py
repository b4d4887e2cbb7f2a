"""Reverse tables against closed forms; `test_diffusers.py` compares them with diffusers' schedulers."""

from __future__ import annotations

import math

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

from shared_components.diffusion.schedules import linear_rescaled
from shared_components.diffusion.tables import SAMPLERS, ReverseTable, reverse_table
from shared_components.errors import InputError

ALPHAS = DDPMScheduler(1000, schedule="linear_beta").alphas_cumprod
ALPHAS_64 = (1 - linear_rescaled(1000)).cumprod(0)
SPACINGS = ("trailing", "leading", "linspace")


def posterior_mean(noisy: float, abar: torch.Tensor, mean: float, deviation: float) -> torch.Tensor:
    """The exact clean estimate where clean values are normally distributed."""
    variance = deviation**2
    return mean + variance * abar.sqrt() / (abar * variance + 1 - abar) * (noisy - abar.sqrt() * mean)


def solve(table: ReverseTable, start: float) -> float:
    """Run a table with the exact clean estimate of N(0.5, 0.2^2)."""
    noisy, previous = start, 0.0
    for weights, abar in zip(table.coefficients, table.alphas_cumprod):
        clean = posterior_mean(noisy, abar, 0.5, 0.2)
        noisy = weights[0] * clean + weights[1] * noisy + weights[3] * previous
        previous = clean
    return float(noisy)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 3, 7])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_last_step_returns_the_estimate(sampler, steps, spacing):
    row = reverse_table(ALPHAS, steps, sampler, spacing).coefficients[-1]
    torch.testing.assert_close(row, torch.tensor([1.0, 0, 0, 0]).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("spacing", [*SPACINGS, "uniform", "logSNR"])
@pytest.mark.parametrize("sampler, eta", [("ddpm", 0), ("ddim", 0), ("ddim", 0.4), ("ddim", 1), ("dpm_solver++", 0)])
def test_true_label_stays_on_the_forward_marginal(sampler, eta, spacing):
    """Fed the true clean label, every step must land on its level's signal weight and total variance."""
    table = reverse_table(ALPHAS, 7, sampler, spacing, eta)
    abar = table.alphas_cumprod
    signal, variance = abar[0].sqrt(), 1 - abar[0]
    for row, level in zip(table.coefficients[:-1], abar[1:]):
        signal, variance = row[0] + row[1] * signal + row[3], row[1] ** 2 * variance + row[2] ** 2
        torch.testing.assert_close(signal, level.sqrt())
        torch.testing.assert_close(variance, 1 - level)


def test_full_noise_makes_ddim_the_posterior():
    ddpm, ddim = reverse_table(ALPHAS, 20, "ddpm"), reverse_table(ALPHAS, 20, "ddim", eta=1)
    torch.testing.assert_close(ddim.coefficients, ddpm.coefficients, atol=1e-9, rtol=1e-9)


def test_posterior_of_the_published_schedule():
    rows = reverse_table(ALPHAS_64).coefficients.flip(0)
    expected = torch.tensor([0.5452914995, 0.454708499], dtype=torch.float64)
    torch.testing.assert_close(rows[1, :2], expected, atol=1e-9, rtol=0)
    expected = torch.tensor([1.283514872e-04, 0.9899486783], dtype=torch.float64)
    torch.testing.assert_close(rows[999, :2], expected, atol=0, rtol=1e-8)
    assert rows[499, 2].item() ** 2 == pytest.approx(0.01003135541, rel=1e-8)


def test_log_variances_lie_between_the_posterior_and_beta():
    largest, smallest = reverse_table(ALPHAS_64).log_variance.flip(0).T
    torch.testing.assert_close(largest, linear_rescaled(1000).log())
    assert smallest[:2].tolist() == pytest.approx([-9.816725135] * 2, abs=1e-8)
    assert math.exp(smallest[499]) == pytest.approx(0.01003135541, rel=1e-8)
    assert (smallest[1:] < largest[1:]).all()


def test_posterior_and_log_variances_of_cdms_schedule():
    table = reverse_table((1 - linear_rescaled(4000)).cumprod(0))
    coefficients, log_variance = table.coefficients.flip(0), table.log_variance.flip(0)[[0, 1, 399, 2000]]
    assert coefficients[1, :2].tolist() == pytest.approx([0.51213874, 0.48786126], abs=1e-8)
    assert coefficients[399, :2].tolist() == pytest.approx([4.7692596e-3, 0.99522365], rel=1e-8)
    log_beta, log_posterior = log_variance.T.tolist()
    assert log_beta == pytest.approx([-10.5966347, -10.5480708, -7.5590308, -5.9862295], abs=1e-7)
    assert log_posterior == pytest.approx([-11.2657819, -11.2657819, -7.5635574, -5.9864448], abs=5e-7)


def test_log_variances_are_those_between_the_levels_visited():
    table = reverse_table(ALPHAS_64, 4)
    abar = torch.cat([ALPHAS_64[[999, 749, 499, 249]], torch.ones(1).double()])
    beta = 1 - abar[:-1] / abar[1:]
    torch.testing.assert_close(table.log_variance[:, 0], beta.log())
    posterior = beta * (1 - abar[1:]) / (1 - abar[:-1])
    torch.testing.assert_close(table.log_variance[:, 1], posterior[[0, 1, 2, 2]].log())
    assert torch.isfinite(reverse_table(ALPHAS_64, 1).log_variance).all()


def test_fixed_large_noise_has_variance_beta():
    small, large = (reverse_table(ALPHAS_64, 10, variance_type=kind) for kind in ("fixed_small", "fixed_large"))
    assert torch.equal(small.coefficients[:, :2], large.coefficients[:, :2])
    torch.testing.assert_close(large.coefficients[:-1, 2] ** 2, large.log_variance[:-1, 0].exp())
    assert large.coefficients[-1, 2] == 0


# data N(0.5, 0.2^2), start 1.3; the closed form of the differential equation at the last level is 0.759656
@pytest.mark.parametrize(
    "sampler, spacing, lower_order_final, expected",
    [
        ("ddim", "uniform", True, [0.636098, 0.688636, 0.729069, 0.749690]),
        ("dpm_solver++", "uniform", False, [0.776562, 0.826032, 0.798166, 0.765605]),
        ("dpm_solver++", "uniform", True, [0.639664, 0.700462, 0.748135, 0.759612]),
        ("dpm_solver++", "logSNR", False, [0.765922, 0.762927, 0.760239, 0.759714]),
    ],
)
def test_solvers_on_a_gaussian(sampler, spacing, lower_order_final, expected):
    options = {"sampler": sampler, "spacing": spacing, "lower_order_final": lower_order_final}
    found = [solve(reverse_table(ALPHAS_64, steps, **options), 1.3) for steps in (10, 20, 50, 160)]
    assert found == pytest.approx(expected, abs=1e-6)


def test_lowering_the_last_step_costs_nothing_in_even_log_ratios():
    error = [
        abs(solve(reverse_table(ALPHAS_64, 50, "dpm_solver++", "logSNR", lower_order_final=lower), 1.3) - 0.759656)
        for lower in (True, False)
    ]
    assert error[0] < error[1] < 6e-4


# the closed form of the chain itself, 300 steps from N(0, 1)
@pytest.mark.parametrize(
    "data, expected", [((-0.6, 0.2), (-0.5988, 0.1939)), ((0.0, 0.35), (0.0, 0.3436)), ((0.5, 0.2), (0.4990, 0.1939))]
)
def test_ancestral_chain_on_a_gaussian(data, expected):
    table = reverse_table((1 - torch.linspace(1e-4, 2e-2, 300, dtype=torch.float64)).cumprod(0))
    mean, variance = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for row, abar in zip(table.coefficients, table.alphas_cumprod):
        slope = row[0] * (posterior_mean(1.0, abar, *data) - posterior_mean(0.0, abar, *data)) + row[1]
        mean = row[0] * posterior_mean(mean, abar, *data) + row[1] * mean
        variance = slope**2 * variance + row[2] ** 2
    assert mean.item() == pytest.approx(expected[0], abs=1e-4)
    assert variance.sqrt().item() == pytest.approx(expected[1], abs=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sampler": "euler"}, r"ddpm, ddim, dpm_solver\+\+, not 'euler'"),
        ({"variance_type": "learned"}, "fixed_small, fixed_large, not 'learned'"),
        ({"sampler": "ddim", "eta": 1.5}, r"0\.\.1, not 1.5"),
        ({"num_inference_steps": 0}, r"1\.\.1000 .* not 0"),
        ({"num_inference_steps": -1}, r"1\.\.1000 .* not -1"),
        ({"num_inference_steps": 1001}, r"1\.\.1000 .* not 1001"),
    ],
)
def test_nonsense_is_refused_with_the_choices(options, message):
    with pytest.raises(InputError, match=message):
        reverse_table(ALPHAS, **options)
