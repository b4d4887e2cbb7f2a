"""The overlays of the bundles that learn from image-level labels: the published method, comparisons, samples."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from PIL import Image
from torch import nn

from shared_components.diffusion.weak_segmenter import WeakSegmenter
from tests.data.test_image_labels import breast_ultrasound, mask, picture

REPOSITORY = Path(__file__).resolve().parent.parent
PAPERS = sorted(REPOSITORY.glob("bundles/cdm_*/configs/paper*.json"))
BUNDLES = sorted({path.parent.parent for path in PAPERS})
TINY_PAPER = {
    f"{part}#{key}": value
    for part in ("denoiser", "classifier")
    for key, value in {
        "channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1, "attention_factors": [], "in_channels": 1,
    }.items()
}  # fmt: skip
TINY_PAPER |= {
    "classifier#image_size": 16, "classifier#num_head_channels": 32, "image_size": [16, 16], "num_channels": 1,
    "device": "cpu",
}  # fmt: skip


def parser(bundle: Path, *names: str, **override: Any) -> ConfigParser:
    """The configurations as ``monai.bundle run`` reads them, with overrides."""
    made = ConfigParser()
    made.read_config([str(bundle / "configs" / f"{name}.json") for name in names])
    made["bundle_root"] = str(bundle)
    made.update(override)
    return made


def ids(path: Path) -> str:
    return path.name if path.is_dir() else f"{path.parent.parent.name}-{path.stem}"


@pytest.mark.parametrize("base", ["train", "inference"])
@pytest.mark.parametrize("paper", PAPERS, ids=ids)
def test_the_paper_overlays_segment_as_published(paper: Path, base: str) -> None:
    """Whatever a bundle chose for itself: sections 1.8 and 2.1 of the published method's description."""
    network = parser(paper.parent.parent, base, paper.stem, **TINY_PAPER).get_parsed_content("network_def")
    assert (network.tau, network.mode, network.contrast_class, network.guidance_scale) == (
        0.95, "finite_difference", 0, 10.0,
    )  # fmt: skip
    assert network.classifier_free_scale is None and network.combine == "mean"
    assert (network.num_samples, network.num_inference_steps, network.start) == (1, 10, 400)
    assert network.gate is None and network.gated is False
    mask = network.mask
    assert (mask.polarity, mask.threshold, mask.kernel, mask.body_level) == ("bright", "otsu", None, None)
    assert network.conventions.tolist() == [1.0, 1.0, 0.0, 1.0]  # images in [0, 1], which its weights then say
    assert network.process.clipped and (network.process.low, network.process.high) == (-1.0, 1.0)


def letters(root: Path) -> Path:
    """Slices whose patient is a letter in the middle of the name, which no guess finds: ``0a_x.png``."""
    for patient in range(7):
        for z in range(4):
            name = f"{z}{chr(97 + patient)}_x.png"
            picture(root / "images" / name, 7 * patient + z)
            mask(root / "masks" / name, 20 * (z > 1))
    return root


@pytest.mark.parametrize("bundle", BUNDLES, ids=ids)
def test_outlined_slices_are_of_the_patients_that_all_else_trains_on(bundle: Path, tmp_path: Path) -> None:
    options = {"dataset_dir": str(letters(tmp_path)), "label_values": [1], "patient_pattern": r"^\d(\w)_"}
    outlined, compared = (parser(bundle, "train", name, **options) for name in ("outlined", "compare"))
    tested = {Path(item["image"]).name for item in outlined.get_parsed_content("validate#dataset#data")}
    assert tested == {Path(item["image"]).name for item in compared.get_parsed_content("validate#dataset#data")}
    trained = {Path(item["image"]).name for item in outlined.get_parsed_content("outlined#items")}
    assert len(trained) >= 4 and not {name[1] for name in trained} & {name[1] for name in tested}


def comparison(bundle: Path, *names: str, **override: Any) -> tuple[set[str], dict[str, nn.Module], list[str]]:
    """Names of the methods in the file, those that are built, and what is told of the others."""
    made = parser(bundle, "train", *names, "compare", **{"device": "cpu", **override})
    told = made.get_parsed_content("compare#left_out")
    return set(made["methods"]), made.get_parsed_content("methods"), [text for text, holds in told.items() if holds]


@pytest.mark.parametrize("bundle", BUNDLES, ids=ids)
@pytest.mark.parametrize("polarity", ["bright", "dark", "both"])
def test_maps_that_are_never_negative_are_not_turned_over(bundle: Path, polarity: str) -> None:
    listed, methods, told = comparison(bundle, polarity=polarity)
    assert set(methods) == listed and told == []
    for name, network in methods.items():
        if not name.endswith("settings"):  # those of the specification
            dark = isinstance(network, WeakSegmenter) and polarity == "dark"
            assert network.mask.polarity == ("dark" if dark else "bright" if polarity == "dark" else polarity), name


@pytest.mark.parametrize("bundle", BUNDLES, ids=ids)
def test_methods_that_lack_something_are_left_out_of_a_comparison(bundle: Path) -> None:
    listed, methods, told = comparison(bundle, null_class=False, label_dropout=0.0)
    assert listed - set(methods) == {"Diff, classifier-free"} and len(told) == 1 and "null_class is false" in told[0]
    listed, methods, told = comparison(bundle, "paper", **TINY_PAPER, counterfactual_steps=2)
    maps = {"GradCAM", "GradCAM++", "LayerCAM", "ScoreCAM", "occlusion"}
    assert listed - set(methods) == {"Diff, classifier-free"} | maps
    assert len(told) == 2 and "gate is null" in told[0]
    image = torch.rand(1, 1, 16, 16)
    for name, network in methods.items():
        assert network.eval().describe(image)["pred"].shape == (1, 2, 16, 16), name


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("bundle", BUNDLES, ids=ids)
def test_sampling_with_a_variance_that_is_not_learned_takes_the_large_one(bundle: Path, learned: bool) -> None:
    """As published: beta; a learned variance lies between the two as before. Section 1.4 of the description."""
    options = {"sampler": "ddpm", "sampling_steps": 1000, "learned_variance": learned, "device": "cpu"}
    process = parser(bundle, "inference", "sample", **options).get_parsed_content("class_sampler").process
    t = 5
    beta = parser(bundle, "inference").get_parsed_content("scheduler").betas[t]
    zero = torch.zeros(1, 1, 1, 1)
    deviation = process.deviation(999 - t, torch.cat([zero, zero], 1) if learned else zero, zero)
    expected = process.log_variance[999 - t].mean().exp() if learned else beta
    torch.testing.assert_close(deviation.flatten()[0] ** 2, expected.float(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("bundle", BUNDLES, ids=ids)
def test_the_card_has_every_published_command_and_they_resolve(bundle: Path) -> None:
    card = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    table = card.split("### The published commands")[1].split("\n\n")[2]
    rows = [row.strip("| ").split(" | ", 1) for row in table.splitlines()[2:]]
    assert {published.split()[0] for published, _ in rows} >= {"1a", "1b", "2", "3a", "3b", "4"}
    for published, command in rows:
        names = re.findall(rf"bundles/{bundle.name}/configs/(\w+)\.json", command)
        if names:
            given = dict(re.findall(r"--(\w+) ([^ `]+)", command))
            made = parser(bundle, *names)
            assert [key for key in given if key not in made] == [], published
            assert names[-1] in ("train", "inference") or all(key in made for key in ("run", "network_def")), published
    assert sum("configs/" in command for _, command in rows) >= 8


@pytest.mark.parametrize("bundle", BUNDLES, ids=ids)
def test_several_masks_of_an_image_are_scored_and_learnt_as_one(bundle: Path, tmp_path: Path) -> None:
    root = breast_ultrasound(tmp_path)
    for file in sorted((root / "benign").glob("*_mask.png")) + sorted((root / "malignant").glob("*_mask.png")):
        pixels = np.zeros((10, 12), np.uint8)
        pixels[-2:] = 255
        Image.fromarray(pixels).save(file.with_name(f"{file.stem}_1.png"))
    made = parser(bundle, "train", "outlined", dataset_dir=str(root), device="cpu")
    scored = made.get_parsed_content("validate#preprocessing")
    learnt = Compose(made.get_parsed_content("outlined#deterministic_transforms"))
    items = made.get_parsed_content("validate#dataset#data") + made.get_parsed_content("outlined#items")
    positive = [item for item in items if item["class"] == 1]
    assert len(positive) >= 4 and all(len(item["label"]) == 2 for item in positive)
    for item in positive:
        number = int(item["image"].split("(")[1].split(")")[0])
        found = scored(dict(item))["label"]
        assert int((found > 0).sum()) == 20 + number + 24, item["image"]
        assert learnt(dict(item))["label"].mean() == pytest.approx((20 + number + 24) / 120, abs=0.02)
