"""The FF-Parser and the gate it is part of."""

from __future__ import annotations

import pytest
import torch

from shared_components.errors import InputError
from shared_components.networks.ff_parser import FFParser, SpectralGate
from tests.networks.medsegdiff_oracles import assert_values, fill, input_values


def test_reference_values():
    x = input_values(1, 3, 8, 8)
    assert_values(fill(FFParser(3, 8))(x), 0.0392465, 1.02367, (0.53817, 0.537626, -0.945175), 1e-4)
    gated = x * fill(SpectralGate(6, 3, 8))(input_values(1, 6, 8, 8))
    assert_values(gated, 0.0203951, 0.0562643, (7.14269e-4, -2.96529e-3, -3.20148e-3), 1e-4)


def test_reference_initialisation():
    torch.manual_seed(0)
    parser, x = FFParser(3, 16), torch.randn(2, 3, 16, 16)
    assert parser.weight.shape == (3, 16, 9, 2)
    assert parser.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert (parser(x).std() / x.std()).item() == pytest.approx(0.027, rel=0.1)


@pytest.mark.parametrize("size", [(16, 16), (8, 32), (32, 24)])
def test_identity_initialisation_changes_nothing_at_any_size(size):
    x = input_values(2, 3, *size)
    torch.testing.assert_close(FFParser(3, 16, "identity")(x), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(16, 16), (8, 32), (32, 24)])
def test_the_lowest_frequency_is_the_mean(size):
    parser, x = FFParser(3, 16), input_values(2, 3, *size)
    with torch.no_grad():
        parser.weight.zero_()
        parser.weight[:, 0, 0, 0] = 1
        spectrum = parser._filter(*size)
        assert spectrum[:, 0, 0].tolist() == [1, 1, 1]
        if size == (16, 16):
            torch.testing.assert_close(parser(x), x.mean((2, 3), keepdim=True).expand_as(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(16, 16), (8, 32), (32, 24), (48, 6)])
def test_filters_are_interpolated_at_their_own_frequencies(size):
    def tent(height: int, width: int) -> torch.Tensor:
        rows, columns = torch.fft.fftfreq(height).abs()[:, None], torch.fft.rfftfreq(width)[None, :]
        return torch.complex((1 - rows) * (1 - columns), rows - 2 * columns)

    parser = FFParser(1, 16)
    with torch.no_grad():
        parser.weight.copy_(torch.view_as_real(tent(16, 16))[None])
        torch.testing.assert_close(parser._filter(*size)[0], tent(*size), rtol=0, atol=1e-6)


def test_the_transform_is_computed_in_float32():
    parser, x = FFParser(3, 8), input_values(1, 3, 8, 8)
    with torch.no_grad():
        expected = parser(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(parser(x), expected)
        assert torch.equal(parser(x.bfloat16()), parser(x.bfloat16().float()))


@pytest.mark.parametrize("size", [(8, 8), (16, 12)])
def test_scripted_equals_eager(size):
    gate, tap = fill(SpectralGate(6, 3, 8)), input_values(2, 6, *size)
    with torch.no_grad():
        assert torch.equal(torch.jit.script(gate)(tap), gate(tap))


def test_gates():
    tap = input_values(2, 6, 8, 8)
    reference, bounded = (fill(SpectralGate(6, 3, 8, gate=gate)) for gate in ("reference", "bounded"))
    with torch.no_grad():
        filtered = reference.parser(reference.projection(tap))
        expected = reference.spatial(filtered) * filtered.mean((2, 3), keepdim=True)
        assert torch.equal(reference(tap), expected)
        torch.testing.assert_close(bounded(tap), 1 + expected.tanh())


def test_a_new_reference_gate_closes_and_a_new_bounded_one_passes():
    torch.manual_seed(0)
    tap = torch.randn(2, 64, 32, 32)
    with torch.no_grad():
        assert SpectralGate(64, 32, 32)(tap).abs().max() < 0.01
        assert (SpectralGate(64, 32, 32, gate="bounded")(tap) - 1).abs().max() < 0.01
        assert SpectralGate(64, 32, 32, "identity")(tap).std() > 0.01


@pytest.mark.parametrize("size", [(8, 8), (12, 16)])
def test_all_weights_learn(size):
    gate = fill(SpectralGate(6, 3, 8))
    gate(input_values(2, 6, *size)).square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in gate.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": 7}, "grid is 7: it must be even"),
        ({"grid": 0}, "grid is 0"),
        ({"ff_init": "ones"}, "ff_init must be one of reference, identity, not 'ones'"),
        ({"gate": "open"}, "gate must be one of reference, bounded, not 'open'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        SpectralGate(**{"tap_channels": 6, "channels": 3, "grid": 8, **arguments})
