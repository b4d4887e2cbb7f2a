"""AdaptDiff's denoiser: reference values, what its parts promise, and that the mask's part is computed once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from shared_components.errors import InputError
from shared_components.networks.embeddings import sinusoidal_timestep_embedding
from shared_components.networks.spade import SpadeModulation, SpadeResidualBlock, modulate, resize_mask
from shared_components.networks.spade_denoiser import SpadeDenoiser
from tests.networks import denoisers
from tests.networks.adaptdiff_oracles import fill, ramps

SMALL = {"channels": (8, 8, 16), "spade_channels": 4, "time_channels": 8}


@pytest.fixture(scope="module")
def published() -> SpadeDenoiser:
    return fill(SpadeDenoiser())


@pytest.fixture
def small() -> SpadeDenoiser:
    torch.manual_seed(0)
    return denoisers.awaken(SpadeDenoiser(**SMALL))


def test_published_size(published):
    assert denoisers.count(published) == 8_118_433
    assert len(published.state_dict()) == 258
    parts = {name: denoisers.count(part) for name, part in published.named_children()}
    assert parts["stem"] == 160 and parts["head"] == 17 and parts["time"] == 1056
    assert [denoisers.count(block) for block in published.encoder] == [1520, 5600, 21440, 83840]
    assert [denoisers.count(block) for block in published.decoder] == [2808192, 1369152, 677280, 338256]
    assert [denoisers.count(layer) for layer in published.encoder_time] == [1056, 2112, 4224, 8448]
    assert [denoisers.count(layer) for layer in published.decoder_time] == [4224, 2112, 1056, 528]
    assert [denoisers.count(layer) for layer in published.downsample] == [16480, 65728, 262528, 1049344]
    assert [denoisers.count(layer) for layer in published.upsample] == [1049344, 262528, 65728, 16480]


@pytest.mark.parametrize(("channels", "expected"), [(8, 19728), (64, 148864), (512, 1181952)])
def test_size_of_a_modulation(channels, expected):
    assert denoisers.count(SpadeModulation(1, channels)) == expected


@pytest.mark.parametrize(
    ("timestep", "marked", "expected"),
    [
        (0, True, (-0.0870333, 0.335507, -1.06104, -0.222725)),
        (150, True, (-0.0886056, 0.336352, -1.11647, -0.230235)),
        (299, True, (-0.0846219, 0.337338, -1.11998, -0.258771)),
        (150, False, (-0.0878937, 0.333886, -1.18181, -0.265367)),
    ],
)
@torch.inference_mode()
def test_reference_values(published, timestep, marked, expected):
    image, mask = ramps(64, 64)
    assert mask.sum() == 904
    output = published(image, torch.tensor([timestep]), mask if marked else torch.zeros_like(mask))
    found = (output.mean(), output.std(), output[0, 0, 0, 0], output[0, 0, 31, 40])
    assert [float(value) for value in found] == pytest.approx(expected, abs=1e-4)


@torch.inference_mode()
def test_maps_computed_once_give_the_same(published):
    image, mask = ramps(64, 64)
    maps = published.encode_condition(mask)
    for timestep in (0, 150, 299):
        t = torch.tensor([timestep])
        once, again = published(image, t, torch.zeros_like(mask), None, maps), published(image, t, mask)
        torch.testing.assert_close(once, again, atol=1e-6, rtol=1e-6)


def test_time_embedding():
    embedding = sinusoidal_timestep_embedding(torch.tensor([0, 1, 299]), 32)
    assert embedding[0].tolist() == [0.0] * 16 + [1.0] * 16
    assert embedding[1, [0, 1, 15, 16, 17]].tolist() == pytest.approx(
        [0.841471, 0.515139, 0.0001, 0.540302, 0.857107], abs=1e-6
    )
    assert embedding[2, [0, 1, 15, 16]].tolist() == pytest.approx([-0.521577, -0.999844, 0.029896, -0.853204], abs=2e-5)


@torch.no_grad()
def test_modulation_of_nothing_is_the_normalisation():
    block, x = SpadeResidualBlock(8, 8), denoisers.noise(2, 4, 8, 8)
    modulation = SpadeModulation(1, 4)
    for layer in (modulation.gamma, modulation.beta):
        layer.weight.zero_()
        layer.bias.zero_()
    mask = torch.zeros(2, 1, 16, 16)
    normalised = F.instance_norm(x)
    scale, shift = modulation(resize_mask(mask, (8, 8)))
    torch.testing.assert_close(modulate(normalised, scale, shift), F.silu(normalised), atol=1e-6, rtol=0)
    modulation.gamma.bias.fill_(1)
    modulation.beta.bias.fill_(3)
    scale, shift = modulation(resize_mask(mask, (8, 8)))
    torch.testing.assert_close(modulate(normalised, scale, shift), F.silu(2 * normalised + 3), atol=1e-5, rtol=0)
    assert len(block.encode_condition(mask, (8, 8))) == 6


def test_normalisation_is_over_each_channel_of_each_image():
    from shared_components.networks.spade import instance_norm

    x = 3 + 5 * denoisers.noise(2, 4, 9, 8)
    torch.testing.assert_close(instance_norm(x), F.instance_norm(x), atol=1e-5, rtol=1e-5)


def test_a_thin_line_survives_pooling_and_not_the_nearest_pixel():
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 5] = 1
    assert resize_mask(mask, (4, 4), "nearest").sum() == 0
    assert resize_mask(mask, (4, 4), "max").sum() == 4
    assert resize_mask(mask, (4, 4), "area").sum() == pytest.approx(1.0)
    for mode in ("nearest", "area", "max"):  # any size, as published
        assert torch.equal(resize_mask(mask, (32, 32), mode), resize_mask(mask, (32, 32)))


@torch.inference_mode()
def test_sizes(published):
    mask = torch.zeros(1, 1, 7, 7)
    for size in (16, 304):
        assert SpadeDenoiser(spade_channels=4).eval()(torch.zeros(1, 1, size, size), torch.tensor([3]), mask).shape == (
            1, 1, size, size,
        )  # fmt: skip
    with pytest.raises(ValueError, match="100 x 64.*multiples of 16"):
        published(torch.zeros(1, 1, 100, 64), torch.tensor([3]), mask)


def test_protocol_of_a_denoiser(small):
    noisy, mask = denoisers.noise(3, 1, 16, 24), (denoisers.noise(3, 1, 16, 24, seed=1) > 0).float()
    timesteps = torch.tensor([0, 7, 100])
    denoisers.assert_features_change_nothing(small, noisy, timesteps, mask)
    denoisers.assert_samples_are_independent(small, noisy, timesteps, mask)
    denoisers.assert_scripted_equals_eager(small, (noisy, timesteps, mask))
    denoisers.assert_autocast_stays_near(small, noisy, timesteps, mask)
    with torch.no_grad():
        base = small(noisy, timesteps, mask)
        for changed in ((noisy + 0.1, timesteps, mask), (noisy, timesteps + 40, mask), (noisy, timesteps, 1 - mask)):
            assert (small(*changed) - base).abs().max() > 1e-4
    assert denoisers.parameters_without_gradient(small.train(), noisy, timesteps, mask) == []


def test_sampling_changes_no_statistics(small):
    """The published sampler rewrites all running statistics."""
    before = {name: value.clone() for name, value in small.state_dict().items()}
    small(denoisers.noise(2, 1, 16, 16), torch.tensor([5, 9]), torch.zeros(2, 1, 16, 16))
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


@torch.no_grad()
def test_statistics_of_the_image_are_those_of_a_batch_of_one_in_training():
    torch.manual_seed(0)
    network, ours = SpadeDenoiser(**SMALL), SpadeDenoiser(**SMALL, image_statistics=True)
    ours.load_state_dict(denoisers.awaken(network).state_dict(), strict=True)
    noisy, mask = denoisers.noise(3, 1, 16, 16), (denoisers.noise(3, 1, 16, 16, seed=1) > 0).float()
    timesteps = torch.tensor([1, 50, 99])
    alone = [network.train()(noisy[i : i + 1], timesteps[i : i + 1], mask[i : i + 1]) for i in range(3)]
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    torch.testing.assert_close(ours.eval()(noisy, timesteps, mask), torch.cat(alone), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        ours.train()(noisy, timesteps, mask), network.train()(noisy, timesteps, mask), atol=1e-5, rtol=1e-4
    )
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    denoisers.assert_scripted_equals_eager(ours.eval(), (noisy, timesteps, mask))


def test_a_distant_change_of_the_mask_acts_through_the_statistics_alone():
    """With the normalisation taken away nothing spreads from the mask but by convolutions of its neighbourhood."""
    block = fill(SpadeResidualBlock(4, 4, hidden_channels=4))
    x, mask = denoisers.noise(1, 4, 16, 16), torch.zeros(1, 1, 16, 16)
    changed = mask.clone()
    changed[..., 0, 0] = 1
    maps, other = (block.encode_condition(m, (16, 16)) for m in (mask, changed))
    for before, after in zip(maps, other):
        assert torch.equal(before[..., 3:, 3:], after[..., 3:, 3:]) and not torch.equal(before, after)
    far = (block(x, other) - block(x, maps))[..., 6:, 6:].abs().max()
    assert 0 < far < 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_resize": "linear"}, "nearest, area, max"),
        ({"channels": (8,)}, "two or more"),
        ({"time_channels": 5}, "5"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(InputError, match=message):
        SpadeDenoiser(**options)
