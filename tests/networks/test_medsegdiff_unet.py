"""The U-Net of MedSegDiff, its helpers and the limit of its size."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from shared_components.errors import InputError
from shared_components.networks.medsegdiff_blocks import SelfAttention, Step
from shared_components.networks.medsegdiff_unet import (
    MedSegDiffUNet,
    count_parameters,
    refuse_huge,
)
from tests.networks.medsegdiff_oracles import count, fill, input_values

HUGE = {
    "channels": 512,
    "num_res_blocks": 12,
    "num_heads": 8,
    "use_scale_shift_norm": True,
    "attention_factors": (),
}
PARAMETERS = [
    ({}, 113_673_218),
    ({"use_scale_shift_norm": True}, 118_795_010),
    ({"resblock_updown": True}, 125_077_762),
    ({"num_classes": 2}, 113_674_242),
    ({"num_heads": 4}, 113_673_218),
    ({"channel_mult": (1, 1, 2, 3, 4), "attention_factors": (8,)}, 85_602_690),
    ({"channels": 32, "channel_mult": (1, 2, 3, 4), "attention_factors": (4,)}, 5_201_570),
    ({"channels": 32, "attention_factors": (4,)}, 6_878_594),
    (HUGE, 7_578_551_298),
]

# Width and factor of every encoder output, stem first; base width 128.
ENCODER = [(128, 1)] * 3 + [(128, 2)] * 3 + [(128, 4)] + [(256, 4)] * 2 + [(256, 8)] * 3 + [(256, 16)]
ENCODER += [(512, 16)] * 2 + [(512, 32)] * 3
# Widths into and out of every step of the decoder.
DECODER = [(1024, 512)] * 5 + [(768, 512), (768, 256), (512, 256), (512, 256), (512, 256), (512, 256), (384, 256)]
DECODER += [(384, 128)] + [(256, 128)] * 5


def tiny(**options) -> MedSegDiffUNet:
    arguments = {
        "channels": 32,
        "channel_mult": (1, 2, 2),
        "num_res_blocks": 1,
        "attention_factors": (2,),
        "num_heads": 2,
    }
    return fill(MedSegDiffUNet(3, 2, **{**arguments, **options}))


@pytest.mark.parametrize(("options", "expected"), PARAMETERS)
def test_parameter_counts(options, expected):
    assert count_parameters(partial(MedSegDiffUNet, 4, 2, **options)) == expected


def test_a_channel_more_of_the_image():
    assert count_parameters(partial(MedSegDiffUNet, 5, 2)) == 113_674_370
    assert count_parameters(partial(MedSegDiffUNet, 5, 2, **HUGE)) == 7_578_555_906


def test_widths_of_the_published_network():
    with torch.device("meta"):
        network = MedSegDiffUNet(4, 2)
    down = [128]
    for level in network.down_levels:
        down += [step.residual.conv2.out_channels for step in level.steps]
        down += [] if level.downsample is None else [level.downsample.conv.out_channels]
    up = [step.residual for level in network.up_levels for step in level.steps]
    assert down == [width for width, _ in ENCODER]
    assert [(block.conv1.in_channels, block.conv1.out_channels) for block in up] == DECODER
    assert (len(down), len(up)) == (18, 18)
    assert network.tap_channels(4) == [128, 128, 256, 256]
    assert (network.downsampling, network.tap_stride, network.last_channels) == (32, 3, 512)
    attending = [
        [isinstance(step.attention, SelfAttention) for step in level.steps]
        for level in [*network.down_levels, *network.up_levels]
    ]
    assert attending == [[False] * 2] * 4 + [[True] * 2, [False] * 2, [False] * 3, [True] * 3] + [[False] * 3] * 4
    assert isinstance(network.middle1.attention, SelfAttention)


@torch.no_grad()
def test_sizes_of_encoder_outputs():
    network = MedSegDiffUNet(2, 1, channels=32, attention_factors=(16,))
    skips = network.encode(torch.zeros(1, 32, 64, 96), network.time_embedding(torch.tensor([0])))
    found = [tuple(skip.shape[1:]) for skip in skips]
    assert found == [(width // 4, 64 // factor, 96 // factor) for width, factor in ENCODER]
    assert [skips[k * network.tap_stride].shape[2] for k in range(1, 5)] == [32, 16, 8, 4]


@pytest.mark.parametrize("options", [{}, {"resblock_updown": True}, {"use_scale_shift_norm": True}])
def test_a_new_network_returns_zero(options):
    network = MedSegDiffUNet(3, 2, 32, (1, 2), 1, (1,), **options)
    output = network(torch.randn(2, 3, 16, 24), torch.tensor([0, 999]))
    assert output.shape == (2, 2, 16, 24)
    assert not output.any()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"resblock_updown": True, "use_scale_shift_norm": True},
        {"use_new_attention_order": True, "num_heads_upsample": 4},
        {"num_head_channels": 16, "num_res_blocks": 2},
    ],
)
def test_scripted_equals_eager(options, tmp_path):
    network, x, timesteps = tiny(**options), input_values(2, 3, 16, 24), torch.tensor([3, 700])
    torch.jit.save(torch.jit.script(network), str(tmp_path / "network.ts"))
    scripted = torch.jit.load(str(tmp_path / "network.ts"))
    with torch.no_grad():
        expected = network(x, timesteps)
        assert expected.std() > 0.1
        assert torch.equal(scripted(x, timesteps), expected)
        with pytest.raises(torch.jit.Error, match="multiples of 4"):
            scripted(x[:, :, 1:], timesteps)


@torch.no_grad()
def test_heads():
    network = tiny(num_heads=2, num_heads_upsample=4)
    assert network.down_levels[1].steps[0].attention.num_heads == 2
    assert network.up_levels[1].steps[0].attention.num_heads == 4
    assert tiny(num_head_channels=16).middle1.attention.num_heads == 4


def test_checkpointing_changes_no_gradient():
    x, gradients = input_values(2, 3, 16, 16), []
    for use_checkpoint in (False, True):
        network = tiny(use_checkpoint=use_checkpoint, resblock_updown=True).train()
        steps = [module for module in network.modules() if isinstance(module, Step)]
        assert {step.use_checkpoint for step in steps} == {use_checkpoint}
        network(x, torch.tensor([3, 700])).square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients))
    assert all(gradient is not None for gradient in gradients[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 48}, "channels is 48: it must be a positive multiple of 32"),
        ({"channels": 0}, "channels is 0"),
        ({"channel_mult": ()}, r"channel_mult is \(\): give one positive whole number a level"),
        ({"channel_mult": (1, 0.5)}, r"channel_mult is \(1, 0.5\)"),
        ({"num_res_blocks": 0}, "num_res_blocks must be a whole number of at least 1, not 0"),
        ({"attention_factors": (16,)}, r"attention_factors: 16 is the downsampling factor of no level \(1, 2, 4\)"),
        ({"num_heads": 3}, "shared by 3 attention heads"),
        ({"num_head_channels": 48}, "num_head_channels is 48: it must divide the feature width 64"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        tiny(**options)


@pytest.mark.parametrize("size", [(18, 16), (16, 30)])
def test_sizes_that_do_not_fit_are_refused(size):
    with pytest.raises(ValueError, match=rf"{size[0]} x {size[1]}: pad them to multiples of 4"):
        tiny()(torch.zeros(1, 3, *size), torch.tensor([0]))


def test_huge_networks_are_refused_before_they_are_built():
    build = partial(MedSegDiffUNet, 4, 2, **HUGE)
    with pytest.raises(InputError) as error:
        refuse_huge(build)
    assert str(error.value) == (
        "the network would have 7,578,551,298 parameters (30.3 GB in float32, about five times that in training), more "
        "than 2,000,000,000: choose smaller channels, channel_mult or num_res_blocks, or pass allow_huge=True"
    )


def test_counting_parameters_draws_no_random_numbers():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    assert count_parameters(partial(torch.nn.Linear, 2, 3), partial(torch.nn.Linear, 3, 1)) == 13
    count_parameters(partial(MedSegDiffUNet, 4, 2, 32, num_classes=2))
    assert torch.equal(torch.rand(1), expected)


def test_the_network_counts_like_its_builder():
    build = partial(MedSegDiffUNet, 3, 2, 32, (1, 2), 1, (1,))
    assert count(build()) == count_parameters(build)


def test_bounded_outputs_are_the_tanh_of_the_unbounded():
    torch.manual_seed(0)
    free = MedSegDiffUNet(2, 2, 32, channel_mult=(1, 1), attention_factors=())
    bounded = MedSegDiffUNet(2, 2, 32, channel_mult=(1, 1), attention_factors=(), num_bounded=1)
    torch.nn.init.normal_(free.output_conv.weight)
    bounded.load_state_dict(free.state_dict())
    x, timesteps = torch.randn(1, 2, 8, 8), torch.tensor([3])
    with torch.no_grad():
        expected, found = free(x, timesteps), bounded(x, timesteps)
    torch.testing.assert_close(found[:, :1], expected[:, :1].tanh())
    assert torch.equal(found[:, 1:], expected[:, 1:]) and expected.abs().max() > 1
