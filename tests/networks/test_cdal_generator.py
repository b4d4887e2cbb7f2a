"""The cDAL generator against its published sizes, its reference values and the properties it promises."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from shared_components.networks.cdal_generator import CDALGenerator
from tests.networks.oracles import (
    GENERATORS,
    assert_generator_values,
    count,
    make_generator,
    name_free_fill,
    oracle_inputs,
)

PARAMETERS = {
    "hippo": (2_691_971, 334, 56_064, 20_736, 112_064, 2_503_107),
    "hippo_sampling": (3_682_275, 432, 56_064, 20_736, 112_064, 3_493_411),
    "lung": (8_843_777, 456, 223_232, 20_736, 112_064, 8_487_745),
    "monu": (41_666_753, 702, 223_232, 82_432, 372_352, 40_988_737),
}

# Parameters of every module of the hippocampus configuration, input convolution to last convolution.
HIPPO_MODULES = [896, 39_136, 40_192, 896, 90_560, 16_768, 119_296, 18_496, 115_136, 119_296, 36_928, 115_136]
HIPPO_MODULES += [115_136, 16_768, 115_136]
HIPPO_MODULES += [176_768, 176_768, 119_296, 176_768, 176_768, 119_296, 176_768, 148_032, 16_768, 119_296]
HIPPO_MODULES += [77_184, 58_688, 64, 867]

# Width and size of what each of these modules returns for a map of 32 x 32.
HIPPO_SHAPES = [(32, 32)] * 2 + [(32, 16)] * 2 + [(64, 16)] * 2 + [(64, 8)] * 3 + [(64, 4)] * 3
HIPPO_SHAPES += [(64, 4)] * 5 + [(64, 8)] * 3 + [(64, 16)] * 4 + [(64, 32)] + [(32, 32)] * 3 + [(3, 32)]


def tiny(**arguments) -> CDALGenerator:
    """A network of some hundred kilobytes with fixed weights that are far from their near-zero start."""
    options = {
        "in_channels": 2,
        "condition_channels": 1,
        "channels": (8, 16, 16),
        "attention_levels": (False, True, False),
        "num_condition_blocks": 2,
        "condition_norm_groups": 4,
        "latent_dim": 6,
        "latent_embedding_dim": 12,
    }
    network = CDALGenerator(**{**options, **arguments})
    return name_free_fill(network).eval()


def tiny_inputs(batch: int = 2, height: int = 16, width: int = 16) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    noisy = torch.randn(batch, 2, height, width, generator=generator)
    condition = torch.rand(batch, 1, height, width, generator=generator) * 2 - 1
    latent = torch.randn(batch, 6, generator=generator)
    return noisy, torch.arange(batch) % 4, condition, latent


def modules_in_order(network: CDALGenerator) -> list[nn.Module]:
    modules: list[nn.Module] = [network.input_conv]
    for level in network.down_levels:
        for step in level.steps:
            modules += [step.residual, step.attention]
        modules += [level.downsample, level.pyramid]
    modules += [network.middle_block1, network.middle_attention, network.middle_block2]
    for level in network.up_levels:
        modules += [*level.blocks, level.attention, level.upsample]
    modules += [network.output_norm, network.output_conv]
    return [module for module in modules if module is not None and not isinstance(module, nn.Identity)]


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    total, tensors, latent, time, encoder, unet = PARAMETERS[name]
    network = make_generator(name)
    assert (count(network), len(list(network.parameters()))) == (total, tensors)
    assert count(network.latent_embedding) == latent
    assert count(network.time_embedding) == time
    assert count(network.condition_conv) + count(network.condition_blocks) == encoder
    assert total - latent - time - encoder == unet
    state = network.state_dict()
    assert list(state) == [key for key, _ in network.named_parameters()]
    assert list(state)[-1].startswith("latent_embedding")


def test_parameters_of_every_module():
    network = make_generator("hippo")
    assert [count(module) for module in modules_in_order(network)] == HIPPO_MODULES
    assert [count(block) for block in network.condition_blocks] == [18_624] * 6


def test_shapes_of_every_module():
    network = make_generator("hippo").eval()
    shapes = {}
    for module in modules_in_order(network):
        module.register_forward_hook(lambda module, _, output: shapes.update({module: output.shape}))
    with torch.no_grad():
        network(*(tensor[:1] for tensor in oracle_inputs("hippo")))
    found = [tuple(shapes[module][1:]) for module in modules_in_order(network)]
    assert found == [(width, size, size) for width, size in HIPPO_SHAPES]


@pytest.mark.parametrize("name", ["hippo", "hippo_sampling"])
def test_reference_values(name):
    assert_generator_values(name_free_fill(make_generator(name)), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lung", "monu"])
def test_reference_values_of_large_maps(name):
    assert_generator_values(name_free_fill(make_generator(name)), name)


@pytest.mark.parametrize("name", GENERATORS)
def test_new_network_returns_almost_zero(name):
    arguments = GENERATORS[name]
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = make_generator(name).eval()
    noisy = torch.randn(2, arguments["in_channels"], 64, 64, generator=generator)
    condition = torch.rand(2, arguments["condition_channels"], 64, 64, generator=generator) * 2 - 1
    latent = torch.randn(2, arguments["latent_dim"], generator=generator)
    with torch.no_grad():
        output = network(noisy, torch.tensor([0, 1]), condition, latent)
    assert 0 < output.abs().max() < 1e-4
    assert (output - noisy.sign()).square().mean().item() == pytest.approx(1, abs=1e-4)


def test_initialisation_bounds():
    torch.manual_seed(0)
    network = make_generator("hippo")
    attention = network.middle_attention
    bounds = {
        math.sqrt(3 / 128): network.latent_embedding.layers[0].weight,
        math.sqrt(3 / 432): network.down_levels[1].steps[0].residual.conv1.weight,
        math.sqrt(0.3 / 64): attention.query.weight,
        math.sqrt(3e-10 / 64): attention.output.weight,
        math.sqrt(3e-10 / 576): network.middle_block1.conv2.weight,
        math.sqrt(3e-10 / (9 * 35 / 2)): network.output_conv.weight,
    }
    for bound, weight in bounds.items():
        assert 0.97 * bound < weight.abs().max().item() <= bound * (1 + 1e-6)
    norm = network.middle_block1.norm1.modulation
    assert torch.equal(norm.bias, torch.cat([torch.ones(64), torch.zeros(64)]))
    assert norm.weight.abs().max().item() == pytest.approx(math.sqrt(3 / 128), rel=0.01)
    for block in network.condition_blocks:
        assert not block.conv2.weight.any() and not block.conv2.bias.any() and block.conv1.bias.any()


def test_condition_features_change_nothing():
    network, (noisy, timesteps, condition, latent) = tiny(), tiny_inputs()
    with torch.no_grad():
        features = network.encode_condition(condition)
        direct = network(noisy, timesteps, condition, latent)
        reused = network(noisy, timesteps, condition, latent, features)
    assert [part.shape for part in features] == [(2, 8, 16, 16)]
    assert torch.equal(direct, reused)


def test_every_input_matters():
    network, (noisy, timesteps, condition, latent) = tiny(), tiny_inputs()
    with torch.no_grad():
        base = network.logits(noisy, timesteps, condition, latent)
        changed = [
            network.logits(noisy + 0.1, timesteps, condition, latent),
            network.logits(noisy, timesteps + 1, condition, latent),
            network.logits(noisy, timesteps, -condition, latent),
            network.logits(noisy, timesteps, condition, -latent),
        ]
    assert all((other - base).abs().max() > 1e-5 for other in changed)


def test_samples_of_a_batch_are_independent():
    network, inputs = tiny(), tiny_inputs(batch=3)
    with torch.no_grad():
        together = network(*inputs)
        alone = torch.cat([network(*(tensor[i : i + 1] for tensor in inputs)) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_no_latent_means_zeros():
    network, (noisy, timesteps, condition, latent) = tiny(), tiny_inputs()
    with torch.no_grad():
        expected = network(noisy, timesteps, condition, torch.zeros_like(latent))
        assert torch.equal(network(noisy, timesteps, condition), expected)


def test_the_size_of_the_latent_does_not_matter():
    network, latent = tiny(), tiny_inputs()[3]
    torch.testing.assert_close(network.embed_latent(latent), network.embed_latent(5 * latent))


def test_softmax_head_makes_exclusive_classes():
    network, inputs = tiny(output_activation="softmax"), tiny_inputs()
    with torch.no_grad():
        output, logits = network(*inputs), network.logits(*inputs)
    probabilities = (output + 1) / 2
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2, 16, 16))
    torch.testing.assert_close(probabilities, logits.softmax(dim=1))
    with torch.no_grad():
        torch.testing.assert_close(tiny()(*inputs), logits.tanh())


@pytest.mark.parametrize("size", [(4, 4), (16, 24), (20, 12)])
def test_fully_convolutional(size):
    with torch.no_grad():
        assert tiny()(*tiny_inputs(2, *size)).shape == (2, 2, *size)


@pytest.mark.parametrize("size", [(18, 16), (16, 30)])
def test_sizes_that_do_not_fit_are_refused(size):
    with pytest.raises(ValueError, match=rf"{size[0]} x {size[1]}.*multiples of 4"):
        tiny()(*tiny_inputs(2, *size))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": (8, 16), "attention_levels": (True,)}, "channels has 2 entries and attention_levels 1"),
        ({"channels": (), "attention_levels": ()}, "channels has 0 entries"),
        ({"condition_norm_groups": 3}, r"channels\[0\] is 8"),
        ({"condition_norm_groups": 32}, r"channels\[0\] is 8.*multiple of condition_norm_groups \(32\)"),
        ({"channels": (8, 18, 18)}, "a feature width of 18"),
        ({"num_res_blocks": 0}, "num_res_blocks is 0"),
        ({"output_activation": "softmax", "in_channels": 1}, "in_channels is 1: the softmax head needs 2"),
        ({"output_activation": "sigmoid"}, "tanh, softmax, not 'sigmoid'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny(**arguments)


def test_a_condition_encoder_without_blocks_is_one_convolution():
    network, condition = tiny(num_condition_blocks=0), tiny_inputs()[2]
    with torch.no_grad():
        assert torch.equal(network.encode_condition(condition)[0], network.condition_conv(condition))


@pytest.mark.parametrize("head", ["tanh", "softmax"])
def test_scripted_equals_eager(head, tmp_path):
    network, inputs = tiny(output_activation=head), tiny_inputs(2, 16, 24)
    torch.jit.save(torch.jit.script(network), str(tmp_path / "network.ts"))
    scripted = torch.jit.load(str(tmp_path / "network.ts"))
    with torch.no_grad():
        assert torch.equal(scripted(*inputs), network(*inputs))
        assert torch.equal(scripted(*inputs[:3]), network(*inputs[:3]))
        features = scripted.encode_condition(inputs[2])
        assert torch.equal(features[0], network.encode_condition(inputs[2])[0])
        assert torch.equal(scripted(*inputs, features), network(*inputs))
        assert torch.equal(scripted.embed_latent(inputs[3]), network.embed_latent(inputs[3]))
        with pytest.raises(torch.jit.Error, match="multiples of 4"):
            scripted(*tiny_inputs(1, 18, 16))


def test_traced_equals_eager_at_another_size():
    network = tiny()
    with torch.no_grad():
        traced = torch.jit.trace(network, tiny_inputs())
        other = tiny_inputs(3, 8, 24)
        torch.testing.assert_close(traced(*other), network(*other), rtol=0, atol=1e-6)


def test_all_parameters_learn():
    network, (noisy, timesteps, condition, latent) = tiny(), tiny_inputs()
    network.train()(noisy, timesteps, condition, latent).square().mean().backward()
    without = [name for name, parameter in network.named_parameters() if not parameter.grad.abs().max() > 0]
    assert not [name for name in without if not name.endswith("key.bias")]
