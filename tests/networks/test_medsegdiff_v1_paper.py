"""MedSegDiff V1 of the paper: what its two encoders, their fusion and the decoder are made of and promise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shared_components.errors import InputError
from shared_components.networks.medsegdiff_blocks import ResidualBlock
from shared_components.networks.medsegdiff_v1_paper import DynamicFusion, EncoderBlock, MedSegDiffV1Paper
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

# Nothing has been published to compare with: these are the counts of this project's own default configurations with
# base width 128, one mask channel and three of the image. Total; image encoder, mask encoder, fusions.
PARAMETERS = {
    "S": (56_566_658, 13_621_248, 13_618_944, 1_361_920),
    "B": (121_270_146, 37_357_824, 37_355_520, 429_056),
    "L": (171_652_994, 55_060_736, 55_058_432, 192_512),
}


def tiny(**arguments) -> MedSegDiffV1Paper:
    """Four stages, none finer; every parameter does something. (In 32 channels the 32 groups would undo the time.)"""
    options = {"image_size": 16, "channels": 32, "channel_mult": (1, 2, 2, 2), "num_decoder_blocks": 1}
    torch.manual_seed(0)
    return awaken(MedSegDiffV1Paper(2, 3, **{**options, **arguments}))


def tiny_inputs(batch: int = 2, height: int = 16, width: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    steps = torch.arange(batch) * 300 + 7
    return noise(batch, 2, height, width), steps, noise(batch, 3, height, width, seed=1)


@pytest.mark.parametrize("variant", PARAMETERS)
def test_parameter_counts(variant):
    with torch.device("meta"):
        network = MedSegDiffV1Paper(1, 3, variant=variant)
    levels = network.levels
    encoders = sum(count(level.image) for level in levels), sum(count(level.mask) for level in levels)
    fusions = sum(count(level.fusion) for level in levels if level.fusion is not None)
    assert (count(network), *encoders, fusions) == PARAMETERS[variant]
    assert network.downsampling == {"S": 16, "B": 32, "L": 64}[variant]


@pytest.mark.parametrize(("variant", "stem"), [("S", [1]), ("B", [1, 1]), ("L", [1, 1, 1])])
def test_blocks_are_those_of_a_resnet_34(variant, stem):
    with torch.device("meta"):
        network = MedSegDiffV1Paper(1, 3, variant=variant)
    for encoder in ("image", "mask"):
        blocks = [[isinstance(part, EncoderBlock) for part in getattr(level, encoder)] for level in network.levels]
        assert [sum(level) for level in blocks] == [*stem, 3, 4, 6]
    assert len(network.shared) == 3
    assert [len(level.blocks) for level in network.decoder] == [2] * len(network.levels)


@pytest.mark.parametrize(
    ("fuse_levels", "grids"),
    [
        ("middle", [(256, 32, 17, 2), (512, 16, 9, 2)]),
        ("all", [(128, 256, 129, 2), (128, 128, 65, 2), (256, 64, 33, 2), (256, 32, 17, 2), (512, 16, 9, 2)]),
    ],
)
def test_fused_levels(fuse_levels, grids):
    with torch.device("meta"):
        network = MedSegDiffV1Paper(1, 3, fuse_levels=fuse_levels)
    fusions = [level.fusion for level in network.levels if level.fusion is not None]
    assert [tuple(fusion.parser.weight.shape) for fusion in fusions] == grids
    assert all(level.fusion is not None for level in network.levels[-2:])


def test_fusion_is_the_product_of_both_normalised_and_the_image():
    torch.manual_seed(0)
    fusion, image, mask = DynamicFusion(6, 8, "reference"), noise(2, 6, 8, 8), noise(2, 6, 8, 8, seed=1)
    with torch.no_grad():
        for norm in (fusion.image_norm, fusion.mask_norm):
            norm.weight.normal_()
            norm.bias.normal_()
        filtered = torch.fft.irfft2(torch.fft.rfft2(mask) * torch.view_as_complex(fusion.parser.weight))
        gates = []
        for x, norm in ((image, fusion.image_norm), (filtered, fusion.mask_norm)):
            x = (x - x.mean(dim=1, keepdim=True)) / (x.var(dim=1, keepdim=True, unbiased=False) + 1e-5).sqrt()
            gates.append(x * norm.weight[:, None, None] + norm.bias[:, None, None])
        torch.testing.assert_close(fusion(image, mask), gates[0] * gates[1] * image, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("fuse_levels", "first_fused"), [("middle", 1), ("all", 0)])
def test_encoders_are_fused_and_summed_level_by_level(fuse_levels, first_fused):
    network, (noisy, timesteps, condition) = tiny(fuse_levels=fuse_levels), tiny_inputs()
    skips = []
    network.decoder[-1].register_forward_pre_hook(lambda module, inputs: skips.append(inputs[1]))
    network.decoder[0].register_forward_pre_hook(lambda module, inputs: skips.append(inputs[1]))
    with torch.no_grad():
        image, mask, sums = condition, noisy, []
        for index, level in enumerate(network.levels):
            image, mask = level.image(image), level.mask(mask)
            if index >= first_fused:
                image = level.fusion(image, mask)
            sums.append(image + mask)
        network(noisy, timesteps, condition)
        assert len(network.encode_condition(condition)) == first_fused + 1
    torch.testing.assert_close(skips[0], sums[-1])
    torch.testing.assert_close(skips[1], sums[0])


def test_time_enters_the_sum_and_the_blocks_after_it():
    network, (noisy, timesteps, condition) = tiny(), tiny_inputs()
    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    assert len(blocks) == 3 + 3
    with torch.no_grad():
        for block in blocks:
            block.time_projection.weight.zero_()
        changed = network(noisy, timesteps + 40, condition) - network(noisy, timesteps, condition)
        assert changed.abs().max() > 1e-4
        network.time_projection.weight.zero_()
        assert torch.equal(network(noisy, timesteps + 40, condition), network(noisy, timesteps, condition))


def test_timesteps_are_scaled():
    scaled, (noisy, timesteps, condition) = tiny(timestep_scale=10.0), tiny_inputs()
    with torch.no_grad():
        torch.testing.assert_close(scaled(noisy, timesteps, condition), tiny()(noisy, 10 * timesteps, condition))
        torch.testing.assert_close(scaled(noisy, timesteps / 2, condition), tiny()(noisy, 5 * timesteps, condition))


@pytest.mark.parametrize("learned_variance", [True, False])
def test_a_new_network_returns_zero(learned_variance):
    network = MedSegDiffV1Paper(2, 3, 16, 32, channel_mult=(1, 1, 1, 1), learned_variance=learned_variance)
    with torch.no_grad():
        output = network(*tiny_inputs())
    assert torch.equal(output, torch.zeros(2, 4 if learned_variance else 2, 16, 16))


@pytest.mark.parametrize("fuse_levels", ["middle", "all"])
def test_promises_of_a_denoiser(fuse_levels):
    network, inputs = tiny(fuse_levels=fuse_levels), tiny_inputs()
    assert_every_input_matters(network, *inputs)
    assert_features_change_nothing(network, *inputs)
    assert_samples_are_independent(network, *tiny_inputs(3))
    assert_autocast_stays_near(network, *inputs)
    assert parameters_without_gradient(network, *inputs) == []


@pytest.mark.parametrize("fuse_levels", ["middle", "all"])
def test_scripted_equals_eager(fuse_levels):
    assert_scripted_equals_eager(tiny(fuse_levels=fuse_levels), tiny_inputs(), tiny_inputs(1, 8, 24))


@pytest.mark.parametrize("size", [(8, 16), (24, 16), (32, 40)])
def test_other_sizes(size):
    with torch.no_grad():
        output = tiny(fuse_levels="all")(*tiny_inputs(1, *size))
    assert output.shape == (1, 4, *size) and torch.isfinite(output).all() and output.std() > 0


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="12 x 16: pad them to multiples of 8"):
        tiny()(*tiny_inputs(1, 12, 16))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channel_mult": None, "variant": "XL"}, "variant must be one of S, B, L, not 'XL'"),
        ({"channel_mult": (1, 1, 2)}, "channel_mult has 3 entries: this network needs 4 levels or more"),
        ({"channel_mult": (1, 1, 0, 2)}, "channel_mult is"),
        ({"channels": 48}, "channels is 48: it must be a positive multiple of 32"),
        ({"image_size": 20}, "image_size is 20: it must be a positive multiple of 8"),
        ({"num_stem_blocks": 0}, "num_stem_blocks must be .*, not 0"),
        ({"num_decoder_blocks": 0}, "num_decoder_blocks must be .*, not 0"),
        ({"fuse_levels": "last"}, "middle, all, not 'last'"),
        ({"num_classes": 0}, "num_classes must be a whole number of at least 1, not 0"),
        ({"dropout": 1.0}, "dropout is 1.0: it must be at least 0 and less than 1"),
        ({"timestep_scale": 0}, "timestep_scale is 0: it must be a positive number"),
        ({"channel_mult": 4}, "channel_mult is 4: give one positive whole number a level"),
        ({"ff_init": "ones"}, "reference, identity, not 'ones'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        tiny(**arguments)


@pytest.mark.parametrize("name", ["in_channels", "condition_channels"])
def test_no_channels_are_refused(name):
    with pytest.raises(InputError, match=f"{name} must be a whole number of at least 1, not 0"):
        MedSegDiffV1Paper(**{name: 0})


def test_the_class_changes_the_output_and_may_be_unknown():
    network, inputs = tiny(num_classes=2, channels=64), tiny_inputs()
    with torch.no_grad():
        first, second = (network(*inputs, class_labels=torch.full((2,), label)) for label in (0, 1))
        assert (first - second).abs().max() > 1e-4
        unknown = network(*inputs, class_labels=torch.tensor([-1, 1]))
    torch.testing.assert_close(unknown[:1], network(*inputs)[:1])
    torch.testing.assert_close(unknown[1:], second[1:])
    with pytest.raises(ValueError, match="without classes"):
        tiny()(*inputs, class_labels=torch.tensor([0, 1]))


def test_dropout_and_checkpoints_change_no_name_and_no_gradient():
    inputs, gradients, calls = tiny_inputs(), [], []
    for use_checkpoint in (False, True):
        network, seen = tiny(dropout=0.3, use_checkpoint=use_checkpoint).train(), []
        assert list(network.state_dict()) == list(tiny().state_dict())
        for module in network.modules():
            if isinstance(module, (EncoderBlock, ResidualBlock)):
                module.conv1.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        torch.manual_seed(3)
        network(*inputs).square().mean().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
        calls.append(len(seen))
    torch.testing.assert_close(gradients[0], gradients[1])
    assert calls[1] == 2 * calls[0], "every block is computed anew in the backward pass"
    with torch.no_grad():
        assert not torch.equal(network(*inputs), network(*inputs)), "channels are dropped"


def test_huge_networks_are_built_if_asked_only():
    with pytest.raises(InputError, match="parameters .*pass allow_huge=True"):
        MedSegDiffV1Paper(channels=1024)
    with torch.device("meta"):
        assert count(MedSegDiffV1Paper(channels=1024, allow_huge=True)) > 2e9
