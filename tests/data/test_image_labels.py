"""Slices with image-level labels, found in every layout, and slices made of volumes."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import Compose
from PIL import Image

from shared_components.data.image_labels import (
    ImageLabelFromMaskd,
    find_labelled_slices,
    has_masks,
    mask_class,
    slice_list,
)
from shared_components.data.layouts.class_column import unknown_words
from shared_components.data.loaders import LoadImageChannelsd, LoadLabelMapd
from shared_components.data.phantoms import make_phantoms
from shared_components.data.slice_folder import prepare_slices, slice_folder
from shared_components.data.slice_transforms import ForegroundScaled, MaskOrEmptyd, ObjectMaskd
from shared_components.errors import InputError, find_input_error


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((10, 12), value % 251, np.uint8)
    pixels[2, 3] = value // 251 + 1
    Image.fromarray(pixels).save(path)


def mask(path: Path, pixels: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((10, 12), np.uint8)
    array.flat[:pixels] = 255
    Image.fromarray(array).save(path)


def published(root: Path, test: str = "validate", below: str = "") -> Path:
    """Two training patients and one of the test, four slices each."""
    number = 0
    for part, patients in (("training", ("BraTS_001", "BraTS_002")), (test, ("BraTS_009",))):
        for patient in patients:
            for z in (80, 90, 100, 110):
                kind = "tumor" if z > 90 else "normal"
                picture(root / below / part / kind / f"{patient}_{z}.png", number := number + 1)
                if kind == "tumor":
                    mask(root / below / part / "seg" / f"{patient}_{z}.png", 20)
    return root


@pytest.mark.parametrize(("test", "below"), [("validate", ""), ("validation", "flair/flair")])
def test_the_published_layout(tmp_path, test, below):
    root = published(tmp_path / "brats", test, below)
    train, validation, tests = (slice_list(root, section) for section in ("train", "validation", "test"))
    assert [len(part) for part in (train, validation, tests)] == [4, 4, 4]
    assert {item["patient"] for item in train} == {"BraTS_001"} and {item["patient"] for item in tests} == {"BraTS_009"}
    assert [item["class"] for item in tests] == [1, 1, 0, 0] or sorted(item["class"] for item in tests) == [0, 0, 1, 1]
    assert not any("label" in item for item in train)
    assert [("label" in item) == (item["class"] == 1) for item in tests] == [True] * 4 and has_masks(tests)


def test_two_folders_of_classes_are_split_by_patient(tmp_path):
    for patient in range(6):
        for z in range(4):
            kind = "normal" if z < 2 else "tumour"
            picture(tmp_path / kind / f"p{patient}_s{z}.png", 10 * patient + z)
    places = [
        {item["patient"] for item in slice_list(tmp_path, section)} for section in ("train", "validation", "test")
    ]
    assert sorted(sum((sorted(place) for place in places), [])) == [f"p{n}" for n in range(6)]
    assert not has_masks(slice_list(tmp_path, "test"))


def test_a_manifest_of_words(tmp_path):
    rows = ["id,split,image,label,patient"]
    for number in range(6):
        picture(tmp_path / f"i{number}.png", number)
        rows.append(f"s{number},{('train', 'train', 'train', 'val', 'test', 'test')[number]},i{number}.png,"
                    f"{('normal', 'tumor')[number % 2]},p{number}")  # fmt: skip
    (tmp_path / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
    assert [item["class"] for item in slice_list(tmp_path, "train")] == [0, 1, 0]
    assert [item["class"] for item in slice_list(tmp_path, "test")] == [0, 1]


def test_a_manifest_without_ids_and_with_spaces_in_its_header(tmp_path):
    rows = ["image, class"]
    for number in range(10):
        picture(tmp_path / "pictures" / f"i{number}.png", number)
        rows.append(f"pictures/i{number}.png, {('normal', 'tumor')[number % 2]}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
    items = sum((slice_list(tmp_path, section) for section in ("train", "validation", "test")), [])
    assert {Path(item["image"]).stem: item["class"] for item in items} == {f"i{n}": n % 2 for n in range(10)}


@pytest.mark.parametrize("header", ["ID,Image,Class,Patient", "Image,Class,Patient"])
def test_a_manifest_of_words_with_capitals_in_its_header(tmp_path, header):
    """The paths and the words are read by one reader, whatever it forgives; cells without a word have none."""
    rows = []
    for number in range(6):
        picture(tmp_path / f"slice {number}.png", 10 * number)
        cells = [f"s{number}", f".\\slice {number}.png", ("Normal", "TUMOR", "")[number % 3], f"p{number}"]
        rows.append(",".join(cells[-header.count(",") - 1 :]))
    (tmp_path / "manifest.csv").write_text("\n".join([header, *rows]), encoding="utf-8")
    found = find_labelled_slices(tmp_path)
    ids = [case.id for case in found.folder.cases]
    assert found.classes == {ids[0]: 0, ids[1]: 1, ids[3]: 0, ids[4]: 1}
    assert unknown_words(found.folder) == ""


def breast_ultrasound(root: Path) -> Path:
    """The layout of BUSI: three folders, masks beside the images."""
    for number in range(12):
        kind = ("normal", "benign", "malignant")[number % 3]
        picture(root / kind / f"{kind} ({number}).png", number)
        mask(root / kind / f"{kind} ({number})_mask.png", 0 if kind == "normal" else 20 + number)
    return root


def test_masks_beside_images_of_several_positive_folders(tmp_path):
    items = sum((slice_list(breast_ultrasound(tmp_path), part, masks=True) for part in ("train", "test")), [])
    assert all(item["class"] == int("normal" not in item["image"]) for item in items)
    assert all(Path(item["label"]).stem == f"{Path(item['image']).stem}_mask" for item in items)
    assert len(find_labelled_slices(tmp_path).folder.cases) == 12


def test_several_masks_of_an_image_are_one(tmp_path):
    """As BUSI has them: united when loaded, of whatever values; a mask in seg/ comes before them."""
    folder = breast_ultrasound(tmp_path) / "benign"
    second = np.zeros((10, 12), np.uint8)
    second[-1] = 255
    Image.fromarray(second).save(folder / "benign (4)_mask_1.png")
    items = sum((slice_list(tmp_path, part, [2, 3], masks=True) for part in ("train", "validation", "test")), [])
    item = next(item for item in items if Path(item["image"]).stem == "benign (4)")
    assert [Path(file).name for file in item["label"]] == ["benign (4)_mask.png", "benign (4)_mask_1.png"]
    assert sum(isinstance(other["label"], list) for other in items) == 1 and has_masks(items)
    load = Compose([LoadLabelMapd("label", labels=[2, 3], united=True), ObjectMaskd("label", [2, 3])])
    assert int(load({"label": item["label"]})["label"].sum()) == 24 + 12
    assert int(load({"label": item["label"][0]})["label"].sum()) == 24
    assert mask_class(item["label"], [1], 36) == 1 and mask_class(item["label"], [1], 37) is None
    Image.fromarray(second[:5]).save(folder / "benign (4)_mask_1.png")
    with pytest.raises(RuntimeError) as raised:
        load({"label": item["label"]})
    assert "_mask_1.png: shape (12, 5), expected (12, 10), that of" in str(find_input_error(raised.value))
    mask(tmp_path / "seg" / "benign (4).png", 30)
    case = next(case for case in find_labelled_slices(tmp_path).folder.cases if case.id == "benign (4)")
    assert case.label == tmp_path / "seg" / "benign (4).png" and find_labelled_slices(tmp_path).masks == {}


def test_labels_follow_from_masks_where_nothing_else_says(tmp_path):
    for number, pixels in enumerate((0, 3, 50, 0, 60, 0, 70, 0, 40, 2)):
        picture(tmp_path / "images" / f"s{number}.png", number)
        mask(tmp_path / "masks" / f"s{number}.png", pixels)
    assert mask_class(tmp_path / "masks" / "s1.png", [1], 10) is None
    train = slice_list(tmp_path, "train", min_pixels=10)
    assert "s1.png" not in [Path(item["image"]).name for item in train]  # neither with the object nor without
    assert all((item["class"] == 1) == (Path(item["image"]).stem in ("s2", "s6", "s8")) for item in train)
    assert not any("label" in item for item in train)


def test_a_case_without_an_image_level_label_gets_the_masks(tmp_path):
    mask(tmp_path / "some.png", 3)
    mask(tmp_path / "none.png", 0)
    items = [{"label": str(tmp_path / f"{name}.png")} for name in ("some", "none")]
    transform = ImageLabelFromMaskd("label", [2])
    assert [transform(item) for item in items] == [{**items[0], "class": 1}, {**items[1], "class": 0}]
    assert transform({**items[0], "class": 0})["class"] == 0  # what is known stays
    assert has_masks(items) and not has_masks([{"image": "a.png"}])


def test_real_slices(real_data):
    folder = real_data / "noncommercial" / "BRATS2015_slices"
    if not folder.is_dir():
        pytest.skip("needs BRATS2015_slices")
    parts = {name: slice_list(folder, name, [1, 2, 3, 4], ["flair"]) for name in ("train", "validation", "test")}
    assert {name: (len(part), sum(item["class"] for item in part)) for name, part in parts.items()} == {
        "train": (36, 24),
        "validation": (18, 12),
        "test": (18, 12),
    }
    assert len({item["patient"] for part in parts.values() for item in part}) == 4
    assert slice_folder(folder, "unused", ["flair"]) == str(folder)
    assert has_masks(parts["test"]) and "flair" in parts["train"][0]["image"]


def test_mistakes_are_told(tmp_path):
    picture(tmp_path / "some" / "a.png", 1)
    with pytest.raises(InputError, match="no image-level labels; expected folders normal/ and tumor/"):
        find_labelled_slices(tmp_path / "some")
    rows = ["id,split,image,class"]
    for number, (section, kind) in enumerate((("train", "normal"), ("train", "normal"), ("test", "tumor"))):
        picture(tmp_path / f"i{number}.png", number)
        rows.append(f"s{number},{section},i{number}.png,{kind}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(InputError, match="section 'train' has 0 positive ones of .* slices; expected some of either"):
        slice_list(tmp_path, "train")
    with pytest.raises(InputError, match="section 'training': expected one of train, validation, test"):
        slice_list(tmp_path, "training")


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Path:
    return make_phantoms(tmp_path_factory.mktemp("volumes") / "phantoms", num_cases=4, seed=1, kind="tumour")


def test_volumes_become_slices_with_labels(volumes, tmp_path):
    folder = Path(slice_folder(volumes, tmp_path, values=[1, 2, 3], min_share=0.02))
    assert folder == tmp_path / "slices"
    with open(folder / "manifest.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["patient"] for row in rows} == {f"phantom_00{n}" for n in range(4)}
    sections = {row["patient"]: row["split"] for row in rows}
    assert sorted(sections.values()) == ["test", "train", "train", "validation"]
    for row in rows:
        share = int(row["object_pixels"]) / int(row["body_pixels"])
        assert (share >= 0.02) if row["class"] == "tumor" else share == 0
    train = slice_list(folder, "train")
    assert {item["class"] for item in train} == {0, 1} and slice_folder(folder, tmp_path) == str(folder)
    for item in slice_list(folder, "test", [1, 2, 3]):
        assert mask_class(item["label"], [1, 2, 3]) == item["class"]
    assert prepare_slices(volumes, folder, [1, 2, 3], min_share=0.02) == folder
    with pytest.raises(InputError, match="holds something other than the slices of"):
        prepare_slices(volumes, folder, [3])


@pytest.mark.parametrize("part", ["imagesTr/phantom_001_0000.nii.gz", "labelsTr/phantom_001.nii.gz"])
def test_slices_of_data_that_changed_are_not_used(volumes, tmp_path, part):
    data = Path(shutil.copytree(volumes, tmp_path / "data"))
    folder = prepare_slices(data, tmp_path / "s", [1, 2, 3], min_share=0.02)
    for file in data.rglob("*"):
        os.utime(file)
    assert prepare_slices(data, folder, [1, 2, 3], min_share=0.02) == folder
    other = nibabel.load(data / part)
    values = np.asanyarray(other.dataobj)[::-1]
    nibabel.save(nibabel.Nifti1Image(values, other.affine, other.header), data / part)
    with pytest.raises(
        InputError, match=f"{folder}: the data in {data} have changed since, or an earlier version made it"
    ):
        prepare_slices(data, folder, [1, 2, 3], min_share=0.02)


def test_a_slice_is_the_volumes(volumes, tmp_path):
    """Grey values are those of the whole volume, pixels lie as the loaders of volumes and pictures have them."""
    folder = prepare_slices(volumes, tmp_path / "s", [1, 2, 3], min_share=0.0)
    with open(folder / "manifest.csv", encoding="utf-8", newline="") as file:
        row = max(csv.DictReader(file), key=lambda row: int(row["object_pixels"]))
    case, z = row["patient"], int(row["z"])
    load, scale = LoadImageChannelsd("image"), ForegroundScaled("image")
    whole = scale(load({"image": str(volumes / "imagesTr" / f"{case}_0000.nii.gz")}))["image"][..., z]
    alone = scale(load({"image": str(folder / row["image"])}))["image"]
    assert alone.shape == whole.shape and torch.allclose(alone.as_tensor(), whole.as_tensor(), atol=0.02)
    found = LoadLabelMapd("label", labels=[1])({"label": str(folder / row["mask"])})["label"][0] > 0
    label = np.asarray(nibabel.load(volumes / "labelsTr" / f"{case}.nii.gz").dataobj)[..., z] > 0
    assert np.array_equal(found.numpy(), label)


def test_slices_take_the_label_of_their_volume(volumes, tmp_path):
    """By the manifest, which needs no label map, else by whether the label map holds the object anywhere."""
    folder = prepare_slices(volumes, tmp_path / "by_maps", [1, 2, 3], labels_of="volume")
    with open(folder / "manifest.csv", encoding="utf-8", newline="") as file:
        assert {row["class"] for row in csv.DictReader(file)} == {"tumor"}
    cases = sorted((volumes / "imagesTr").glob("*_0000.nii.gz"))
    lines = [f"{file.name[:-12]},{file},{word}" for file, word in zip(cases, ("normal", "tumor", "tumor", "normal"))]
    (tmp_path / "listed").mkdir()
    (tmp_path / "listed" / "manifest.csv").write_text("\n".join(["id,image,class", *lines]) + "\n", encoding="utf-8")
    folder = prepare_slices(tmp_path / "listed", tmp_path / "by_words", labels_of="volume")
    with open(folder / "manifest.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = {row["patient"]: row["class"] for row in rows}
    assert [kinds[file.name[:-12]] for file in cases] == [line.split(",")[-1] for line in lines]
    assert len(kinds) == 4 < len(rows) and all(row["mask"] == "" for row in rows)
    items = [item for section in ("train", "validation", "test") for item in slice_list(folder, section)]
    assert {(item["patient"], item["class"]) for item in items} == {
        (case, int(kind == "tumor")) for case, kind in kinds.items()
    }
    with pytest.raises(InputError, match="labels_of must be one of slice, volume, not 'patient'"):
        prepare_slices(volumes, tmp_path / "other", labels_of="patient")


def test_windows_and_value_ranges(tmp_path):
    volume = np.linspace(-1000, 1000, 5 * 4 * 3).reshape(5, 4, 3).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "ct.nii.gz")
    image = LoadImageChannelsd("image")({"image": str(tmp_path / "ct.nii.gz")})
    found = ForegroundScaled("image", window=(-160, 240))(image)["image"]
    expected = 2 * (torch.as_tensor(volume)[None].clamp(-160, 240) + 160) / 400 - 1
    assert torch.allclose(found.as_tensor(), expected, atol=1e-5)
    unit = ForegroundScaled("image", value_range=(0.0, 1.0))(image)["image"]
    assert unit.min() == 0 and unit.max() == 1


def test_white_masks_are_the_object_whatever_its_values(tmp_path):
    mask(tmp_path / "white.png", 20)
    picture(tmp_path / "other.png", 0)  # one pixel of value 1: another organ
    assert mask_class(tmp_path / "white.png", [2, 3]) == 1 and mask_class(tmp_path / "white.png", [1]) == 1
    assert mask_class(tmp_path / "other.png", [2, 3]) == 0 and mask_class(tmp_path / "other.png", [1, 2]) == 1
    loaded = LoadLabelMapd("label", labels=[2, 3])({"label": str(tmp_path / "white.png")})
    found = ObjectMaskd("label", [2, 3])(loaded)["label"]
    assert int(found.sum()) == 20 and found.max() == 1
    parts = ObjectMaskd("label", [2, 3])({"label": torch.tensor([[[0.0, 1.0, 2.0, 3.0, 255.0]]])})["label"]
    assert parts.flatten().tolist() == [0, 0, 1, 1, 1]
    assert ObjectMaskd("label", [1])({}) == {}


def test_negative_slices_without_a_mask_get_an_empty_one(tmp_path):
    picture(tmp_path / "a.png", 7)
    image = LoadImageChannelsd("image")({"image": str(tmp_path / "a.png")})
    assert MaskOrEmptyd()({**image, "class": 0})["label"].sum() == 0
    with pytest.raises(InputError, match="a.png: positive, but it has no mask"):
        MaskOrEmptyd()({**image, "class": 1})


@pytest.mark.parametrize("background", [-3.55, 2.0])
def test_a_background_that_is_not_zero_is_taken_as_if_it_were(background):
    volume = torch.rand(1, 12, 10, 6, generator=torch.Generator().manual_seed(0)) + 0.5
    outside = torch.ones_like(volume, dtype=torch.bool)
    outside[:, 3:9, 2:8, 1:5] = False
    zero = ForegroundScaled("image")({"image": torch.where(outside, 0.0, volume)})["image"]
    shifted = torch.where(outside, 0.0, volume) + background
    other = ForegroundScaled("image")({"image": shifted})["image"]
    torch.testing.assert_close(other, zero, atol=1e-5, rtol=0)
    assert (other[outside] == -1).all() and other[~outside].std() > 0.3
    noise = volume - background
    assert torch.equal(ForegroundScaled("image")({"image": noise})["image"] > -1, noise > noise.quantile(0.005))


def words(root: Path, parts: dict[str, tuple[str, str]]) -> Path:
    """Folders of a negative and a positive class, six patients of a slice each in either."""
    for part, kinds in parts.items():
        for number in range(12):
            name = f"{part or 'all'}{number}x_{number}.png"
            picture(root / part / kinds[number % 2] / name, hash_of(part) + number)
    return root


def hash_of(part: str) -> int:
    return 20 * ["", "train", "Training", "val", "valid", "test", "Testing"].index(part) + 2


@pytest.mark.parametrize(("train", "val", "test"), [("train", "val", "test"), ("Training", "valid", "Testing")])
def test_three_sections_of_folders_are_three_sections(tmp_path, train, val, test):
    root = words(tmp_path, {part: ("no", "Yes") for part in (train, val, test)})
    for section, part in (("train", train), ("validation", val), ("test", test)):
        items = slice_list(root, section)
        assert len(items) == 12 and {Path(item["image"]).parts[-3] for item in items} == {part}
        assert all(item["class"] == (Path(item["image"]).parts[-2] == "Yes") for item in items)
    for file in (root / test).rglob("*.png"):  # pictures to be predicted, of no known class
        file.rename(root / test / file.name)
    assert {Path(item["image"]).parts[-3] for item in slice_list(root, "test")} == {val}


def test_a_folder_of_no_class_beside_the_others_is_told_of(tmp_path, caplog):
    words(tmp_path, {"": ("NoTumor", "Glioma")})
    for number in range(3):
        picture(tmp_path / "pituitary" / f"q{number}_1.png", 400 + number)
    assert sum(len(slice_list(tmp_path, part)) for part in ("train", "validation", "test")) == 12
    assert "pituitary: 3 images in a folder of no class are not used; call it seg if they are masks, by" in caplog.text


def test_words_of_no_class_are_named(tmp_path):
    picture(tmp_path / "a.png", 3)
    (tmp_path / "manifest.csv").write_text("image,label\na.png,normal\na.png,cyst\n", encoding="utf-8")
    with pytest.raises(InputError, match="labels: the column label holds cyst, expected normal, .*glioma"):
        find_labelled_slices(tmp_path)


def test_a_section_without_patients_says_so(tmp_path):
    words(tmp_path, {"": ("normal", "tumor")})
    with pytest.raises(InputError, match="'validation' is empty: 12 slices of 1 patients, and no patient may be"):
        slice_list(tmp_path, "validation", patient_pattern="^(all)")


def test_label_maps_without_the_values_of_the_object_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(3):
        for kind, values in (("images", rng.normal(5, 1, (9, 8, 4))), ("labels", rng.integers(0, 2, (9, 8, 4)) * 7)):
            (tmp_path / "set" / kind).mkdir(parents=True, exist_ok=True)
            file = tmp_path / "set" / kind / f"v{number}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), np.eye(4)), file)
    with pytest.raises(InputError, match="the label maps hold 0, 7 and none of 1, 2, .*label_values"):
        prepare_slices(tmp_path / "set", tmp_path / "out", [1, 2])
    assert not (tmp_path / "out").exists() and prepare_slices(tmp_path / "set", tmp_path / "out", [2, 7]).is_dir()


def test_volumes_in_folders_a_class_are_asked_for_by_their_label_and_pictures_not_at_all(tmp_path):
    for number in range(4):
        folder = tmp_path / "volumes" / ("normal", "tumor")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(number).normal(5, 1, (9, 8, 4)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / f"v{number}.nii.gz")
    with pytest.raises(InputError, match="no labelled case, expected volumes with label maps; --slices#labels_of vol"):
        prepare_slices(tmp_path / "volumes", tmp_path / "out")
    assert prepare_slices(tmp_path / "volumes", tmp_path / "out", labels_of="volume").is_dir()
    words(tmp_path / "pictures", {"": ("normal", "tumor")})
    with pytest.raises(InputError, match="holds pictures, which are slices already"):
        prepare_slices(tmp_path / "pictures", tmp_path / "out2")
