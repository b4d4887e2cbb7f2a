"""Values and derivatives of the low-pass resampling."""

from __future__ import annotations

import pytest
import torch

from shared_components.networks.fir import FIRDownsample, FIRStridedConv, FIRUpsample, fir_kernel


def ones() -> torch.Tensor:
    return torch.ones(1, 1, 4, 4)


def test_kernel():
    kernel = fir_kernel(2)
    assert kernel.shape == (2, 1, 4, 4)
    taps = torch.tensor([1.0, 3, 3, 1])
    assert torch.equal(kernel[1, 0] * 64, torch.outer(taps, taps))


def test_downsampled_ones_and_ramp():
    assert torch.equal(FIRDownsample(1)(ones()), torch.full((1, 1, 2, 2), 0.765625))
    ramp = torch.arange(16.0).reshape(1, 1, 4, 4)
    expected = torch.tensor([[[[2.734375, 3.9375], [7.546875, 8.75]]]])
    torch.testing.assert_close(FIRDownsample(1)(ramp), expected, rtol=0, atol=1e-6)


def test_upsampled_ones():
    up = FIRUpsample(1)(ones())[0, 0]
    assert up.shape == (8, 8)
    assert torch.all(up[1:-1, 1:-1] == 1)
    assert up[0, 0] == up[-1, -1] == up[0, -1] == 0.5625
    assert torch.all(up[0, 1:-1] == 0.75) and torch.all(up[1:-1, -1] == 0.75)


def test_unit_impulse():
    impulse = torch.zeros(1, 1, 4, 4)
    impulse[0, 0, 1, 1] = 1
    expected = torch.tensor([[0.140625, 0.046875], [0.046875, 0.015625]])
    torch.testing.assert_close(FIRDownsample(1)(impulse)[0, 0], expected, rtol=0, atol=1e-6)
    taps = torch.tensor([0.25, 0.75, 0.75, 0.25])
    placed = torch.zeros(8, 8)
    placed[1:5, 1:5] = torch.outer(taps, taps)
    torch.testing.assert_close(FIRUpsample(1)(impulse)[0, 0], placed, rtol=0, atol=1e-6)


def test_channels_do_not_mix():
    x = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    for module, single in ((FIRDownsample(3), FIRDownsample(1)), (FIRUpsample(3), FIRUpsample(1))):
        expected = torch.cat([single(x[:, channel : channel + 1]) for channel in range(3)], dim=1)
        torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-6)


def test_strided_conv_with_the_identity_is_downsampling():
    x = torch.randn(1, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    module = FIRStridedConv(1, 1)
    with torch.no_grad():
        module.conv.weight.zero_()[0, 0, 1, 1] = 1
        module.conv.bias.zero_()
        torch.testing.assert_close(module(x), FIRDownsample(1)(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("module", [FIRDownsample(2), FIRUpsample(2), FIRStridedConv(2, 1)])
def test_differentiable_twice(module):
    module = module.double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,))
    assert torch.autograd.gradgradcheck(lambda y: module(y).square(), (x,))


def test_filters_are_no_weights():
    assert list(FIRDownsample(4).state_dict()) == list(FIRUpsample(4).state_dict()) == []
    assert list(FIRStridedConv(4, 2).state_dict()) == ["conv.weight", "conv.bias"]


def test_scripts():
    x = torch.randn(1, 2, 8, 8)
    for module in (FIRDownsample(2), FIRUpsample(2), FIRStridedConv(2, 3)):
        assert torch.equal(torch.jit.script(module)(x), module(x))
