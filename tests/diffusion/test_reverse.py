"""Single steps and whole runs of `ReverseProcess`; `test_diffusers.py` compares it with diffusers."""

from typing import Optional

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, nn

import shared_components.diffusion.schedules  # noqa: F401  registers the schedules
from shared_components.diffusion.reverse import ReverseProcess
from shared_components.diffusion.tables import reverse_table
from shared_components.errors import InputError

ALPHAS = DDPMScheduler(1000, schedule="linear_rescaled").alphas_cumprod
FEW = DDPMScheduler(4, schedule="vp_few_step").alphas_cumprod


def denoise(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """A stand-in denoiser of two heads."""
    return torch.cat([torch.tanh(noisy + torch.sin(timestep / 100)), torch.cos(2 * noisy)], dim=1)


def sample(process, generator_seed: int = 0, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(generator_seed)
    noisy, clean = torch.randn(batch, 1, 4, 4, generator=generator), None
    for step in range(process.num_inference_steps):
        output = denoise(noisy, process.timestep(step, batch).reshape(-1, 1, 1, 1))
        noisy, clean = process(step, output, noisy, clean, torch.randn(batch, 1, 4, 4, generator=generator))
    return noisy


# one step from x_t = 0.7 with noise 0.2 and v = 0 predicted: clean estimate, mean, variance
@pytest.mark.parametrize(
    "timestep, expected",
    [
        (999, (1.0, 0.693092, 0.01999999)),
        (500, (1.0, 0.698931, 0.01005565)),
        (1, (0.697111, 0.698425, 8.087e-05)),
        (0, (0.698035, 0.698035, 7.385e-05)),
    ],
)
def test_learned_variance_step(timestep, expected):
    process = ReverseProcess(ALPHAS, prediction_type="epsilon", learned_variance=True, clip=(-1, 1))
    step, noisy = 999 - timestep, torch.full((1, 1, 1, 1), 0.7)
    output = torch.tensor([0.2, 0.0]).reshape(1, 2, 1, 1)
    mean, clean = process(step, output, noisy, None, torch.zeros(1, 1, 1, 1))
    moved, _ = process(step, output, noisy, None, torch.ones(1, 1, 1, 1))
    assert (clean.item(), mean.item()) == pytest.approx(expected[:2], abs=1e-6)
    if timestep > 0:
        assert (moved - mean).item() ** 2 == pytest.approx(expected[2], rel=2e-3 if timestep == 1 else 1e-4)
    assert process.log_variance[step].mean().exp().item() == pytest.approx(expected[2], rel=1e-4)
    assert process.timestep(step, 3).tolist() == [timestep] * 3


@pytest.mark.parametrize("v, column", [(1.0, 0), (-1.0, 1)])
def test_variance_head_spans_beta_to_the_posterior(v, column):
    process = ReverseProcess(ALPHAS, 10, learned_variance=True)
    output = torch.cat([torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), v)], dim=1)
    moved, _ = process(3, output, torch.zeros(1, 1, 2, 2), None, torch.ones(1, 1, 2, 2))
    expected = reverse_table(ALPHAS, 10).log_variance[3, column].exp().sqrt().float()
    torch.testing.assert_close(moved, expected.expand(1, 1, 2, 2))


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
def test_true_prediction_gives_the_clean_map(prediction_type):
    process = ReverseProcess(ALPHAS, 5, "ddim", prediction_type)
    clean, noise = torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3)
    abar = ALPHAS[process.timesteps[2]].float()
    noisy = abar.sqrt() * clean + (1 - abar).sqrt() * noise
    truth = {"sample": clean, "epsilon": noise, "v_prediction": abar.sqrt() * noise - (1 - abar).sqrt() * clean}
    output = torch.cat([truth[prediction_type], torch.randn(2, 3, 3, 3)], dim=1)
    torch.testing.assert_close(process.clean_estimate(2, output, noisy), clean, atol=2e-5, rtol=1e-5)
    moved, _ = process(2, output, noisy)
    abar = ALPHAS[process.timesteps[3]].float()
    torch.testing.assert_close(moved, abar.sqrt() * clean + (1 - abar).sqrt() * noise, atol=2e-5, rtol=1e-5)


# x = (-1.5, -0.75, 0), noise (0.5, 0.25, 0); clipped DDIM of stride 20 that keeps the predicted noise
@pytest.mark.parametrize(
    "timestep, expected",
    [
        (980, (0.490629, 0.24064, 0)),
        (500, (0.167684, -0.070162, 0)),
        (20, (-0.99495, -0.769671, 0)),
        (0, (-1, -0.752538, 0)),
    ],
)
def test_clipped_ddim_with_the_predicted_noise(timestep, expected):
    options = {"clip": (-1, 1), "spacing": "leading", "recompute_noise": False}
    process = ReverseProcess(ALPHAS, 50, "ddim", "epsilon", **options)
    step = process.timesteps.tolist().index(timestep)
    noisy, noise = torch.tensor([[-1.5, -0.75, 0]]), torch.tensor([[0.5, 0.25, 0]])
    assert process(step, noise, noisy)[0][0].tolist() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    "timestep, expected", [(999, (-1.485051, -0.74259)), (500, (-1.494215, -0.748636)), (1, (-1.227354, -0.752067))]
)
def test_clipped_posterior_mean(timestep, expected):
    process = ReverseProcess(ALPHAS, prediction_type="epsilon", clip=(-1, 1))
    noisy, noise = torch.tensor([[-1.5, -0.75]]), torch.tensor([[0.5, 0.25]])
    moved, _ = process(999 - timestep, noise, noisy, None, torch.zeros(1, 2))
    assert moved[0].tolist() == pytest.approx(expected, abs=2e-6)


def test_it_makes_the_steps_of_the_segmenters_loop():
    """cDAL: the network predicts the clean map and nothing is clipped; equal to the last bit."""
    process, table = ReverseProcess(FEW), reverse_table(FEW)
    weights = table.coefficients.float()
    noisy = expected = torch.randn(3, 2, 4, 4)
    clean = None
    for step in range(4):
        assert process.timestep(step, 3).tolist() == [3 - step] * 3
        noise, output = torch.randn(3, 2, 4, 4), torch.tanh(expected + step)
        expected = weights[step, 0] * output + weights[step, 1] * expected
        if step < 3:
            expected = expected + weights[step, 2] * noise
        noisy, clean = process(step, output, noisy, clean, noise if step < 3 else None)
        assert torch.equal(noisy, expected) and torch.equal(clean, output)


@pytest.mark.parametrize("sampler, spacing", [("ddpm", "trailing"), ("ddim", "leading"), ("dpm_solver++", "linspace")])
def test_last_step_returns_the_clean_estimate(sampler, spacing):
    process = ReverseProcess(ALPHAS, 6, sampler, "epsilon", clip=(-1, 1), spacing=spacing)
    noisy, output = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    moved, clean = process(5, output, noisy, torch.randn(2, 1, 4, 4))
    torch.testing.assert_close(moved, clean, atol=1e-6, rtol=1e-6)
    assert moved.abs().max() <= 1


def test_solver_between_timesteps_ends_at_a_state_of_little_noise():
    process = ReverseProcess(ALPHAS, 20, "dpm_solver++", "sample", spacing="logSNR")
    assert process.timesteps.dtype == torch.float32 and not process.stochastic
    noisy, clean, truth = torch.randn(2, 1, 4, 4), None, torch.ones(2, 1, 4, 4)
    for step in range(20):
        noisy, clean = process(step, truth, noisy, clean)
    assert ((noisy - truth).abs() < 0.05).all() and not torch.equal(noisy, truth)


def test_dynamic_threshold_is_of_each_sample():
    process = ReverseProcess(ALPHAS, 4, dynamic_threshold=0.5)
    output = torch.tensor([[0.1, -0.5, 0.9, 0.2], [1.0, -2.0, 4.0, 3.0]]).reshape(2, 1, 2, 2)
    clean = process.clean_estimate(0, output, output).flatten(1)
    assert clean[0].tolist() == pytest.approx([0.1, -0.5, 0.9, 0.2])
    assert clean[1].tolist() == pytest.approx([0.4, -0.8, 1.0, 1.0])
    alone = process.clean_estimate(0, output[1:], output[1:]).flatten(1)
    assert torch.equal(alone[0], clean[1])


def test_half_precision_output_does_not_make_the_state_coarse():
    process = ReverseProcess(ALPHAS, 4, prediction_type="epsilon")
    noisy = torch.randn(1, 1, 4, 4)
    moved, clean = process(0, torch.zeros(1, 1, 4, 4, dtype=torch.bfloat16), noisy, None, torch.zeros(1, 1, 4, 4))
    assert moved.dtype == clean.dtype == torch.float32
    torch.testing.assert_close(clean, noisy / ALPHAS[999].sqrt().float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "ddpm", "learned_variance": True, "clip": (-1, 1)},
        {"sampler": "ddpm", "variance_type": "fixed_large", "prediction_type": "v_prediction"},
        {"sampler": "ddim", "eta": 0.5, "clip": [0, 1], "recompute_noise": False, "spacing": "leading"},
        {"sampler": "dpm_solver++", "dynamic_threshold": 0.995, "spacing": "logSNR"},
        {"sampler": "dpm_solver++", "prediction_type": "sample", "spacing": "2,4"},
    ],
)
def test_scripted_process_equals_the_eager_one(options):
    process = ReverseProcess(ALPHAS, 6, **{"prediction_type": "epsilon", **options})
    scripted = torch.jit.script(process)
    torch.testing.assert_close(sample(scripted), sample(process), atol=1e-6, rtol=1e-6)
    output = torch.randn(2, 2, 4, 4)
    assert torch.equal(
        scripted.clean_estimate(1, output, output[:, :1]), process.clean_estimate(1, output, output[:, :1])
    )


class Loop(nn.Module):
    """A sampling run as a segmenter scripts it."""

    def __init__(self, process: ReverseProcess) -> None:
        super().__init__()
        self.process = process

    def forward(self, noisy: Tensor) -> Tensor:
        clean: Optional[Tensor] = None
        for step in range(self.process.num_inference_steps):
            noise: Optional[Tensor] = None
            if self.process.stochastic:
                noise = torch.ones_like(noisy) * step
            shown = self.process.timestep(step, noisy.shape[0]).reshape(-1, 1, 1, 1)
            noisy, clean = self.process(step, torch.tanh(noisy + shown), noisy, clean, noise)
        return noisy


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm_solver++"])
def test_a_loop_over_it_scripts(sampler):
    loop, noisy = Loop(ReverseProcess(ALPHAS, 5, sampler, "epsilon", clip=(-1, 1))), torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(torch.jit.script(loop)(noisy), loop(noisy), atol=1e-6, rtol=1e-6)


def test_how_it_samples_is_not_in_the_state_dict():
    assert not ReverseProcess(ALPHAS, 4).state_dict()


def test_deterministic_processes_need_no_noise():
    assert ReverseProcess(ALPHAS, 4).stochastic and ReverseProcess(ALPHAS, 4, "ddim", eta=0.1).stochastic
    for process in (
        ReverseProcess(ALPHAS, 1),
        ReverseProcess(ALPHAS, 4, "ddim"),
        ReverseProcess(FEW, 1, "dpm_solver++"),
    ):
        assert not process.stochastic


def test_what_is_missing_is_an_error():
    noisy, noise = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="step 1 needs noise"):
        ReverseProcess(ALPHAS, 4)(1, noisy, noisy)
    with pytest.raises(ValueError, match="step 1 needs the clean estimate"):
        ReverseProcess(ALPHAS, 4, "dpm_solver++")(1, noisy, noisy)
    with pytest.raises(ValueError, match="needs 2 output channels, not 1"):
        ReverseProcess(ALPHAS, 4, learned_variance=True)(1, noisy, noisy, None, noise)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"prediction_type": "x0"}, "sample, epsilon, v_prediction, not 'x0'"),
        ({"clip": (1, -1)}, r"low < high, not \(1, -1\)"),
        ({"clip": (0, 1), "dynamic_threshold": 0.9}, "without clip"),
        ({"dynamic_threshold": 99.5}, r"0\.\.1"),
        ({"recompute_noise": False}, "'ddim', not 'ddpm'"),
        ({"sampler": "euler"}, "ddpm, ddim"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        ReverseProcess(ALPHAS, 4, **options)
