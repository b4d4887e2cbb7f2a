"""The cDAL discriminator against its published sizes, its reference values and the properties it promises."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from shared_components.networks.cdal_discriminator import CDALDiscriminator, append_minibatch_std
from tests.networks.oracles import count, make_discriminator, name_free_fill, oracle_inputs

FEATURE_STD = {
    "hippo": (0.677263, 1.816603, 7.609386, 18.627183, 20.123514),
    "hippo_sampling": (0.677102, 1.218362, 5.851094, 26.530265, 47.187760),
    "lung": (0.870366, 0.873711, 1.145812, 2.343840, 4.024492, 6.451695, 6.845987),
}
LOGITS = {
    "hippo": (18.81309, 18.80863, 18.80483, 18.80866),
    "hippo_sampling": (8.09889, 9.12211, 8.93541, 7.69624),
    "lung": (18.81863, 18.81484),
}


def tiny(**arguments) -> CDALDiscriminator:
    options = {"in_channels": 2, "channels": (8, 8, 16), "downsample": (False, True), "time_embedding_dim": 8}
    return name_free_fill(CDALDiscriminator(**{**options, **arguments})).eval()


def tiny_inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    label = torch.randn(batch, 2, 8, 12, generator=generator)
    return label, torch.arange(batch) % 4, torch.randn(batch, 2, 8, 12, generator=generator)


def label_pair() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    classes = (torch.rand(4, 32, 32, generator=generator) < 0.1).long()
    label = F.one_hot(classes, 3).movedim(-1, 1).float() * 2 - 1
    return label, torch.tensor([0, 1, 2, 3]), label


def test_parameter_counts():
    small = make_discriminator("hippo")
    parts = [small.time_embedding, small.stem, *small.blocks, small.final_conv, small.final_linear]
    assert [count(part) for part in parts] == [
        33_024, 896, 328_064, 951_040, 3_737_088, 5_047_808, 2_364_416, 513
    ]  # fmt: skip
    assert count(small) == 12_462_849
    assert count(make_discriminator("hippo_sampling")) == 3_188_225
    assert list(small.state_dict()) == [name for name, _ in small.named_parameters()]
    large = make_discriminator("lung")
    parts = [large.time_embedding, large.stem, *large.blocks, large.final_conv, large.final_linear]
    assert [count(part) for part in parts] == [
        131_584, 384, 983_808, 3_802_624, *[5_113_344] * 4, 2_364_416, 513
    ]  # fmt: skip
    assert count(large) == 27_736_705


def assert_reference_values(name: str) -> None:
    network = name_free_fill(make_discriminator(name)).eval()
    noisy, timesteps, _, _ = oracle_inputs(name)
    flipped = noisy.flip(-1)
    with torch.no_grad():
        for level, expected in enumerate(FEATURE_STD[name]):
            features = network.features(noisy, timesteps, flipped, level=level)
            assert features.std(unbiased=False).item() == pytest.approx(expected, rel=1e-3)
        logits = network(noisy, timesteps, flipped)
    assert logits.shape == (len(noisy), 1)
    assert logits.flatten().tolist() == pytest.approx(LOGITS[name], rel=1e-3)


@pytest.mark.parametrize("name", ["hippo", "hippo_sampling"])
def test_reference_values(name):
    assert_reference_values(name)


@pytest.mark.slow
def test_reference_values_of_large_maps():
    assert_reference_values("lung")


def test_feature_shapes_and_how_little_is_computed():
    network = make_discriminator("hippo").eval()
    calls = []
    for index, block in enumerate(network.blocks):
        block.register_forward_hook(lambda *_, index=index: calls.append(index))
    label, timesteps, noisy = label_pair()
    expected = [(128, 32, 32), (128, 32, 32), (256, 16, 16), (512, 8, 8), (512, 4, 4)]
    with torch.no_grad():
        for level, shape in enumerate(expected):
            calls.clear()
            assert network.features(label, timesteps, noisy, level=level).shape == (4, *shape)
            assert calls == list(range(level))
        last = network.features(label, timesteps, noisy, level=4)
        assert torch.equal(network.features(label, timesteps, noisy), last)


def test_new_small_discriminator_is_undecided():
    torch.manual_seed(0)
    network = make_discriminator("hippo").eval()
    with torch.no_grad():
        logits = network(*label_pair())
    assert logits.abs().max() < 1e-4
    assert F.softplus(-logits).mean().item() == pytest.approx(math.log(2), abs=1e-5)
    assert F.softplus(logits).mean().item() == pytest.approx(math.log(2), abs=1e-5)


def test_initialisation_bounds():
    torch.manual_seed(0)
    network = make_discriminator("hippo")
    bounds = {
        math.sqrt(3 / 2304): network.blocks[1].conv1.weight,
        math.sqrt(3e-10 / 1152): network.blocks[0].conv2.weight,
        math.sqrt(3e-10 / (512 * 9)): network.final_conv.weight,
        math.sqrt(3 / 128): network.stem.weight,
        math.sqrt(3 / 512): network.blocks[3].time_projection.weight,
    }
    for bound, weight in bounds.items():
        assert 0.97 * bound < weight.abs().max().item() <= bound * (1 + 1e-6)
    assert not any(value.any() for name, value in network.named_parameters() if name.endswith("bias"))


def test_normal_initialisation_redraws_the_convolutions_alone():
    torch.manual_seed(0)
    network = make_discriminator("lung")
    convolutions = [value for value in network.parameters() if value.dim() == 4]
    assert len(convolutions) == 20
    for weight in convolutions:
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert network.time_embedding[0].weight.abs().max().item() == pytest.approx(math.sqrt(3 / 256), rel=0.01)


def test_minibatch_std_groups_are_strided():
    x = torch.randn(8, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    extended = append_minibatch_std(x)
    assert extended.shape == (8, 4, 4, 5) and torch.equal(extended[:, :3], x)
    for sample in range(8):
        group = x[sample % 2 :: 2]
        expected = (group.var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
        torch.testing.assert_close(extended[sample, 3], expected.expand(4, 5))


@pytest.mark.parametrize(("batch", "size"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 1), (6, 3), (12, 4)])
def test_minibatch_std_takes_the_largest_divisor_up_to_four(batch, size):
    x = torch.randn(batch, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    group = x[:: batch // size]
    assert len(group) == size
    expected = (group.var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
    torch.testing.assert_close(append_minibatch_std(x)[0, 2], expected.expand(3, 3))


def changed_columns(network: CDALDiscriminator, size: int, level: int) -> tuple[int, int]:
    """First and last column of the features that one pixel of the label, in the middle, reaches."""
    generator = torch.Generator().manual_seed(level)
    label = torch.randn(1, 3 if size == 32 else 1, size, size, generator=generator)
    noisy = torch.randn(label.shape, generator=generator)
    other = label.clone()
    other[0, 0, size // 2, size // 2] += 1
    timesteps = torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        before = network.features(label, timesteps, noisy, level=level)
        after = network.features(other, timesteps, noisy, level=level)
    reached = ((after - before).abs() > 1e-6).any(dim=1)[0]
    rows, columns = reached.any(dim=1).nonzero().flatten(), reached.any(dim=0).nonzero().flatten()
    assert torch.equal(rows, columns)
    return int(columns[0]), int(columns[-1])


@torch.no_grad()
def generic_weights(network: CDALDiscriminator) -> CDALDiscriminator:
    generator = torch.Generator().manual_seed(0)
    for value in network.parameters():
        scale = (value[0].numel()) ** -0.5 if value.dim() >= 2 else 0.1
        value.copy_(torch.randn(value.shape, generator=generator) * scale)
    return network.eval()


def test_receptive_field():
    network = generic_weights(make_discriminator("hippo"))
    fields = [changed_columns(network, 32, level) for level in range(5)]
    assert fields == [(16, 16), (14, 18), (5, 11), (0, 7), (0, 3)]


@pytest.mark.slow
def test_receptive_field_on_large_maps():
    network = generic_weights(make_discriminator("lung"))
    fields = [changed_columns(network, 256, level) for level in (1, 2, 3, 4)]
    assert fields == [(62, 66), (29, 35), (12, 19), (4, 11)]


def test_gradient_penalty_is_differentiable():
    network = tiny().double()
    label, timesteps, noisy = tiny_inputs(1)
    label, noisy = label.double()[..., :4, :4].requires_grad_(), noisy.double()[..., :4, :4]

    def squared(x: torch.Tensor) -> torch.Tensor:
        return network(x, timesteps, noisy).square()

    assert torch.autograd.gradcheck(squared, (label,))
    (gradient,) = torch.autograd.grad(network(label, timesteps, noisy).sum(), label, create_graph=True)
    gradient.square().sum().backward()
    assert network.blocks[0].conv1.weight.grad.abs().max() > 0
    assert network.blocks[1].conv2.weight.grad.abs().max() > 0


def test_an_image_may_be_shown():
    network = tiny(condition_channels=1)
    label, timesteps, noisy = tiny_inputs()
    image = torch.randn(2, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = network(label, timesteps, noisy, image) - network(label, timesteps, noisy, -image)
    assert difference.abs().max() > 1e-4
    with pytest.raises(ValueError, match="image of 1 condition channels is missing"):
        network(label, timesteps, noisy)


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="channels has 3 entries and downsample 1"):
        tiny(downsample=(True,))
    with pytest.raises(ValueError, match="fan_out, normal, not 'xavier'"):
        tiny(initialisation="xavier")
    with pytest.raises(ValueError, match="level is 3: the discriminator has levels 0 to 2"):
        tiny().features(*tiny_inputs(), level=3)


@pytest.mark.parametrize("condition_channels", [0, 1])
def test_scripted_equals_eager(condition_channels):
    network = tiny(condition_channels=condition_channels)
    inputs = (*tiny_inputs(), torch.ones(2, 1, 8, 12) if condition_channels else None)
    scripted = torch.jit.script(network)
    with torch.no_grad():
        assert torch.equal(scripted(*inputs), network(*inputs))
        assert torch.equal(scripted.features(*inputs, 1), network.features(*inputs, level=1))
