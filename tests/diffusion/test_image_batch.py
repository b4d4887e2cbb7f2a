"""What an image denoiser trains on."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from monai.networks.schedulers import DDPMScheduler

from shared_components.diffusion.hybrid_loss import DenoisingLoss, HybridLoss
from shared_components.diffusion.image_batch import ImageDenoisingPrepareBatch, SynthesisPrepareBatch, explained_share
from shared_components.diffusion.mask_encoding import MaskEncoding
from shared_components.diffusion.timestep_samplers import UniformTimestepSampler
from shared_components.errors import InputError
from shared_components.networks.monai_denoiser import MONAIDenoiser


def scheduler() -> DDPMScheduler:
    return DDPMScheduler(num_train_timesteps=1000, schedule="linear_beta", beta_start=1e-4, beta_end=0.02)


def batch(count: int = 4, *spatial: int) -> dict[str, torch.Tensor]:
    spatial = spatial or (8, 8)
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(count, 1, *spatial, generator=generator),
        "label": torch.randint(3, (count, 1, *spatial), generator=generator).float(),
    }


def test_images_are_noised_to_their_timesteps_and_labels_encoded() -> None:
    data = batch(64)
    torch.manual_seed(0)
    noisy, targets, (timesteps, condition), _ = ImageDenoisingPrepareBatch(scheduler(), MaskEncoding([1, 2]))(data)
    assert torch.equal(targets["clean"], 2 * data["image"] - 1)
    level = scheduler().alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
    assert torch.allclose(noisy, level.sqrt() * targets["clean"] + (1 - level).sqrt() * targets["target"], atol=1e-6)
    assert torch.equal(condition, MaskEncoding([1, 2])(data["label"]))
    assert 0 <= timesteps.min() < 100 and 900 < timesteps.max() <= 999


def test_every_image_loses_classes_of_its_own() -> None:
    label = torch.tensor([1.0, 2.0]).expand(64, 1, 8, 2)
    prepare = ImageDenoisingPrepareBatch(scheduler(), MaskEncoding([1, 2]), ablation=0.5)
    torch.manual_seed(0)
    condition = prepare({"image": torch.zeros(64, 1, 8, 2), "label": label})[2][1]
    kept = condition.amax(dim=(2, 3))
    assert len({tuple(row) for row in kept.tolist()}) == 4
    assert torch.allclose(kept.mean(dim=0), torch.tensor([0.5, 0.5]), atol=0.2)
    torch.manual_seed(0)
    assert torch.equal(prepare({"image": torch.zeros(64, 1, 8, 2), "label": label})[2][1], condition)


def test_a_slice_and_its_neighbours_lose_the_same_classes() -> None:
    label = torch.tensor([1.0, 2.0]).reshape(1, 1, 1, 2, 1).expand(8, 1, 4, 2, 5)
    prepare = ImageDenoisingPrepareBatch(scheduler(), MaskEncoding([1, 2]), ablation=0.5, num_adjacent_slices=1)
    noisy, _, (_, condition), _ = prepare({"image": torch.zeros(8, 1, 4, 2, 5), "label": label})
    assert noisy.shape == (24, 1, 4, 2) and condition.shape == (24, 6, 4, 2)
    kept = condition.amax(dim=(2, 3)).unflatten(1, (3, 2))
    assert torch.equal(kept[:, 0], kept[:, 1]) and torch.equal(kept[:, 0], kept[:, 2])
    assert len({tuple(row) for row in kept[:3, 0].tolist()} | {tuple(row) for row in kept[:, 0].tolist()}) > 1


def test_a_validation_is_always_the_same() -> None:
    prepare = ImageDenoisingPrepareBatch(scheduler(), MaskEncoding([1, 2]), ablation=0.5, fixed=True, seed=3)
    first, again = prepare(batch(32)), prepare(batch(32))
    assert torch.equal(first[0], again[0]) and torch.equal(first[2][1], MaskEncoding([1, 2])(batch(32)["label"]))
    counts = torch.histc(first[2][0].float(), 4, 0, 1000)
    assert counts.min() >= 7 and abs(first[1]["target"].std() - 1) < 0.1


@pytest.mark.parametrize("count", [1, 3])
def test_a_validation_of_single_pictures_spans_the_schedule(count: int) -> None:
    """Batches of one would all be seen at the middle timestep, under one and the same noise."""
    prepare = ImageDenoisingPrepareBatch(scheduler(), MaskEncoding([1, 2]), fixed=True)
    noisy, targets, (timesteps, condition), _ = prepare(batch(count))
    assert torch.histc(timesteps.float(), 4, 0, 1000).min() >= 1 and len(timesteps) == {1: 8, 3: 9}[count]
    level = scheduler().alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
    noise = (noisy - level.sqrt() * targets["clean"]) / (1 - level).sqrt()
    assert torch.allclose(noise, targets["target"], atol=1e-4) and len(torch.unique(noise[:, 0, 0, 0])) == len(noisy)
    for index in range(len(noisy)):
        assert torch.equal(targets["clean"][index], 2 * batch(count)["image"][index % count] - 1)
        assert torch.equal(condition[index], MaskEncoding([1, 2])(batch(count)["label"])[index % count])


def test_whole_images_are_padded_to_what_the_network_takes() -> None:
    prepare = ImageDenoisingPrepareBatch(scheduler(), MaskEncoding([1, 2]), multiple=8, fixed=True)
    noisy, targets, (_, condition), _ = prepare(batch(2, 6, 9, 4))
    assert noisy.shape == targets["clean"].shape == (8, 1, 8, 16) and condition.shape == (8, 2, 8, 16)
    assert torch.equal(targets["clean"][:4, 0, 1:7, 3:12], (2 * batch(2, 6, 9, 4)["image"][0, 0] - 1).permute(2, 0, 1))


def test_training_without_a_condition_learns_the_same_images() -> None:
    _, targets, (_, condition), _ = ImageDenoisingPrepareBatch(scheduler())(batch())
    assert condition.shape == (4, 0, 8, 8)
    conditioned = ImageDenoisingPrepareBatch(scheduler(), MaskEncoding([1, 2]))(batch())[1]
    assert torch.equal(targets["clean"], conditioned["clean"])


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_other_targets(prediction_type: str) -> None:
    prepare = ImageDenoisingPrepareBatch(scheduler(), prediction_type=prediction_type)
    noisy, targets, (timesteps, _), _ = prepare(batch())
    level = scheduler().alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
    clean = targets["target"]
    if prediction_type == "v_prediction":
        clean = level.sqrt() * noisy - (1 - level).sqrt() * targets["target"]
    assert torch.allclose(clean, targets["clean"], atol=1e-4)


def test_a_new_network_has_the_loss_of_the_noise_and_explains_nothing() -> None:
    noisy, targets, arguments, _ = ImageDenoisingPrepareBatch(scheduler(), MaskEncoding([1, 2]), fixed=True)(batch(64))
    output = MONAIDenoiser(1, 2, (8, 8), 1, (False, False), norm_num_groups=8)(noisy, *arguments)
    loss = DenoisingLoss(HybridLoss(scheduler(), learned_variance=False))(output, targets)
    assert torch.allclose(loss, targets["target"].square().mean())
    assert explained_share({"pred": output, "label": targets}) == pytest.approx(0)
    assert explained_share({"pred": targets["target"], "label": targets}) == 1


def test_a_synthesizer_gets_maps_seeds_and_images() -> None:
    data = {**batch(), "seed": torch.tensor([5, 6, 7, 8])}
    label, image, (seeds,), keywords = SynthesisPrepareBatch("label", "image")(data)
    assert torch.equal(label, data["label"]) and torch.equal(image, data["image"]) and keywords == {}
    assert seeds.tolist() == [5, 6, 7, 8]
    label, target, (seeds, source), _ = SynthesisPrepareBatch(seed=9)({"image": data["label"], "source": data["image"]})
    assert target is None and seeds.tolist() == [9] * 4 and torch.equal(source, data["image"])


def seeds_of(*files: tuple[str, str], seed: int = 0, size: int = 1) -> dict[str, int]:
    """The seed that each case gets, by its label map's file, in batches of ``size``."""
    found: dict[str, int] = {}
    for first in range(0, len(files), size):
        part = files[first : first + size]
        items = [
            {
                "label": MetaTensor(torch.zeros(1, 8, 8), meta={"filename_or_obj": label}),
                "image": MetaTensor(torch.zeros(1, 8, 8), meta={"filename_or_obj": image}),
            }
            for label, image in part
        ]
        seeds = SynthesisPrepareBatch("label", "image", seed=seed)(list_data_collate(items))[2][0]
        found |= dict(zip((label for label, _ in part), seeds.tolist()))
    return found


def test_cases_of_an_evaluation_have_seeds_of_their_own_whatever_the_batch_the_order_and_the_folder() -> None:
    """One noise for all would make the generated images more alike than those that are generated for use."""
    files = [(f"/data/labelsTr/case_{n}.nii.gz", f"/data/imagesTr/case_{n}.nii.gz") for n in range(40)]
    seeds = seeds_of(*files)
    assert len(set(seeds.values())) == 40 and all(0 <= seed < 2**31 for seed in seeds.values())
    assert seeds == seeds_of(*reversed(files)) == seeds_of(*files, size=7)
    assert seeds_of(files[3]) == {files[3][0]: seeds[files[3][0]]}
    moved = seeds_of(*[(label.replace("/data", "/d"), image.replace("/data", "/d")) for label, image in files])
    assert list(moved.values()) == list(seeds.values())
    assert not set(seeds.values()) & set(seeds_of(*files, seed=1).values())
    assert (
        len(set(seeds_of(("/data/a/mask.png", "/data/a/a.png"), ("/data/b/mask.png", "/data/b/b.png")).values())) == 2
    )


def test_mistakes_are_told() -> None:
    with pytest.raises(InputError, match="prediction_type must be one of"):
        ImageDenoisingPrepareBatch(scheduler(), prediction_type="noise")
    with pytest.raises(InputError, match="timestep sampler has num_train_timesteps 7, the scheduler"):
        ImageDenoisingPrepareBatch(scheduler(), timestep_sampler=UniformTimestepSampler(7))
    with pytest.raises(InputError, match="ablation must be a probability"):
        ImageDenoisingPrepareBatch(scheduler(), ablation=-0.5)
