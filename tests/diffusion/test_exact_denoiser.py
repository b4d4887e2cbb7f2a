"""Segmenting with a denoiser whose samples are known in distribution: samplers agree, members cost time, not memory."""

from __future__ import annotations

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, nn

import shared_components.diffusion.schedules  # noqa: F401  registers the schedules
from shared_components.diffusion.label_coding import LabelCoding
from shared_components.diffusion.segmenter import DiffusionSegmenter

SCHEDULER = DDPMScheduler(1000, schedule="linear_rescaled")
SIZE = 96
SAMPLERS = {
    "ddpm": {"sampler": "ddpm"},
    "ddim": {"sampler": "ddim", "num_inference_steps": 50},
    "dpm": {"sampler": "dpm_solver++", "num_inference_steps": 50, "spacing": "logSNR"},
}


class ExactDenoiser(nn.Module):
    """The noise predicted best where every pixel of the mask is 1 with the probability that the image shows.

    The clean estimate is the posterior mean of a value in {0, 1}, so whatever samples without error returns masks whose
    pixels are 1 with that probability.
    """

    in_channels, latent_dim, downsampling = 1, 0, 1

    def __init__(self) -> None:
        super().__init__()
        self.log_levels = SCHEDULER.alphas_cumprod.double().log()
        self.batches: list[int] = []
        self.encoded: list[int] = []

    def encode_condition(self, condition: Tensor) -> list[Tensor]:
        self.encoded.append(len(condition))
        return [condition]

    def forward(self, noisy, timesteps, condition, latent=None, features=None):
        self.batches.append(len(noisy))
        below = timesteps.floor().long()
        above = (below + 1).clamp(max=len(self.log_levels) - 1)
        log_level = torch.lerp(self.log_levels[below], self.log_levels[above], (timesteps - below).double())
        abar = log_level.exp().float().reshape(-1, 1, 1, 1)
        evidence = abar.sqrt() * (noisy - abar.sqrt() / 2) / (1 - abar)
        clean = torch.sigmoid(torch.logit(condition) + evidence)
        return (noisy - abar.sqrt() * clean) / (1 - abar).sqrt()


def segmenter(**options) -> DiffusionSegmenter:
    coding = LabelCoding([1], value_range="01")
    return DiffusionSegmenter(
        ExactDenoiser(), SCHEDULER, label_coding=coding, prediction_type="epsilon", **options
    ).eval()


def disc() -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    return (rows - SIZE / 2) ** 2 + (columns - SIZE / 2 + 3) ** 2 <= 30**2


def test_samplers_agree_in_dice():
    """A tenth outside and four fifths inside are 1: 2 * 0.8 A / (A + 0.8 A + 0.1 B) is the Dice to be expected."""
    truth = disc()
    inside, outside = int(truth.sum()), int((~truth).sum())
    expected = 1.6 * inside / (1.8 * inside + 0.1 * outside)
    image = torch.where(truth, 0.8, 0.1).reshape(1, 1, SIZE, SIZE)
    found = {}
    for name, options in SAMPLERS.items():
        mask = segmenter(num_samples=1, **options)(image)[0, 1] > 0.5
        found[name] = float(2 * (mask & truth).sum() / (mask.sum() + inside))
    assert found == pytest.approx(dict.fromkeys(SAMPLERS, expected), abs=0.02)
    assert max(found.values()) - min(found.values()) < 0.02


@pytest.mark.parametrize("combine", ["mean", "majority", "staple"])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("mirror_members", [True, False])
def test_more_members_make_more_calls_not_larger_ones(combine, images, mirror_members):
    options = {"combine": combine, "mirror_members": mirror_members, "max_batch_size": 4, **SAMPLERS["ddim"]}
    for members in (2, 8, 40):
        network = segmenter(num_samples=members, **{**options, "num_inference_steps": 3})
        network(torch.full((images, 1, 8, 8), 0.3))
        assert sum(network.denoiser.batches) == 3 * images * members
        assert max(network.denoiser.batches) == min(4, images * members)
        assert max(network.denoiser.encoded) <= min(4, images)
