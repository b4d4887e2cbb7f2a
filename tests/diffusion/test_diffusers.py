"""Tables and steps of the reverse process against diffusers' schedulers."""

from __future__ import annotations

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

from shared_components.diffusion.reverse import ReverseProcess
from shared_components.diffusion.tables import reverse_table
from shared_components.diffusion.timesteps import noise_levels

diffusers = pytest.importorskip("diffusers", reason="pip install diffusers")

SCHEDULE = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 2e-2}
OPTIONS = {**SCHEDULE, "prediction_type": "sample", "clip_sample": False, "timestep_spacing": "trailing"}
ALPHAS = DDPMScheduler(1000, schedule="linear_beta").alphas_cumprod


def estimate(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """A stand-in denoiser: any fixed function of its input and the timestep."""
    return torch.tanh(0.7 * noisy + torch.sin(timestep.double() / 100))


def run(table, noisy: torch.Tensor) -> torch.Tensor:
    previous = torch.zeros_like(noisy)
    for timestep, weights in zip(table.timesteps, table.coefficients):
        clean = estimate(noisy, timestep)
        noisy = weights[0] * clean + weights[1] * noisy + weights[3] * previous
        previous = clean
    return noisy


def peer_run(peer, noisy: torch.Tensor, **options) -> torch.Tensor:
    for timestep in peer.timesteps:
        noisy = peer.step(estimate(noisy, timestep).to(noisy), timestep, noisy, **options).prev_sample
    return noisy


def process_run(process: ReverseProcess, noisy: torch.Tensor) -> torch.Tensor:
    clean = None
    for step in range(process.num_inference_steps):
        output = estimate(noisy, process.timesteps[step]).to(noisy)
        noisy, clean = process(step, output, noisy, clean)
    return noisy


def start(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("steps", [1, 2, 4, 10, 50, 1000])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_ddim_table(steps, spacing):
    peer = diffusers.DDIMScheduler(set_alpha_to_one=True, **{**OPTIONS, "timestep_spacing": spacing})
    peer.set_timesteps(steps)
    table = reverse_table(ALPHAS, steps, "ddim", spacing)
    assert table.timesteps.tolist() == peer.timesteps.tolist()
    torch.testing.assert_close(run(table, start()), peer_run(peer, start(), eta=0.0), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", [4, 50, 1000])
def test_ddpm_table(steps):
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


def test_ddim_with_noise():
    peer = diffusers.DDIMScheduler(set_alpha_to_one=True, **OPTIONS)
    peer.set_timesteps(20)
    process = ReverseProcess(ALPHAS, 20, "ddim", eta=0.6)
    noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    noisy = start(torch.float32)
    for step, timestep in enumerate(peer.timesteps):
        output = estimate(noisy, timestep).float()
        expected = peer.step(output, timestep, noisy, eta=0.6, variance_noise=noise).prev_sample
        noisy, _ = process(step, output, noisy, None, noise)
        torch.testing.assert_close(noisy, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
@pytest.mark.parametrize("recompute_noise", [True, False])
def test_clipped_ddim_process(prediction_type, recompute_noise):
    peer = diffusers.DDIMScheduler(**{**OPTIONS, "prediction_type": prediction_type, "clip_sample": True})
    peer.set_timesteps(25)
    expected = peer_run(peer, start(torch.float32), eta=0.0, use_clipped_model_output=recompute_noise)
    options = {"prediction_type": prediction_type, "clip": (-1, 1), "recompute_noise": recompute_noise}
    found = process_run(ReverseProcess(ALPHAS, 25, "ddim", **options), start(torch.float32))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_learned_variance_ddpm_process(prediction_type):
    """On every tenth row: mean, clipping and the interpolated variance, with diffusers' noise."""
    options = {**OPTIONS, "prediction_type": prediction_type, "clip_sample": True}
    peer = diffusers.DDPMScheduler(variance_type="learned_range", **options)
    peer.set_timesteps(100)
    process = ReverseProcess(ALPHAS, 100, "ddpm", prediction_type, learned_variance=True, clip=(-1, 1))
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 3, 4, 4, generator=generator)
    output = torch.randn(2, 6, 4, 4, generator=generator)
    for step in range(0, 99, 10):
        noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        timestep = int(peer.timesteps[step])
        expected = peer.step(output, timestep, noisy, generator=torch.Generator().manual_seed(step))
        moved, clean = process(step, output, noisy, None, noise)
        torch.testing.assert_close(moved, expected.prev_sample, atol=2e-5, rtol=1e-3)
        torch.testing.assert_close(clean, expected.pred_original_sample, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 10, 14, 20, 50])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_dpm_solver_process(steps, spacing):
    peer = diffusers.DPMSolverMultistepScheduler(
        **SCHEDULE,
        prediction_type="sample",
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
    )
    process = ReverseProcess(ALPHAS, steps, "dpm_solver++", spacing=spacing)
    peer.set_timesteps(timesteps=process.timesteps.tolist())
    expected = peer_run(peer, start(torch.float32))
    torch.testing.assert_close(process_run(process, start(torch.float32)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 10, 14, 20, 50])
@pytest.mark.parametrize("spacing", ["uniform", "logSNR"])
@pytest.mark.parametrize("lower_order_final", [True, False])
def test_dpm_solver_process_between_timesteps(steps, spacing, lower_order_final):
    """diffusers' update on our noise levels: it rounds its own to whole timesteps, and visits one level fewer."""
    peer = diffusers.DPMSolverMultistepScheduler(
        **SCHEDULE,
        prediction_type="sample",
        solver_order=2,
        final_sigmas_type="sigma_min",
        lower_order_final=False,
        euler_at_final=lower_order_final,
    )
    process = ReverseProcess(ALPHAS, steps, "dpm_solver++", spacing=spacing, lower_order_final=lower_order_final)
    levels = noise_levels(ALPHAS, steps, spacing)[1]
    peer.set_timesteps(steps)
    peer.timesteps, peer.sigmas = process.timesteps, (1 / levels - 1).sqrt().float()
    expected = peer_run(peer, start(torch.float32))
    torch.testing.assert_close(process_run(process, start(torch.float32)), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_even_log_ratios_are_diffusers_but_for_its_rounding(steps):
    """Its N + 1 levels are those that our N steps go between; it then shows the network whole timesteps."""
    peer = diffusers.DPMSolverMultistepScheduler(
        **SCHEDULE, prediction_type="sample", use_lu_lambdas=True, final_sigmas_type="sigma_min"
    )
    peer.set_timesteps(steps + 1)
    timesteps, levels = noise_levels(ALPHAS, steps, "logSNR")
    assert peer.timesteps[:-1].tolist() == timesteps.round().tolist()
    # between two timesteps log(abar) is linear here, the log ratio there: it matters near the clean end alone
    found, expected = torch.logit(levels) / 2, -peer.sigmas[:-1].double().log()
    torch.testing.assert_close(found, expected, atol=0.04, rtol=0)
    torch.testing.assert_close(found[: steps // 2], expected[: steps // 2], atol=1e-4, rtol=0)


def test_dpm_solver_with_dynamic_thresholds():
    peer = diffusers.DPMSolverMultistepScheduler(
        **SCHEDULE, thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1e6
    )
    process = ReverseProcess(ALPHAS, 20, "dpm_solver++", "epsilon", dynamic_threshold=0.9)
    peer.set_timesteps(timesteps=process.timesteps.tolist())
    expected = peer_run(peer, start(torch.float32))
    torch.testing.assert_close(process_run(process, start(torch.float32)), expected, atol=2e-4, rtol=1e-3)
