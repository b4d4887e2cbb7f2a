"""What the stages' configurations must agree in, and the published faults that are mended there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.schedulers import DDPMScheduler

import shared_components.diffusion.schedules  # noqa: F401  registers the schedules
from shared_components.data.phantoms import make_phantoms
from shared_components.data.seeded import SeededCacheDataset

CONFIGS = Path(__file__).parents[2] / "bundles" / "adaptdiff_octa" / "configs"
CONTRAST = "shared_components.data.vessels.VesselContrastd"
SEGMENTING = ("train_segmenter", "train", "finetune", "inference", "evaluate")
GENERATING = ("train", "generate")


def read(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))


def parser(*names: str) -> ConfigParser:
    made = ConfigParser()
    made.read_config([str(CONFIGS / f"{name}.json") for name in names])
    return made


def contrasts(content: Any) -> list[dict]:
    if isinstance(content, dict):
        found = [content] if content.get("_target_") == CONTRAST else []
        return found + [item for value in content.values() for item in contrasts(value)]
    return [item for value in content for item in contrasts(value)] if isinstance(content, list) else []


def test_one_network_and_one_input_range_for_all_stages():
    """The published code labels images in [-1, 1] by a network that knows [0, 1]."""
    assert len({json.dumps(read(name)["segmenter"]) for name in SEGMENTING}) == 1
    assert len({json.dumps(read(name)["denoiser"]) for name in GENERATING}) == 1
    found = [item for name in (*SEGMENTING, "generate") for item in contrasts(read(name))]
    same = {
        json.dumps({key: value for key, value in item.items() if key not in ("keys", "vessel_polarity", "_disabled_")})
        for item in found
    }
    assert len(same) == 1 and len(found) >= 7
    assert len({read(name)["clip_limit"] for name in SEGMENTING if "clip_limit" in read(name)}) == 1


def test_the_polarity_is_a_setting_of_every_data_set():
    polarity = {name: read(name)["vessel_polarity"] for name in (*SEGMENTING, "generate") if name != "finetune"}
    polarity["finetune"] = read("finetune")["source_polarity"]
    assert polarity == {
        "train_segmenter": "dark", "train": "bright", "inference": "bright", "evaluate": "bright", "generate": "bright",
        "finetune": "dark",
    }  # fmt: skip


def test_how_to_sample_is_the_same_where_it_is_trained_and_where_it_is_generated():
    keys = ("num_train_timesteps", "schedule", "prediction_type", "sampler", "spacing", "clip", "clip_noisy")
    for key in (*keys, "num_inference_steps", "mask_encoding", "scheduler"):
        assert len({json.dumps(read(name)[key]) for name in GENERATING}) == 1, key


def test_the_schedule_leaves_no_signal_where_sampling_starts_from_none():
    """The published one leaves 22 % of it."""
    left = {
        name: DDPMScheduler(300, schedule=name).alphas_cumprod[-1].sqrt().item()
        for name in ("linear", read("train")["schedule"])
    }
    assert left["linear"] == pytest.approx(0.2192223, rel=1e-5)
    assert left[read("train")["schedule"]] < 0.01


@pytest.mark.parametrize("name", ["train_segmenter", "finetune"])
def test_the_loss_of_the_segmenter_has_a_gradient(name):
    """The published Dice and cross-entropy are of hard labels, which have none."""
    logits = torch.randn(2, 2, 8, 8, requires_grad=True)
    label = (torch.rand(2, 1, 8, 8) > 0.7).float()
    loss = parser(name).get_parsed_content("loss_function")(logits, label)
    loss.backward()
    assert logits.grad.abs().max() > 1e-4
    right = torch.cat([1 - label, label], dim=1) * 40 - 20
    assert parser(name).get_parsed_content("loss_function")(right, label) < 0.01 < loss


def test_pairs_are_augmented_anew_in_every_epoch_and_stay_in_range():
    """Published: once, when they are loaded."""
    transforms = parser("finetune").get_parsed_content("random_transforms")
    data = SeededCacheDataset([{"image": torch.rand(1, 16, 16), "label": torch.zeros(1, 16, 16)}] * 6, transforms)
    epochs = []
    for epoch in (1, 2, 1):
        data.set_epoch(epoch)
        epochs.append(torch.stack([torch.as_tensor(data[index]["image"]) for index in range(6)]))
    assert torch.equal(epochs[0], epochs[2]) and not torch.equal(epochs[0], epochs[1])
    assert 0 <= epochs[0].min() and epochs[0].max() <= 1


@pytest.mark.parametrize(("share", "crops"), [(0.0, 0), (0.25, 2), (0.5, 5)])
def test_crops_of_the_source_are_a_share_of_the_samples(share, crops, tmp_path):
    """Fine-tuned on generated pairs alone, as published, the network forgets what windows do not show."""
    source = make_phantoms(tmp_path / "source", num_cases=5, seed=3, kind="fundus")
    pairs = make_phantoms(tmp_path / "pairs", num_cases=8, seed=4, kind="octa")
    tuned = parser("finetune")
    tuned.update({"dataset_dir": str(pairs), "source_dir": str(source), "source_share": share, "crop_size": [64, 64]})
    dataset = tuned.get_parsed_content("train#dataset")
    assert [len(part) for part in dataset.datasets] == ([5, crops] if crops else [5])
    dataset.set_epoch(1)
    for item in (item for index in range(len(dataset)) for item in dataset[index]):
        assert item["image"].shape == (1, 64, 64) and set(item["label"].unique().tolist()) <= {0, 1}
        if item["label"].any():  # dark vessels of a photograph are bright here, as those of the pairs
            assert item["image"][item["label"] == 1].mean() > item["image"][item["label"] == 0].mean()


def test_published_networks_are_a_preset():
    generator = parser("generate", "paper").get_parsed_content("network_def")
    assert sum(parameter.numel() for parameter in generator.denoiser.parameters()) == 8_118_433
    assert generator.num_inference_steps == 300 and generator.process.clips_noisy and not generator.process.clipped
    for names in (("inference", "paper"), ("finetune", "paper_finetune"), ("train_segmenter", "paper_finetune")):
        segmenter = parser(*names).get_parsed_content("network_def").network
        assert sum(parameter.numel() for parameter in segmenter.parameters()) == 743_150
        assert segmenter.decoder[-1].final_relu


def test_default_networks_fit_into_a_file_of_the_zoo():
    for name in ("inference", "generate"):
        state = parser(name).get_parsed_content("network_def").state_dict()
        assert sum(value.numel() * value.element_size() for value in state.values()) < 25 * 2**20
