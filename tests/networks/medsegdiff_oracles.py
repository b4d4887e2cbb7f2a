"""For the tests of the MedSegDiff networks: tensors filled by a formula of their flat index, and reference values."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from shared_components.networks.ff_parser import FFParser

CHUNK = 6_000_000  # more elements than any tensor of the networks here


@cache
def uniform_values(count: int = CHUNK) -> Tensor:
    """Pseudo-random values u_i in [0, 1) of i = 0, 1, ..., float64."""
    prime, k = 2**31 - 1, torch.arange(count) + 4099
    return ((k * k % prime * 16807 + 48271 * k + 11) % prime).double() / prime


def _wave(function, step: float, shape: torch.Size) -> Tensor:
    return function(step * torch.arange(shape.numel(), dtype=torch.float64)).reshape(shape)


def input_values(*shape: int) -> Tensor:
    """Input of mean 0 and variance 1: (shape)."""
    values = math.sqrt(3.0) * (2 * uniform_values()[: math.prod(shape)] - 1)
    return values.reshape(shape).float()


@torch.no_grad()
def fill(module: nn.Module) -> nn.Module:
    """Fill every parameter and buffer by the formula of its kind and put the module into eval mode."""
    for layer in module.modules():
        weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            bound = math.sqrt(6.0 * weight.shape[0] / weight.numel())
            weight.copy_(bound * (2 * uniform_values()[: weight.numel()].reshape(weight.shape) - 1))
            if bias is not None:
                bias.copy_(0.02 * _wave(torch.cos, 0.3, bias.shape))
        elif isinstance(layer, (nn.GroupNorm, nn.modules.batchnorm._BatchNorm)):
            weight.copy_(1 + 0.1 * _wave(torch.sin, 0.2, weight.shape))
            bias.copy_(0.05 * _wave(torch.cos, 0.4, bias.shape))
            if not isinstance(layer, nn.GroupNorm):
                layer.reset_running_stats()
        elif isinstance(layer, FFParser):
            weight[..., 0] = (1 + 0.2 * _wave(torch.sin, 0.05, weight.shape[:-1])).float()
            weight[..., 1] = (0.2 * _wave(torch.cos, 0.05, weight.shape[:-1])).float()
        elif isinstance(layer, nn.Embedding):
            weight.copy_(_wave(torch.sin, 0.7, weight.shape))
        else:
            assert not list(layer.parameters(recurse=False)), f"no formula for {type(layer).__name__}"
    return module.eval()


def build_filled(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a large module without initialising it, and fill it."""
    with torch.device("meta"):
        module = build()
    return fill(module.to_empty(device="cpu"))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def assert_values(found: Tensor, mean: float, std: float, values: tuple[float, ...], tolerance: float) -> None:
    """Hold mean, standard deviation and the values at flat index 0, n // 3 and n - 1 to the references."""
    flat = found.detach().flatten()
    picked = flat[[0, flat.numel() // 3, flat.numel() - 1]]
    measured = torch.stack([flat.double().mean().float(), flat.double().std().float(), *picked])
    expected = torch.tensor([mean, std, *values])
    close = torch.isclose(measured, expected, rtol=tolerance, atol=1e-6 if 0.0 in values else 0.0)
    assert torch.all(close), f"{measured.tolist()}, expected {expected.tolist()}"
