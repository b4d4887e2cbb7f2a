"""The naive path for pictures equals the project's; rows t and b on tiny networks and phantoms."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from benchmarks import rows_inference, rows_medsegdiff
from benchmarks.gates import Gate
from benchmarks.naive import FILTERS, NaiveAttention, NaiveSegmenter, NaiveTiles, use_naive_attention
from benchmarks.rows_medsegdiff import exact_members, fewer_calls
from benchmarks.rows_tiles import blended_tiles, exact_tiles
from benchmarks.rows_training import losses_of
from benchmarks.run import arguments
from benchmarks.subject import Subject, randomise
from benchmarks.sweeps import size_sweep
from shared_components.diffusion.tiles import TiledDenoiser
from shared_components.errors import InputError
from shared_components.networks.medsegdiff_blocks import SelfAttention

TINY = {
    "cdal_monuseg": {
        "backbone#channels": [8, 8, 8],
        "backbone#attention_levels": [False, False, False],
        "backbone#condition_norm_groups": 4,
        "discriminator_def#channels": [8, 8, 8, 8],
        "discriminator_def#downsample": [False, True, True],
        "tile_size": 16,
        "crop_size": [16, 16],
        "crops_per_case": 1,
        "num_samples": 2,
        "batch_size": 1,
    },
    "medsegdiff_isic": {
        "denoiser#channels": 32,
        "denoiser#channel_mult": [1, 1, 1, 1],
        "denoiser#attention_factors": [8],
        "denoiser#highway_channels": 4,
        "denoiser#image_size": 16,
        "image_size": [16, 16],
        "batch_size": 1,
    },
}
TINY["medsegdiff_v2_isic"] = {k: v for k, v in TINY["medsegdiff_isic"].items() if k != "denoiser#image_size"}


@pytest.fixture(scope="module", params=TINY)
def subject(request, tmp_path_factory) -> Subject:
    return subject_of(request.param, tmp_path_factory.mktemp("pictures"))


def subject_of(bundle: str, folder) -> Subject:
    return Subject(folder, bundle, pairs=1, volumes=1, steps=2, num_phantoms=6, overrides=TINY[bundle])


@pytest.mark.parametrize("new_order", [False, True])
def test_attention_by_its_formula(new_order):
    torch.manual_seed(0)
    attention = SelfAttention(32, 4, new_order)
    randomise(attention)
    x = torch.randn(2, 32, 4, 6)
    assert (NaiveAttention(attention)(x) - attention(x)).abs().max() < 1e-5
    network = use_naive_attention(nn.Sequential(copy.deepcopy(attention)))
    assert isinstance(network[0], NaiveAttention)


@pytest.mark.parametrize(("bundle", "size"), [("cdal_monuseg", 2), ("cdal_lung_cxr", 4), ("medsegdiff_isic", 8)])
def test_batches_of_the_size_that_the_bundle_computes(bundle, size, tmp_path):
    overrides = {k: v for k, v in TINY.get(bundle, {}).items() if k != "batch_size"}
    batch = Subject(tmp_path, bundle, num_phantoms=14, overrides=overrides).batches(1)[0]
    assert len(batch["image"]) == len(batch["label"]) == size


class LookingDenoiser(nn.Module):
    """Returns something of all it is given, different at every place of a tile."""

    in_channels, latent_dim, downsampling = 2, 3, 4

    def encode_condition(self, condition: Tensor) -> list[Tensor]:
        return [condition.mean(dim=(2, 3), keepdim=True) + condition]

    def forward(self, noisy, timesteps, condition, latent=None, condition_features=None):
        features = self.encode_condition(condition) if condition_features is None else condition_features
        code = latent.sum(dim=1) * timesteps
        return noisy.cumsum(dim=2) + features[0].sum(dim=1, keepdim=True) + code[:, None, None, None]


@pytest.mark.parametrize("size", [(16, 16), (20, 40), (12, 33)])
def test_one_tile_at_a_time_equals_tiles_at_once(size):
    torch.manual_seed(0)
    noisy, condition = torch.randn(3, 2, *size), torch.randn(3, 1, *size)
    timesteps, latent = torch.tensor([0, 1, 3]), torch.randn(3, 3)
    project = TiledDenoiser(LookingDenoiser(), 16, 0.25)(noisy, timesteps, condition, latent)
    naive = NaiveTiles(LookingDenoiser(), 16, 0.25)(noisy, timesteps, condition, latent)
    assert (naive - project).abs().max() < 1e-4


@torch.no_grad()
def test_one_member_at_a_time_equals_all_at_once(subject):
    network = subject.segmenter(combine="mean", num_samples=4)  # four: straight, and mirrored in all three ways
    image = 2 * torch.rand(2, 3, 27, 30) - 1
    whole = network(image)
    assert (NaiveSegmenter(network, FILTERS[1])(image) - whole).abs().max() < 1e-4
    assert whole.std() > 1e-3


def test_naive_training_step_has_equal_losses(subject):
    batches = subject.batches(2)
    plain, ours = (losses_of(subject, naive, False, batches) for naive in (FILTERS[1], None))
    assert len(plain) == len(ours) == 2
    assert torch.allclose(torch.tensor(plain), torch.tensor(ours), atol=1e-4)


def test_exact_rows_pass_their_gates(subject):
    cdal = subject.bundle.startswith("cdal")
    rows = list(exact_tiles(subject, (24, 40)) if cdal else exact_members(subject, calls=6))
    assert len({row.opponent for row in rows}) == len(rows) == (2 if cdal else 1)
    for row in rows:
        assert row.gate.passed and row.ratio()["ratio"] > 0
        assert row.content.startswith(subject.bundle) and row.details["weights"] == "random"


def test_dice_rows_refuse_random_weights(subject):
    rows = list(blended_tiles(subject) if subject.bundle.startswith("cdal") else fewer_calls(subject))
    assert rows and all(not row.gate.passed and row.ratio() is None for row in rows)


def test_too_few_cases_are_refused_before_anything_is_run(tmp_path, monkeypatch):
    subject = subject_of("medsegdiff_v2_isic", tmp_path)
    subject.weights = tmp_path / "weights.pt"
    torch.save(subject.segmenter().state_dict(), subject.weights)
    monkeypatch.setattr(rows_inference, "dice_of", lambda *_: pytest.fail("the network was run"))
    monkeypatch.setattr(rows_medsegdiff, "dice_of", lambda *_: pytest.fail("the network was run"))
    gates = [row.gate for row in fewer_calls(subject)]
    text = f"Dice on {len(subject.test_items)} cases (phantoms: no data set was given); at least 40 are needed"
    assert gates == [Gate(False, text)] * 2


def test_fewer_calls_than_a_thousand_can_be_the_opponent(tmp_path, monkeypatch):
    subject, scored = subject_of("medsegdiff_v2_isic", tmp_path), []
    subject.many_calls = 6
    monkeypatch.setattr(rows_medsegdiff, "CALLS", 2)
    monkeypatch.setattr(rows_medsegdiff, "dice_of", lambda *_: scored.append(0) or [1.0])

    def passed(subject, opponent, project, what):
        return Gate(opponent(subject) == [1.0], what)

    monkeypatch.setattr(rows_medsegdiff, "quality_gate", passed)
    rows = list(fewer_calls(subject))
    assert [row.name for row in rows] == ["b3", "b3b"] and len(scored) == 1
    assert all("x 6 calls" in row.content and "1000" not in row.content for row in rows)
    assert rows[0].opponent.startswith("5 x 6 calls") and rows[0].ratio()["ratio"] > 1.5


def test_test_cases_are_pictures(tmp_path):
    image, label = subject_of("cdal_monuseg", tmp_path).volume(0, label=True)
    assert image.shape[:2] == (1, 3) and image.shape[2:] == label.shape[1:]
    assert -1 <= image.min() and image.max() <= 1 and set(label.unique().tolist()) == {0, 1}


def test_sizes_are_fitted_by_their_area(tmp_path):
    found = size_sweep(subject_of("cdal_monuseg", tmp_path), (16, 32))
    pixels = [size**2 / 1e6 for size in found["points"]]
    slope = (found["median_s"][1] - found["median_s"][0]) / (pixels[1] - pixels[0])
    assert found["slope_s"] == pytest.approx(slope) and found["unit"] == "picture"


def test_counts_below_one_are_named(tmp_path):
    with pytest.raises(InputError, match="--pairs 0, --many_calls -1: expected whole numbers of at least 1"):
        arguments(["--output", str(tmp_path), "--pairs", "0", "--many_calls", "-1"])


def test_rows_of_another_bundle_are_refused(tmp_path):
    with pytest.raises(InputError, match="b2: no such row of cdal_monuseg"):
        arguments(["--output", str(tmp_path), "--bundle", "cdal_monuseg", "--rows", "b2"])
