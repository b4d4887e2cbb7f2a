"""Weak labels: of the right images, the same whatever is labelled beside, kept on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose
from PIL import Image
from torch import nn

from shared_components.adaptation.pseudo_labels import (
    adapt_statistics,
    confident_mask,
    pseudo_labelled,
    target_images,
)
from shared_components.adaptation.segmenter import ViewSegmenter
from shared_components.data.loaders import LoadImageChannelsd
from shared_components.data.phantoms import make_phantoms
from shared_components.data.vessels import VesselContrastd
from shared_components.errors import InputError
from shared_components.networks.residual_unet import ResidualUNet

PREPROCESSING = Compose([LoadImageChannelsd("image", 3), VesselContrastd("image", "bright")])


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return make_phantoms(tmp_path_factory.mktemp("target") / "octa", 6, kind="octa")


def network(seed: int = 0) -> ViewSegmenter:
    torch.manual_seed(seed)
    made = ViewSegmenter(ResidualUNet(channels=(4, 4)))
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_var.uniform_(0.05, 0.4)
    return made


@pytest.fixture
def weights(tmp_path):
    torch.save(network().state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def read(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_images_of_a_section_without_their_labels(target, tmp_path):
    split = json.loads((target / "split.json").read_text(encoding="utf-8"))
    for section in ("train", "validation", "test"):
        found = target_images(target, section)
        assert all(set(item) == {"image"} for item in found)
        assert [item["image"].rpartition("/")[2][:-4] for item in found] == split[section]
    with pytest.raises(InputError, match="no such folder"):
        target_images(tmp_path / "none", "train")


def test_folds_deal_the_images_that_are_not_tested(target):
    split = json.loads((target / "split.json").read_text(encoding="utf-8"))
    rest = sorted([*split["train"], *split["validation"]])
    ids = {
        (fold, section): [Path(item["image"]).stem for item in target_images(target, section, fold=fold, num_folds=2)]
        for fold in range(2)
        for section in ("train", "validation")
    }
    assert ids[0, "train"] == ids[1, "validation"] and ids[1, "train"] == ids[0, "validation"]
    assert sorted(ids[0, "train"] + ids[0, "validation"]) == rest


def test_labels_depend_on_their_image_alone_and_are_kept(target, weights, tmp_path):
    """The published code labels in training mode: a label depends on the batch."""
    items = target_images(target, "train")
    labelled = pseudo_labelled(items, network(1), weights, PREPROCESSING, tmp_path / "all")
    alone = pseudo_labelled(items[:1], network(2), weights, PREPROCESSING, tmp_path / "one")
    mask = read(labelled[0]["label"])
    assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 255}
    assert np.array_equal(mask, read(alone[0]["label"]))
    expected = network(0).eval()(PREPROCESSING(items[0])["image"][None])[0].argmax(dim=0)
    assert np.array_equal(mask.T > 0, expected.numpy() == 1)
    times = [(tmp_path / "all").stat().st_mtime_ns]
    again = pseudo_labelled(items, network(1), weights, PREPROCESSING, tmp_path / "all")
    assert again == labelled and times == [(tmp_path / "all").stat().st_mtime_ns]
    torch.save(network(5).state_dict(), weights)
    pseudo_labelled(items, network(1), weights, PREPROCESSING, tmp_path / "all")
    assert times != [(tmp_path / "all").stat().st_mtime_ns]


def test_weights_and_statistics_of_the_labeller_do_not_change(target, weights, tmp_path):
    labeller = network(1)
    pseudo_labelled(target_images(target, "train"), labeller, weights, PREPROCESSING, tmp_path / "labels")
    saved = torch.load(weights, weights_only=True)
    assert all(torch.equal(value, saved[name]) for name, value in labeller.state_dict().items())
    assert all(parameter.grad is None for parameter in labeller.parameters())


def test_statistics_of_the_target():
    layer = nn.BatchNorm2d(1)
    images = [torch.full((1, 1, 4, 4), 2.0) + torch.randn(1, 1, 4, 4), torch.full((1, 1, 4, 4), 6.0)]
    adapt_statistics(layer, images)
    mean = torch.stack([image.mean() for image in images]).mean()
    assert layer.running_mean.item() == pytest.approx(mean.item(), abs=1e-5)
    assert not layer.training and layer.momentum == 0.1


def test_labels_with_statistics_of_the_target_are_others(target, weights, tmp_path):
    items = target_images(target, "train")
    source, adapted = (
        pseudo_labelled(items, network(1), weights, PREPROCESSING, tmp_path / name, name)
        for name in ("source", "target")
    )
    assert not np.array_equal(read(source[0]["label"]), read(adapted[0]["label"]))


def test_a_confident_mask_is_no_larger_than_vessels_are_and_hangs_together():
    probability = np.zeros((10, 20))
    probability[2, 2:12] = 0.9  # a vessel
    probability[5:8, 5:13] = 0.6  # what a network sees in speckle
    probability[9, 19] = 0.95
    assert np.array_equal(confident_mask(probability), probability > 0.5)
    assert np.array_equal(confident_mask(probability, max_share=0.06), probability > 0.8)
    assert np.array_equal(confident_mask(probability, max_share=0.06, min_size=10), probability == 0.9)
    assert not confident_mask(np.full((8, 8), 0.4), max_share=0.5).any()


def test_another_share_or_size_makes_other_labels(target, weights, tmp_path):
    items = target_images(target, "train")
    plain = pseudo_labelled(items, network(1), weights, PREPROCESSING, tmp_path / "x")
    before = [read(item["label"]) for item in plain]
    clean = pseudo_labelled(items, network(1), weights, PREPROCESSING, tmp_path / "x", max_share=0.1, min_size=20)
    after = [read(item["label"]) for item in clean]
    assert all((new <= old).all() and (new > 0).mean() <= 0.1 for new, old in zip(after, before))
    assert any((new < old).any() for new, old in zip(after, before))


def test_mistakes(target, weights, tmp_path):
    items = target_images(target, "train")
    with pytest.raises(InputError, match="source, target.*'batch'"):
        pseudo_labelled(items, network(), weights, PREPROCESSING, tmp_path / "x", "batch")
    with pytest.raises(InputError, match="max_share 0, min_size 0"):
        pseudo_labelled(items, network(), weights, PREPROCESSING, tmp_path / "x", max_share=0)
    with pytest.raises(InputError, match="train_segmenter.json"):
        pseudo_labelled(items, network(), tmp_path / "none.pt", PREPROCESSING, tmp_path / "x")
    torch.save({"a": torch.zeros(1)}, weights)
    with pytest.raises(InputError, match="another network"):
        pseudo_labelled(items, network(), weights, PREPROCESSING, tmp_path / "x")
    assert not (tmp_path / "x").exists()
