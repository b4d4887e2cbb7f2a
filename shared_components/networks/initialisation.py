"""Weight initialisation by variance scaling with the fans the published cDAL uses."""

import math

import torch
from torch import Tensor, nn

NEAR_ZERO = 1e-10


def scaled_uniform_(weight: Tensor, fan: str, scale: float = 1.0) -> None:
    """Fill a weight from the uniform distribution on ``+-sqrt(3 * scale / fan)``, in place.

    Args:
        weight: (out, in, *kernel) of a convolution or a linear layer.
        fan: "average" (of fan-in and fan-out) or "out" (fan-out).
        scale: variance times fan. `NEAR_ZERO` makes a layer that starts at almost, but not exactly, nothing.
    """
    receptive_field = math.prod(weight.shape[2:])
    fan_in, fan_out = weight.shape[1] * receptive_field, weight.shape[0] * receptive_field
    size = fan_out if fan == "out" else (fan_in + fan_out) / 2
    bound = math.sqrt(3.0 * scale / size)
    with torch.no_grad():
        weight.uniform_(-bound, bound)


def initialise_layer(layer: nn.Module, fan: str, scale: float = 1.0) -> None:
    """Fill a convolution's or linear layer's weight by `scaled_uniform_`; its bias, if any, with zeros."""
    scaled_uniform_(layer.weight, fan, scale)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
