"""Training and test cases in folders of their own, as MoNuSeg and others are published."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shared_components.data.checks.understood import overview
from shared_components.data.datalists import datalist
from shared_components.data.layouts.cases import find_cases
from shared_components.errors import InputError
from tests.data.folders import save_picture, some_mask, some_picture

ANNOTATION = (
    "<Annotations><Annotation><Regions><Region Id='1'><Vertices><Vertex X='2' Y='2'/><Vertex X='9' Y='2'/>"
    "<Vertex X='9' Y='8'/></Vertices></Region></Regions></Annotation></Annotations>"
)


def pairs(folder: Path, names: list[str], images: str = "img", labels: str | None = "mask", first: int = 0) -> Path:
    """Pictures and masks of equal names; the content differs from number to number."""
    for number, name in enumerate(names, first):
        save_picture(folder / images / f"{name}.tif", some_picture(number))
        if labels:
            save_picture(folder / labels / f"{name}.png", some_mask())
    return folder


def annotated(images: Path, annotations: Path, names: list[str], first: int) -> None:
    for number, name in enumerate(names, first):
        save_picture(images / f"{name}.tif", some_picture(number))
        annotations.mkdir(parents=True, exist_ok=True)
        (annotations / f"{name}.xml").write_text(ANNOTATION, encoding="utf-8")


def names_of(folder: Path, section: str) -> list[str]:
    return [
        Path(item["image"]).stem for item in datalist(folder, section, {"nuclei": 1}, num_channels=3, spatial_dims=2)
    ]


@pytest.mark.parametrize("train, test", [("Training", "Test"), ("train", "test"), ("training_set", "testing_set")])
def test_what_is_under_test_is_the_test_section(tmp_path, train, test):
    pairs(tmp_path / train, list("abcdefghi"))
    pairs(tmp_path / test, ["y", "z"], first=20)
    folder = find_cases(tmp_path)
    assert (folder.layout, len(folder.cases), folder.problems) == ("parts", 11, [])
    assert folder.labelled and folder.split == {"train": list("abcdefghi"), "test": ["y", "z"]}
    assert names_of(tmp_path, "test") == ["y", "z"]
    assert names_of(tmp_path, "train") == list("abcdefgi") and names_of(tmp_path, "validation") == ["h"]
    assert overview(folder)["split"] == "train 8, validation 1, test 2 (the folders)"


def test_the_two_archives_of_monuseg_side_by_side(tmp_path):
    train = tmp_path / "MoNuSeg 2018 Training Data"
    annotated(train / "Tissue Images", train / "Annotations", ["TCGA-1", "TCGA-2"], 0)
    annotated(tmp_path / "MoNuSegTestData", tmp_path / "MoNuSegTestData", ["TCGA-3"], 5)
    (tmp_path / "__MACOSX").mkdir()
    folder = find_cases(tmp_path)
    assert folder.split == {"train": ["TCGA-1", "TCGA-2"], "test": ["TCGA-3"]}
    assert [case.label.suffix for case in folder.cases] == [".xml"] * 3
    assert names_of(tmp_path, "test") == ["TCGA-3"]
    shutil.move(train, tmp_path / "unpacked")  # into a folder of its own name
    shutil.move(tmp_path / "unpacked", train / train.name)
    assert find_cases(tmp_path).split == folder.split


def test_validation_has_a_folder_of_its_own_and_a_split_comes_first(tmp_path):
    for number, part in enumerate(("train", "val", "test")):
        pairs(tmp_path / part, [f"{part}1", f"{part}2"], first=10 * number)
    assert find_cases(tmp_path).split == {
        "train": ["train1", "train2"], "validation": ["val1", "val2"], "test": ["test1", "test2"],
    }  # fmt: skip
    (tmp_path / "split.json").write_text('{"train": ["train1"], "test": ["val1", "test1"]}', encoding="utf-8")
    assert find_cases(tmp_path).split == {"train": ["train1"], "test": ["test1", "val1"]}


def test_equal_names_are_told_apart_by_the_part(tmp_path):
    pairs(tmp_path / "Training", ["1", "2"])
    pairs(tmp_path / "Test", ["1", "2"], first=20)
    (tmp_path / "Test" / "mask" / "2.png").unlink()
    folder = find_cases(tmp_path)
    assert folder.split == {"train": ["Training_1", "Training_2"], "test": ["Test_1", "Test_2"]}
    assert all(case.named for case in folder.cases)
    assert [(problem.case, problem.kind) for problem in folder.problems] == [("Test_2", "no_label")]
    with pytest.raises(InputError, match="1 of 2 test cases cannot be used for want of a label; .*--skip_bad True"):
        names_of(tmp_path, "test")


def test_a_test_part_without_labels_can_be_predicted_only(tmp_path):
    pairs(tmp_path / "Training", list("abcde"))
    pairs(tmp_path / "Test", ["y", "z"], labels=None, first=20)
    folder = find_cases(tmp_path)
    assert (folder.split, [case.id for case in folder.unlabelled]) == (None, ["y", "z"])
    assert names_of(tmp_path, "test") == ["e"] and names_of(tmp_path, "inference") == list("abcdeyz")
    assert overview(folder)["cases"] == "5, 2 without labels"


def test_masks_a_class_must_be_of_the_same_classes(tmp_path):
    for number, (part, classes) in enumerate((("train", ("liver", "spleen")), ("test", ("spleen",)))):
        pairs(tmp_path / part, [part], labels=None, first=number)
        for name in classes:
            save_picture(tmp_path / part / "mask" / name / f"{part}.png", some_mask())
    with pytest.raises(InputError, match="no images found"):
        find_cases(tmp_path)
    save_picture(tmp_path / "test" / "mask" / "liver" / "test.png", some_mask())
    folder = find_cases(tmp_path)
    assert folder.label_names == {"liver": 1, "spleen": 2} and len(folder.cases[0].masks) == 2


@pytest.mark.parametrize("names", [("train", "train2", "test"), ("latest", "training"), ("train test", "other")])
def test_other_folders_are_no_parts(tmp_path, names):
    for number, name in enumerate(names):
        pairs(tmp_path / name, [name], first=number)
    with pytest.raises(InputError, match="no images found"):
        find_cases(tmp_path)


def test_folders_of_images_alone_stay_what_they_were(tmp_path):
    for number, name in enumerate(("train", "test")):
        save_picture(tmp_path / name / f"{name}.png", some_picture(number))
    folder = find_cases(tmp_path)
    assert folder.layout == "images" and [case.id for case in folder.cases] == ["test_test", "train_train"]


def test_a_refusal_counts_what_has_no_label_beside_what_is_broken(tmp_path):
    pairs(tmp_path, [f"CHNCXR_{number}" for number in range(8)], images="CXR_png", labels="masks")
    (tmp_path / "masks" / "CHNCXR_1.png").unlink()
    (tmp_path / "CXR_png" / "CHNCXR_2.tif").write_bytes(b"no picture")
    with pytest.raises(InputError, match="2 of 6 train cases cannot be used, 1 of them for want of a label; mend them"):
        names_of(tmp_path, "train")
    kept = datalist(tmp_path, "train", {"lungs": 1}, True, 3, spatial_dims=2)
    assert len(kept) == 4
