"""The anchor's gate: its Gaussian, the larger of smoothed and original, one plus a sigmoid."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.ndimage import correlate
from torch import Tensor

from shared_components.errors import InputError
from shared_components.networks.anchor_attention import AnchorAttention


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shifted(channels: int = 3, **arguments) -> AnchorAttention:
    """An attention whose Gaussian has left the middle."""
    torch.manual_seed(0)
    attention = AnchorAttention(channels, **arguments)
    with torch.no_grad():
        attention.offset.copy_(torch.tensor([0.5, -1.0]))
        attention.log_variance.copy_(torch.tensor([0.3, -0.7]))
    return attention


def test_a_new_kernel_is_the_standard_normal_density_on_a_5x5_grid():
    steps = range(-2, 3)
    expected = torch.tensor([[math.exp(-(r * r + c * c) / 2) for c in steps] for r in steps])
    torch.testing.assert_close(AnchorAttention(3).kernel(), expected / expected.sum())


def test_offsets_and_variances_are_of_rows_and_columns():
    kernel = shifted(kernel_size=15).kernel()
    steps = torch.arange(-7, 8, dtype=torch.float32)
    assert kernel.sum().item() == pytest.approx(1, abs=1e-6)
    for dim, mean, variance in ((1, 0.5, math.exp(0.3)), (0, -1.0, math.exp(-0.7))):
        marginal = kernel.sum(dim=dim)
        assert (marginal * steps).sum().item() == pytest.approx(mean, abs=1e-3)
        assert (marginal * (steps - mean).square()).sum().item() == pytest.approx(variance, rel=0.02)


def test_gate_against_another_convolution():
    attention, anchor = shifted(), noise(2, 3, 5, 7)
    with torch.no_grad():
        kernel = attention.kernel().double().numpy()
        smoothed = [correlate(channel.double().numpy(), kernel, mode="mirror") for channel in anchor.flatten(0, 1)]
        larger = torch.stack([torch.from_numpy(plane) for plane in smoothed]).reshape(2, 3, 5, 7).maximum(anchor)
        logits = torch.einsum("c,bchw->bhw", attention.weight.weight.double().flatten(), larger)
        expected = torch.sigmoid(logits[:, None] + attention.weight.bias.double())
        torch.testing.assert_close(attention.gate(anchor), expected.float())


def test_features_are_multiplied_by_one_plus_the_gate():
    attention, x, anchor = shifted(), noise(2, 4, 5, 7), noise(2, 3, 5, 7, seed=1)
    with torch.no_grad():
        gate = attention.gate(anchor)
        assert gate.shape == (2, 1, 5, 7) and 0 < gate.min() and gate.max() < 1
        torch.testing.assert_close(attention(x, anchor), x * (1 + gate))
        assert torch.equal(attention(x, anchor), attention.modulate(x, gate))


def test_an_even_anchor_stays_as_it_is():
    attention = shifted()
    with torch.no_grad():
        gate = attention.gate(torch.full((1, 3, 4, 4), 0.7))
        logit = 0.7 * attention.weight.weight.sum() + attention.weight.bias
        torch.testing.assert_close(gate, torch.sigmoid(logit).expand(1, 1, 4, 4))


def test_all_parameters_learn():
    attention = AnchorAttention(3)
    attention(noise(2, 4, 6, 6), noise(2, 3, 6, 6, seed=1)).square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in attention.parameters())
    assert attention.offset.grad.abs().min() > 0 and attention.log_variance.grad.abs().min() > 0


def test_scripted_equals_eager():
    attention, x, anchor = shifted(), noise(2, 4, 6, 9), noise(2, 3, 6, 9, seed=1)
    scripted = torch.jit.script(attention)
    with torch.no_grad():
        assert torch.equal(scripted(x, anchor), attention(x, anchor))
        assert torch.equal(scripted.modulate(x, scripted.gate(anchor)), attention(x, anchor))


def test_bfloat16_autocast_stays_near_single_precision():
    attention, x, anchor = shifted(), noise(2, 4, 6, 6), noise(2, 3, 6, 6, seed=1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = attention(x, anchor)
    with torch.no_grad():
        torch.testing.assert_close(found.float(), attention(x, anchor), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("size", [0, 4])
def test_even_windows_are_refused(size):
    with pytest.raises(InputError, match=f"kernel_size is {size}: it must be odd"):
        AnchorAttention(3, kernel_size=size)
