"""Images from label maps: the published sampler's figures, and what an image depends on."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, nn

from shared_components.diffusion.inversion import InversionProcess
from shared_components.diffusion.mask_encoding import MaskEncoding
from shared_components.diffusion.reverse import ReverseProcess
from shared_components.diffusion.sampling import SliceNoise, spherical_interpolation
from shared_components.diffusion.synthesizer import DiffusionSynthesizer
from shared_components.errors import InputError
from shared_components.networks.monai_denoiser import MONAIDenoiser

LINEAR = {"num_train_timesteps": 1000, "schedule": "linear_beta", "beta_start": 1e-4, "beta_end": 0.02}
X = torch.tensor([-1.5, -0.75, 0.0, 0.75, 1.5]).reshape(1, 1, 1, 5)
EPS = torch.tensor([0.5, 0.25, 0.0, -0.25, -0.5]).reshape(1, 1, 1, 5)


class Painter(nn.Module):
    """Knows the clean image, (label channels' mean) / 2, so that any sampler ends at it; counts its calls."""

    in_channels, latent_dim, downsampling, learned_variance, calibrated = 1, 0, 4, False, False

    def __init__(self, alphas_cumprod: Tensor) -> None:
        super().__init__()
        self.alphas_cumprod = alphas_cumprod
        self.seen: list[int] = []

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        self.seen.append(int(timesteps[0]))
        level = self.alphas_cumprod[timesteps.long()].reshape(-1, 1, 1, 1)
        clean = condition.mean(dim=1, keepdim=True) - 0.5
        return (noisy - level.sqrt() * clean) / (1 - level).sqrt()


def scheduler() -> DDPMScheduler:
    return DDPMScheduler(**LINEAR)


def network(**options) -> DiffusionSynthesizer:
    torch.manual_seed(0)
    denoiser = MONAIDenoiser(1, 2, (8, 16), 1, (False, False), norm_num_groups=8)
    for parameter in denoiser.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    options = {"num_inference_steps": 4, **options}
    return DiffusionSynthesizer(denoiser, scheduler(), MaskEncoding([1, 2]), **options).eval().requires_grad_(False)


def label_map(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(3, shape, generator=torch.Generator().manual_seed(seed)).float()


# The published sampler


def test_the_schedule_is_the_published_one() -> None:
    levels = scheduler().alphas_cumprod
    assert torch.allclose(levels[[0, 499, 999]], torch.tensor([0.9999, 0.0785872, 4.03583e-5]), rtol=1e-5)
    clean, noise = torch.full((3, 1), 0.5), torch.ones(3, 1)
    noisy = scheduler().add_noise(clean, noise, torch.tensor([0, 499, 999])).flatten()
    assert torch.allclose(noisy, torch.tensor([0.509976, 1.10007, 1.003156]), rtol=1e-5)


def test_the_timesteps_are_the_published_ones() -> None:
    assert network(num_inference_steps=50).process.timesteps.tolist() == list(range(980, -1, -20))
    assert network(num_inference_steps=None, sampler="ddpm").process.timesteps.tolist() == list(range(999, -1, -1))


@pytest.mark.parametrize(
    ("timestep", "expected", "clean"),
    [
        (980, (0.490629, 0.24064), (-1, -1)),
        (500, (0.167684, -0.070162), None),
        (20, (-0.99495, -0.769671), (-1, -0.77221)),
        (0, (-1, -0.752538), None),
    ],
)
def test_ddim_steps(timestep: int, expected: tuple[float, float], clean: tuple[float, float] | None) -> None:
    process = network(num_inference_steps=50).process
    moved, estimate = process(process.timesteps.tolist().index(timestep), EPS, X)
    first = torch.tensor(expected)
    assert torch.allclose(moved.flatten(), torch.cat([first, torch.zeros(1), -first.flip(0)]), rtol=1e-5, atol=1e-6)
    if clean is not None:
        assert torch.allclose(estimate.flatten()[:2], torch.tensor(clean, dtype=torch.float32), rtol=1e-5)


@pytest.mark.parametrize(
    ("timestep", "expected", "deviation"),
    [
        (999, (-1.485051, -0.74259), 0.141421),
        (500, (-1.494215, -0.748636), 0.100256),
        (1, (-1.227303, -0.752026), 0.00738477),
    ],
)
def test_ddpm_steps(timestep: int, expected: tuple[float, float], deviation: float) -> None:
    process = network(num_inference_steps=None, sampler="ddpm").process
    step = 999 - timestep
    mean = process(step, EPS, X, noise=torch.zeros_like(X))[0]
    assert torch.allclose(mean.flatten()[:2], torch.tensor(expected), rtol=1e-5, atol=6e-5 if timestep == 1 else 1e-6)
    drawn = process(step, EPS, X, noise=torch.ones_like(X))[0] - mean
    assert torch.allclose(drawn, torch.full_like(X, deviation), rtol=1e-4 if timestep == 1 else 1e-5, atol=1e-6)
    last, clean = process(999, EPS, X)
    assert torch.allclose(last, clean)


def test_guidance_mixes_the_predictions_with_and_without_a_label_map() -> None:
    label, noisy, time = label_map(2, 1, 8, 8), torch.randn(2, 1, 8, 8), torch.tensor([10, 10])
    plain, guided, one = network(), network(guidance_scale=1.3), network(guidance_scale=1.0 + 1e-9)
    condition = plain.mask_encoding(label)
    with_map = plain.denoiser(noisy, time, condition)
    without = plain.denoiser(noisy, time, torch.zeros_like(condition))
    assert torch.allclose(guided._predict(noisy, time, condition), 1.3 * with_map - 0.3 * without, atol=1e-6)
    assert torch.allclose(one._predict(noisy, time, condition), with_map, atol=1e-6)


# What an image depends on


def test_images_follow_the_label_map_and_lie_in_0_to_1() -> None:
    levels = scheduler().alphas_cumprod
    made = DiffusionSynthesizer(Painter(levels), scheduler(), MaskEncoding([1, 2]), 10).eval()
    label = label_map(2, 1, 6, 9)
    assert torch.allclose(made(label), 0.25 + (label > 0).float() / 4, atol=1e-4)
    extreme = DiffusionSynthesizer(Painter(levels), scheduler(), MaskEncoding([1, 2]), 10, clip=None).eval()
    extreme.denoiser.forward = lambda noisy, timesteps, condition: 50 * noisy
    assert extreme(label).amin() >= 0 and extreme(label).amax() <= 1


def test_an_image_is_a_function_of_its_map_and_seed_alone() -> None:
    made, label, seeds = network(), label_map(5, 1, 8, 12), torch.tensor([7, 8, 9, 2**31, 7])
    together = made(label, seeds)
    for index in range(5):
        alone = made(label[index : index + 1], seeds[index : index + 1])
        assert torch.allclose(together[index : index + 1], alone, atol=1e-5)
    assert torch.allclose(network(max_batch_size=2)(label, seeds), together, atol=1e-5)
    assert torch.equal(made(label, seeds), together)
    same = made(label[:1].expand(2, 1, 8, 12), torch.tensor([1, 2]))
    assert (same[0] - same[1]).abs().mean() > 0.01
    assert torch.equal(made(label), network(seed=0)(label))
    assert not torch.equal(made(label), network(seed=1)(label))


def test_in_train_mode_every_call_is_another_image() -> None:
    made, label = network().train(), label_map(1, 1, 8, 8)
    assert not torch.equal(made(label), made(label))


@pytest.mark.parametrize("options", [{"sampler": "ddpm"}, {"sampler": "dpm_solver++", "spacing": "logSNR"}])
def test_other_samplers(options: dict) -> None:
    levels = scheduler().alphas_cumprod
    made = DiffusionSynthesizer(Painter(levels), scheduler(), MaskEncoding([1, 2]), 20, **options).eval()
    label = label_map(1, 1, 8, 8)
    assert torch.allclose(made(label), 0.25 + (label > 0).float() / 4, atol=0.02)


def test_a_network_without_a_condition() -> None:
    denoiser = MONAIDenoiser(3, 0, (8, 8), 1, (False, False), norm_num_groups=8)
    made = DiffusionSynthesizer(denoiser, scheduler(), num_inference_steps=2).eval()
    with torch.no_grad():
        assert made(label_map(2, 1, 6, 8)).shape == (2, 3, 6, 8)
        assert torch.equal(made(label_map(2, 1, 6, 8)), made(torch.zeros(2, 1, 6, 8)))


# Volumes


def test_a_volume_is_its_slices_with_the_noise_that_belongs_to_them() -> None:
    label = label_map(2, 1, 6, 9, 5)
    for length in (None, 0, 2.5):
        made = network(noise_length=length)
        volume = made(label, torch.tensor([3, 4]))
        assert volume.shape == (2, 1, 6, 9, 5)
        assert torch.allclose(volume[..., :1], made(label[..., :1], torch.tensor([3, 4])), atol=1e-5)
    flat = made(label[..., 0], torch.tensor([3, 4]))
    assert torch.allclose(volume[..., 0], flat, atol=1e-5)


def test_equal_slices_with_one_noise_are_equal_images() -> None:
    label = label_map(1, 1, 8, 8, 1).expand(1, 1, 8, 8, 6)
    change = {}
    for length in (None, 4.0, 0):
        volume = network(noise_length=length)(label)
        change[length] = (volume[..., 1:] - volume[..., :-1]).abs().mean()
    assert change[None] < 1e-6 < change[4.0] < 0.7 * change[0]


def test_slices_see_their_neighbours_labels() -> None:
    torch.manual_seed(0)
    denoiser = MONAIDenoiser(1, 6, (8, 8), 1, (False, False), norm_num_groups=8)
    for parameter in denoiser.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    made = DiffusionSynthesizer(denoiser, scheduler(), MaskEncoding([1, 2]), 2, num_adjacent_slices=1).eval()
    label = label_map(1, 1, 8, 8, 5)
    other = label.clone()
    other[..., 4] = 0
    with torch.no_grad():
        changed = (made(label) - made(other)).abs().amax(dim=(0, 1, 2, 3)) > 1e-6
    assert changed.tolist() == [False, False, False, True, True]


def test_slice_noise_is_standard_normal_and_turns_slowly() -> None:
    seeds, position = torch.zeros(9, dtype=torch.int64), torch.arange(9)
    noise = SliceNoise(4.0)(0, seeds, position, 1, (64, 64))
    assert torch.allclose(noise.flatten(1).std(dim=1), torch.ones(9), atol=0.05)
    correlation = torch.corrcoef(noise.flatten(1))[0]
    assert torch.allclose(correlation[:5], torch.cos(torch.arange(5) * torch.pi / 8), atol=0.05)
    with pytest.raises(InputError, match="noise_length"):
        SliceNoise(-1)


def test_metadata_stays() -> None:
    label = MetaTensor(label_map(1, 1, 8, 8, 3), affine=torch.diag(torch.tensor([2.0, 3, 4, 1])))
    made = network()(label)
    assert torch.equal(made.affine, label.affine)


# Real images


def test_translation_starts_below_its_timestep() -> None:
    made = network(num_inference_steps=50)
    first = made.first_step(0.5)
    assert int(made.process.timesteps[first]) == 480 and 50 - first == 25
    assert network(num_inference_steps=None, sampler="ddpm").first_step(0.5) == 500
    for strength, part in ((0.0, "above 0"), (1.2, "at most 1"), (1e-4, "none of the 50 timesteps is below 0")):
        with pytest.raises(InputError, match=part):
            made.first_step(strength)


@pytest.mark.parametrize("sampler", ["ddim", "dpm_solver++"])
def test_a_weak_translation_leaves_the_image_and_a_strong_one_does_not(sampler: str) -> None:
    made, label = network(num_inference_steps=20, sampler=sampler), label_map(1, 1, 8, 8)
    made.denoiser.forward = lambda noisy, timesteps, condition: torch.zeros_like(noisy)
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    changed = [(made.translate(label, image, strength) - image).abs().mean() for strength in (0.06, 0.3, 1.0)]
    assert changed[0] < changed[1] < changed[2]
    volume = made.translate(label[..., None].expand(1, 1, 8, 8, 3), image[..., None].expand(1, 1, 8, 8, 3), 0.3)
    assert torch.allclose(volume[..., 2], made.translate(label, image, 0.3), atol=1e-5)


def test_inversion_finds_the_noise_of_an_image() -> None:
    """The figure of the specification: 0.3 tanh(x), inverted over 0, 10 .. 980, then sampled over all 100 steps."""
    alphas = scheduler().alphas_cumprod.double()
    inversion = InversionProcess(alphas, 100)
    process = ReverseProcess(alphas, 100, "ddim", "epsilon", spacing="leading", recompute_noise=False)
    assert inversion.timesteps[:2].tolist() == [0, 10] and inversion.num_steps == 99
    image = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    sample = image
    for step in range(99):
        sample = inversion(step, 0.3 * torch.tanh(sample), sample)
    for step in range(100):
        sample, _ = process(step, 0.3 * torch.tanh(sample), sample)
    assert (sample - image).abs().max() < 0.08


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_inversion_is_the_same_in_every_parameterisation(prediction_type: str) -> None:
    alphas, sample, eps = scheduler().alphas_cumprod.double(), torch.randn(1, 1, 4, 4), torch.randn(1, 1, 4, 4)
    level = alphas[100].float()
    clean = (sample - (1 - level).sqrt() * eps) / level.sqrt()
    output = {"sample": clean, "v_prediction": level.sqrt() * eps - (1 - level).sqrt() * clean}[prediction_type]
    expected = InversionProcess(alphas, 10)(1, eps, sample)
    assert torch.allclose(
        InversionProcess(alphas, 10, "leading", prediction_type)(1, output, sample), expected, atol=1e-5
    )


def test_interpolation_goes_from_a_generated_image_to_the_real_one() -> None:
    made, label = network(num_inference_steps=100, clip=None), label_map(1, 1, 8, 8)
    made.denoiser.forward = lambda noisy, timesteps, condition: 0.3 * torch.tanh(noisy)
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * 0.8 + 0.1
    ends = made.interpolate(label, image, 0.0), made.interpolate(label, image, 1.0)
    assert torch.allclose(ends[0], made(label), atol=1e-4)
    assert (ends[1] - image).abs().max() < 0.06
    for weight, part in ((-0.1, "0..1"), (1.5, "0..1")):
        with pytest.raises(InputError, match=part):
            made.interpolate(label, image, weight)
    with pytest.raises(InputError, match="--sampler ddim"):
        network(sampler="ddpm").interpolate(label, image, 0.5)


def test_spherical_interpolation_keeps_the_norm() -> None:
    first, second = torch.randn(2, 3, 1, 32, 32, generator=torch.Generator().manual_seed(0)).unbind(0)
    between = spherical_interpolation(first, second, 0.5)
    assert torch.allclose(between.flatten(1).std(dim=1), torch.ones(3), atol=0.05)
    assert torch.allclose(spherical_interpolation(first, second, 0.0), first, atol=1e-5)
    assert torch.allclose(spherical_interpolation(first, second, 1.0), second, atol=1e-5)
    assert torch.isfinite(spherical_interpolation(first, first, 0.5)).all()


# State and export


def test_weights_of_another_schedule_are_refused() -> None:
    state = network().state_dict()
    other = DDPMScheduler(num_train_timesteps=1000, schedule="cosine")
    made = DiffusionSynthesizer(network().denoiser, other, MaskEncoding([1, 2]))
    with pytest.raises(RuntimeError, match="another schedule|noise schedule of 1000 steps"):
        made.load_state_dict(state)
    network(num_inference_steps=7, sampler="ddpm").load_state_dict(state)  # how to sample was not trained


def test_weights_that_predict_something_else_are_refused() -> None:
    weights = network(prediction_type="v_prediction").state_dict()
    with pytest.raises(RuntimeError, match="the weights predict 'v_prediction', this network 'sample': give --pred"):
        network(prediction_type="sample").load_state_dict(weights)
    del weights["predicts"]  # as older weights have it
    network(prediction_type="v_prediction").load_state_dict(weights)


def test_it_exports_by_tracing() -> None:
    made, label = network(), label_map(1, 1, 8, 12)
    traced = torch.jit.trace(made, label, check_trace=False)
    other = label_map(1, 1, 8, 12, seed=5)
    assert torch.allclose(traced(other), made(other), atol=1e-5)


def test_mixed_precision_is_close() -> None:
    label = label_map(1, 1, 8, 8)
    exact, mixed = network()(label), network(amp=True)(label)
    assert mixed.dtype == torch.float32
    assert (exact - mixed).abs().mean() < 0.05


def test_mistakes_are_told() -> None:
    for options, part in (
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"sampler": "euler"}, "sampler must be one of"),
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"noise_length": -2}, "noise_length"),
    ):
        with pytest.raises(InputError, match=part):
            network(**options)
