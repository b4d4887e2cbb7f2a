"""The naive path calculates what the project calculates."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

import shared_components.diffusion.schedules  # noqa: F401  (registers the schedule)
from benchmarks.naive import (
    FILTERS,
    NaiveDownsample,
    NaiveSegmenter,
    NaiveStridedConv,
    NaiveUpsample,
    column_inferer,
    cube_inferer,
    ema_loop,
    use_naive_filters,
    voxel_staple,
)
from benchmarks.rows_staple import staple_rows, votes_of
from benchmarks.subject import randomise
from shared_components.diffusion.segmenter import DiffusionSegmenter
from shared_components.ensembling.staple import staple
from shared_components.networks.cdal_discriminator import CDALDiscriminator
from shared_components.networks.cdal_generator import CDALGenerator
from shared_components.networks.fir import FIRDownsample, FIRStridedConv, FIRUpsample


def segmenter(**settings) -> DiffusionSegmenter:
    torch.manual_seed(3)
    denoiser = CDALGenerator(
        in_channels=3,
        condition_channels=3,
        channels=(8, 8, 16),
        attention_levels=(False, False, False),
        num_condition_blocks=1,
        condition_norm_groups=4,
        latent_dim=5,
        latent_embedding_dim=8,
        output_activation="softmax",
    )
    randomise(denoiser)
    scheduler = DDPMScheduler(2, schedule="vp_few_step")
    settings = {"num_samples": 2, "num_adjacent_slices": 1, "combine": "mean", **settings}
    return DiffusionSegmenter(denoiser, scheduler, **settings).eval()


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("size", [(8, 8), (12, 20)])
def test_filters_equal_the_modules(size, filters):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    strided = FIRStridedConv(3, 4).double()
    pairs = [
        (FIRDownsample(3).double(), NaiveDownsample(filters)),
        (FIRUpsample(3).double(), NaiveUpsample(filters)),
        (strided, NaiveStridedConv(filters, strided.conv)),
    ]
    for module, naive in pairs:
        assert torch.allclose(module(x), naive(x), atol=1e-12)


def test_no_filter_of_the_project_is_left():
    network = use_naive_filters(segmenter(), FILTERS[0])
    assert not [m for m in network.modules() if isinstance(m, (FIRDownsample, FIRUpsample, FIRStridedConv))]
    assert [m for m in network.modules() if isinstance(m, NaiveUpsample)]


def test_discriminator_keeps_its_verdict():
    torch.manual_seed(0)
    network = CDALDiscriminator(in_channels=3, channels=(8, 8, 16), downsample=(True, True))
    randomise(network)
    naive = use_naive_filters(copy.deepcopy(network), FILTERS[0])
    maps = torch.randn(2, 4, 3, 16, 16)
    t = torch.tensor([0, 1, 1, 0])
    assert torch.allclose(network(maps[0], t, maps[1]), naive(maps[0], t, maps[1]), atol=1e-4)


@pytest.mark.parametrize("mirror_members", [False, True])
@torch.no_grad()
def test_one_vote_at_a_time_equals_all_at_once(mirror_members):
    network, image = segmenter(num_samples=3, mirror_members=mirror_members), torch.randn(2, 1, 13, 18, 5)
    assert (NaiveSegmenter(network, FILTERS[1])(image) - network(image)).abs().max() < 1e-4


@torch.no_grad()
def test_windows_that_cover_the_volume_change_nothing():
    network, image = segmenter(), torch.randn(1, 1, 32, 32, 32)
    whole = network(image)
    assert (cube_inferer()(image, NaiveSegmenter(network, FILTERS[1])) - whole).abs().max() < 1e-4
    assert (column_inferer()(image, network) - whole).abs().max() < 1e-4


@torch.no_grad()
def test_windows_at_once_change_nothing():
    network, image = segmenter(num_samples=1), torch.randn(1, 1, 32, 36, 34)
    assert (cube_inferer(4)(image, network) - cube_inferer(1)(image, network)).abs().max() < 1e-4


def test_average_of_one_parameter_at_a_time():
    weights, averages = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    weights.weight.data.fill_(3.0)
    averages.weight.data.fill_(1.0)
    ema_loop(averages, weights, 0.25)
    assert averages.weight.item() == 1.5


def test_staple_over_voxels_equals_patterns():
    votes = votes_of(5, (16, 16), seed=0)
    assert (voxel_staple(votes) - staple(votes)).abs().max() < 1e-6


def test_staple_rows_pass_their_gates():
    pytest.importorskip("itk")
    rows = list(staple_rows(1, 0, raters=(3,), shapes=((24, 24),)))
    assert [row.opponent for row in rows] == ["itk.STAPLEImageFilter", "EM over voxels in torch"]
    assert all(row.gate.passed and row.ratio()["ratio"] > 0 for row in rows)
