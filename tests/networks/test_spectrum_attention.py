"""Spectrum-space attention against plain attention, and the properties its transformer promises."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shared_components.errors import InputError
from shared_components.networks.spectrum_attention import (
    NeuralBandPassFilter,
    SpectrumAttention,
    SpectrumTransformer,
    centred_frequencies,
    filtered_affinity,
)

FULLY_OPEN = 100.0


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tiny(seed: int = 0, **arguments) -> SpectrumTransformer:
    """A transformer all of whose parameters do something."""
    torch.manual_seed(seed)
    options = {"num_heads": 2, "grid_size": 4, "filter_channels": 8, "filter_layers": 2}
    network = SpectrumTransformer(8, 6, 12, **{**options, **arguments})
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    return network.eval()


def tiny_inputs(batch: int = 3, height: int = 4, width: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Maps, two time embeddings and which of them each sample has."""
    maps = noise(batch, 8, height, width), noise(batch, 6, height, width, seed=1)
    return *maps, noise(2, 12, seed=2), torch.arange(batch) % 2


@pytest.mark.parametrize("size", [(4, 4), (4, 6), (5, 3), (1, 1)])
def test_an_open_band_gives_plain_affinities(size):
    query, key = noise(1, 1, *size, 8, dtype=torch.float64), noise(1, 1, *size, 8, seed=1, dtype=torch.float64)
    positions = math.prod(size)
    found = filtered_affinity(query, key, torch.ones(1, positions, positions, dtype=torch.float64))
    expected = query.flatten(2, 3) @ key.flatten(2, 3).transpose(2, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def complex_affinity(query: Tensor, key: Tensor, band: Tensor) -> Tensor:
    """The definition, with dense transforms and the imaginary part: (H, W, D) maps to (N, N)."""
    height, width, _ = query.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rows, columns = rows.flatten().double(), columns.flatten().double()
    angles = torch.outer(rows, rows) / height + torch.outer(columns, columns) / width
    transform = torch.polar(torch.ones_like(angles), -2 * math.pi * angles) / math.sqrt(height * width)
    spectra = [transform @ tensor.flatten(0, 1).to(transform.dtype) for tensor in (query, key)]
    return transform.mH @ (band * (spectra[0] @ spectra[1].mH)) @ transform


@pytest.mark.parametrize("size", [(4, 4), (3, 4)])
def test_the_definition_with_dense_transforms(size):
    query, key = noise(*size, 8, dtype=torch.float64), noise(*size, 8, seed=1, dtype=torch.float64)
    positions = math.prod(size)
    ones = torch.ones(positions, positions, dtype=torch.float64)
    assert complex_affinity(query, key, ones).imag.abs().max() < 1e-12
    band = torch.sigmoid(noise(positions, positions, seed=2, dtype=torch.float64))
    expected = complex_affinity(query, key, band)
    assert expected.imag.abs().max() > 1e-2
    found = filtered_affinity(query[None, None], key[None, None], band[None])[0, 0]
    torch.testing.assert_close(found, expected.real, rtol=0, atol=1e-12)


def test_a_band_that_passes_zero_frequency_alone_gives_the_affinity_of_the_means():
    query, key = noise(1, 1, 4, 4, 8), noise(1, 1, 4, 4, 8, seed=1)
    band = torch.zeros(1, 16, 16)
    band[0, 0, 0] = 1
    expected = (query.mean(dim=(2, 3)) * key.mean(dim=(2, 3))).sum()
    torch.testing.assert_close(filtered_affinity(query, key, band), expected.expand(1, 1, 16, 16))


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (2, 3), (1, 2), (1, 1)])
def test_coordinates_are_odd_and_zero_at_zero_frequency(size):
    line, back = centred_frequencies(*size, torch.device("cpu"))
    coordinates = line[back].reshape(size)
    assert coordinates[0, 0] == 0 and coordinates.abs().max() <= 1
    assert len(set(coordinates.flatten().tolist())) == math.prod(size)
    opposite = coordinates.roll((-1, -1), (0, 1)).flip(0, 1)
    own_opposite_rows = torch.arange(size[0])[:, None] * 2 == size[0]
    own_opposite_columns = torch.arange(size[1])[None, :] * 2 == size[1]
    elsewhere = ~(own_opposite_rows | own_opposite_columns)
    torch.testing.assert_close(opposite[elsewhere], -coordinates[elsewhere])


def test_a_new_filter_is_open_and_then_depends_on_the_step():
    torch.manual_seed(0)
    band = NeuralBandPassFilter(16)
    with torch.no_grad():
        values = band(noise(2, 16), 4, 4)
    assert values.shape == (2, 16, 16)
    assert 0.9 < values.min() and values.max() < 1 and values.mean().item() == pytest.approx(0.98, abs=0.01)
    assert (values[0] - values[1]).abs().max() > 1e-4
    assert (values - values.transpose(1, 2)).abs().max() > 1e-4


def test_a_filter_is_made_of_the_layers_it_describes():
    torch.manual_seed(0)
    band, time, (height, width) = NeuralBandPassFilter(6, 4, 3), noise(1, 6), (2, 3)
    line, back = centred_frequencies(height, width, time.device)
    plane = torch.stack([line[:, None].expand(6, 6), line[None, :].expand(6, 6)])[None]
    for conv, modulation in zip(band.convs, band.modulations):
        plane = conv(plane)
        plane = (plane - plane.mean(dim=1)) / torch.sqrt(plane.var(dim=1, unbiased=False) + 1e-5)
        scale, shift = modulation(time).reshape(2, 1, 4, 1, 1)
        plane = torch.relu(plane * (1 + scale) + shift)
    expected = torch.sigmoid(band.output(plane))[:, 0][:, back][:, :, back]
    torch.testing.assert_close(band(time, height, width), expected)


def test_an_open_filter_makes_ordinary_attention():
    torch.manual_seed(0)
    module = SpectrumAttention(8, 12, num_heads=2, filter_channels=4, filter_layers=1)
    with torch.no_grad():
        module.output.weight.normal_()
        module.band.output.bias.fill_(FULLY_OPEN)
        x, context = noise(2, 3, 4, 8), noise(2, 3, 4, 8, seed=1)
        found = module(x, context, noise(1, 12), torch.zeros(2, dtype=torch.int64))
        attended = module.context_norm(context)
        tokens = [module.query(module.query_norm(x)), module.key(attended), module.value(attended)]
        heads = [token.reshape(2, 12, 2, 4).transpose(1, 2) for token in tokens]
        gathered = F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(2, 3, 4, 8)
        expected = x + module.output(gathered)
        torch.testing.assert_close(found, expected + module.perceptron(expected))


def test_without_a_normaliser_attention_is_linear_in_the_queries_length():
    torch.manual_seed(0)
    module = SpectrumAttention(8, 12, num_heads=2, normaliser="none", filter_channels=4, filter_layers=1)
    rows = torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        module.output.weight.normal_()
        module.perceptron[3].weight.zero_()
        module.perceptron[3].bias.zero_()
        x, context = noise(2, 3, 4, 8), noise(2, 3, 4, 8, seed=1)
        once = module(x, context, noise(1, 12), rows) - x
        module.query.weight.mul_(2)
        torch.testing.assert_close(module(x, context, noise(1, 12), rows) - x, 2 * once)
    assert once.abs().max() > 0.1


@pytest.mark.parametrize("order", ["noise_first", "condition_first"])
def test_a_new_transformer_changes_nothing(order):
    torch.manual_seed(0)
    network = SpectrumTransformer(16, 6, 12, grid_size=4, ss_order=order)
    maps = noise(2, 16, 4, 4), noise(2, 6, 4, 4, seed=1)
    with torch.no_grad():
        assert torch.equal(network(*maps, noise(1, 12), torch.zeros(2, dtype=torch.int64)), maps[0])


def test_every_input_matters():
    network, (x, condition, time, rows) = tiny(), tiny_inputs()
    with torch.no_grad():
        base = network(x, condition, time, rows)
        changed = [
            network(x.flip(3), condition, time, rows) - x.flip(3) + x,
            network(x, -condition, time, rows),
            network(x, condition, -time, rows),
            network(x, condition, time, 1 - rows),
        ]
    assert all((other - base).abs().max() > 1e-4 for other in changed)


def test_orders_normalisers_and_blocks_differ():
    inputs = tiny_inputs()
    variants = [{}, {"ss_order": "condition_first"}, {"normaliser": "none"}, {"num_blocks": 3}]
    with torch.no_grad():
        outputs = [tiny(**variant)(*inputs) for variant in variants]
    assert all((output - outputs[0]).abs().max() > 1e-3 for output in outputs[1:])


@pytest.mark.parametrize(("order", "silent"), [("noise_first", "first"), ("condition_first", "second")])
def test_whose_queries_come_first(order, silent):
    """A module whose attention is silent returns its queries alone: of these two they are the noise embedding's."""
    x, condition, time, rows = tiny_inputs()
    for name in ("first", "second"):
        network = tiny(ss_order=order, num_blocks=1)
        with torch.no_grad():
            getattr(network.blocks[0], name).output.weight.zero_()
            difference = network(x, condition, time, rows) - network(x, -condition, time, rows)
        assert (difference.abs().max().item() < 1e-6) is (name == silent)


def test_samples_of_a_batch_are_independent_and_share_the_bands_of_their_steps():
    network, (x, condition, time, rows) = tiny(), tiny_inputs()
    with torch.no_grad():
        together = network(x, condition, time, rows)
        own = network(x, condition, time[rows], torch.arange(3))
        samples = [(x[i : i + 1], condition[i : i + 1], time[rows[i : i + 1]]) for i in range(3)]
        alone = torch.cat([network(*sample, torch.zeros(1, dtype=torch.int64)) for sample in samples])
    torch.testing.assert_close(together, own, rtol=0, atol=1e-6)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (2, 6), (3, 1)])
def test_other_grids(size):
    with torch.no_grad():
        output = tiny()(*tiny_inputs(3, *size))
    assert output.shape == (3, 8, *size) and torch.isfinite(output).all()


@pytest.mark.parametrize("order", ["noise_first", "condition_first"])
def test_all_parameters_learn(order):
    network = tiny(ss_order=order).train()
    network(*tiny_inputs()).square().mean().backward()
    without = [name for name, parameter in network.named_parameters() if not parameter.grad.abs().max() > 0]
    assert without == []


@pytest.mark.parametrize("arguments", [{}, {"ss_order": "condition_first", "normaliser": "none"}])
def test_scripted_equals_eager(arguments):
    network = tiny(**arguments)
    scripted = torch.jit.script(network)
    with torch.no_grad():
        for inputs in (tiny_inputs(), tiny_inputs(2, 3, 6)):
            torch.testing.assert_close(scripted(*inputs), network(*inputs), rtol=0, atol=1e-6)


def test_bfloat16_autocast_stays_near_single_precision():
    network, inputs = tiny(), tiny_inputs()
    with torch.no_grad():
        expected = network(*inputs)
        with torch.autocast("cpu", torch.bfloat16):
            found = network(*inputs)
    assert (found - expected).abs().max() < 0.05 * (expected - inputs[0]).abs().max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_blocks": 0}, "num_blocks is 0: choose 1 to 6"),
        ({"num_blocks": 7}, "num_blocks is 7: choose 1 to 6"),
        ({"num_heads": 3}, r"channels is 8: it must be a multiple of num_heads \(3\)"),
        ({"ss_order": "both"}, "noise_first, condition_first, not 'both'"),
        ({"normaliser": "sine"}, "softmax, none, not 'sine'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        tiny(**arguments)
