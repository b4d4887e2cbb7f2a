"""The schedules of AdaptDiff's code, against the published values at T = 300."""

from __future__ import annotations

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

import shared_components.diffusion.schedules  # noqa: F401  registers the schedules
from shared_components.diffusion.reverse import ReverseProcess
from shared_components.diffusion.tables import reverse_table
from shared_components.errors import InputError


def made(schedule: str) -> DDPMScheduler:
    return DDPMScheduler(300, schedule=schedule)


def test_linear():
    scheduler = made("linear")
    betas, abar = scheduler.betas, scheduler.alphas_cumprod
    assert betas[[0, 149, 299]].tolist() == pytest.approx([1e-4, 0.010016723, 0.02], rel=1e-6)
    assert abar[[0, 149, 299]].tolist() == pytest.approx([0.9999, 0.467055, 0.0480584], rel=1e-5)
    assert abar[299].sqrt().item() == pytest.approx(0.2192223, rel=1e-5)
    variance = reverse_table(abar).coefficients[:, 2].flip(0) ** 2
    assert variance[[0, 149, 299]].tolist() == pytest.approx([0, 0.0099279, 0.0199794], rel=1e-5)
    assert variance[1].item() == pytest.approx(6.24882e-5, rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "middle", "last"),
    [
        ("quad", 0.71966, 0.114474),
        ("const", 0.048296, 0.00233251),
        ("jsd", 0.5, 0.0),
        ("sigmoid", 0.698743, 0.0478159),
    ],
)
def test_signal_left(schedule, middle, last):
    abar = made(schedule).alphas_cumprod
    assert abar.dtype == torch.float64
    assert abar[[149, 299]].tolist() == pytest.approx([middle, last], rel=1e-5, abs=1e-12)


@pytest.mark.parametrize(
    ("ours", "monai"), [("linear", "linear_beta"), ("quad", "scaled_linear_beta"), ("sigmoid", "sigmoid_beta")]
)
def test_same_as_monai_in_double_precision(ours, monai):
    torch.testing.assert_close(made(ours).betas.float(), made(monai).betas, rtol=1e-5, atol=1e-9)


def test_epsilon_is_refused_where_no_signal_is_left():
    abar = made("jsd").alphas_cumprod
    with pytest.raises(InputError, match="epsilon.*v_prediction"):
        ReverseProcess(abar, prediction_type="epsilon")
    process, noisy, clean = ReverseProcess(abar, 5, prediction_type="v_prediction"), torch.randn(1, 1, 4, 4), None
    for step in range(5):
        noisy, clean = process(step, torch.zeros(1, 1, 4, 4), noisy, clean, torch.randn(1, 1, 4, 4))
    assert torch.isfinite(noisy).all()
