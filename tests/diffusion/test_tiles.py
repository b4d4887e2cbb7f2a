from __future__ import annotations

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, nn

import shared_components.diffusion.schedules  # noqa: F401  registers the schedule
from shared_components.diffusion.segmenter import DiffusionSegmenter
from shared_components.diffusion.tiles import TiledDenoiser
from shared_components.errors import InputError


class Pointwise(nn.Module):
    """Sees one pixel at a time, so that tiles change nothing."""

    in_channels, latent_dim, downsampling = 2, 3, 4
    learned_variance, calibrated = False, True

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(1, 5, 1)
        self.output = nn.Conv2d(2 + 1 + 5, 4, 1)
        self.calls: list[int] = []

    def encode_condition(self, condition: Tensor) -> list[Tensor]:
        return [self.encoder(condition), condition.mean(dim=1)]

    def forward(self, noisy, timesteps, condition, latent=None, condition_features=None):
        self.calls.append(len(noisy))
        features = self.encode_condition(condition) if condition_features is None else condition_features
        shift = timesteps.float() + latent.sum(dim=1)
        output = self.output(torch.cat([noisy, condition, features[0]], dim=1))
        return output + features[1].unsqueeze(1) + shift.reshape(-1, 1, 1, 1)


class Blurring(nn.Module):
    in_channels, latent_dim, downsampling = 2, 0, 2

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 5, padding=2)

    @torch.jit.export
    def encode_condition(self, condition: Tensor) -> list[Tensor]:
        return [condition]

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        condition: Tensor,
        latent: torch.Tensor | None = None,
        condition_features: list[Tensor] | None = None,
    ) -> Tensor:
        return torch.tanh(self.conv(torch.cat([noisy, condition], dim=1)))


@pytest.mark.parametrize("size", [(8, 8), (8, 20), (21, 33)])
@torch.no_grad()
def test_a_pointwise_denoiser_does_not_see_the_tiles(size):
    torch.manual_seed(0)
    denoiser = Pointwise()
    tiled = TiledDenoiser(denoiser, tile_size=8, overlap=0.25, max_batch_size=5)
    noisy, condition = torch.randn(3, 2, *size), torch.randn(3, 1, *size)
    timesteps, latent = torch.tensor([1, 2, 3]), torch.randn(3, 3)
    expected = denoiser(noisy, timesteps, condition, latent)
    denoiser.calls.clear()
    torch.testing.assert_close(tiled(noisy, timesteps, condition, latent), expected, atol=1e-5, rtol=0)
    assert max(denoiser.calls) <= 5
    features = tiled.encode_condition(condition)
    assert [len(part) for part in features] == [3, 3]
    torch.testing.assert_close(tiled(noisy, timesteps, condition, latent, features), expected, atol=1e-5, rtol=0)
    order = torch.tensor([2, 0, 1])
    shuffled = tiled(noisy[order], timesteps[order], condition[order], latent[order], [p[order] for p in features])
    torch.testing.assert_close(shuffled, expected[order], atol=1e-5, rtol=0)
    assert tiled.calibrated and not tiled.learned_variance


@pytest.mark.parametrize(("tile_size", "per_call"), [(256, 1), (128, 4), (64, 9)])
@torch.no_grad()
def test_a_processor_gets_no_more_tiles_than_its_caches_hold(tile_size, per_call):
    denoiser, size = Pointwise(), 2 * tile_size
    noisy, condition = torch.zeros(1, 2, size, size), torch.zeros(1, 1, size, size)
    TiledDenoiser(denoiser, tile_size)(noisy, torch.zeros(1), condition, torch.zeros(1, 3))
    assert sum(denoiser.calls) == 9 and max(denoiser.calls) == per_call


@torch.no_grad()
def test_an_image_of_the_size_of_a_tile_passes_through():
    denoiser = Blurring()
    noisy, condition = torch.randn(1, 2, 8, 6), torch.randn(1, 1, 8, 6)
    expected = denoiser(noisy, torch.zeros(1), condition)
    assert torch.equal(TiledDenoiser(denoiser, 8)(noisy, torch.zeros(1), condition), expected)


@torch.no_grad()
def test_tiles_cover_the_image_with_the_overlap_asked_for():
    tiled = TiledDenoiser(Blurring(), 8, overlap=0.5)
    for size in range(9, 60):
        starts = tiled._starts(size)
        assert starts[0] == 0 and starts[-1] == size - 8
        assert all(0 < after - before <= 4 for before, after in zip(starts, starts[1:]))


def segmenter(tile_size: int | None) -> DiffusionSegmenter:
    torch.manual_seed(0)
    denoiser = Blurring()
    if tile_size is not None:
        denoiser = TiledDenoiser(denoiser, tile_size, overlap=0.5)
    scheduler = DDPMScheduler(4, schedule="vp_few_step")
    return DiffusionSegmenter(denoiser, scheduler, num_samples=2, combine="mean").eval()


@torch.no_grad()
def test_sampling_on_tiles_has_no_seams():
    """Inside, where no tile's own border reaches with much weight, tiles give what the whole image gives."""
    image = torch.randn(1, 1, 40, 44, generator=torch.Generator().manual_seed(1))
    whole, tiled = segmenter(None)(image), segmenter(32)(image)
    assert (tiled - whole).abs().max() < 0.05 and (tiled - whole).abs().mean() < 2e-3
    jump = (tiled[..., 1:] - tiled[..., :-1]).abs().mean(dim=(0, 1, 2))
    expected = (whole[..., 1:] - whole[..., :-1]).abs().mean(dim=(0, 1, 2))
    torch.testing.assert_close(jump, expected, atol=0.01, rtol=0)


@torch.no_grad()
def test_scripted_equals_eager():
    image = torch.randn(2, 1, 20, 13)
    network = segmenter(8)
    torch.testing.assert_close(torch.jit.script(network)(image), network(image), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tile_size": 7}, "tile_size must be a multiple of 2, not 7"),
        ({"tile_size": 8, "overlap": 1.0}, "overlap must be .* below 1, not 1.0"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        TiledDenoiser(Blurring(), **options)
