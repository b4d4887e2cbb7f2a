"""MONAI's diffusion U-Net as a denoiser: the published network's size and outputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from shared_components.errors import InputError
from shared_components.networks.monai_denoiser import MONAIDenoiser

SMALL = {"channels": (32, 32, 64, 64, 96, 96), "norm_num_groups": 32}


def pattern_filled(network: nn.Module) -> nn.Module:
    """Weights that depend on tensor shapes alone: cos(1.3 i) / sqrt(fan), biases 0.1 sin i, norms 1 and 0."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            index = torch.arange(module.weight.numel(), dtype=torch.float64)
            fan = module.weight[0].numel()
            module.weight.data = (torch.cos(1.3 * index) / math.sqrt(fan)).reshape(module.weight.shape).float()
            if module.bias is not None:
                module.bias.data = (0.1 * torch.sin(torch.arange(len(module.bias), dtype=torch.float64))).float()
    return network.eval()


def ramps(size: int = 64) -> tuple[Tensor, Tensor]:
    """Test image and mask, each (1, 1, size, size)."""
    ramp = -1 + 2 * torch.arange(size, dtype=torch.float64) / (size - 1)
    rows, columns = ramp[:, None], ramp[None, :]
    image, mask = 0.5 * rows + 0.25 * columns, ((rows + columns).abs() < 0.25) * (2 / 255)
    return image[None, None].float(), mask[None, None].float()


@pytest.mark.parametrize(
    ("image", "condition", "count"),
    [(1, 0, 113_668_609), (1, 1, 113_669_761), (3, 0, 113_673_219), (3, 1, 113_674_371)],
)
def test_it_has_as_many_parameters_as_the_published_network(image: int, condition: int, count: int) -> None:
    with torch.device("meta"):
        network = MONAIDenoiser(in_channels=image, condition_channels=condition)
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    assert len(network.state_dict()) == 450


@pytest.mark.parametrize(
    ("timestep", "expected"),
    [
        (0, (0.00429213, 0.112236, 0.0324415, 9.44208e-5)),
        (500, (0.0042903, 0.112215, 0.0325006, 9.43e-5)),
        (999, (0.00427306, 0.112085, 0.0328899, 9.50e-5)),
    ],
)
def test_its_outputs_are_those_of_the_published_network(timestep: int, expected: tuple[float, ...]) -> None:
    image, mask = ramps()
    assert (mask > 0).sum() == 904
    with torch.no_grad():
        output = pattern_filled(MONAIDenoiser(**SMALL))(image, torch.tensor([timestep]), mask)
    found = (output.mean(), output.std(), output[0, 0, 0, 0], output[0, 0, 31, 40])
    assert torch.allclose(torch.stack(found), torch.tensor(expected), rtol=0, atol=5e-5)


def test_a_new_network_predicts_zero_so_its_first_loss_is_that_of_the_noise() -> None:
    noise = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = MONAIDenoiser(**SMALL)(noise, torch.tensor([3, 777]), torch.zeros(2, 1, 32, 32))
    assert torch.equal(output, torch.zeros_like(noise))


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_images_of_any_number_of_channels_and_their_variance(channels: int) -> None:
    network = MONAIDenoiser(channels, 3, (8, 16), 1, (False, False), norm_num_groups=8, learned_variance=True)
    torch.manual_seed(0)
    noisy, condition = torch.randn(2, channels, 8, 12), torch.randn(2, 3, 8, 12)
    output = pattern_filled(network)(noisy, torch.tensor([0, 5]), condition)
    assert output.shape == (2, 2 * channels, 8, 12)
    alone = network(noisy[1:], torch.tensor([5]), condition[1:])
    torch.testing.assert_close(output[1:], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(output, network(noisy, torch.tensor([0, 5]), torch.zeros_like(condition)))


def test_the_timestep_scale_is_applied_before_the_embedding() -> None:
    noisy = torch.randn(1, 1, 8, 8)
    plain = pattern_filled(MONAIDenoiser(1, 0, (8, 8), 1, (False, False), norm_num_groups=8))
    scaled = pattern_filled(MONAIDenoiser(1, 0, (8, 8), 1, (False, False), norm_num_groups=8, timestep_scale=10.0))
    assert torch.equal(plain(noisy, torch.tensor([30])), scaled(noisy, torch.tensor([3])))


def test_sizes_are_multiples_of_its_downsampling() -> None:
    network = MONAIDenoiser(condition_channels=0, **SMALL)
    assert network.downsampling == 32
    for size in (32, 64, 96):
        assert network(torch.zeros(1, 1, size, 32), torch.tensor([0])).shape == (1, 1, size, 32)
    with pytest.raises(ValueError, match="48.*multiples of 32"):
        network(torch.zeros(1, 1, 48, 48), torch.tensor([0]))


def test_mistakes_are_told() -> None:
    with pytest.raises(InputError, match="attention_levels has 1 entries, channels has 2"):
        MONAIDenoiser(channels=(32, 32), attention_levels=(True,))
    with pytest.raises(InputError, match="multiple of norm_num_groups 32"):
        MONAIDenoiser(channels=(32, 48), attention_levels=(True, False))
    for channels, attention in (((16, 24), (False, False)), ((24, 16), (True, False))):
        with pytest.raises(InputError, match="multiple of num_head_channels 16"):
            MONAIDenoiser(channels=channels, attention_levels=attention, num_head_channels=16, norm_num_groups=8)
    MONAIDenoiser(channels=(24, 16), attention_levels=(False, False), num_head_channels=16, norm_num_groups=8)
    with pytest.raises(ValueError, match="condition of 1 channels"):
        MONAIDenoiser(1, 1, (8,), 1, (False,), norm_num_groups=8)(torch.zeros(1, 1, 8, 8), torch.tensor([0]))


def test_it_traces() -> None:
    network = pattern_filled(MONAIDenoiser(1, 1, (8, 16), 1, (False, True), norm_num_groups=8))
    inputs = (torch.randn(1, 1, 8, 8), torch.tensor([7]), torch.randn(1, 1, 8, 8))
    assert torch.allclose(torch.jit.trace(network, inputs)(*inputs), network(*inputs), atol=1e-6)
