from __future__ import annotations

import math

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

import shared_components.diffusion.schedules  # noqa: F401  registers the schedules
from shared_components.diffusion.hybrid_loss import (
    CalibrationLoss,
    DenoisingLoss,
    HybridLoss,
    discretised_log_likelihood,
    gaussian_kl,
)
from shared_components.diffusion.timestep_samplers import UniformTimestepSampler
from shared_components.errors import InputError


def scheduler(timesteps: int = 1000) -> DDPMScheduler:
    return DDPMScheduler(timesteps, schedule="linear_rescaled")


def bound(timestep: int, v: float, mask: float = 0.0, timesteps: int = 1000, **options) -> float:
    """The loss where the noise is predicted exactly: the bound alone."""
    noise = torch.randn(1, 1, 4, 4)
    output = torch.cat([noise, torch.full((1, 1, 4, 4), v)], dim=1)
    loss = HybridLoss(scheduler(timesteps), **options)
    return loss(output, noise, torch.full((1, 1, 4, 4), mask), torch.tensor([timestep]))[0].item()


def batch(channels: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean = (torch.rand(3, channels, 4, 4, generator=generator) > 0.5).float()
    return {
        "output": torch.randn(3, 2 * channels, 4, 4, generator=generator).requires_grad_(),
        "target": torch.randn(3, channels, 4, 4, generator=generator),
        "clean": clean,
        "timesteps": torch.tensor([0, 3, 700]),
    }


@pytest.mark.parametrize(
    "timestep, v, expected",
    [(1, 0, 0.049312), (2, 0, 0.020150), (1, 1, 0.175125), (2, 1, 0.074620), (1, -1, 0.0), (400, -1, 0.0)],
)
@pytest.mark.parametrize("mask", [0.0, 1.0])
def test_bound_between_two_steps(timestep, v, expected, mask):
    assert bound(timestep, v, mask) == pytest.approx(expected, abs=2e-6)


def test_bound_vanishes_at_noisy_steps():
    assert all(0 <= bound(timestep, 1.0) < 1e-6 for timestep in (500, 750, 999))


@pytest.mark.parametrize(
    "mask, expected", [(0.0, (1.305665, 1.507143, 1.713014)), (1.0, (0.509914, 0.565116, 0.615932))]
)
def test_bound_of_the_last_step(mask, expected):
    assert [bound(0, v, mask) for v in (-1.0, 0.0, 1.0)] == pytest.approx(expected, rel=2e-5)


def test_rescaled_bound():
    plain = bound(1, 1.0, timesteps=100)
    assert bound(1, 1.0, timesteps=100, objective="hybrid_rescaled") == pytest.approx(plain / 10, rel=1e-6)
    assert bound(1, 1.0, objective="hybrid_rescaled") == bound(1, 1.0)


def test_variational_objective_is_the_rescaled_bound():
    assert bound(1, 1.0, objective="variational") == pytest.approx(1000 * 0.175125, rel=1e-5)


def test_divergence_and_likelihood():
    zero, one = torch.zeros(()), torch.ones(())
    assert gaussian_kl(one, zero, one).item() == pytest.approx(0.36787945, abs=1e-7)
    likelihood = discretised_log_likelihood(torch.tensor([0.0, 1.0, -1.0]), torch.zeros(3), torch.full((3,), -1.0))
    assert likelihood.tolist() == pytest.approx([-4.767075, -5.740350, -5.740359], rel=2e-5)
    likelihood = discretised_log_likelihood(torch.tensor([0.0, -1, 1, 0.5]), torch.zeros(4), torch.full((4,), -3.0))
    assert likelihood.tolist() == pytest.approx([-2.7681, -27.6310, -27.6310, -27.6310], abs=5e-5)
    assert gaussian_kl(one, zero, torch.tensor(4.0).log()).item() == pytest.approx(0.4431, abs=5e-5)
    hopeless = discretised_log_likelihood(torch.tensor([0.5]), torch.tensor([9.0]), torch.tensor([-5.0]))
    assert hopeless.item() == pytest.approx(math.log(1e-12), rel=1e-6)


def test_bound_is_that_of_the_posterior_and_the_predicted_step():
    """By hand from the clean estimate and the two means, not clipped."""
    items, timestep = batch(), 3
    noisy_scheduler = scheduler()
    abar, beta = noisy_scheduler.alphas_cumprod, noisy_scheduler.betas
    noise, clean = items["target"][1:2].double(), items["clean"][1:2].double()
    noisy = abar[timestep].sqrt() * clean + (1 - abar[timestep]).sqrt() * noise
    prediction, v = items["output"][1:2].detach().double().chunk(2, dim=1)
    estimate = (noisy - (1 - abar[timestep]).sqrt() * prediction) / abar[timestep].sqrt()
    weight = beta[timestep] * abar[timestep - 1].sqrt() / (1 - abar[timestep])
    log_posterior = (beta[timestep] * (1 - abar[timestep - 1]) / (1 - abar[timestep])).log()
    log_variance = (v + 1) / 2 * beta[timestep].log() + (1 - v) / 2 * log_posterior
    p, q = (
        torch.distributions.Normal(mean, (log_var / 2).exp().expand(1, 1, 4, 4))
        for mean, log_var in ((weight * estimate, log_variance), (weight * clean, log_posterior))
    )
    expected = torch.distributions.kl_divergence(q, p).mean() / math.log(2) + ((prediction - noise) ** 2).mean()
    _, losses = HybridLoss(noisy_scheduler)(**items)
    assert losses[1].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_bound_is_the_same_whatever_is_predicted(prediction_type):
    items, abar = batch(), scheduler().alphas_cumprod[[0, 3, 700]].float().reshape(3, 1, 1, 1)
    clean, noise, prediction = items["clean"], items["target"], items["output"][:, :1].detach()
    v = items["output"][:, 1:].detach()
    miss = -((1 - abar) / abar).sqrt() * (prediction - noise)  # of the clean estimate
    error = miss if prediction_type == "sample" else -miss / (1 - abar).sqrt()
    target = clean if prediction_type == "sample" else abar.sqrt() * noise - (1 - abar).sqrt() * clean
    options = {"objective": "variational"}
    expected = HybridLoss(scheduler(), **options)(**items)[1]
    loss = HybridLoss(scheduler(), prediction_type, **options)
    found = loss(torch.cat([target + error, v], dim=1), target, clean, items["timesteps"])[1]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_hybrid_bound_trains_the_variance_head_alone():
    items = batch()
    HybridLoss(scheduler())(**items)[0].backward()
    found = items["output"].grad.clone()
    items["output"].grad = None
    error = ((items["output"][:, :1] - items["target"]) ** 2).mean()
    error.backward()
    torch.testing.assert_close(found[:, :1], items["output"].grad[:, :1])
    assert found[:, 1].abs().sum() > 0
    items["output"].grad = None
    HybridLoss(scheduler(), objective="variational")(**items)[0].backward()
    assert items["output"].grad[:, :1].abs().sum() > 0 and torch.isfinite(items["output"].grad).all()


def test_fixed_variance():
    items = batch()
    output = items["output"][:, :1].detach()
    rest = (items["target"], items["clean"], items["timesteps"])
    _, losses = HybridLoss(scheduler(), learned_variance=False)(output, *rest)
    torch.testing.assert_close(losses, ((output - items["target"]) ** 2).mean(dim=(1, 2, 3)))
    for kind, v in (("fixed_large", 1.0), ("fixed_small", -1.0)):
        options = {"objective": "variational", "variance_type": kind}
        fixed = HybridLoss(scheduler(), learned_variance=False, **options)(output, *rest)[1]
        with_head = torch.cat([output, torch.full_like(output, v)], dim=1)
        learned = HybridLoss(scheduler(), objective="variational")(with_head, *rest)[1]
        torch.testing.assert_close(fixed[1:], learned[1:])
        first = torch.cat([output, torch.full_like(output, -1.0)], dim=1)[:1]
        learned = HybridLoss(scheduler(), objective="variational")(first, *(item[:1] for item in rest))[1]
        torch.testing.assert_close(fixed[:1], learned)


def test_weights_move_the_scalar_but_not_the_losses_of_the_samples():
    items, weights = batch(), torch.tensor([0.0, 2.0, 1.0])
    _, plain = HybridLoss(scheduler())(**items)
    loss, losses = HybridLoss(scheduler())(**items, weights=weights)
    assert torch.equal(losses, plain) and losses.shape == (3,)
    assert loss.item() == pytest.approx(((2 * plain[1] + plain[2]) / 3).item())


def test_published_calibration_loss():
    calibration, presence = torch.full((2, 1, 2, 2), 0.9), torch.ones(2, 1, 2, 2)
    calibration[1] = 0.4
    loss, losses = CalibrationLoss()(calibration, presence, torch.tensor([1, 2]))
    assert losses.tolist() == pytest.approx([10 * 0.01, 10 * 0.36]) and loss.item() == pytest.approx(5 * 0.37)


def test_calibration_loss_of_the_second_paper():
    calibration = torch.tensor([0.8, 0.4, 0.2, 0.6]).reshape(1, 1, 2, 2).repeat(3, 1, 1, 1)
    presence = torch.tensor([1.0, 0, 0, 1]).reshape(1, 1, 2, 2).repeat(3, 1, 1, 1)
    loss, losses = CalibrationLoss("dice_ce")(calibration, presence, torch.tensor([0, 4, 10]))
    dice = 1 - (2 * 1.4 + 1e-5) / (2 + 2 + 1e-5)
    entropy = -(math.log(0.8) + math.log(0.6) + math.log(0.8) + math.log(0.6)) / 4
    assert losses.tolist() == pytest.approx([dice + 10 * entropy, 0, dice + 10 * entropy], abs=1e-5)
    assert loss.item() == pytest.approx(2 / 3 * (dice + 10 * entropy), abs=1e-5)
    options = {"weight": 2.0, "cross_entropy_weight": 0.0, "interval": 1}
    _, losses = CalibrationLoss("dice_ce", **options)(calibration, presence, torch.tensor([0, 4, 10]))
    assert losses.tolist() == pytest.approx([2 * dice] * 3, abs=1e-5)


def test_a_certain_mistake_of_the_calibration_is_finite():
    calibration = torch.zeros(1, 1, 2, 2, requires_grad=True)
    loss, _ = CalibrationLoss("dice_ce")(calibration, torch.ones(1, 1, 2, 2), torch.tensor([0]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(calibration.grad).all()


class Notes(UniformTimestepSampler):
    def update(self, timesteps, losses):
        self.noted = (timesteps, losses)


def test_the_loss_of_a_trainer_adds_its_terms_and_tells_the_sampler():
    items, weights, notes = batch(2), torch.tensor([1.0, 2.0, 0.5]), Notes(1000)
    targets = {"target": items["target"], "clean": items["clean"], "presence": items["clean"], "weights": weights}
    targets["timesteps"] = items["timesteps"]
    calibration = torch.rand(3, 2, 4, 4)
    loss = DenoisingLoss(HybridLoss(scheduler()), CalibrationLoss(), notes)
    found = loss(torch.cat([items["output"], calibration], dim=1), targets)
    expected, losses = HybridLoss(scheduler())(**items, weights=weights)
    expected = expected + 10 * ((calibration - items["clean"]) ** 2).mean()
    torch.testing.assert_close(found, expected)
    assert torch.equal(notes.noted[0], items["timesteps"]) and torch.equal(notes.noted[1], losses)
    with pytest.raises(ValueError, match="returned 4 channels, its losses want 3 x 2"):
        loss(items["output"], targets)


def test_voxels_that_nobody_judged_have_no_part_in_the_loss():
    """Errors, the variance head and the calibration map there change nothing and are not changed."""
    items = batch()
    clean = items["clean"].clone()
    clean[:, :, 2:] = 0.5
    presence, calibration = clean.clone(), torch.rand_like(clean)
    targets = {"target": items["target"], "clean": clean, "presence": presence, "weights": torch.ones(len(clean))}
    targets["timesteps"] = torch.full_like(items["timesteps"], 10)
    output = torch.cat([items["output"].detach(), calibration], dim=1).requires_grad_()
    for kind in ("mse", "dice_ce"):
        loss = DenoisingLoss(HybridLoss(scheduler()), CalibrationLoss(kind))
        value = loss(output, targets)
        (gradient,) = torch.autograd.grad(value, output)
        assert (gradient[:, :, 2:] == 0).all() and (gradient[:, :, :2] != 0).any()
        other = output.detach().clone()
        other[:, :1, 2:] += 3
        other[:, 2:, 2:] = 0.1
        assert loss(other, targets).item() == value.item()
    assert torch.equal(targets["presence"], presence)


def test_half_precision_is_computed_in_single():
    items = batch()
    output = items["output"].detach().bfloat16()
    rest = (items["target"], items["clean"], items["timesteps"])
    assert torch.equal(HybridLoss(scheduler())(output, *rest)[1], HybridLoss(scheduler())(output.float(), *rest)[1])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: HybridLoss(scheduler(), "x0"), "sample, epsilon, v_prediction, not 'x0'"),
        (lambda: HybridLoss(scheduler(), objective="kl"), "hybrid, hybrid_rescaled, variational, not 'kl'"),
        (lambda: HybridLoss(scheduler(), variance_type="large"), "fixed_small, fixed_large, not 'large'"),
        (lambda: CalibrationLoss("focal"), "mse, dice_ce, not 'focal'"),
    ],
)
def test_unknown_names_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
