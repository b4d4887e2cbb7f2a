"""Segmenting by MedSegDiff's networks, in the default and in the published way of sampling."""

from __future__ import annotations

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler
from torch import nn

import shared_components.diffusion.schedules  # noqa: F401  registers the schedules
from shared_components.diffusion.fusion import CalibrationFusion
from shared_components.diffusion.inferers import SamplingInferer
from shared_components.diffusion.label_coding import LabelCoding
from shared_components.diffusion.segmenter import DiffusionSegmenter
from shared_components.errors import InputError
from shared_components.networks.medsegdiff import MedSegDiffV1, MedSegDiffV2
from tests.networks.denoisers import awaken

NETWORKS = {"v1": MedSegDiffV1, "v2": MedSegDiffV2}
IMAGES = torch.rand(2, 3, 20, 13, generator=torch.Generator().manual_seed(1)) * 2 - 1
DEFAULT = {"prediction_type": "sample", "sampler": "ddim", "num_inference_steps": 2, "clip": (-1.0, 1.0)}
PAPER = {"prediction_type": "epsilon", "sampler": "ddpm", "num_inference_steps": 3, "clip": (-1.0, 1.0)}
DPM = {"prediction_type": "epsilon", "sampler": "dpm_solver++", "num_inference_steps": 3, "spacing": "logSNR"}
WAYS = {
    "default": (False, "pm1", None, DEFAULT),
    "paper": (True, "01", CalibrationFusion(), PAPER),
    "paper_dpm": (True, "01", CalibrationFusion("z_score"), {**DPM, "dynamic_threshold": 0.995}),
}


def segmenter(version: str, way: str = "default", **options) -> DiffusionSegmenter:
    learned_variance, value_range, fusion, process = WAYS[way]
    architecture = {"channels": 32, "channel_mult": (1, 1, 1, 1), "num_res_blocks": 1, "attention_factors": (8,)}
    more = {"image_size": 32, "gate": "bounded", "ff_init": "identity"} if version == "v1" else {}
    torch.manual_seed(0)
    denoiser = NETWORKS[version](
        learned_variance=learned_variance, highway_channels=4, highway_norm="group", **architecture, **more
    )
    scheduler = DDPMScheduler(1000, schedule="cosine_double" if way == "default" else "linear_rescaled")
    coding = LabelCoding([1], value_range=value_range)
    options = {"num_samples": 3, "combine": "mean", "mirror_members": True, **process, **options}
    network = DiffusionSegmenter(awaken(denoiser), scheduler, label_coding=coding, fusion=fusion, **options)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("version", NETWORKS)
def test_scripted_equals_eager_whatever_the_chunks(version, way):
    network = segmenter(version, way)
    whole = network(IMAGES)
    assert whole.shape == (2, 2, 20, 13) and torch.isfinite(whole).all()
    torch.testing.assert_close(whole.sum(dim=1), torch.ones(2, 20, 13))
    torch.testing.assert_close(torch.jit.script(network)(IMAGES), whole, atol=1e-4, rtol=0)
    chunked = segmenter(version, way, max_batch_size=2)
    torch.testing.assert_close(chunked(IMAGES), whole, atol=1e-4, rtol=0)
    torch.testing.assert_close(network(IMAGES[1:])[0], whole[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("version", NETWORKS)
def test_the_seed_decides_the_members_and_nothing_else_does(version):
    assert torch.equal(segmenter(version)(IMAGES), segmenter(version)(IMAGES))
    assert not torch.equal(segmenter(version)(IMAGES), segmenter(version, seed=1)(IMAGES))


def test_an_inferer_sets_members_and_steps():
    network = segmenter("v1")
    found = SamplingInferer(num_samples=2, num_inference_steps=1)(IMAGES, network)
    assert torch.equal(found, segmenter("v1", num_samples=2, num_inference_steps=1)(IMAGES))
    assert (network.num_samples, network.num_inference_steps) == (2, 1)
    with pytest.raises(InputError, match="1..1000"):
        SamplingInferer(num_samples=2, num_inference_steps=1001)(IMAGES, network)


class Counter(nn.Module):
    """Counts the calls of the module it stands for."""

    def __init__(self, counted: nn.Module) -> None:
        super().__init__()
        self.counted, self.calls = counted, 0
        self.head = counted.head

    def __call__(self, *inputs):
        self.calls += 1
        return self.counted(*inputs)


@pytest.mark.parametrize(("num_samples", "mirrored", "calls"), [(4, False, 1), (4, True, 2), (1, True, 1)])
def test_the_highway_of_v2_reads_a_view_once_for_all_steps_and_members(num_samples, mirrored, calls):
    network = segmenter("v2", num_samples=num_samples, num_inference_steps=5, mirror_members=mirrored)
    network.denoiser.highway = Counter(network.denoiser.highway)
    network(IMAGES)
    assert network.denoiser.highway.calls == calls
