"""The condition branch of MedSegDiff."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shared_components.errors import InputError
from shared_components.networks.highway import HIGHWAY_NORMS, Highway, highway_widths
from tests.networks.medsegdiff_oracles import assert_values, count, fill, input_values


def test_parameter_counts():
    assert count(Highway(3, 1)) == 15_727_232
    assert count(Highway(4, 1)) == 15_727_520


def test_widths_scale_with_the_base():
    assert highway_widths(5, 32) == [32, 64, 128, 256, 480]
    assert highway_widths(5, 8) == [8, 16, 32, 64, 120]
    assert highway_widths(3, 16) == [16, 32, 64]
    assert highway_widths(6, 32)[-2:] == [480, 480]


@torch.no_grad()
def test_reference_values():
    calibration, outputs = fill(Highway(3, 1))(input_values(1, 3, 64, 64))
    assert_values(calibration, 0.506411, 0.15848, (0.807249, 0.457893, 0.466772), 1e-3)
    anchors = [F.interpolate(output, size=(64, 64), mode="bilinear") for output in outputs[1:3]]
    assert [tuple(anchor.shape) for anchor in anchors] == [(1, 32, 64, 64), (1, 64, 64, 64)]
    assert_values(anchors[0], 0.321463, 0.389102, (-1.31641e-3, 0.740665, 0.0346276), 1e-3)
    assert_values(anchors[1], 0.375114, 0.527922, (-7.82475e-3, 0.81828, -6.31595e-4), 1e-3)


@torch.no_grad()
def test_shapes_of_every_stage():
    highway, image = Highway(4, 2).eval(), torch.randn(1, 4, 64, 96)
    bottleneck, skips = highway.encode(highway.encode_first(image), [])
    assert [tuple(skip.shape[1:]) for skip in skips] == [
        (32, 64, 96), (64, 32, 48), (128, 16, 24), (256, 8, 12), (480, 4, 6)
    ]  # fmt: skip
    assert bottleneck.shape == (1, 480, 2, 3)
    outputs = highway.decode(bottleneck, skips)
    assert [tuple(output.shape[1:]) for output in outputs] == [
        (32, 64, 96), (32, 32, 48), (64, 16, 24), (128, 8, 12), (256, 4, 6)
    ]  # fmt: skip
    assert len(skips) == 5
    assert highway.calibrate(outputs[0]).shape == (1, 2, 64, 96)


@torch.no_grad()
def test_gates_multiply_what_has_been_pooled():
    highway, image = fill(Highway(1, 1, 3, 4)), input_values(2, 1, 16, 16)
    first = highway.encode_first(image)
    plain, skips = highway.encode(first, [])
    ones = [torch.ones(2, 4, 8, 8), torch.ones(2, 8, 4, 4)]
    assert torch.equal(highway.encode(first, ones)[0], plain)
    closed, gated = highway.encode(first, [ones[0], torch.zeros(2, 8, 4, 4)])
    assert torch.equal(gated[1], skips[1]) and not torch.equal(gated[2], skips[2])
    empty = highway.encoder[2](torch.zeros(2, 8, 4, 4))
    assert torch.equal(gated[2], empty)
    assert torch.equal(closed, highway.bottleneck(F.max_pool2d(empty, 2)))


def test_initialisation():
    torch.manual_seed(0)
    highway = Highway(3, 1)
    convolutions = [module for module in highway.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 2 * 5 + 2 + 2 * 5 + 1
    for convolution in convolutions[1:-1]:
        fan_in = convolution.weight[0].numel()
        assert convolution.weight.std().item() == pytest.approx((2 / (1 + 1e-4) / fan_in) ** 0.5, rel=0.03)
        assert not convolution.bias.any()
    assert highway.head.bias is None


def test_dropout_is_in_the_encoder_and_the_bottleneck_alone():
    rates = [module.p for module in Highway(3, 1, dropout=0.25).modules() if isinstance(module, nn.Dropout2d)]
    assert rates == [0.25] * 12
    assert not [module for module in Highway(3, 1).decoder.modules() if isinstance(module, nn.Dropout2d)]
    assert list(Highway(3, 1, dropout=0.0).state_dict()) == list(Highway(3, 1).state_dict())


def test_training_without_dropout_is_deterministic_and_with_it_is_not():
    image = input_values(2, 1, 16, 16)
    for dropout, same in ((0.0, True), (0.5, False)):
        highway = fill(Highway(1, 1, 3, 4, dropout, "group")).train()
        assert torch.equal(highway(image)[0], highway(image)[0]) is same


@pytest.mark.parametrize("norm", HIGHWAY_NORMS)
def test_normalisations_train_and_script(norm, tmp_path):
    torch.manual_seed(0)
    highway, image = Highway(1, 2, 3, 4, 0.0, norm), input_values(2, 1, 32, 32)
    calibration = highway.train()(image)[0]
    calibration.square().mean().backward()
    assert all(parameter.grad is not None for parameter in highway.parameters())
    assert 0 < calibration.min() < calibration.max() < 1
    highway.eval()
    torch.jit.save(torch.jit.script(highway), str(tmp_path / "highway.ts"))
    with torch.no_grad():
        assert torch.equal(torch.jit.load(str(tmp_path / "highway.ts"))(image)[0], highway(image)[0])
        alone = highway(image[:1])[0]
        torch.testing.assert_close(highway(image)[0][:1], alone, rtol=0, atol=1e-5)


def test_batch_and_syncbatch_share_their_weights():
    batch, sync = Highway(1, 1, 3, 4, 0.0, "batch"), Highway(1, 1, 3, 4, 0.0, "syncbatch")
    image = input_values(2, 1, 16, 16)
    batch(image)
    sync.load_state_dict(batch.state_dict())
    assert torch.equal(batch.eval()(image)[0], sync.eval()(image)[0])
    assert torch.equal(batch.train()(image)[0], sync.train()(image)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "layer"}, "highway_norm must be one of batch, syncbatch, instance, group, not 'layer'"),
        ({"dropout": 1.0}, "highway_dropout is 1.0"),
        ({"channels": 0}, "highway_channels is 0"),
        ({"num_poolings": 0}, "the highway has 0 poolings"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Highway(3, 1, **arguments)
