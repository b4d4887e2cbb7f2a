"""Real pictures of vessels: found, read, made bright, cut into a bank."""

from __future__ import annotations

import numpy as np
import pytest
from monai.transforms import Compose

from shared_components.adaptation.mask_bank import write_mask_bank
from shared_components.adaptation.pairs import read_masks
from shared_components.adaptation.pseudo_labels import target_images
from shared_components.data.datalists import datalist
from shared_components.data.loaders import LoadImageChannelsd, LoadLabelMapd
from shared_components.data.transforms import AveragingResized
from shared_components.data.vessels import VesselContrastd


@pytest.mark.parametrize("name", ["FIVES", "CHASE_DB1"])
def test_vessels_of_fundus_photographs_become_bright(real_data, name):
    items = datalist(real_data / name, "test", {"vessel": 1}, num_channels=3, spatial_dims=2)
    read = Compose(
        [
            LoadImageChannelsd("image", 3),
            LoadLabelMapd("label", {"vessel": 1}),
            AveragingResized(["image", "label"], 512, "longest", ["area", "nearest-exact"]),
            VesselContrastd("image", "dark"),
        ]
    )
    for item in items[:2]:
        case = read(item)
        image, mask = case["image"][0].numpy(), case["label"][0].numpy() > 0
        assert max(image.shape) == 512 and image.shape == mask.shape
        assert 0.02 < mask.mean() < 0.25
        assert image[mask].mean() > image[~mask].mean() + 0.1


def test_masks_of_the_source_make_a_bank(real_data, tmp_path):
    items = datalist(real_data / "FIVES", "train", {"vessel": 1}, num_channels=3, spatial_dims=2)[:2]
    bank = write_mask_bank(items, read_masks(items, {"vessel": 1}), tmp_path, (384, 384), 3)
    assert len(bank) == 6


def test_an_unlabelled_target(real_data):
    """Its masks are of the avascular zone, not of vessels: they must not be looked at."""
    items = target_images(real_data / "OCTA_FAZ", "train")
    assert len(items) >= 14 and all(set(item) == {"image"} for item in items)
    image = VesselContrastd("image", "bright")(LoadImageChannelsd("image", 3)(items[0]))["image"]
    assert image.shape == (1, 512, 512) and 0.1 < float(image.mean()) < 0.7 and np.isfinite(image.numpy()).all()
