"""The nested regions of a brain tumour follow from how the data at hand number its parts."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from monai.bundle import ConfigParser

from shared_components.data.tumour_regions import regions_of_names, tumour_regions
from shared_components.errors import InputError
from tests.data.folders import save, some_image

CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "medsegdiff_brats" / "configs"
UP_TO_2021 = [[1, 2, 3, 4], [1, 3, 4], [4]]
MSD = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}
BRATS_2023 = {"background": 0, "NCR": 1, "ED": 2, "ET": 3}
IN_WORDS = {
    "background": 0,
    "non_enhancing_tumor_core": 1,
    "surrounding non-enhancing FLAIR hyperintensity": 2,
    "Enhancing tissue": 3,
}
BRATS_2021 = {"0": "background", "1": "necrotic tumor core", "2": "peritumoral edema", "4": "GD-enhancing tumor"}


def folder_of(root: Path, values: list[int], labels: dict | None = None) -> Path:
    """An MSD folder of two cases, of which the second holds the last value."""
    for number, present in enumerate((values[:-1], values)):
        label = np.zeros((6, 5, 4), np.uint8)
        label.flat[: len(present)] = present
        save(root / "imagesTr" / f"case_{number}.nii.gz", some_image(number))
        save(root / "labelsTr" / f"case_{number}.nii.gz", label)
    content = {"modality": {"0": "FLAIR"}, **({"labels": labels} if labels else {})}
    (root / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("labels", "values", "expected"),
    [
        (MSD, [1, 2, 3], [[1, 2, 3], [2, 3], [3]]),
        (BRATS_2023, [1, 2, 3], [[1, 2, 3], [1, 3], [3]]),
        (IN_WORDS, [1, 2, 3], [[1, 2, 3], [1, 3], [3]]),
        (BRATS_2021, [1, 2, 4], [[1, 2, 4], [1, 4], [4]]),
        (None, [1, 2, 4], UP_TO_2021),
        (None, [1, 2, 3, 4], UP_TO_2021),
    ],
)
def test_the_convention_follows_from_names_or_a_value_4(tmp_path, caplog, labels, values, expected):
    caplog.set_level(logging.INFO, "shared_components")
    assert tumour_regions({"dataset_dir": folder_of(tmp_path, values, labels)}) == expected
    assert f"enhancing tumour {expected[2]}" in caplog.text


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (None, "label values (1, 2, 3)"),
        ({"tumour": 1, "other": 2}, "label 'tumour' (1)"),
        ({**BRATS_2023, "RC": 4}, "--known_labels '[1, 2, 3, 4]'"),
        ({"edema": 1, "enhancing": 3}, "none is core"),
    ],
)
def test_what_could_mean_several_things_is_refused_in_one_line(tmp_path, labels, words):
    with pytest.raises(InputError) as error:
        tumour_regions({"dataset_dir": folder_of(tmp_path, [1, 2, 3], labels)})
    assert words in str(error.value) and "--label_values" in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_left_to_the_datalist(tmp_path):
    root = folder_of(tmp_path, [1, 2, 4])
    (root / "labelsTr" / "case_0.nii.gz").write_bytes(b"broken")
    assert tumour_regions({"dataset_dir": root}) == UP_TO_2021


def test_names_of_the_phantoms():
    names = {"oedema": 1, "core": 2, "enhancing": 3}
    assert regions_of_names(names, "here") == tumour_regions(None, demonstration=True) == [[1, 2, 3], [2, 3], [3]]


def test_training_reads_the_labels_and_inference_does_not(tmp_path):
    root = str(folder_of(tmp_path, [1, 2, 3], MSD))
    found = {}
    for name in ("train", "inference"):
        parser = ConfigParser()
        parser.read_config([str(CONFIGS / f"{name}.json"), str(CONFIGS / "regions.json")])
        parser.update({"dataset_dir": root, "denoiser": {"_target_": "torch.nn.Identity"}})
        found[name] = parser.get_parsed_content("label_coding").label_values
    assert found["train"] == [[1, 2, 3], [2, 3], [3]] and len(found["inference"]) == 3
