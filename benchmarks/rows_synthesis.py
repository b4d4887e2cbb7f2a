"""Row f: an image of AdaptDiff's generator, with the maps of its mask computed once or at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from monai.networks.nets import SPADEDiffusionModelUNet
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, nn

from benchmarks.gates import exact_gate
from benchmarks.harness import Gate, Row, measure
from shared_components.diffusion.chain import sample
from shared_components.diffusion.reverse import ReverseProcess
from shared_components.networks.spade_denoiser import SpadeDenoiser

BOUND = 1e-5
SIZE = 128


class Uncached(nn.Module):
    """The same network, which computes the maps of the mask in every call."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def encode_condition(self, condition: Tensor) -> list[Tensor]:
        return []

    def forward(self, noisy, timesteps, condition, latent=None, features=None) -> Tensor:
        return self.denoiser(noisy, timesteps, condition)


def _monai_image(seed: int, start: Tensor, mask: Tensor, steps: int) -> tuple[Callable[[], Tensor], int]:
    """MONAI's generator of this kind and its ancestral sampler, and its number of parameters."""
    torch.manual_seed(seed)
    network = SPADEDiffusionModelUNet(
        2, 1, 1, label_nc=1, num_res_blocks=(1, 1, 1, 1), channels=(32, 64, 128, 256),
        attention_levels=(False, False, False, False), norm_num_groups=32,
    ).eval()  # fmt: skip
    scheduler = DDPMScheduler(steps)

    @torch.no_grad()
    def run() -> Tensor:
        noisy = start
        for timestep in scheduler.timesteps:
            output = network(noisy, timestep.expand(len(noisy)), mask)
            noisy, _ = scheduler.step(output, int(timestep), noisy)
        return noisy

    return run, sum(parameter.numel() for parameter in network.parameters())


def synthesis_rows(pairs: int, seed: int, steps: int, size: int = SIZE) -> Iterator[Row]:
    """One row for the same network without the cache, one for MONAI's generator of this kind, which is another one.

    The fewer ``steps`` share the maps of the mask, the less the cache saves; the published image takes 300.
    """
    torch.manual_seed(seed)
    denoiser = SpadeDenoiser().eval()
    abar = DDPMScheduler(steps).alphas_cumprod
    process = ReverseProcess(abar, prediction_type="epsilon", clip=(-1, 1))
    start, mask = torch.randn(1, 1, size, size), (torch.rand(1, 1, size, size) > 0.8).float()
    noise = torch.randn(steps, 1, 1, size, size)

    def image(network: nn.Module) -> Tensor:
        return sample(network, process, start, mask, lambda step, _: noise[step])

    ours, naive = (lambda: image(denoiser)), (lambda: image(Uncached(denoiser)))
    parameters = sum(parameter.numel() for parameter in denoiser.parameters())
    gate = exact_gate([naive()], [ours()], BOUND, f"image after {steps} steps")
    row = Row("f", f"AdaptDiff image, {steps} steps, {size}x{size}", "same network, maps at every step", "cpu", gate)
    row.details = {"kind": "same work", "steps": steps, "size": size, "parameters": parameters}
    yield measure(row, naive, ours, pairs)
    peer, peer_parameters = _monai_image(seed, start, mask, steps)
    text = f"timing only: another network of {peer_parameters:,} parameters, ours has {parameters:,}"
    name = "MONAI SPADEDiffusionModelUNet + DDPMScheduler"
    row = Row("f", f"generated image, {steps} steps, {size}x{size}", name, "cpu", Gate(True, text))
    row.details = {"kind": "another network", "steps": steps, "size": size, "parameters": [peer_parameters, parameters]}
    yield measure(row, peer, ours, pairs)
