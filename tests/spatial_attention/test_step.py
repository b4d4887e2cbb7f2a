"""A training step against a second, plain coding of the method; who gets gradients; what attention does."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from monai.networks.schedulers import DDPMScheduler
from torch import nn

from shared_components.diffusion.label_coding import LabelCoding
from shared_components.diffusion.prepare_batch import LabelDiffusionPrepareBatch
from shared_components.diffusion.schedules import FewStepProcess
from shared_components.diffusion.segmenter import DiffusionSegmenter
from shared_components.errors import InputError
from shared_components.networks.cdal_discriminator import CDALDiscriminator
from shared_components.networks.cdal_generator import CDALGenerator
from shared_components.spatial_attention.attention import attention_map, scale_attention
from shared_components.spatial_attention.objectives import Draws, attend_and_noise, roll_out
from shared_components.spatial_attention.trainer import SpatialAttentionTrainer


def published_betas(steps: int = 4) -> torch.Tensor:
    """The specification's section 2.1 without its first beta, which rounds to nothing: in float64, cast to float32."""
    times = [1e-3 + (1 - 1e-3) * i / steps for i in range(steps + 1)]
    logs = torch.tensor([-0.5 * (20 - 0.1) * s**2 - 0.1 * s for s in times], dtype=torch.float64)
    return (1 - torch.exp(logs[1:] - logs[:-1])).float()


BETA = published_betas().double()
KEPT = torch.cat([torch.ones(1), torch.cumprod(1 - published_betas(), 0)]).double()  # P of section 2.3, P_{-1} first


def well_conditioned(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return module


def networks(condition_channels: int = 0) -> tuple[CDALGenerator, CDALDiscriminator]:
    torch.manual_seed(5)
    denoiser = CDALGenerator(
        in_channels=3,
        condition_channels=1,
        channels=(8, 16),
        attention_levels=(False, False),
        num_condition_blocks=1,
        condition_norm_groups=4,
        latent_dim=5,
        latent_embedding_dim=8,
    )
    discriminator = CDALDiscriminator(
        in_channels=3, channels=(8, 8, 16), downsample=(False, True), condition_channels=condition_channels
    )
    return well_conditioned(denoiser), well_conditioned(discriminator)


def trainer(denoiser, discriminator, timesteps: int = 4, **options) -> SpatialAttentionTrainer:
    scheduler = DDPMScheduler(timesteps, schedule="vp_few_step")
    adam = {"betas": (0.5, 0.9), "eps": 1e-8}
    return SpatialAttentionTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[],
        network=DiffusionSegmenter(denoiser, scheduler),
        scheduler=scheduler,
        optimizer=torch.optim.Adam(denoiser.parameters(), lr=1.6e-4, **adam),
        loss_function=nn.MSELoss(),
        prepare_batch=LabelDiffusionPrepareBatch(LabelCoding(list(range(1, 3)), "classes")),
        discriminator=discriminator,
        discriminator_optimizer=discriminator and torch.optim.Adam(discriminator.parameters(), lr=1.25e-4, **adam),
        **{"attention_level": 2, **options},
    )


def label_maps() -> tuple[torch.Tensor, torch.Tensor]:
    label = torch.zeros(4, 1, 16, 16, dtype=torch.long)
    label[1:, 0, 4:8, 4:12] = 1
    label[1:, 0, 8:12, 4:12] = 2
    clean = 2 * F.one_hot(label[:, 0], 3).permute(0, 3, 1, 2).float().contiguous() - 1
    return torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1, clean


def draws(seed: int, clean: torch.Tensor, attended: bool) -> Draws:
    torch.manual_seed(seed)
    drawn = Draws.sample(clean, 4, 5, attended)
    drawn.latent = drawn.latent.to(clean.dtype)
    return drawn


def plain_pair(clean, t, next_noise, noise):
    """x_t and x_{t+1} by sections 2.1 and 2.2."""
    kept, beta = KEPT[t].view(-1, 1, 1, 1), BETA[t].view(-1, 1, 1, 1)
    label_t = kept.sqrt() * clean + (1 - kept).sqrt() * noise
    return label_t, (1 - beta).sqrt() * label_t + beta.sqrt() * next_noise


def plain_discriminator_loss(denoiser, discriminator, clean, image, d, r1):
    label_t, noisy = plain_pair(clean, d.timesteps, d.next_noise, d.noise)
    label_t = label_t.detach().requires_grad_()
    logit = discriminator(label_t, d.timesteps, noisy)
    real = torch.log1p(torch.exp(-logit)).mean()
    penalty = torch.zeros(())
    if r1:
        slope = torch.autograd.grad(logit.sum(), label_t, create_graph=True)[0]
        penalty = 0.5 * sum(slope[b].norm() ** 2 for b in range(len(slope))) / len(slope)
    guess = denoiser(noisy, d.timesteps, image, d.latent).detach()
    fake_t = torch.empty_like(clean)
    for b, t in enumerate(d.timesteps.tolist()):
        beta, before, after = BETA[t], KEPT[t], KEPT[t + 1]
        mean = beta * before.sqrt() / (1 - after) * guess[b]
        mean = mean + (1 - before) * (1 - beta).sqrt() / (1 - after) * noisy[b]
        fake_t[b] = mean + (t > 0) * (beta * (1 - before) / (1 - after)).sqrt() * d.last_noise[b]
    fake = torch.log1p(torch.exp(discriminator(fake_t, d.timesteps, noisy))).mean()
    return real, fake, penalty


def plain_denoiser_loss(denoiser, discriminator, clean, image, d):
    label_t, noisy = plain_pair(clean, d.timesteps, d.next_noise, d.noise)
    with torch.no_grad():
        feature = discriminator.features(label_t, d.timesteps, noisy, level=2).mean(1, keepdim=True)
        attention = F.interpolate(feature, scale_factor=2, mode="bilinear")
    _, attended = plain_pair(attention * clean, d.timesteps, d.last_noise, d.attended_noise)
    return ((denoiser(attended, d.timesteps, image, d.latent) - clean) ** 2).mean()


@pytest.mark.parametrize("r1_interval", [1, 2, 1000])
def test_three_steps_equal_a_plain_coding(r1_interval):
    """In double precision, where rounding does not hide a difference of the specification's 2e-7."""
    image, clean = (item.double() for item in label_maps())
    denoiser, discriminator = (network.double() for network in networks())
    twin_g, twin_d = copy.deepcopy(denoiser), copy.deepcopy(discriminator)
    adam = {"betas": (0.5, 0.9), "eps": 1e-8}
    opt_g, opt_d = (
        torch.optim.Adam(twin_g.parameters(), lr=1.6e-4, **adam),
        torch.optim.Adam(twin_d.parameters(), lr=1.25e-4, **adam),
    )
    engine = trainer(denoiser, discriminator)
    for step in range(3):
        due = step % r1_interval == 0
        first, second = draws(2 * step, clean, False), draws(2 * step + 1, clean, True)
        terms = engine.discriminator_step(clean, image, first, 1.0 if due else 0.0)
        terms |= engine.denoiser_step(clean, image, second)

        real, fake, penalty = plain_discriminator_loss(twin_g, twin_d, clean, image, first, due)
        opt_d.zero_grad()
        (real + fake + penalty).backward()
        opt_d.step()
        mse = plain_denoiser_loss(twin_g, twin_d, clean, image, second)
        opt_g.zero_grad()
        mse.backward()
        opt_g.step()
        expected = {"real": real, "fake": fake, "loss": mse, **({"r1": penalty} if due else {})}
        for name, value in expected.items():
            assert float(terms[name].detach()) == pytest.approx(float(value.detach()), abs=2e-7, rel=0), name


def test_each_step_updates_its_own_network():
    image, clean = label_maps()
    denoiser, discriminator = networks()
    engine = trainer(denoiser, discriminator)
    before = copy.deepcopy(denoiser.state_dict())
    engine.discriminator_step(clean, image, draws(0, clean, False), 1.0)
    assert all(torch.equal(value, before[name]) for name, value in denoiser.state_dict().items())
    assert all(p.grad is None for p in denoiser.parameters())
    after = copy.deepcopy(discriminator.state_dict())
    engine.denoiser_step(clean, image, draws(1, clean, True))
    assert all(torch.equal(value, after[name]) for name, value in discriminator.state_dict().items())
    assert all(p.grad is None for p in discriminator.parameters())
    assert any(not torch.equal(value, before[name]) for name, value in denoiser.state_dict().items())


def test_published_loss_does_not_depend_on_the_verdict():
    image, clean = label_maps()
    losses = []
    for scale in (1.0, 50.0):
        denoiser, discriminator = networks()
        with torch.no_grad():
            discriminator.final_conv.weight.mul_(scale)
        losses.append(
            float(trainer(denoiser, discriminator).denoiser_step(clean, image, draws(1, clean, True))["loss"])
        )
    assert losses[0] == losses[1]


def test_adversarial_term_reaches_the_denoiser_only():
    image, clean = label_maps()
    denoiser, discriminator = networks(condition_channels=1)
    engine = trainer(denoiser, discriminator, adversarial_weight=1.0)
    terms = engine.denoiser_step(clean, image, draws(1, clean, True))
    assert float(terms["adversarial"]) > 0
    assert all(p.grad is None for p in discriminator.parameters())


def test_attention_choices_by_hand():
    feature = torch.tensor([[-2.0, 1.0], [0.0, 0.5]]).reshape(1, 1, 2, 2)
    assert torch.equal(scale_attention(feature, "raw"), feature)
    assert scale_attention(feature, "normalised").flatten().tolist() == [1.0, 0.5, 0.0, 0.25]
    residual = torch.tensor([2.0, 1.5, 1.0, 1.25])
    torch.testing.assert_close(scale_attention(feature, "residual").flatten(), residual / residual.mean())
    assert scale_attention(feature, "none").flatten().tolist() == [1.0] * 4


def test_attention_map_is_the_resized_mean_feature():
    _, clean = label_maps()
    _, discriminator = networks()
    t = torch.tensor([0, 1, 2, 3])
    result = attention_map(discriminator, clean, t, clean, None, 2, "raw")
    mean = discriminator.features(clean, t, clean, level=2).mean(1, keepdim=True)
    # half-pixel centres: the first upsampled pixel is the first feature, the second a 3:1 mix
    torch.testing.assert_close(result[:, 0, 0, 0], mean[:, 0, 0, 0])
    torch.testing.assert_close(result[:, 0, 0, 1], 0.75 * mean[:, 0, 0, 0] + 0.25 * mean[:, 0, 0, 1])
    assert not result.requires_grad


def test_no_attention_leaves_the_label_map():
    _, clean = label_maps()
    process, d = FewStepProcess(DDPMScheduler(4, schedule="vp_few_step")), draws(1, clean, True)
    noisy, weights = attend_and_noise(None, process, clean, clean, d, 2, "none")
    assert torch.equal(weights, torch.ones(4, 1, 16, 16))
    assert torch.equal(noisy, process.pair(clean, d.timesteps, d.attended_noise, d.last_noise)[1])


def test_roll_out_equals_the_samplers_path():
    """At t = 0 of two steps, the input is the posterior of the denoiser's estimate from pure noise."""
    image, clean = label_maps()
    denoiser, _ = networks()
    process = FewStepProcess(DDPMScheduler(2, schedule="vp_few_step"))
    d = draws(1, clean, True)
    d.timesteps = torch.tensor([0, 1, 0, 1])
    start, features = torch.randn_like(clean), denoiser.encode_condition(image)
    torch.manual_seed(9)
    result = roll_out(denoiser, process, start, image, features, d)
    assert torch.equal(result[1::2], start[1::2])
    torch.manual_seed(9)
    latent, t = torch.randn(2, 5), torch.tensor([1, 1])
    guess = denoiser(start[::2], t, image[::2], latent)
    expected = 0.280351 * guess + 0.0215874 * start[::2] + math.sqrt(0.920858) * torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(result[::2], expected, atol=1e-5, rtol=0)


def test_voxels_that_nobody_judged_train_nothing_and_are_no_matter_for_a_discriminator():
    denoiser, discriminator = networks()
    alone = trainer(denoiser, None, attention="none")
    clean = LabelCoding([1, 2], "classes").encode(torch.tensor([[0, 1], [2, -1]]).reshape(1, 1, 2, 2))
    estimate = torch.zeros(1, 3, 2, 2, requires_grad=True)
    alone._denoiser_loss(estimate, clean, torch.ones(1, 1, 2, 2)).backward()
    assert (estimate.grad[..., 1, 1] == 0).all() and (estimate.grad[..., 0, :] != 0).all()
    both = trainer(denoiser, discriminator)
    item = {"image": torch.rand(1, 1, 8, 8), "label": torch.full((1, 1, 8, 8), -1.0)}
    with pytest.raises(InputError, match="voxels to be ignored, but the discriminator compares whole label maps"):
        both._iteration(both, item)


def test_attention_without_a_discriminator_is_refused():
    denoiser, _ = networks()
    with pytest.raises(InputError, match="needs a discriminator"):
        trainer(denoiser, None)
    with pytest.raises(InputError, match="raw, normalised, residual, none"):
        trainer(denoiser, None, attention="softmax")
