"""MedSegDiff V1 and V2 as coded: published sizes, reference values and the properties they promise."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_components.errors import InputError
from shared_components.networks.ff_parser import FFParser
from shared_components.networks.medsegdiff import MedSegDiffV1, MedSegDiffV2
from tests.networks.medsegdiff_oracles import assert_values, build_filled, count, fill, input_values

VERSIONS = {"v1": MedSegDiffV1, "v2": MedSegDiffV2}
HUGE = {"channels": 512, "num_res_blocks": 12, "num_heads": 8, "use_scale_shift_norm": True, "attention_factors": ()}

# Whole network, whole denoiser and what else, for RGB and for four-channel images.
PARAMETERS = [
    ("v1", {}, (130_774_086, 113_673_218, 17_100_868)),
    ("v1", {"condition_channels": 4}, (130_775_526, 113_674_370, 17_101_156)),
    ("v2", {}, (129_400_450, 113_673_218, 15_727_232)),
    ("v2", {"condition_channels": 4}, (129_401_890, 113_674_370, 15_727_520)),
    (
        "v2",
        {"channel_mult": (1, 1, 2, 3, 4), "attention_factors": (8,), "highway_poolings": 5},
        (101_329_922, 85_602_690, 15_727_232),
    ),
    ("v2", HUGE, (7_594_278_530 + (512 * 96 + 512), 7_578_551_298, 15_727_232 + (512 * 96 + 512))),
    ("v2", {"use_scale_shift_norm": True}, (134_522_242, 118_795_010, 15_727_232)),
    ("v2", {"resblock_updown": True}, (140_804_994, 125_077_762, 15_727_232)),
    ("v2", {"num_classes": 2}, (129_401_474, 113_674_242, 15_727_232)),
]

# Reference values at 64 pixels: mean, standard deviation, values at flat index 0, n // 3 and n - 1.
CALIBRATION_V2 = (0.506411, 0.15848, (0.807249, 0.457893, 0.466772))
REFERENCE = {
    ("v1", False): {
        0: (0.149972, 0.844058, (5.10614e-3, 1.79346, -0.103193)),
        1: (-0.089775, 0.372838, (-0.15292, 0.273661, -0.272313)),
        2: (0.318848, 0.466087, (0.0, 0.0, 0.0)),
    },
    ("v1", True): {0: (0.117403, 0.852673, (0.218877, 1.68689, -0.0404017))},
    ("v2", False): {
        0: (0.205707, 0.636094, (0.0915551, 0.759118, 0.163461)),
        1: (0.143195, 0.43756, (-0.144481, 0.723421, 0.606104)),
        2: CALIBRATION_V2,
    },
    ("v2", True): {0: (0.182114, 0.689973, (0.0636517, 0.824749, 0.0961585)), 2: CALIBRATION_V2},
}


def build(version: str, **options: Any) -> nn.Module:
    """A small network, as it is when new."""
    arguments: dict[str, Any] = {
        "condition_channels": 2,
        "channels": 32,
        "channel_mult": (1, 1, 2, 2),
        "num_res_blocks": 1,
        "attention_factors": (4,),
        "highway_channels": 4,
    }
    if version == "v1":
        arguments["image_size"] = 32
    torch.manual_seed(0)
    return VERSIONS[version](**{**arguments, **options})


def tiny(version: str, **options: Any) -> nn.Module:
    """The same with weights that make every part matter, in eval mode."""
    return fill(build(version, **options))


def inputs(batch: int = 2, height: int = 32, width: int = 32, masks: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    noisy, condition = input_values(batch, masks, height, width), input_values(batch, 2, height, width).flip(0, 3)
    return noisy, torch.tensor([3, 700, 250])[:batch], condition


@pytest.mark.parametrize(("version", "options", "expected"), PARAMETERS)
def test_parameter_counts(version, options, expected):
    with torch.device("meta"):
        network = VERSIONS[version](allow_huge=True, **options)
    total = count(network)
    assert (total, count(network.unet), total - count(network.unet)) == expected


def test_parameters_of_the_huge_networks_apart_from_what_joins_the_branches():
    for channels, unet, highway in ((3, 7_578_551_298, 16_743_040), (4, 7_578_555_906, 16_743_328)):
        with torch.device("meta"):
            network = MedSegDiffV1(condition_channels=channels, allow_huge=True, **HUGE)
        filters = sum(count(module) for module in network.modules() if isinstance(module, FFParser))
        assert (count(network.unet), count(network.highway) + filters) == (unet, highway)


def test_filters_of_the_published_network():
    with torch.device("meta"):
        network = MedSegDiffV1()
    shapes = [tuple(gate.parser.weight.shape) for gate in network.gates]
    assert shapes == [(32, 128, 65, 2), (64, 64, 33, 2), (128, 32, 17, 2), (256, 16, 9, 2)]
    assert sum(gate.parser.weight.numel() for gate in network.gates) == 1_015_808
    assert network.bottleneck_projection.weight.shape == (512, 480, 1, 1)


@torch.no_grad()
@pytest.mark.parametrize(("version", "scale_shift"), REFERENCE)
def test_reference_values(version, scale_shift):
    options = {"image_size": 64} if version == "v1" else {}
    options.update(attention_factors=(4,), num_heads=2, use_scale_shift_norm=scale_shift)
    network = build_filled(partial(VERSIONS[version], **options))
    if not scale_shift:
        assert count(network) == {"v1": 125_888_070, "v2": 125_460_610}[version]
    both = input_values(1, 4, 64, 64)
    output = network(both[:, 3:], torch.tensor([250]), both[:, :3])
    assert output.shape == (1, 3, 64, 64)
    for channel, values in REFERENCE[version, scale_shift].items():
        assert_values(output[:, channel], *values, tolerance=1e-3)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("training", [False, True])
def test_a_new_network_predicts_zero(version, training):
    noisy, timesteps, condition = inputs()
    output = build(version).train(training)(noisy, timesteps, condition)
    assert not output[:, :2].any()
    calibration = output[:, 2:]
    assert 0 < calibration.min() < calibration.max() < 1


@torch.no_grad()
@pytest.mark.parametrize("version", VERSIONS)
def test_the_protocol(version):
    network = tiny(version)
    attributes = (network.in_channels, network.latent_dim, network.downsampling)
    assert attributes == (1, 0, 8) and network.learned_variance and network.calibrated
    noisy, timesteps, condition = inputs()
    expected = network(noisy, timesteps, condition)
    assert expected.dtype == torch.float32
    assert torch.equal(network(noisy, timesteps, condition), expected)
    assert torch.equal(network(noisy, timesteps.float(), condition), expected)
    assert torch.equal(network(noisy, timesteps, condition, torch.zeros(2, 0), None), expected)


@torch.no_grad()
@pytest.mark.parametrize("version", VERSIONS)
def test_condition_features_change_nothing_and_save_their_part(version):
    network, (noisy, timesteps, condition) = tiny(version), inputs()
    calls: list[str] = []
    network.highway.encoder[0].register_forward_hook(lambda *_: calls.append("first stage"))
    network.highway.decoder[0].register_forward_hook(lambda *_: calls.append("decoder"))
    expected = network(noisy, timesteps, condition)
    features = network.encode_condition(condition)
    calls.clear()
    for step in (timesteps, timesteps + 1):
        reused = network(noisy, step, condition, None, features)
    assert calls == (["decoder"] * 2 if version == "v1" else [])
    assert torch.equal(network(noisy, timesteps, condition, None, features), expected)
    assert not torch.equal(reused, expected)
    shapes = [tuple(feature.shape) for feature in features]
    assert shapes == ([(2, 4, 32, 32)] if version == "v1" else [(2, 32, 32, 32), (2, 1, 32, 32)])


@torch.no_grad()
@pytest.mark.parametrize("version", VERSIONS)
def test_every_input_matters(version):
    network, (noisy, timesteps, condition) = tiny(version), inputs()
    base = network(noisy, timesteps, condition)
    from_noisy = network(-noisy, timesteps, condition)
    from_time = network(noisy, timesteps + 50, condition)
    from_image = network(noisy, timesteps, -condition)
    for changed in (from_noisy, from_time, from_image):
        assert (changed[:, :2] - base[:, :2]).abs().max() > 1e-3
    assert (from_image[:, 2] - base[:, 2]).abs().max() > 1e-3
    gated = [(changed[:, 2] - base[:, 2]).abs().max().item() for changed in (from_noisy, from_time)]
    assert min(gated) > 1e-6 if version == "v1" else gated == [0.0, 0.0]


@torch.no_grad()
def test_anchors_are_added_to_the_stem():
    network, (noisy, timesteps, condition) = tiny("v2", highway_channels=8), inputs()
    assert network.anchor_projection is None
    calibration, outputs = network.highway(condition)
    anchors = [F.interpolate(output, size=(32, 32), mode="bilinear") for output in outputs[1:3]]
    assert [tuple(anchor.shape) for anchor in anchors] == [(2, 8, 32, 32), (2, 16, 32, 32)]
    features = network.encode_condition(condition)
    assert torch.equal(features[0], torch.cat([anchors[0], anchors[0], anchors[1]], dim=1))
    assert torch.equal(features[1], calibration)
    seen: list[Tensor] = []
    network.unet.down_levels[0].register_forward_hook(lambda _, arguments, __: seen.append(arguments[0]))
    network(noisy, timesteps, condition)
    torch.testing.assert_close(seen[0], network.unet.stem(torch.cat([condition, noisy], 1)) + features[0])


@torch.no_grad()
def test_anchors_of_other_widths_are_projected():
    network, condition = tiny("v2", channels=64), inputs()[2]
    outputs = network.highway(condition)[1]
    both = torch.cat([F.interpolate(output, size=(32, 32), mode="bilinear") for output in outputs[1:3]], dim=1)
    assert network.anchor_projection.weight.shape == (64, 12, 1, 1)
    assert torch.equal(network.encode_condition(condition)[0], network.anchor_projection(both))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_parameter_learns(version):
    network, (noisy, timesteps, condition) = tiny(version).train(), inputs()
    output = network(noisy, timesteps, condition)
    (output[:, :2].square().mean() + 10 * output[:, 2].square().mean()).backward()
    assert [name for name, parameter in network.named_parameters() if not parameter.grad.any()] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_every_parameter_of_a_new_network_has_a_gradient_tensor(version):
    network, (noisy, timesteps, condition) = build(version), inputs()
    network(noisy, timesteps, condition).square().mean().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("highway_channels", [4, 8])
def test_the_highway_of_v2_learns_from_the_calibration_alone(highway_channels):
    network, (noisy, timesteps, condition) = tiny("v2", highway_channels=highway_channels), inputs()
    for weight in (0.0, 10.0):
        network.zero_grad()
        output = network(noisy, timesteps, condition)
        (output[:, :2].square().mean() + weight * output[:, 2].square().mean()).backward()
        assert all(parameter.grad.any() for parameter in network.unet.parameters())
        assert {bool(parameter.grad.any()) for parameter in network.highway.parameters()} == {weight > 0}


def test_the_highway_of_v1_learns_from_the_noise_too():
    network, (noisy, timesteps, condition) = tiny("v1"), inputs()
    network(noisy, timesteps, condition)[:, 0].square().mean().backward()
    for part in (network.highway.encoder, network.highway.bottleneck, network.gates, network.bottleneck_projection):
        assert all(parameter.grad.any() for parameter in part.parameters())


@torch.no_grad()
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((96, 64), {}),
        ((40, 40), {}),
        ((24, 40), {"channels": 64}),
        ((16, 32), {"num_res_blocks": 2, "channel_mult": (1, 2, 2, 2, 3), "attention_factors": (16,)}),
    ],
)
def test_any_size_and_width(version, size, options):
    network, (noisy, timesteps, condition) = tiny(version, **options), inputs(2, *size)
    output = network(noisy, timesteps, condition)
    assert output.shape == (2, 3, *size)
    assert output.isfinite().all()
    assert all(output[:, channel].std() > 1e-3 for channel in range(2))
    alone = torch.cat([network(noisy[i : i + 1], timesteps[i : i + 1], condition[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(output, alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("learned_variance", [False, True])
def test_several_mask_channels(version, learned_variance):
    network = tiny(version, in_channels=3, learned_variance=learned_variance)
    noisy, timesteps, condition = inputs(masks=3)
    output = network(noisy, timesteps, condition)
    assert output.shape == (2, 9 if learned_variance else 6, 32, 32)
    assert network.unet.output_conv.out_channels == (6 if learned_variance else 3)
    calibration = output[:, -3:]
    assert 0 <= calibration.min() and calibration.max() <= 1
    if version == "v2":
        assert torch.equal(calibration, network.encode_condition(condition)[1])


@torch.no_grad()
@pytest.mark.parametrize("version", VERSIONS)
def test_class_conditioning(version):
    network, (noisy, timesteps, condition) = tiny(version, num_classes=3), inputs()
    plain = tiny(version)
    without = network(noisy, timesteps, condition)
    assert torch.equal(without, plain(noisy, timesteps, condition))
    labelled = [network(noisy, timesteps, condition, None, None, torch.tensor([label, label])) for label in (0, 2)]
    assert (labelled[0] - labelled[1])[:, :2].abs().max() > 1e-3
    assert (labelled[0] - without)[:, :2].abs().max() > 1e-3
    with pytest.raises(ValueError, match="labels are given to a network without classes"):
        plain(noisy, timesteps, condition, class_labels=torch.tensor([0, 1]))


@torch.no_grad()
@pytest.mark.parametrize("version", VERSIONS)
def test_timesteps_are_scaled(version):
    noisy, timesteps, condition = inputs()
    scaled, plain = tiny(version, timestep_scale=2.5), tiny(version)
    assert torch.equal(scaled(noisy, timesteps, condition), plain(noisy, 2.5 * timesteps, condition))


@torch.no_grad()
def test_filters_of_the_size_itself_are_not_interpolated():
    network, at_32 = tiny("v1", image_size=56), tiny("v1")
    assert [gate.parser.weight.shape[1] for gate in network.gates] == [28, 14]
    noisy, timesteps, condition = inputs(2, 56, 56)
    assert network(noisy, timesteps, condition).isfinite().all()
    assert [gate.parser.weight.shape[1] for gate in at_32.gates] == [16, 8]
    assert at_32.gates[0].parser._filter(16, 16).equal(torch.view_as_complex(at_32.gates[0].parser.weight))


@torch.no_grad()
def test_bounded_gates_of_a_new_network_let_the_image_pass():
    noisy, timesteps, condition = inputs()
    bounded = build("v1", gate="bounded").eval()
    x = bounded.highway.encode(bounded.encode_condition(condition)[0], [])[0]
    seen: list[Tensor] = []
    bounded.highway.bottleneck.register_forward_hook(lambda _, __, output: seen.append(output))
    bounded(noisy, timesteps, condition)
    reference = build("v1").eval()
    reference.highway.bottleneck.register_forward_hook(lambda _, __, output: seen.append(output))
    reference(noisy, timesteps, condition)
    torch.testing.assert_close(seen[0], x, rtol=0.05, atol=0.05)
    assert seen[1].std() < 0.01 * seen[0].std()


@pytest.mark.parametrize("version", VERSIONS)
def test_bfloat16(version):
    network, (noisy, timesteps, condition) = tiny(version), inputs()
    expected = network(noisy, timesteps, condition)
    with torch.autocast("cpu", torch.bfloat16):
        output = network(noisy, timesteps, condition)
    assert output.dtype == torch.float32
    error = (output - expected).detach()[:, :2]
    assert error.square().mean().sqrt() < 0.1 * expected[:, :2].std()
    output.square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("options", [{}, {"num_classes": 2, "highway_channels": 8, "highway_norm": "syncbatch"}])
def test_scripted_equals_eager(version, options, tmp_path):
    network, (noisy, timesteps, condition) = tiny(version, **options), inputs(2, 24, 40)
    torch.jit.save(torch.jit.script(network), str(tmp_path / "network.ts"))
    scripted = torch.jit.load(str(tmp_path / "network.ts"))
    with torch.no_grad():
        expected = network(noisy, timesteps, condition)
        assert torch.equal(scripted(noisy, timesteps, condition), expected)
        features = scripted.encode_condition(condition)
        assert all(torch.equal(*pair) for pair in zip(features, network.encode_condition(condition)))
        assert torch.equal(scripted(noisy, timesteps.float(), condition, None, features), expected)
        if options:
            labels = torch.tensor([0, 1])
            labelled = scripted(noisy, timesteps, condition, None, features, labels)
            assert torch.equal(labelled, network(noisy, timesteps, condition, class_labels=labels))
        with pytest.raises(torch.jit.Error, match="multiples of 8"):
            scripted(*inputs(1, 20, 32))


@pytest.mark.parametrize("version", VERSIONS)
def test_checkpointing_changes_no_gradient(version):
    gradients = []
    for use_checkpoint in (False, True):
        network = tiny(version, use_checkpoint=use_checkpoint, highway_dropout=0.0).train()
        network(*inputs()).square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_small_network_fits_a_bundle(version):
    options = {"image_size": 64} if version == "v1" else {}
    network = VERSIONS[version](
        channels=32, channel_mult=(1, 2, 3, 4), attention_factors=(4,), highway_channels=8, **options
    )
    bytes_of_weights = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    assert 20e6 < bytes_of_weights < 24.5e6


@pytest.mark.parametrize(
    ("version", "options", "message"),
    [
        ("v1", {"image_size": 36}, "image_size is 36: it must be a positive multiple of 8"),
        ("v1", {"channel_mult": (1, 2)}, "channel_mult has 2 entries: this network needs 3 levels or more"),
        ("v2", {"channel_mult": (1, 2, 2)}, "channel_mult has 3 entries: this network needs 4 levels or more"),
        ("v1", {"gate": "open"}, "gate must be one of reference, bounded, not 'open'"),
        ("v1", {"ff_init": "ones"}, "ff_init must be one of reference, identity, not 'ones'"),
        ("v2", {"highway_norm": "layer"}, "highway_norm must be one of .*, not 'layer'"),
        ("v2", {"highway_dropout": -0.1}, "highway_dropout is -0.1: it must be at least 0 and less than 1"),
        ("v2", {"channels": 40}, "channels is 40: it must be a positive multiple of 32"),
        ("v2", {"attention_factors": (16,)}, "16 is the downsampling factor of no level"),
        ("v2", {"condition_channels": 0}, "condition_channels must be a whole number of at least 1, not 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(version, options, message):
    with pytest.raises(InputError, match=message) as error:
        build(version, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("version", VERSIONS)
def test_huge_networks_are_refused(version):
    # without the small parts that join the branches
    with pytest.raises(InputError, match=r"7,594,278,530 parameters \(30.4 GB in float32, .*pass allow_huge=True"):
        VERSIONS[version](**HUGE)


@pytest.mark.parametrize("version", VERSIONS)
def test_unknown_options_are_refused(version):
    with pytest.raises(TypeError, match="num_head'"):
        build(version, num_head=2)


@pytest.mark.parametrize("version", VERSIONS)
def test_counting_the_parameters_changes_no_weight(version):
    counted, direct = build(version), build(version, allow_huge=True)
    pairs = zip(counted.state_dict().items(), direct.state_dict().items())
    assert all(ours == theirs and torch.equal(a, b) for (ours, a), (theirs, b) in pairs)


def test_a_deeper_highway_asks_for_larger_multiples():
    network, (noisy, timesteps, condition) = tiny("v2", highway_poolings=4), inputs()
    assert network.downsampling == 16
    assert network(noisy, timesteps, condition).shape[2:] == noisy.shape[2:]
    with pytest.raises(ValueError, match="multiples of 16"):
        network(noisy[..., :24], timesteps, condition[..., :24])
