"""For the tests of the cDAL networks: published configurations, and weights that depend on shapes alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from shared_components.networks.cdal_blocks import SelfAttention
from shared_components.networks.cdal_discriminator import CDALDiscriminator
from shared_components.networks.cdal_generator import CDALGenerator

SMALL_LEVELS = {"channels": (32, 64, 64, 64), "attention_levels": (False, True, False, False)}
SMALL_LATENT = {"latent_dim": 50, "latent_embedding_dim": 128}
LARGE_LATENT = {"latent_dim": 100, "latent_embedding_dim": 256}

GENERATORS: dict[str, dict[str, Any]] = {
    "hippo": {"in_channels": 3, "condition_channels": 1, "num_res_blocks": 1, **SMALL_LEVELS, **SMALL_LATENT},
    "hippo_sampling": {
        "in_channels": 3,
        "condition_channels": 1,
        "num_res_blocks": 2,
        **SMALL_LEVELS,
        **SMALL_LATENT,
    },
    "lung": {
        "in_channels": 1,
        "condition_channels": 1,
        "channels": (32, 32, 64, 64, 128, 128),
        "num_res_blocks": 1,
        "attention_levels": (False, False, False, False, True, False),
        **LARGE_LATENT,
    },
    "monu": {
        "in_channels": 1,
        "condition_channels": 3,
        "channels": (64, 64, 64, 128, 128, 256, 256),
        "num_res_blocks": 2,
        "attention_levels": (False, False, False, False, True, True, False),
        "num_condition_blocks": 5,
        **LARGE_LATENT,
    },
}

LARGE_DISCRIMINATOR: dict[str, Any] = {
    "in_channels": 1,
    "channels": (128, 256, 512, 512, 512, 512, 512),
    "downsample": (True,) * 6,
    "time_embedding_dim": 256,
    "initialisation": "normal",
}
DISCRIMINATORS: dict[str, dict[str, Any]] = {
    "hippo": {"in_channels": 3},
    "hippo_sampling": {"in_channels": 3, "channels": (64, 64, 128, 256, 256)},
    "lung": LARGE_DISCRIMINATOR,
    "monu": LARGE_DISCRIMINATOR,
}
STEPS = {"hippo": 4, "hippo_sampling": 2, "lung": 2, "monu": 4}
BATCHES = {"hippo": 4, "hippo_sampling": 4, "lung": 2, "monu": 2}
SIZES = {"hippo": 32, "hippo_sampling": 32, "lung": 256, "monu": 256}


def make_generator(name: str) -> CDALGenerator:
    return CDALGenerator(**GENERATORS[name])


def make_discriminator(name: str) -> CDALDiscriminator:
    return CDALDiscriminator(**DISCRIMINATORS[name])


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def name_free_values(shape: tuple[int, ...]) -> Tensor:
    """Values of a tensor that depend on nothing but its shape."""
    size = math.prod(shape)
    values = torch.sin(0.7 * torch.arange(size, dtype=torch.float64) + 0.013 * size)
    scale = math.sqrt(3.0 / (size / shape[0])) if len(shape) >= 2 else 0.1
    return (values * scale).reshape(shape).to(torch.float32)


@torch.no_grad()
def name_free_fill(module: nn.Module) -> nn.Module:
    """Fill every parameter by `name_free_values`; the maps of self-attention count as [in, out] matrices."""
    for parameter in module.parameters():
        parameter.copy_(name_free_values(tuple(parameter.shape)))
    for attention in module.modules():
        if isinstance(attention, SelfAttention):
            for layer in (attention.query, attention.key, attention.value, attention.output):
                layer.weight.copy_(name_free_values(tuple(layer.weight.shape)).T)
    return module


def wave(step: float, *shape: int) -> Tensor:
    """sin(step * j), j the flat index in C order: (shape)."""
    values = torch.sin(step * torch.arange(math.prod(shape), dtype=torch.float64))
    return values.reshape(shape).to(torch.float32)


def oracle_inputs(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(noisy, timesteps, condition, latent) that the reference values belong to."""
    batch, size, arguments = BATCHES[name], SIZES[name], GENERATORS[name]
    noisy = wave(0.37, batch, arguments["in_channels"], size, size)
    condition = wave(0.11, batch, arguments["condition_channels"], size, size)
    return noisy, torch.arange(batch) % STEPS[name], condition, wave(1.3, batch, arguments["latent_dim"])


# Latent embedding: mean, standard deviation, first four; output before and after tanh.
GENERATOR_VALUES: dict[str, dict[str, Any]] = {
    "hippo": {
        "latent": (0.031024, 0.180914),
        "latent_first": (-0.104971, 0.279380, 0.169497, -0.183938),
        "logits": (0.056005, 0.068713),
        "logits_first": (-0.060128, -0.076830, -0.095516, -0.116202),
        "output_mean": 0.055723,
    },
    "hippo_sampling": {
        "latent": (0.031024, 0.180914),
        "latent_first": (-0.104971, 0.279380, 0.169497, -0.183938),
        "logits": (0.058673, 0.061851),
        "logits_first": (0.043175, 0.037974, 0.048220, 0.051318),
        "output_mean": 0.058386,
    },
    "lung": {
        "latent": (0.055724, 0.242233),
        "latent_first": (0.384234, -0.223087, 0.255196, -0.198434),
        "logits": (0.002574, 0.052072),
        "logits_first": (-0.044422, -0.066251, -0.071218, -0.077510),
        "output_mean": 0.002326,
    },
    "monu": {
        "latent": (0.055724, 0.242233),
        "latent_first": (0.384234, -0.223087, 0.255196, -0.198434),
        "logits": (0.001310, 0.013195),
        "logits_first": (-0.027021, -0.062634, -0.096463, -0.138190),
        "output_mean": 0.001314,
    },
}


@torch.no_grad()
def assert_generator_values(generator: CDALGenerator, name: str) -> None:
    """Hold a generator with name-free weights to the reference values, which are printed to six decimals."""
    noisy, timesteps, condition, latent = oracle_inputs(name)
    generator.eval()
    expected = GENERATOR_VALUES[name]
    embedded = generator.embed_latent(latent)
    logits = generator.logits(noisy, timesteps, condition, latent)
    output = generator(noisy, timesteps, condition, latent)
    found = {
        "latent": (embedded.mean(), embedded.std(unbiased=False)),
        "latent_first": embedded.flatten()[:4],
        "logits": (logits.mean(), logits.std(unbiased=False)),
        "logits_first": logits.flatten()[:4],
        "output_mean": output.mean(),
    }
    for key, value in expected.items():
        close = torch.isclose(torch.as_tensor(found[key]), torch.tensor(value), rtol=1e-3, atol=1e-6)
        assert torch.all(close), f"{name} {key}: {found[key]}, expected {value}"
