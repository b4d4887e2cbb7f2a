"""What MONAI Label hands to a training, pictures and masks alone, is enough for bundles of image-level labels."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from shared_components.data.phantoms import make_phantoms
from tests.monai_label.cases import REPOSITORY


@pytest.mark.parametrize("bundle, kind", [("cdm_brats", "tumour_slices"), ("cdm_abdomen", "kidney_slices")])
def test_the_image_level_label_follows_from_the_mask(monkeypatch, tmp_path: Path, bundle: str, kind: str) -> None:
    monkeypatch.setitem(sys.modules, "monailabel", types.ModuleType("monailabel"))
    data = make_phantoms(tmp_path / "data", num_cases=12, seed=1, kind=kind)
    items = [
        {"image": str(path), "label": str(data / "masks" / path.name)} for path in sorted((data / "images").iterdir())
    ]
    parser = ConfigParser()
    parser.read_config(str(REPOSITORY / "bundles" / bundle / "configs" / "train.json"))
    parser.update({"train#dataset#data": items, "device": "cpu", "bundle_root": str(REPOSITORY / "bundles" / bundle)})
    for section in ("train", "validate"):
        found = [item["class"] for item in parser.get_parsed_content(f"{section}#dataset")]
        assert len(found) == 12 and set(found) == {0, 1}
    assert parser.get_parsed_content("scored") is True


@pytest.mark.parametrize("bundle", ["cdm_brats", "cdm_abdomen"])
def test_elsewhere_nothing_is_derived(bundle: str) -> None:
    parser = ConfigParser()
    parser.read_config(str(REPOSITORY / "bundles" / bundle / "configs" / "train.json"))
    parser.update({"device": "cpu", "dataset_dir": "folder"})
    transforms = parser.get_parsed_content("train#deterministic_transforms")
    assert [type(transform).__name__ for transform in transforms][0] == "LoadImageChannelsd"
