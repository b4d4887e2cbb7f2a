"""MedSegDiff-V2 of the paper: where its condition enters the denoiser, and what the network promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shared_components.errors import InputError
from shared_components.networks.medsegdiff_v2_paper import MedSegDiffV2Paper
from tests.networks.denoisers import (
    assert_autocast_stays_near,
    assert_every_input_matters,
    assert_features_change_nothing,
    assert_samples_are_independent,
    assert_scripted_equals_eager,
    awaken,
    count,
    noise,
    parameters_without_gradient,
)


def tiny(wake: bool = True, **arguments) -> MedSegDiffV2Paper:
    """Three levels; every parameter does something. (In 32 channels the 32 groups would undo the time.)"""
    options = {"image_size": 16, "channels": 32, "channel_mult": (1, 2, 2), "num_res_blocks": 1}
    options |= {"attention_factors": (4,), "highway_channels": 4, "num_transformer_blocks": 1}
    torch.manual_seed(0)
    network = MedSegDiffV2Paper(2, 3, **{**options, **arguments})
    return awaken(network) if wake else network.eval()


def tiny_inputs(batch: int = 2, height: int = 16, width: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    steps = torch.arange(batch) * 300 + 7
    return noise(batch, 2, height, width), steps, noise(batch, 3, height, width, seed=1)


@pytest.mark.parametrize("condition_channels", [3, 4])
def test_parameter_counts(condition_channels):
    """U-Net and highway have the published code's counts. Nothing has been published to compare the others with:
    these are the counts of this project's own default configuration, base width 128 and two blocks."""
    with torch.device("meta"):
        network = MedSegDiffV2Paper(1, condition_channels)
    assert count(network.unet) == {3: 113_673_218, 4: 113_674_370}[condition_channels]
    assert count(network.highway) == {3: 15_727_232, 4: 15_727_520}[condition_channels]
    assert count(network.anchor) == 2 + 2 + 33
    assert [count(block) for block in network.transformer.blocks] == [7_464_578] * 2
    assert count(network.transformer) == 15_733_508
    assert count(network) == {3: 145_133_995, 4: 145_135_435}[condition_channels]


def test_the_condition_enters_at_the_stem_and_at_the_bottleneck():
    network, (noisy, timesteps, condition) = tiny(), tiny_inputs()
    unet, highway = network.unet, network.highway
    with torch.no_grad():
        time = unet.time_embedding(timesteps)
        deepest, skips = highway.encode(highway.encode_first(condition), [])
        anchor = highway.decode(deepest, skips)[0]
        assert deepest.shape == (2, 8, 4, 4) and anchor.shape == (2, 4, 16, 16)
        stem = unet.stem(torch.cat([condition, noisy], dim=1))
        encoded = unet.encode(network.anchor(stem, anchor), time)
        middle = network.transformer(encoded[-1], deepest, time, torch.arange(2))
        assert (middle - encoded[-1]).abs().max() > 0.01
        expected = torch.cat([unet.decode(middle, time, encoded), highway(condition)[0]], dim=1)
        torch.testing.assert_close(network(noisy, timesteps, condition), expected, rtol=1e-4, atol=1e-5)


def test_a_new_network_starts_as_the_unconditioned_one():
    network, (noisy, timesteps, condition) = tiny(), tiny_inputs()
    with torch.no_grad():
        for parameter in network.transformer.output.parameters():
            parameter.zero_()
        features = network.encode_condition(condition)
        other = [torch.randn_like(features[0]), *features[1:]]
        output = network(noisy, timesteps, condition, None, features)
        assert torch.equal(output, network(noisy, timesteps, condition, None, other))
        open_gate = [features[0], torch.zeros_like(features[1]), features[2]]
        output = network(noisy, timesteps, condition, None, open_gate)[:, :4]
        torch.testing.assert_close(output, network.unet(torch.cat([condition, noisy], dim=1), timesteps))


@pytest.mark.parametrize("learned_variance", [True, False])
def test_the_heads_of_a_new_network(learned_variance):
    network, inputs = tiny(wake=False, learned_variance=learned_variance), tiny_inputs()
    with torch.no_grad():
        output = network(*inputs)
    heads, calibration = output[:, :-2], output[:, -2:]
    assert torch.equal(heads, torch.zeros(2, 4 if learned_variance else 2, 16, 16))
    assert 0 < calibration.min() and calibration.max() < 1 and calibration.std() > 1e-3
    assert not network.transformer.output.weight.any() and not network.transformer.output.bias.any()


def test_the_condition_model_sees_the_image_alone():
    network, (noisy, timesteps, condition) = tiny(), tiny_inputs()
    with torch.no_grad():
        base = network(noisy, timesteps, condition)
        for other in (network(-noisy, timesteps, condition), network(noisy, timesteps + 40, condition)):
            assert torch.equal(other[:, 4:], base[:, 4:]) and not torch.equal(other[:, :4], base[:, :4])
        assert (network(noisy, timesteps, -condition)[:, 4:] - base[:, 4:]).abs().max() > 1e-3
        features = network.encode_condition(condition)
        assert torch.equal(features[2], base[:, 4:]) and features[2].dtype == torch.float32
        assert features[1].shape == (2, 1, 16, 16) and 0 < features[1].min() and features[1].max() < 1


def test_the_condition_model_learns_from_the_denoiser_too():
    """Nothing is detached: the prediction alone gives the condition model gradients, except its head."""
    network = tiny()
    network(*tiny_inputs())[:, :2].square().mean().backward()
    assert network.highway.head.weight.grad is None or not network.highway.head.weight.grad.any()
    others = [parameter for name, parameter in network.highway.named_parameters() if name != "head.weight"]
    assert all(parameter.grad.abs().max() > 0 for parameter in others)


def test_filters_run_once_per_distinct_timestep():
    network, (noisy, _, condition) = tiny(), tiny_inputs(3)
    batches = []
    band = network.transformer.blocks[0].first.band
    band.register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0])))
    with torch.no_grad():
        same = network(noisy, torch.tensor([5, 5, 5]), condition)
        mixed = network(noisy, torch.tensor([5, 8, 5]), condition)
    assert batches == [1, 2]
    torch.testing.assert_close(mixed[[0, 2]], same[[0, 2]], rtol=1e-4, atol=1e-5)
    assert (mixed[1] - same[1]).abs().max() > 1e-4


def test_without_the_image_in_the_stem_the_condition_enters_through_its_features_alone():
    network, (noisy, timesteps, condition) = tiny(image_in_stem=False), tiny_inputs()
    assert network.unet.stem.in_channels == 2
    assert_every_input_matters(network, noisy, timesteps, condition)
    with torch.no_grad():
        features = network.encode_condition(condition)
        expected = network(noisy, timesteps, condition)
        assert torch.equal(network(noisy, timesteps, torch.zeros_like(condition), None, features), expected)


def test_class_labels_reach_the_denoiser():
    network, inputs = tiny(num_classes=2), tiny_inputs()
    with torch.no_grad():
        outputs = [network(*inputs, class_labels=torch.full((2,), label)) for label in (0, 1)]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


@pytest.mark.parametrize("arguments", [{}, {"ss_order": "condition_first", "normaliser": "none"}])
def test_promises_of_a_denoiser(arguments):
    network, inputs = tiny(**arguments), tiny_inputs()
    assert_every_input_matters(network, *inputs)
    assert_features_change_nothing(network, *inputs)
    assert_samples_are_independent(network, *tiny_inputs(3))
    assert_autocast_stays_near(network, *inputs)
    assert parameters_without_gradient(network, *inputs) == []


@pytest.mark.parametrize("image_in_stem", [True, False])
def test_scripted_equals_eager(image_in_stem):
    assert_scripted_equals_eager(tiny(image_in_stem=image_in_stem), tiny_inputs(), tiny_inputs(1, 8, 24))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traced_equals_eager_at_another_batch_size():
    network = tiny()
    with torch.no_grad():
        traced = torch.jit.trace(network, tiny_inputs(), check_trace=False)
        torch.testing.assert_close(traced(*tiny_inputs(3)), network(*tiny_inputs(3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (12, 20), (32, 24)])
def test_other_sizes(size):
    with torch.no_grad():
        output = tiny()(*tiny_inputs(1, *size))
    assert output.shape == (1, 6, *size) and torch.isfinite(output).all() and output[:, :4].std() > 0


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="18 x 16: pad them to multiples of 4"):
        tiny()(*tiny_inputs(1, 18, 16))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channel_mult": (1,), "attention_factors": ()}, "channel_mult has 1 entries: this network needs 2"),
        ({"image_size": 18}, "image_size is 18: it must be a positive multiple of 4"),
        ({"channels": 48}, "channels is 48: it must be a positive multiple of 32"),
        ({"num_transformer_blocks": 7}, "num_blocks is 7: choose 1 to 6"),
        ({"num_transformer_heads": 5}, r"channels is 64: it must be a multiple of num_heads \(5\)"),
        ({"ss_order": "both"}, "condition_first, not 'both'"),
        ({"normaliser": "sine"}, "softmax, none, not 'sine'"),
        ({"anchor_kernel_size": 4}, "kernel_size is 4: it must be odd"),
        ({"highway_norm": "layer"}, "group, not 'layer'"),
        ({"channels": 1024, "num_res_blocks": 12}, "pass allow_huge=True"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        tiny(**arguments)


def test_no_channels_are_refused():
    with pytest.raises(InputError, match="in_channels must be a whole number of at least 1, not 0"):
        MedSegDiffV2Paper(0, 3)


def test_the_transformer_counts_as_part_of_a_huge_network():
    """U-Net and highway alone have 1.94e9 parameters."""
    options = {"channels": 512, "channel_mult": (1, 1, 8), "num_res_blocks": 1, "num_transformer_blocks": 6}
    with pytest.raises(InputError, match=r"would have 4,412,\d{3},\d{3} parameters .*allow_huge=True"):
        MedSegDiffV2Paper(image_size=64, attention_factors=(), **options)
