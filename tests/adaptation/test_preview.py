"""Previews of a generator in training: numbered by the epoch, always of the same noise, nothing disturbed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from monai.networks.schedulers import DDPMScheduler
from PIL import Image

import shared_components.diffusion.schedules  # noqa: F401  registers the schedules
from shared_components.adaptation.preview import SynthesisPreview
from shared_components.diffusion.mask_encoding import MaskEncoding
from shared_components.diffusion.synthesizer import DiffusionSynthesizer
from shared_components.networks.spade_denoiser import SpadeDenoiser


def synthesizer() -> DiffusionSynthesizer:
    torch.manual_seed(0)
    denoiser = SpadeDenoiser(channels=(4, 8), spade_channels=4, time_channels=4)
    return DiffusionSynthesizer(denoiser, DDPMScheduler(300, schedule="linear"), MaskEncoding([1]), 2, sampler="ddpm")


def test_previews(tmp_path):
    """The published previews rewrite the network's statistics, and half of them are overwritten."""
    network = synthesizer().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    mask = torch.zeros(1, 16, 12)
    mask[:, 3] = 1
    preview = SynthesisPreview(tmp_path, network, [{"label": mask}] * 3, num_images=2)
    for epoch in (50, 100):
        preview(SimpleNamespace(state=SimpleNamespace(epoch=epoch)))
    first, second = (np.asarray(Image.open(tmp_path / f"epoch_{epoch:04d}.png")) for epoch in (50, 100))
    assert first.shape == (2 * 12, 2 * 16, 3) and np.array_equal(first, second)
    assert set(np.unique(first[12:, 3])) == {255} and not first[12:, 4].any()
    assert not np.array_equal(first[:12, :16], first[:12, 16:])
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_generated_image_is_the_chain_of_the_functions():
    """`DiffusionSynthesizer` and `sample` are one process: same noise, same image."""
    from shared_components.diffusion.chain import sample
    from shared_components.diffusion.noise import addressed_noise

    network = synthesizer().eval()
    mask = (torch.rand(1, 1, 16, 16) > 0.5).float()

    def noise(draw: int) -> torch.Tensor:
        return addressed_noise(0, draw, torch.tensor([7]), torch.tensor([0]), 1, 16, 16)

    with torch.no_grad():
        image = network(mask, torch.tensor([7]))
        chain = sample(network.denoiser, network.process, noise(0), mask, lambda step, _: noise(step + 1))
    torch.testing.assert_close(image, (chain.clamp(-1, 1) + 1) / 2, atol=1e-6, rtol=0)
