"""The blocks of the MedSegDiff denoiser against their reference values and the properties they promise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from shared_components.errors import InputError
from shared_components.networks.medsegdiff_blocks import (
    Downsample,
    GroupNorm32,
    ResidualBlock,
    SelfAttention,
    Step,
    TimeEmbedding,
    Upsample,
)
from tests.networks.medsegdiff_oracles import assert_values, fill, input_values, uniform_values

# Mean, standard deviation, and the values at flat index 0, n // 3 and n - 1.
RESIDUAL_VALUES = {
    "wider": ((32, 64, 16), {}, 0.0073794, 1.53602, (1.082, 2.33523, 0.582868)),
    "scale-shift": (
        (32, 64, 16),
        {"use_scale_shift_norm": True},
        0.035216,
        2.02502,
        (0.735365, 3.7288, 0.0339633),
    ),
    "up": ((32, 32, 16), {"resample": "up"}, 0.00883888, 1.32568, (0.0334121, -2.38637, 0.81742)),
    "down": ((32, 32, 16), {"resample": "down"}, 0.00817637, 0.938021, (0.0148635, 0.12772, 0.996167)),
}


def test_the_formula_of_the_reference_tensors():
    expected = torch.tensor([0.5892359142, 0.6534267938, 0.7176333259], dtype=torch.float64)
    torch.testing.assert_close(uniform_values()[:3], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", RESIDUAL_VALUES)
def test_reference_values_of_residual_blocks(name):
    arguments, options, *values = RESIDUAL_VALUES[name]
    block, time = fill(ResidualBlock(*arguments, **options)), F.silu(input_values(1, 16))
    assert_values(block(input_values(1, 32, 8, 8), time), *values, tolerance=1e-4)


def test_reference_values_of_attention():
    x = input_values(1, 64, 4, 4)
    default, new = (fill(SelfAttention(64, 2, order))(x) for order in (False, True))
    assert_values(default, -0.0644468, 1.8456, (1.50159, 0.303461, 0.31108), 1e-4)
    assert_values(new, 0.0227497, 1.68837, (1.7486, -0.53933, 0.913401), 1e-4)


def test_reference_values_of_resampling():
    x, time = input_values(1, 32, 8, 8), torch.zeros(1, 16)
    down, up = fill(Downsample(32))(x, time), fill(Upsample(32))(x, time)
    assert (down.shape, up.shape) == ((1, 32, 4, 4), (1, 32, 16, 16))
    assert_values(down, 0.0386551, 1.57016, (1.30273, -3.04844, -2.08279), 1e-4)
    assert_values(up, -0.00204601, 1.28298, (0.363788, 1.45071, -0.522744), 1e-4)


@pytest.mark.parametrize("scripted", [False, True])
def test_time_embedding_starts_with_cosines(scripted):
    embedding = TimeEmbedding(8)
    expected = torch.tensor(
        [
            [1, 1, 1, 1, 0, 0, 0, 0],
            [0.540302, 0.995004, 0.99995, 0.9999995, 0.841471, 0.0998334, 0.00999983, 0.000999999],
            [0.99965, 0.807455, -0.84447, 0.541144, -0.0264608, -0.589929, -0.535603, 0.840923],
        ]
    )
    # both layers hand on what they get
    with torch.no_grad():
        for layer in (embedding.linear1, embedding.linear2):
            layer.weight.zero_().fill_diagonal_(1.0)
            layer.bias.zero_()
        embedding.linear1.bias.fill_(20.0)  # where SiLU is the identity
    network = torch.jit.script(embedding) if scripted else embedding
    found = network(torch.tensor([0, 1, 999]))[:, :8]
    torch.testing.assert_close(found - 20, expected, rtol=0, atol=1e-5)


def test_timesteps_are_scaled_before_they_are_embedded():
    torch.manual_seed(0)
    plain = TimeEmbedding(32)
    scaled = TimeEmbedding(32, timestep_scale=2.5)
    scaled.load_state_dict(plain.state_dict())
    assert torch.equal(scaled(torch.tensor([100, 3])), plain(torch.tensor([250.0, 7.5])))
    assert not torch.equal(scaled(torch.tensor([100])), plain(torch.tensor([100])))


def test_class_labels_are_added_to_the_embedding():
    embedding, timesteps = TimeEmbedding(32, num_classes=3), torch.tensor([5, 5])
    with torch.no_grad():
        without = embedding(timesteps)
        embedding.label_embedding.weight[1] = 0
        labelled = embedding(timesteps, torch.tensor([1, 2]))
    assert torch.equal(labelled[0], without[0])
    assert (labelled[1] - without[1]).abs().max() > 0.1
    with pytest.raises(ValueError, match="class_labels are given to a network without classes"):
        TimeEmbedding(32)(timesteps, torch.tensor([1, 2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_normalisation_is_computed_in_float32(dtype):
    x = (input_values(2, 64, 4, 4) + 30).to(dtype)
    norm = GroupNorm32(64)
    expected = F.group_norm(x.double(), 32, eps=1e-5)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = norm(x)
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.double(), expected.to(dtype).double(), rtol=0, atol=tolerance)


def test_softmax_of_attention_is_taken_in_float32():
    attention = fill(SelfAttention(64, 2))
    x = input_values(1, 64, 8, 8)
    with torch.no_grad():
        exact = attention(x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = attention(x)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.03 * exact.std()


@pytest.mark.parametrize("options", [{}, {"use_scale_shift_norm": True}])
def test_a_new_block_is_its_shortcut(options):
    torch.manual_seed(0)
    x, time = torch.randn(2, 32, 8, 8), torch.randn(2, 16)
    assert torch.equal(ResidualBlock(32, 32, 16, **options)(x, time), x)
    wider = ResidualBlock(32, 64, 16, **options)
    assert torch.equal(wider(x, time), wider.shortcut(x))
    down = ResidualBlock(32, 32, 16, **options, resample="down")
    assert torch.equal(down(x, time), F.avg_pool2d(x, 2))
    up = ResidualBlock(32, 32, 16, **options, resample="up")
    assert torch.equal(up(x, time), x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert torch.equal(SelfAttention(32, 4)(x), x)


def test_checkpointing_changes_nothing_but_the_memory():
    calls, results = [], []
    for use_checkpoint in (False, True):
        step = fill(Step(ResidualBlock(32, 64, 16, dropout=0.3), SelfAttention(64), use_checkpoint)).train()
        step.residual.register_forward_hook(lambda *_: calls.append(use_checkpoint))  # noqa: B023
        torch.manual_seed(1)
        output = step(input_values(1, 32, 8, 8), input_values(1, 16))
        output.square().mean().backward()
        results.append([output.detach()] + [parameter.grad for parameter in step.parameters()])
    assert calls == [False, True, True]
    assert all(torch.equal(kept, recomputed) for kept, recomputed in zip(*results))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GroupNorm32(48), "a feature width of 48 cannot be normalised in 32 groups: choose channels"),
        (lambda: SelfAttention(64, 3), "a feature width of 64 cannot be shared by 3 attention heads"),
        (lambda: SelfAttention(64, 0), "shared by 0 attention heads"),
    ],
)
def test_widths_that_do_not_fit_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()
