"""Which timesteps and noise levels a reverse process visits, against published respacings and closed forms."""

from __future__ import annotations

import pytest
import torch

from shared_components.diffusion.schedules import cosine_double, linear_rescaled
from shared_components.diffusion.timesteps import noise_levels, respaced_timesteps, strided_timesteps
from shared_components.errors import InputError


def linear(count: int) -> torch.Tensor:
    return (1 - linear_rescaled(count)).cumprod(0)


def log_ratio(levels: torch.Tensor) -> torch.Tensor:
    """log alpha - log sigma."""
    return torch.logit(levels) / 2


@pytest.mark.parametrize(
    "spacing, steps, expected",
    [
        ("trailing", 4, [999, 749, 499, 249]),
        ("trailing", 3, [999, 666, 332]),
        ("leading", 4, [750, 500, 250, 0]),
        ("leading", 3, [666, 333, 0]),
        ("linspace", 4, [999, 666, 333, 0]),
        ("linspace", 1, [999]),
    ],
)
def test_strides(spacing, steps, expected):
    assert strided_timesteps(1000, steps, spacing).tolist() == expected


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_all_steps_are_all_timesteps(spacing):
    assert strided_timesteps(300, None, spacing).tolist() == list(range(299, -1, -1))


def test_published_respacings():
    assert respaced_timesteps(1000, "ddim50").flip(0).tolist() == list(range(0, 1000, 20))
    hundred = respaced_timesteps(1000, "100").flip(0).tolist()
    assert hundred[:4] == [0, 10, 20, 30] and hundred[-3:] == [979, 989, 999] and len(hundred) == 100
    assert respaced_timesteps(1000, "50").flip(0).tolist()[:4] == [0, 20, 41, 61]
    assert torch.equal(respaced_timesteps(1000, "50"), strided_timesteps(1000, 50, "linspace"))
    assert respaced_timesteps(300, "10,15,20").flip(0).tolist() == [
        *(round(99 / 9 * i) for i in range(10)),
        *(100 + round(99 / 14 * i) for i in range(15)),
        *(200 + round(99 / 19 * i) for i in range(20)),
    ]
    assert len(respaced_timesteps(300, "10,15,20")) == 45
    assert respaced_timesteps(4000, "ddim100").flip(0).tolist()[:3] == [0, 40, 80]
    assert respaced_timesteps(1000, "25").flip(0).tolist()[-3:] == [916, 957, 999]
    assert respaced_timesteps(10, "1,1,2").flip(0).tolist() == [0, 4, 7, 9]


@pytest.mark.parametrize(
    "spacing, steps, message",
    [
        ("ddim300", None, "no whole stride over 1000 timesteps gives 300"),
        ("ddim0", None, "gives 0 steps"),
        ("500,501", None, "section of 500 timesteps cannot give 501"),
        ("0,5", None, "cannot give 0 steps"),
        ("ddim50", 40, "'ddim50' gives 50 num_inference_steps, not 40"),
        ("karras", 10, "trailing, leading, linspace, uniform, logSNR, .* not 'karras'"),
        ("uniform", 0, r"1\.\.1000 .* not 0"),
        ("logSNR", 1001, r"1\.\.1000 .* not 1001"),
    ],
)
def test_impossible_spacings_are_refused(spacing, steps, message):
    with pytest.raises(InputError, match=message):
        noise_levels(linear(1000), steps, spacing)


def test_spacing_between_timesteps_needs_two_of_them():
    with pytest.raises(InputError, match="2 or more timesteps, not 1"):
        noise_levels(torch.tensor([0.1]), 1, "logSNR")


def test_levels_on_timesteps_end_at_the_clean_map():
    alphas = linear(1000)
    timesteps, levels = noise_levels(alphas, 10, "leading")
    assert timesteps.dtype == torch.int64
    assert torch.equal(levels[:-1], alphas[timesteps]) and levels[-1] == 1


@pytest.mark.parametrize("count, ends", [(1000, (-5.058837, 4.605037)), (50, (-5.884243, 3.106309))])
@pytest.mark.parametrize("spacing", ["uniform", "logSNR"])
def test_levels_between_timesteps_span_the_schedule(spacing, count, ends):
    timesteps, levels = noise_levels(linear(count), 20, spacing)
    assert timesteps.dtype == torch.float64 and timesteps.shape == (20,) and levels.shape == (21,)
    first, last = log_ratio(levels)[[0, -1]].tolist()
    assert first == pytest.approx(ends[0], abs=1e-6)
    assert last == pytest.approx(log_ratio(linear(count)[0]).item(), abs=1e-9)
    assert last == pytest.approx(ends[1], abs=1e-4)  # measured with 1 - abar in single precision
    assert timesteps[0].item() == pytest.approx(count - 1) and timesteps[-1] > 0


def test_uniform_timesteps_are_even_and_scale_to_the_published_network_time():
    timesteps, levels = noise_levels(linear(50), 50, "uniform")
    shown = timesteps * 1000 / 50
    torch.testing.assert_close(shown, torch.linspace(980, 19.6, 50, dtype=torch.float64))
    assert levels[-1].item() == pytest.approx(linear(50)[0].item())


@pytest.mark.parametrize("schedule", [linear_rescaled, cosine_double])
def test_log_ratio_steps_are_even(schedule):
    """The timestep is found by interpolating the ratio, the level by interpolating log(abar): even but for that."""
    alphas = (1 - schedule(1000)).cumprod(0)
    steps = log_ratio(noise_levels(alphas, 20, "logSNR")[1]).diff()
    torch.testing.assert_close(steps, steps.mean().expand(20), atol=0, rtol=4e-2)


def test_levels_at_whole_times_are_those_of_the_schedule():
    alphas = linear(101)
    timesteps, levels = noise_levels(alphas, 20, "uniform")
    assert timesteps.tolist() == pytest.approx(list(range(100, 0, -5)))
    torch.testing.assert_close(levels, alphas[torch.arange(100, -1, -5)])
