from __future__ import annotations

import weakref

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


class Counting(Blurring):
    """Keeps how many conditions were encoded, and how many views of features there are at most."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded: list[int] = []
        self.alive: set[int] = set()
        self.most_alive = 0

    def encode_condition(self, condition: Tensor) -> list[Tensor]:
        self.encoded.append(len(condition))
        features = condition.repeat(1, 3, 1, 1)
        self.alive.add(len(self.encoded))
        weakref.finalize(features, self.alive.discard, len(self.encoded))
        self.most_alive = max(self.most_alive, len(self.alive))
        return [features]

    def forward(self, noisy, timesteps, condition, latent=None, condition_features=None):
        features = self.encode_condition(condition) if condition_features is None else condition_features
        return torch.tanh(self.conv(torch.cat([noisy, features[0][:, 1:2]], dim=1)))


@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_features_that_would_be_too_large_are_computed_in_every_step(batch):
    """Nine tiles of 8 x 8 in three channels take 6912 bytes an image."""
    torch.manual_seed(0)
    denoiser = Counting()
    needed = batch * 9 * 3 * 8 * 8 * 4
    kept, anew = (TiledDenoiser(denoiser, 8, 0.5, 2, feature_bytes=size) for size in (needed, needed - 1))
    noisy, condition, timesteps = torch.randn(batch, 2, 16, 16), torch.randn(batch, 1, 16, 16), torch.arange(batch)
    answers = []
    for tiled, features_there, encoded_later in ((kept, 1, 0), (anew, 0, batch * 9)):
        features = tiled.encode_condition(condition)
        assert len(features) == features_there
        denoiser.encoded.clear()
        answers.append(tiled(noisy, timesteps, condition, None, features))
        assert sum(denoiser.encoded) == encoded_later
    assert torch.equal(*answers)


@torch.no_grad()
def test_a_large_picture_holds_the_features_of_one_view_at_a_time():
    """Eight members of four mirrored views, one by one: each view is encoded once and forgotten before the next."""
    torch.manual_seed(0)
    denoiser = Counting()
    options = {"num_samples": 8, "combine": "mean", "mirror_members": True, "mirror_axes": [0, 1]}
    scheduler = DDPMScheduler(4, schedule="vp_few_step")
    image = torch.randn(1, 1, 20, 24)
    alone = DiffusionSegmenter(denoiser, scheduler, max_batch_size=1, **options).eval()(image)
    assert denoiser.encoded == [1] * 4 and denoiser.most_alive == 1
    together = DiffusionSegmenter(denoiser, scheduler, max_batch_size=64, **options).eval()(image)
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=0)
    assert (alone - alone.flip(3)).abs().max() > 0.01


@torch.no_grad()
def test_out_of_memory_halves_the_tiles_too(caplog):
    """A device with room for three tiles at once, and sixteen tiles of one picture."""
    torch.manual_seed(0)
    network = DiffusionSegmenter(
        TiledDenoiser(Blurring(), 8), DDPMScheduler(4, schedule="vp_few_step"), num_samples=1, max_batch_size=1
    ).eval()
    image = torch.randn(1, 1, 26, 26)
    expected = network(image)

    def limited(module: nn.Module, inputs: tuple) -> None:
        if len(inputs[0]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    network.denoiser.denoiser.register_forward_pre_hook(limited)
    torch.testing.assert_close(network(image), expected, atol=1e-5, rtol=0)
    told = [line for line in caplog.messages if "out of memory" in line]
    assert told == [f"out of memory: going on with 1 slices and members, {tiles} tiles at once" for tiles in (8, 4, 2)]


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
