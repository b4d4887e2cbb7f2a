"""The weakly supervised segmenter against closed forms, and what a slice's result must not depend on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from shared_components.diffusion.class_guidance import guidance_weight, log_probability_gradient
from shared_components.diffusion.diffusion_saliency import start_timestep
from shared_components.diffusion.full_float32 import full_float32
from shared_components.diffusion.reverse import ReverseProcess
from shared_components.diffusion.saliency_masks import SaliencyMask
from shared_components.diffusion.weak_segmenter import WeakSegmenter
from shared_components.errors import InputError
from shared_components.networks.class_conditioned import ClassConditionedADM, ClassConditionedDenoiser
from shared_components.networks.encoder_classifier import EncoderClassifier
from tests.diffusion.class_stubs import LinearClassifier, StubDenoiser, scheduler

SIGNAL_399 = {4000: 0.89646581, 1000: 0.19514644}


def label_picture() -> Tensor:
    """The noise that class 1 adds to class 0: (2, 1, 6, 6)."""
    table = torch.zeros(2, 1, 6, 6)
    table[1, 0, 1:3, 2:5] = 0.7
    return table


def segmenter(denoiser, steps: int = 4000, **options) -> WeakSegmenter:
    defaults = {"signal_level": SIGNAL_399[steps], "gated": False, "clip": None, "num_samples": 1, "tau": 0.95}
    return WeakSegmenter(denoiser, scheduler(steps), **{**defaults, **options}).eval()


def levels(steps: int) -> Tensor:
    return scheduler(steps).alphas_cumprod.double()


def k(steps: int, t: int) -> float:
    a, previous = levels(steps)[t], levels(steps)[t - 1]
    return float((1 - previous).sqrt() - previous.sqrt() * ((1 - a) / a).sqrt())


# Schedules and the start level


def test_schedules_of_4000_and_1000_steps():
    linear, short = levels(4000), levels(1000)
    for t, expected in ((399, 0.89646581), (400, 0.89599729), (390, 0.90064303), (700, 0.72408106)):
        assert float(linear[t]) == pytest.approx(expected, rel=1e-5)
    assert float(linear[3999]) == pytest.approx(4.2466523e-5, rel=1e-5)
    assert float(scheduler(4000).betas.double().sum()) == pytest.approx(10.05, rel=1e-6)
    for t, expected in ((0, 0.9999), (399, 0.19514644), (400, 0.19357201), (999, 4.0358298e-5)):
        assert float(short[t]) == pytest.approx(expected, rel=1e-5)
    cosine, short_cosine = (scheduler(n, "cosine_double").alphas_cumprod.double() for n in (4000, 1000))
    assert float(cosine[400]) == pytest.approx(0.97196390, rel=1e-5)
    assert float(cosine[1999]) == pytest.approx(0.49384359, rel=1e-5)
    assert float(short_cosine[400]) == pytest.approx(0.64598817, rel=1e-5)
    assert float(short_cosine[700]) == pytest.approx(0.20186889, rel=1e-5)


@pytest.mark.parametrize(
    ("steps", "schedule", "timestep"),
    [(4000, "linear_rescaled", 400), (1000, "linear_rescaled", 100), (4000, "cosine_double", 810)],
)
def test_one_signal_level_means_the_same_on_every_schedule(steps, schedule, timestep):
    """The published Q = 400 of 4000 linear steps; on the shorter one the neighbouring timestep is as near."""
    assert abs(start_timestep(scheduler(steps, schedule).alphas_cumprod, 0.89599729) - timestep) <= 1


def test_a_slice_is_noised_to_the_level_of_its_first_step():
    network = segmenter(StubDenoiser(label_picture()), signal_level=0.89599729, num_inference_steps=10)
    assert network.start == 400
    noised = network.noised(torch.ones(1, 1, 6, 6), torch.zeros(1).long(), torch.zeros(1).long())
    noise = (noised - levels(4000)[400].sqrt()) / (1 - levels(4000)[400]).sqrt()
    assert float(levels(4000)[400].sqrt() + (1 - levels(4000)[400]).sqrt()) == pytest.approx(1.26906586, rel=1e-6)
    assert abs(float(noise.mean())) < 0.6
    network(torch.zeros(1, 1, 6, 6))
    assert [shown[0] for shown in network.denoiser.timesteps] == list(range(400, 390, -1))


# The step and its closed forms


def test_the_weight_of_the_noise_in_a_step():
    for steps, t, expected in (
        (4000, 399, -8.1141643e-4),
        (4000, 390, -8.1052591e-4),
        (4000, 199, -7.9786071e-4),
        (4000, 699, -8.5362411e-4),
        (1000, 399, -4.5148838e-3),
        (1000, 390, -4.4543636e-3),
    ):
        process = ReverseProcess(levels(steps)[: t + 1], sampler="ddim", prediction_type="epsilon")
        noisy = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
        moved, _ = process.double()(0, torch.ones_like(noisy), noisy)
        assert k(steps, t) == pytest.approx(expected, rel=1e-5)
        assert float(moved.mean()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("steps", "state", "signed"), [(4000, -8.1190766e-3, -4.4645993e-2), (1000, -4.5660250e-2, -0.25019708)]
)
@pytest.mark.parametrize("tau", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("mode", ["finite_difference", "jvp"])
def test_ten_steps_of_a_network_that_adds_a_picture(steps, state, signed, tau, mode):
    """The map is what the label adds, whatever tau is: the division by 1 - tau makes it so."""
    network = segmenter(StubDenoiser(label_picture()), steps, num_inference_steps=10, tau=tau, mode=mode)
    found = network.saliency(torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0)))
    expected = signed * label_picture()[1]
    assert torch.allclose(found, expected.expand_as(found), atol=1e-3 * abs(signed))
    a, last = levels(steps)[399], levels(steps)[389]
    assert float(last.sqrt() * (((1 - last) / last).sqrt() - ((1 - a) / a).sqrt())) == pytest.approx(state, rel=1e-5)


def test_a_brighter_estimate_under_the_positive_label_is_a_positive_map():
    a, brighter = levels(4000)[399], 0.3
    table = torch.zeros(2, 1, 6, 6)
    table[1, 0, 1:3, 2:5] = -brighter * float((a / (1 - a)).sqrt())  # less noise expected: a brighter clean estimate
    found = segmenter(StubDenoiser(table)).saliency(torch.zeros(1, 1, 6, 6))
    expected = -k(4000, 399) * float((a / (1 - a)).sqrt()) * brighter
    assert expected > 0 and torch.allclose(found[table[1:] != 0], torch.tensor(expected), rtol=1e-4)
    assert found[table[1:] == 0].abs().max() < 1e-6


def test_a_new_network_scales_the_state_and_sees_nothing():
    denoiser = ClassConditionedADM(
        channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_factors=(), learned_variance=True
    )
    state = 0.3 * torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    output = denoiser(state, torch.tensor([399, 399]), class_weights=torch.eye(2))
    assert output.shape == (2, 2, 8, 8) and output.abs().max() == 0
    for mode in ("finite_difference", "jvp"):
        network = segmenter(denoiser, num_inference_steps=3, mode=mode)
        moved, _ = network.process(0, output, state)
        assert torch.allclose(moved / state, torch.tensor(1.00026079), atol=1e-6)
        assert network.saliency(state).abs().max() == 0


def test_a_clipped_step_goes_on_with_the_clipped_estimates_noise():
    network = segmenter(StubDenoiser(label_picture()), clip=(-1.0, 1.0))
    generator = torch.Generator().manual_seed(0)
    state, noise = (2 * torch.randn(1, 1, 6, 6, generator=generator) for _ in range(2))
    a, previous = (float(level) for level in (levels(4000)[399], levels(4000)[398]))
    clean = ((state - (1 - a) ** 0.5 * noise) / a**0.5).clamp(-1, 1)
    expected = previous**0.5 * clean + (1 - previous) ** 0.5 * (state - a**0.5 * clean) / (1 - a) ** 0.5
    assert torch.allclose(network.process(0, noise, state)[0], expected, atol=1e-6)


# Guidance


def test_the_classifiers_part_of_the_map():
    """-k s sqrt(1 - abar) times the gradient of the margin, which does not shrink with 1 - tau."""
    margin, table = 0.4, torch.zeros(2, 1, 6, 6)
    for tau in (0.0, 0.95):
        network = segmenter(StubDenoiser(table), classifier=LinearClassifier(margin), guidance_scale=10.0, tau=tau)
        found = network.saliency(torch.zeros(1, 1, 6, 6)) * (1 - tau)
        assert torch.allclose(found, torch.full_like(found, 2.6109e-3 * margin), rtol=1e-4)


def test_two_branches_make_the_gradient_of_the_margin():
    torch.manual_seed(0)
    classifier = small_classifier()
    noisy, timesteps = torch.randn(2, 1, 16, 16), torch.tensor([399, 20])
    pushes = [log_probability_gradient(classifier, noisy, timesteps, torch.full((2,), y)) for y in (1, 0)]
    shown = noisy.clone().requires_grad_(True)
    logits = classifier(shown, timesteps)
    (expected,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), shown)
    difference = pushes[0] - pushes[1]
    assert float((difference - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 0.3), ("ddpm", 0.0)])
def test_a_guided_step_by_hand(sampler, eta):
    """DDIM rebuilds the clean estimate from the shifted noise and does not clip it again; DDPM moves its mean."""
    options = {"prediction_type": "epsilon", "clip": (-1, 1), "variance_type": "fixed_large", "eta": eta}
    process = ReverseProcess(levels(1000)[:400], sampler=sampler, **options)
    generator = torch.Generator().manual_seed(1)
    state, noise, gradient = (torch.randn(1, 1, 6, 6, generator=generator) for _ in range(3))
    a, previous = (float(level) for level in (levels(1000)[399], levels(1000)[398]))
    weight = guidance_weight(process, 0, noise, state)
    if sampler == "ddpm":
        assert float(weight) == pytest.approx(1 - a / previous, rel=1e-5)
        return
    clean = ((state - (1 - a) ** 0.5 * noise) / a**0.5).clamp(-1, 1)
    shifted = (state - a**0.5 * clean) / (1 - a) ** 0.5 - 3 * (1 - a) ** 0.5 * gradient
    rebuilt = (state - (1 - a) ** 0.5 * shifted) / a**0.5
    variance = eta**2 * (1 - a / previous) * (1 - previous) / (1 - a)
    expected = previous**0.5 * rebuilt + (1 - previous - variance) ** 0.5 * shifted
    moved = process(0, noise, state, noise=torch.zeros_like(state))[0] + 3 * weight * gradient
    assert torch.allclose(moved, expected, atol=1e-5)


def test_classifier_free_guidance_multiplies_what_the_label_makes():
    table = torch.cat([label_picture(), torch.full((1, 1, 6, 6), 0.2)])
    states = torch.zeros(1, 1, 6, 6)
    plain = segmenter(StubDenoiser(table, null_class=True)).saliency(states)
    guided = segmenter(StubDenoiser(table, null_class=True), classifier_free_scale=3.0).saliency(states)
    assert torch.allclose(guided, 3 * plain, atol=1e-6)
    null = segmenter(StubDenoiser(table, null_class=True), contrast="null", tau=0.0).saliency(states)
    assert torch.allclose(null, k(4000, 399) * (table[1] - table[2]).unsqueeze(0), atol=1e-6)


# Networks of every kind


def small_classifier() -> EncoderClassifier:
    options = {"channels": 32, "channel_mult": (1, 1, 2), "num_res_blocks": 1, "attention_factors": (4,)}
    return lively(EncoderClassifier(num_head_channels=32, pool="average", **options))


def small_denoiser(**options) -> ClassConditionedDenoiser:
    defaults = {"channels": (32, 32, 64), "attention_levels": (False, False, True), "num_head_channels": 32}
    return lively(ClassConditionedDenoiser(num_res_blocks=1, **{**defaults, **options}))


def lively(network):
    torch.manual_seed(0)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return network.eval()


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 1, 18, 21, generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.mark.parametrize(
    "options",
    [
        {"tau": 0.95},
        {"num_inference_steps": 3},
        {"mode": "jvp"},
        {"guidance_scale": 2.0},
        {"combine": "majority"},
        {"combine": "staple"},
    ],
    ids=str,
)
def test_a_slices_result_is_its_own(options):
    """Not that of its batch, the chunking or the order of the draws; volumes are batches of their slices."""
    options = {"tau": 0.0, "gated": False, "num_samples": 3, **options}
    network = WeakSegmenter(small_denoiser(), scheduler(1000), small_classifier(), **options).eval()
    with torch.no_grad():
        together = network.describe(images())
        alone = [network.describe(one) for one in images().split(1)]
        network.max_batch_size = 5
        chunked = network.describe(images())
        volume = network.describe(images().permute(1, 2, 3, 0).unsqueeze(0))
    # convolutions round differently in other batches: 1 / (1 - tau) enlarges it, and Otsu's threshold moves in bins
    for name, exactly in (("saliency", 2e-5 / (1 - options["tau"])), ("pred", 0.02)):
        assert torch.allclose(together[name], torch.cat([one[name] for one in alone]), atol=exactly)
        assert torch.allclose(together[name], chunked[name], atol=exactly)
        assert torch.allclose(volume[name][..., 0], together[name][:1], atol=exactly)
        # another slice of the case has other noise
        assert not torch.allclose(volume[name][..., 1], together[name][1:2], atol=0.1)
    assert 0 < float(together["pred"].argmax(1).float().mean()) < 0.9
    assert torch.allclose(together["pred"].sum(1), torch.ones(3, 18, 21), atol=1e-6)


def test_more_draws_are_the_mean_of_their_maps():
    network = WeakSegmenter(small_denoiser(), scheduler(1000), gated=False, num_samples=4).eval()
    with torch.no_grad():
        maps = network.member_maps(images()[..., :16, :20], torch.zeros(3).long())
        saliency = network.describe(images()[..., :16, :20])["saliency"]
    mean = maps.mean(0)
    low, high = mean.amin((2, 3), keepdim=True), mean.amax((2, 3), keepdim=True)
    assert torch.allclose(saliency, (mean - low) / (high - low), atol=1e-5)
    assert maps.std(dim=0).mean() > 0


def test_train_mode_draws_afresh():
    network = WeakSegmenter(small_denoiser(), scheduler(1000), gated=False, num_samples=1)
    with torch.no_grad():
        first, second = network.train()(images()), network(images())
        fixed, again = network.eval()(images()), network(images())
    assert not torch.equal(first, second) and torch.equal(fixed, again)


def refilled_adm() -> ClassConditionedADM:
    torch.manual_seed(0)
    network = ClassConditionedADM(
        channels=32,
        channel_mult=(1, 2, 3, 4),
        num_res_blocks=1,
        attention_factors=(4, 8),
        num_heads=4,
        learned_variance=True,
    )
    for parameter in network.parameters():
        if not parameter.any():
            parameter.data.normal_(0, 0.02)
    return network.eval()


def test_the_finite_difference_approaches_the_derivative():
    """Relative error 0.307, 0.158, 0.032 for tau 0.9, 0.95, 0.99 on other random weights."""
    denoiser = refilled_adm()
    clean = torch.linspace(-0.3, 0.3, 4096).reshape(1, 1, 64, 64)
    a = float(levels(4000)[399])
    state = a**0.5 * clean + (1 - a) ** 0.5 * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = segmenter(denoiser, mode="jvp").saliency(state)
        errors = {}
        for tau in (0.9, 0.95, 0.99):
            difference = segmenter(denoiser, tau=tau).saliency(state) - exact
            errors[tau] = float(difference.norm() / exact.norm())
    assert errors[0.9] > errors[0.95] > errors[0.99]
    assert 3 < errors[0.95] / errors[0.99] < 7


def test_the_derivative_of_several_steps_is_the_limit_of_their_difference():
    denoiser = small_denoiser()
    state = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = segmenter(denoiser, mode="jvp", num_inference_steps=4).saliency(state)
        near = segmenter(denoiser, tau=0.995, num_inference_steps=4).saliency(state)
    assert float((near - exact).norm() / exact.norm()) < 0.05


# The gate, the state dict, mistakes


def test_the_gate_leaves_negative_slices_empty():
    network = segmenter(StubDenoiser(label_picture()), gated=True, classifier=LinearClassifier(1.0))
    bright = torch.stack([torch.full((1, 6, 6), value) for value in (0.5, -0.5)])
    with torch.no_grad():
        described = network.describe(bright)
        volume = network.describe(bright.permute(1, 2, 3, 0).unsqueeze(0))
    assert described["positive"].tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert described["pred"][1].flatten(1).unique(dim=1).tolist() == [[1.0], [0.0]]
    assert described["pred"][0].argmax(0).sum() > 0
    assert volume["positive"].shape == (1, 2) and volume["pred"][0, 1, ..., 1].max() == 0


def test_weights_of_another_schedule_or_time_scale_are_refused():
    ours = WeakSegmenter(small_denoiser(), scheduler(1000), gated=False)
    with pytest.raises(RuntimeError, match="noise schedule of 4000 steps"):
        ours.load_state_dict(WeakSegmenter(small_denoiser(), scheduler(4000), gated=False).state_dict())
    scaled = WeakSegmenter(small_denoiser(timestep_scale=0.25), scheduler(1000), gated=False)
    with pytest.raises(
        RuntimeError, match=r"\(timestep_scale, prediction_type\) \(0.25, epsilon\), this network has \(1,"
    ):
        ours.load_state_dict(scaled.state_dict())
    ours.load_state_dict(WeakSegmenter(small_denoiser(), scheduler(1000), gated=False, signal_level=0.3).state_dict())


def test_weights_of_another_image_range_are_refused():
    """Those that say none, as those of before do, are not; then the network's own range is kept."""
    made = {
        limits: WeakSegmenter(small_denoiser(), scheduler(1000), gated=False, image_range=limits)
        for limits in ((-1.0, 1.0), (0.0, 1.0), None)
    }
    ours = made[-1.0, 1.0]
    with pytest.raises(RuntimeError, match=r"trained with image_range \[0, 1\], this network has \[-1, 1\]: choose"):
        ours.load_state_dict(made[0.0, 1.0].state_dict())
    ours.load_state_dict(made[None].state_dict())
    assert ours.conventions.tolist() == [1.0, 1.0, -1.0, 1.0]
    made[None].load_state_dict(ours.state_dict())
    assert made[None].conventions.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mode": "exact"}, "mode must be one of finite_difference, jvp, not 'exact'"),
        ({"tau": 1.0}, "tau must be at least 0 and below 1, not 1.0"),
        ({"contrast": "null"}, "null class"),
        ({"classifier_free_scale": 2.0}, "null class"),
        ({"signal_level": 0}, "signal_level must lie between 0 and 1, not 0"),
        ({"num_inference_steps": 100000}, "num_inference_steps must be a whole number in 1..400 .*, not 100000"),
        ({"num_samples": 0}, "num_samples must be a whole number of at least 1, not 0"),
        ({"combine": "median"}, "combine must be one of majority, mean, staple"),
        ({"guidance_scale": 1.0}, "guidance_scale is 1.0; .* classifier"),
        ({"guidance_scale": 1.0, "classifier": LinearClassifier(1.0), "mode": "jvp"}, "guidance_scale goes with"),
        ({"gated": True}, "neither gate nor classifier"),
        ({"positive_class": 2}, "takes 2 class weights"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_told(options, text):
    with pytest.raises(InputError, match=text):
        segmenter(StubDenoiser(label_picture()), **options)


def test_the_mask_rule_is_the_networks():
    network = segmenter(StubDenoiser(label_picture()), mask=SaliencyMask("dark"))
    with torch.no_grad():
        found = network(torch.zeros(1, 1, 6, 6)).argmax(1)[0]
    assert torch.equal(found == 1, label_picture()[1, 0] > 0)  # more noise expected: darker


# Precision


@pytest.fixture
def tf32() -> Iterator[None]:
    """PyTorch told to round in convolutions and matrix products alike."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    yield
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


def rounding() -> tuple[bool, str]:
    return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()


@pytest.mark.parametrize("options", [{}, {"mode": "jvp"}, {"guidance_scale": 2.0, "classifier": LinearClassifier(3.0)}])
def test_no_call_of_the_networks_is_in_tf32_and_the_setting_is_as_it_was_afterwards(options, tf32):
    seen = []
    network = segmenter(StubDenoiser(label_picture()), num_inference_steps=2, **options)
    for part in filter(None, (network.denoiser, network.classifier)):
        part.register_forward_hook(lambda *_: seen.append(rounding()))
    network(torch.zeros(1, 1, 6, 6))
    assert len(seen) >= 2 and set(seen) == {(False, "highest")}
    assert rounding() == (True, "high")


def test_precision_is_restored_after_an_error(tf32):
    with pytest.raises(ValueError, match="broken"), full_float32():
        raise ValueError("broken")
    assert rounding() == (True, "high")


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="PyTorch 2.9 sets single backends")
def test_precision_that_the_user_set_for_single_backends_is_kept():
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"  # from here on the older switches refuse to be read
    try:
        with full_float32():
            assert (conv.fp32_precision, matmul.fp32_precision) == ("ieee", "ieee")
        assert (conv.fp32_precision, matmul.fp32_precision) == ("tf32", "tf32")
    finally:
        matmul.fp32_precision = before
