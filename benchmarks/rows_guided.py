"""Rows c1 and c2: images from label maps in 50 DDIM steps, against the same work one by one, MONAI's and diffusers'."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from monai.inferers import DiffusionInferer
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

from benchmarks.gates import exact_gate
from benchmarks.harness import Gate, Row, measure
from benchmarks.subject import randomise
from shared_components.bundle_tools.published_diffusers import unet_names
from shared_components.diffusion.mask_encoding import MaskEncoding
from shared_components.diffusion.synthesizer import DiffusionSynthesizer
from shared_components.networks.monai_denoiser import MONAIDenoiser

BOUND = 1e-4
STEPS, SIZE, BATCH = 50, 32, 8
GATE_STEPS = 5  # random weights make rounding grow from step to step, beyond any bound in 50
WIDTHS = (32, 32, 64, 64, 96, 96)


def guided_rows(
    pairs: int, seed: int, size: int = SIZE, steps: int = STEPS, batches: tuple[int, ...] = (1, BATCH)
) -> Iterator[Row]:
    """The published network at a quarter of its widths and less, random weights; every batch is a row of its own."""
    torch.manual_seed(seed)
    denoiser = MONAIDenoiser(1, 1, WIDTHS).eval().requires_grad_(False)
    randomise(denoiser)
    scheduler = DDPMScheduler(1000, "linear_beta", beta_start=1e-4, beta_end=0.02)
    encoding = MaskEncoding([1, 2, 3], "legacy255")
    network = DiffusionSynthesizer(denoiser, scheduler, encoding, steps).eval()
    gated = DiffusionSynthesizer(denoiser, scheduler, encoding, GATE_STEPS).eval()
    details = {"kind": "same work", "steps": steps, "size": size, "parameters": _parameters(denoiser)}
    for batch in batches:
        label = torch.randint(0, 4, (batch, 1, size, size), generator=torch.Generator().manual_seed(seed)).float()
        seeds, content = torch.arange(batch), f"{batch} image{'s' if batch > 1 else ''} of {size}x{size}, DDIM-{steps}"
        described = {**details, "batch": batch}

        def ours(label: Tensor = label, seeds: Tensor = seeds) -> Tensor:
            return network(label, seeds)

        if batch > 1:
            yield _one_by_one(content, network, gated, label, ours, described, pairs)
        yield _monai(content, denoiser, label, ours, described, pairs)
        yield _diffusers(content, gated, label, ours, described, pairs)


def _one_by_one(
    content: str,
    network: nn.Module,
    gated: nn.Module,
    label: Tensor,
    ours: Callable[[], Tensor],
    details: Mapping[str, Any],
    pairs: int,
) -> Row:
    def naive(network: nn.Module = network) -> Tensor:
        return torch.cat([network(item[None], torch.tensor([index])) for index, item in enumerate(label)])

    together = gated(label, torch.arange(len(label)))
    gate = exact_gate([naive(gated)], [together], BOUND, f"images after {GATE_STEPS} steps")
    row = Row("c1", content, "own sampler, one image at a time", "cpu", gate, details=dict(details))
    return measure(row, naive, ours, pairs)


def _monai(
    content: str, denoiser: nn.Module, label: Tensor, ours: Callable[[], Tensor], details: Mapping[str, Any], pairs: int
) -> Row:
    scheduler = DDIMScheduler(1000, "linear_beta", beta_start=1e-4, beta_end=0.02, clip_sample=True)
    scheduler.set_timesteps(details["steps"])
    start = torch.randn(label.shape, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def theirs() -> Tensor:
        inferer = DiffusionInferer(scheduler)
        return inferer.sample(start, denoiser.unet, scheduler, mode="concat", conditioning=label / 255, verbose=False)

    gate = Gate(True, "timing only: its few-step DDIM steps to another noise level")
    row = Row("c1", content, "MONAI DiffusionInferer + DDIMScheduler", "cpu", gate, details=dict(details))
    return measure(row, theirs, ours, pairs)


def _diffusers(
    content: str,
    network: DiffusionSynthesizer,
    label: Tensor,
    ours: Callable[[], Tensor],
    details: Mapping[str, Any],
    pairs: int,
) -> Row:
    """The loop of diffusers' ``DDIMPipeline`` with the mask joined to its input, on equal weights and noise."""
    import diffusers

    unet = diffusers.UNet2DModel(
        details["size"],
        in_channels=2,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=WIDTHS,
        down_block_types=["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
    ).eval()
    names = unet_names(network.denoiser)
    unet.load_state_dict({names[name]: value for name, value in network.denoiser.state_dict().items()})
    scheduler = diffusers.DDIMScheduler(1000, beta_start=1e-4, beta_end=0.02)
    seeds, zeros = torch.arange(len(label)), torch.zeros(len(label), dtype=torch.int64)
    start = network.noise(0, seeds, zeros, 1, (label.shape[2], label.shape[3]))

    @torch.no_grad()
    def theirs(steps: int = details["steps"]) -> Tensor:
        scheduler.set_timesteps(steps)
        noisy, mask = start, label / 255
        for timestep in scheduler.timesteps:
            output = unet(torch.cat([noisy, mask], dim=1), timestep).sample
            noisy = scheduler.step(output, timestep, noisy, eta=0.0).prev_sample
        return (noisy / 2 + 0.5).clamp(0, 1)

    text = f"images on equal weights and noise after {GATE_STEPS} steps"
    gate = exact_gate([theirs(GATE_STEPS)], [network(label, seeds)], BOUND, text)
    opponent = f"diffusers {diffusers.__version__} UNet2DModel + DDIMScheduler"
    row = Row("c2", content, opponent, "cpu", gate, details=dict(details))
    return measure(row, theirs, ours, pairs)


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
