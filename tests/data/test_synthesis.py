"""Requests for images: exactly as many as asked for, each with its map and seed."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from shared_components.data.phantoms import make_phantoms
from shared_components.data.synthesis import (
    DropClassesd,
    NameAfterRequestd,
    blank_label_map,
    dropped_names,
    synthesis_requests,
)
from shared_components.errors import InputError

LABELS = {"anterior": 1, "posterior": 2}


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six label maps and nothing else."""
    folder = tmp_path_factory.mktemp("maps")
    for index in range(6):
        label = np.zeros((6, 7, 3), np.uint8)
        label[1 + index % 3, 2:5] = 1 + index % 2
        nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), folder / f"map_{index}.nii.gz")
    return folder


@pytest.mark.parametrize("count", [1, 3, 6, 13])
def test_exactly_as_many_images_as_asked_for(maps: Path, count: int) -> None:
    requests, failures = synthesis_requests(maps, LABELS, num_images=count, seed=10)
    assert len(requests) == len({item["name"] for item in requests}) == count and failures == []
    assert [item["seed"] for item in requests] == list(range(10, 10 + count))
    assert [Path(item["image"]).name for item in requests] == [f"map_{i % 6}.nii.gz" for i in range(count)]


def test_some_of_each_map(maps: Path) -> None:
    requests, _ = synthesis_requests(maps, LABELS, num_samples=2)
    assert [item["name"] for item in requests[:3]] == ["map_0_01", "map_0_02", "map_1_01"] and len(requests) == 12
    assert [item["seed"] for item in requests] == list(range(12))


def test_classes_are_dropped_by_name_or_value(maps: Path) -> None:
    assert synthesis_requests(maps, LABELS, drop_classes=[2])[0][0]["dropped"] == "posterior"
    assert synthesis_requests(maps, LABELS, drop_classes="all")[0][0]["dropped"] == "anterior+posterior"
    assert dropped_names("anterior", LABELS) == ["anterior"] and dropped_names([], LABELS) == []
    with pytest.raises(InputError, match="'liver' is no class; expected some of anterior, posterior, or all"):
        synthesis_requests(maps, LABELS, drop_classes=["liver"])


def test_a_series_takes_classes_away_with_one_seed(maps: Path) -> None:
    requests, _ = synthesis_requests(maps, {"a": 1, "b": 2, "c": 3}, "remove_classes", num_images=2, seed=4)
    assert [item["dropped"] for item in requests[:6]] == ["", "a", "b", "c", "a+b", "a+b+c"] and len(requests) == 12
    assert [item["seed"] for item in requests] == [4] * 6 + [5] * 6
    assert requests[4]["name"] == "map_0_without_a_b" and requests[4]["series"] == "map_0"


def test_a_series_of_classes_with_any_name_has_file_names(maps: Path) -> None:
    requests, _ = synthesis_requests(maps, {"fat/muscle": 1, "bone (left)": 2}, "remove_classes", num_images=1)
    assert [item["dropped"] for item in requests[1:3]] == ["fat/muscle", "bone (left)"]
    assert [item["name"] for item in requests[1:3]] == ["map_0_without_fat-muscle", "map_0_without_bone-left-"]


def test_a_data_set_gives_its_label_maps_and_for_a_translation_its_images(tmp_path: Path) -> None:
    folder = make_phantoms(tmp_path / "phantoms", 6)
    requests, _ = synthesis_requests(folder, LABELS)
    assert len(requests) == 6 and "source" not in requests[0] and "labelsTr" in requests[0]["image"]
    test, _ = synthesis_requests(folder, LABELS, section="test")
    assert 0 < len(test) < 6
    with_images, _ = synthesis_requests(folder, LABELS, "translate", section="test")
    assert [item["image"] for item in with_images] == [item["image"] for item in test]
    assert all(Path(item["source"]).is_file() and "imagesTr" in item["source"] for item in with_images)


def test_a_map_with_unknown_values_is_named_and_the_others_are_used(maps: Path, tmp_path: Path) -> None:
    for file in list(maps.iterdir())[:2]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    nibabel.save(nibabel.Nifti1Image(np.full((4, 4, 2), 7, np.uint8), np.eye(4)), tmp_path / "odd.nii.gz")
    requests, failures = synthesis_requests(tmp_path, LABELS)
    assert len(requests) == 2 and len(failures) == 1
    assert "odd.nii.gz" in failures[0] and "unknown label values 7" in failures[0]


def test_pictures(tmp_path: Path) -> None:
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "eye.png")
    (request,), _ = synthesis_requests(tmp_path, LABELS, spatial_dims=None)
    assert request["name"] == "eye_01"


def test_a_map_that_cannot_be_used_leaves_the_seeds_of_the_others_as_they_are(maps: Path, tmp_path: Path) -> None:
    for file in maps.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "map_1.nii.gz").write_bytes(b"torn")
    for options in ({"num_samples": 2}, {"mode": "remove_classes"}):
        whole, _ = synthesis_requests(maps, LABELS, **options)
        some, failures = synthesis_requests(tmp_path, LABELS, **options)
        expected = {item["name"]: item["seed"] for item in whole if item["series"] != "map_1"}
        assert len(failures) == 1 and {item["name"]: item["seed"] for item in some} == expected


def test_a_blank_map_for_images_without_a_condition(tmp_path: Path) -> None:
    volume = nibabel.load(Path(blank_label_map(tmp_path / "a", [8, 9, 3], [1.0, 2.0, 3.0])) / "blank.nii.gz")
    assert volume.shape == (8, 9, 3) and not volume.get_fdata().any()
    assert np.allclose(volume.affine, np.diag([1, 2, 3, 1]))
    requests, _ = synthesis_requests(blank_label_map(tmp_path / "b", [8, 6]), LABELS, num_images=5, spatial_dims=2)
    assert len(requests) == 5 and Image.open(requests[0]["image"]).size == (8, 6)
    for size in ([4], 4, "4", [4, 0], [4.5, 4]):
        with pytest.raises(InputError, match="blank_size"):
            blank_label_map(tmp_path, size)


def test_the_classes_named_are_deleted_from_the_map() -> None:
    label = torch.tensor([[[0.0, 1, 2]]])
    drop = DropClassesd("label", LABELS)
    assert drop({"label": label, "dropped": "posterior"})["label"].tolist() == [[[0, 1, 0]]]
    assert drop({"label": label, "dropped": "anterior+posterior"})["label"].tolist() == [[[0, 0, 0]]]
    assert drop({"label": label})["label"].tolist() == [[[0, 1, 2]]]


def test_results_are_called_as_asked_with_the_suffix_of_their_map() -> None:
    label = MetaTensor(torch.zeros(1, 2, 2), meta={"filename_or_obj": "/data/a.PNG"})
    data = NameAfterRequestd(["pred"])({"image": label, "pred": torch.zeros(1, 2, 2), "name": "a_01"})
    assert data["pred"].meta["filename_or_obj"] == "a_01.png"


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"mode": "dream"}, "mode must be one of"),
        ({"num_images": 0}, "num_images"),
        ({"num_samples": 1.5}, "num_samples"),
        ({"section": "holdout"}, "section must be one of"),
        ({"section": "train"}, "label maps without images have no sections; leave out --section train"),
        ({"mode": "translate"}, "no label map with an image"),
    ],
)
def test_mistakes_are_told(maps: Path, options: dict, part: str) -> None:
    with pytest.raises(InputError, match=part):
        synthesis_requests(maps, LABELS, **options)
