"""The class of an image, from a manifest to a channel of the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared_components.data.class_channel import ClassLabelChanneld
from shared_components.data.datalists import datalist, inference_cases
from shared_components.errors import InputError


def folder_with_classes(folder: Path, classes: list[str]) -> Path:
    rows = ["id,image,mask,split,class_label"]
    random = np.random.default_rng(0)
    for index, value in enumerate(classes):
        Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        mask = np.zeros((32, 32), np.uint8)
        mask[8:20, 8 + index : 20] = 1
        Image.fromarray(mask).save(folder / f"{index}_mask.png")
        rows.append(f"{index},{index}.png,{index}_mask.png,{'train' if index < 3 else 'test'},{value}")
    (folder / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder


def test_the_manifest_gives_every_case_its_class(tmp_path: Path) -> None:
    folder = folder_with_classes(tmp_path, ["1", "0", "", "2"])
    items = datalist(folder, "test", {"lesion": 1}, num_channels=3, spatial_dims=2)
    assert [item["class_label"] for item in items] == ["2"]
    cases, bad = inference_cases(folder, 3, spatial_dims=2)
    assert [case["class_label"] for case in cases] == ["1", "0", "", "2"] and bad == []


def test_the_channel_holds_the_class_everywhere_and_the_image_stays() -> None:
    image = torch.rand(3, 8, 6)
    told = ClassLabelChanneld("image", 3)({"image": image, "class_label": "2"})["image"]
    assert torch.equal(told[:3], image) and torch.equal(told[3], torch.full((8, 6), 2.0))
    unknown = ClassLabelChanneld("image", 3)({"image": image})["image"]
    assert torch.equal(unknown[3], torch.full((8, 6), -1.0))


def test_without_classes_the_image_is_as_it_was() -> None:
    image = torch.rand(3, 8, 6)
    assert ClassLabelChanneld("image", None)({"image": image, "class_label": 2})["image"] is image


@pytest.mark.parametrize("label", ["3", "-1", "benign"])
def test_a_class_that_the_network_does_not_know_is_refused(label: str) -> None:
    with pytest.raises(InputError, match=f"class_label is '{label}', expected 0 to 2"):
        ClassLabelChanneld("image", 3)({"image": torch.rand(3, 8, 6), "class_label": label})


def test_words_in_the_column_are_no_matter_to_models_without_classes(tmp_path: Path) -> None:
    folder = folder_with_classes(tmp_path, ["1", "benign", "0", "0"])
    items = datalist(folder, "train", {"lesion": 1}, num_channels=3, spatial_dims=2)
    images = [ClassLabelChanneld("image", None)({**item, "image": torch.rand(3, 8, 6)})["image"] for item in items]
    assert [len(image) for image in images] == [3, 3]
