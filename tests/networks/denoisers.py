"""What every denoiser promises, as checks that the tests of several networks share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def awaken(network: nn.Module, std: float = 0.1) -> nn.Module:
    """Give every parameter that starts at zero something to do, and every normalisation statistics of its own."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=std)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def parameters_without_gradient(network: nn.Module, *inputs: Tensor) -> list[str]:
    """Names of the parameters that the mean square of the output does not depend on."""
    network(*inputs).square().mean().backward()
    grads = {name: parameter.grad for name, parameter in network.named_parameters()}
    return [name for name, grad in grads.items() if grad is None or not grad.abs().max() > 0]


@torch.no_grad()
def assert_every_input_matters(network: nn.Module, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> None:
    base = network(noisy, timesteps, condition)
    for changed in ((noisy + 0.1, timesteps, condition), (noisy, timesteps, -condition)):
        assert (network(*changed) - base).abs().amax(dim=(0, 2, 3)).max() > 1e-3
    assert (network(noisy, timesteps + 40, condition) - base).abs().max() > 1e-4


@torch.no_grad()
def assert_features_change_nothing(network: nn.Module, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> None:
    """What was encoded once serves instead of the condition, which is then not looked at."""
    features = network.encode_condition(condition)
    assert all(len(feature) == len(condition) for feature in features)
    direct = network(noisy, timesteps, condition)
    assert torch.equal(network(noisy, timesteps, condition, None, features), direct)


@torch.no_grad()
def assert_samples_are_independent(network: nn.Module, *inputs: Tensor) -> None:
    together = network(*inputs)
    alone = [network(*(tensor[i : i + 1] for tensor in inputs)) for i in range(len(inputs[0]))]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def assert_scripted_equals_eager(network: nn.Module, *cases: tuple[Tensor, Tensor, Tensor]) -> None:
    scripted = torch.jit.script(network)
    for noisy, timesteps, condition in cases:
        expected = network(noisy, timesteps, condition)
        torch.testing.assert_close(scripted(noisy, timesteps, condition), expected, rtol=1e-4, atol=1e-5)
        features = scripted.encode_condition(condition)
        for found, eager in zip(features, network.encode_condition(condition), strict=True):
            torch.testing.assert_close(found, eager, rtol=1e-4, atol=1e-5)
        reused = scripted(noisy, timesteps, condition, None, features)
        torch.testing.assert_close(reused, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def assert_autocast_stays_near(network: nn.Module, *inputs: Tensor, share: float = 0.05) -> None:
    """Bfloat16 changes the output, which is float32, by no more than a share of its standard deviation."""
    expected = network(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(*inputs)
    assert found.dtype == torch.float32
    assert (found - expected).square().mean().sqrt() < share * expected.std()
