"""A small network learns to paint discs from their label maps: images follow the map, and a class can be left out."""

from __future__ import annotations

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor

from shared_components.diffusion.hybrid_loss import DenoisingLoss, HybridLoss
from shared_components.diffusion.image_batch import ImageDenoisingPrepareBatch
from shared_components.diffusion.mask_encoding import MaskEncoding
from shared_components.diffusion.synthesizer import DiffusionSynthesizer
from shared_components.networks.monai_denoiser import MONAIDenoiser

pytestmark = pytest.mark.slow

STEPS = 200


def discs(count: int, generator: torch.Generator) -> Tensor:
    """Label maps (count, 1, 32, 32) with a disc of class 1 on the left and one of class 2 on the right."""
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    label = torch.zeros(count, 1, 32, 32)
    for value, middle in ((1, 8), (2, 24)):
        centre = (
            torch.rand(count, 2, 1, 1, generator=generator) * 6 - 3 + torch.tensor([16.0, middle]).reshape(1, 2, 1, 1)
        )
        radius = torch.rand(count, 1, 1, generator=generator) * 2 + 4
        inside = ((rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2).sqrt() < radius
        label[:, 0][inside] = value
    return label


def painted(label: Tensor, generator: torch.Generator) -> Tensor:
    return (0.2 + 0.3 * label + 0.05 * torch.randn(label.shape, generator=generator)).clamp(0, 1)


def trained(generator: torch.Generator, prediction_type: str) -> DiffusionSynthesizer:
    torch.manual_seed(0)
    scheduler, encoding = DDPMScheduler(1000, "linear_beta", beta_start=1e-4, beta_end=0.02), MaskEncoding([1, 2])
    denoiser = MONAIDenoiser(1, 2, (8, 16, 32), 1, (False, False, False), norm_num_groups=8)
    prepare = ImageDenoisingPrepareBatch(scheduler, encoding, ablation=0.25, prediction_type=prediction_type)
    loss = DenoisingLoss(HybridLoss(scheduler, prediction_type, learned_variance=False))
    optimizer = torch.optim.AdamW(denoiser.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, STEPS)
    for _ in range(STEPS):
        label = discs(8, generator)
        noisy, targets, arguments, _ = prepare({"image": painted(label, generator), "label": label})
        optimizer.zero_grad()
        loss(denoiser(noisy, *arguments), targets).backward()
        optimizer.step()
        schedule.step()
    options = {"num_inference_steps": 10, "prediction_type": prediction_type}
    return DiffusionSynthesizer(denoiser, scheduler, encoding, **options).eval()


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_images_follow_their_label_maps(prediction_type: str) -> None:
    generator = torch.Generator().manual_seed(0)
    network, label = trained(generator, prediction_type).requires_grad_(False), discs(16, generator)
    images = network(label, torch.arange(16))
    means = [float(images[label == value].mean()) for value in (0, 1, 2)]
    assert means[0] < means[1] - 0.1 < means[2] - 0.2
    for value, half, level in ((1, slice(0, 16), 0.35), (2, slice(16, 32), 0.5)):  # half way from the background
        found, wanted = images[..., half] > level, label[..., half] == value
        assert 2 * (found & wanted).sum() / (found.sum() + wanted.sum()) > 0.8
    # what the map leaves out is filled in by what is plausible, here a disc in its half; what it holds stays
    without = network(torch.where(label == 2, 0, label), torch.arange(16))
    assert abs(float(without[label == 1].mean()) - means[1]) < 0.1
