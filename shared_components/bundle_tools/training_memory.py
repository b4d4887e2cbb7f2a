"""What a denoiser's training takes in memory, measured on a small input."""

from __future__ import annotations

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

_SIDE = 64
_MORE_THAN_ACTIVATIONS = 2.0  # gradients of activations, workspaces, a second pass of roll-outs


def bytes_a_pixel(parser: ConfigParser) -> float:
    """Return what a training step keeps for each pixel of a slice, in bytes.

    The denoiser of a training configuration is run forward once, on one small slice; counted is what autograd saves for
    the backward pass, in single precision, doubled for what comes on top. Nothing is trained.
    """
    parser.update({"device": "cpu", "amp": False})
    network = parser.get_parsed_content("network_def").train()
    parts = ("backbone", "denoiser")
    named = next(part for part in parts if "condition_channels" in (parser.get(part) or {}))
    condition_channels = parser.get_parsed_content(f"{named}#condition_channels")
    parameters = {parameter.data_ptr() for parameter in network.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            seen[tensor.data_ptr()] = max(seen.get(tensor.data_ptr(), 0), tensor.numel() * tensor.element_size())
        return tensor

    held = []  # so that no address is used twice
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: held.append(tensor) or keep(tensor), lambda kept: kept
    ):
        held.append(_forward(network, condition_channels))
    return _MORE_THAN_ACTIVATIONS * sum(seen.values()) / _SIDE**2


def _forward(network: nn.Module, condition_channels: int) -> Tensor | tuple[Tensor, ...]:
    noisy = torch.zeros(1, network.channels, _SIDE, _SIDE, requires_grad=True)
    condition = torch.zeros(1, condition_channels, _SIDE, _SIDE)
    extras = {"latent": torch.zeros(1, network.latent_dim)} if network.latent_dim else {}
    return network.denoiser(noisy, torch.zeros(1, dtype=torch.long), condition, **extras)
