"""Slices as NumPy arrays: values, safety, and the folders a class that the CDM bundles train from."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose
from PIL import Image

from shared_components.data.checks.check_data import check_data
from shared_components.data.datalists import inference_cases
from shared_components.data.formats.arrays import read_array
from shared_components.data.formats.files import UnusableImage, image_files
from shared_components.data.image_labels import slice_list
from shared_components.data.layouts.cases import find_cases
from shared_components.data.loaders import LoadImageChannelsd, LoadLabelMapd
from shared_components.data.slice_folder import prepare_slices
from shared_components.data.slice_transforms import ForegroundScaled, ObjectMaskd
from shared_components.errors import InputError, find_input_error


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


def grey(number: int = 0) -> np.ndarray:
    return np.random.default_rng(number).random((6, 9)).astype(np.float32)


def folders(root: Path) -> Path:
    """Folders a class of floats in 0..1, masks of kidneys (2 and 3) and another organ (1)."""
    for patient in range(6):
        for z in range(4):
            kind, name = ("normal", "tumor")[z // 2], f"p{patient}_s{z}.npy"
            save(root / kind / name, grey(10 * patient + z))
            organs = np.zeros((6, 9), np.int64)
            organs[0, :4] = (1, 1, 2, 3)
            if kind == "tumor":
                save(root / "seg" / name, organs)
    return root


def test_a_slice_is_that_of_the_picture_of_the_same_values(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    load = Compose([LoadImageChannelsd("image", 1), ForegroundScaled("image")])
    expected = load({"image": str(tmp_path / "a.png")})["image"]
    forms = {
        "float": (pixels / 255).astype(np.float64), "byte": pixels, "long": pixels.astype(np.int64),
        "channel": pixels[..., None], "first": pixels[None], "deep": pixels.astype(np.uint16) * 257,
    }  # fmt: skip
    for name, array in forms.items():
        found = load({"image": str(save(tmp_path / f"{name}.npy", array))})["image"]
        assert found.shape == (1, 9, 6), name  # columns first, as pictures are loaded
        torch.testing.assert_close(found.as_tensor(), expected.as_tensor(), atol=1e-5, rtol=0, msg=name)


def test_masks_keep_their_values(tmp_path):
    organs = np.array([[0, 1, 2], [3, 0, 300]])
    for number, array in enumerate((organs, organs.astype(np.float32), organs.astype(np.uint16))):
        file = save(tmp_path / f"{number}.npy", array)
        loaded = LoadLabelMapd("label", labels=[2, 3])({"label": str(file)})
        assert np.array_equal(loaded["label"][0].numpy(), organs.T)
        assert ObjectMaskd("label", [2, 3])(loaded)["label"][0].T.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert read_array(save(tmp_path / "b.npy", organs > 0), True)[..., 0].max() == 1
    assert read_array(save(tmp_path / "b.npy", organs > 0))[..., 0].max() == 255


class Payload:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_in_a_file_is_run(tmp_path):
    save(tmp_path / "objects.npy", np.array([Payload(tmp_path / "run")], dtype=object))
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Payload(tmp_path / "run")))
    with pytest.raises(UnusableImage, match="holds Python objects, which are never unpickled"):
        read_array(tmp_path / "objects.npy")
    with pytest.raises(UnusableImage, match="no single NumPy array"):
        read_array(tmp_path / "pickle.npy")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("array", "is_label", "message"),
    [
        (np.zeros((30, 3, 6, 9), np.float32), False, r"shape \(30, 3, 6, 9\), expected one slice"),
        (np.zeros((6, 9, 4), np.float32), False, r"shape \(6, 9, 4\), expected one slice"),
        (np.zeros(5), False, r"shape \(5,\), expected one slice"),
        (np.full((6, 9), 1 + 2j), False, "array of type complex128, expected real numbers"),
        (np.full((6, 9), "a"), False, "array of type <U1, expected real numbers"),
        (np.full((6, 9), 812.5), False, "floats 812.5 to 812.5, expected 0 to 1; scale the volume"),
        (np.full((6, 9), -0.2), False, "floats -0.2 to -0.2, expected 0 to 1"),
        (np.full((6, 9), -3), False, "whole numbers -3 to -3, expected 0 to 255"),
        (np.full((6, 9), 4000), False, "whole numbers 4000 to 4000, expected 0 to 255; scale the volume"),
        (np.full((6, 9), 1 << 40), True, "whole numbers 1099511627776 to .*, expected -2147483648 to"),
        (np.zeros((0, 9)), False, r"shape \(0, 9\): holds no pixels"),
    ],
)
def test_what_is_no_slice_is_told_in_one_line(tmp_path, array, is_label, message):
    with pytest.raises(UnusableImage, match=message) as refused:
        read_array(save(tmp_path / "a.npy", array), is_label)
    assert "\n" not in str(refused.value)


def test_truncated_files_and_archives(tmp_path):
    file = save(tmp_path / "a.npy", grey())
    file.write_bytes(file.read_bytes()[:-8])
    np.savez(tmp_path / "b.npz", a=grey())
    (tmp_path / "b.npz").rename(tmp_path / "b.npy")
    for name in ("a", "b"):
        with pytest.raises(UnusableImage, match="truncated/corrupt or no single NumPy array"):
            read_array(tmp_path / f"{name}.npy")
        with pytest.raises(RuntimeError) as raised:
            Compose([LoadImageChannelsd("image", 1)])({"image": str(tmp_path / f"{name}.npy")})
        assert f"{name}.npy: truncated/corrupt" in str(find_input_error(raised.value))


def test_folders_a_class_train_and_are_scored(tmp_path):
    root = folders(tmp_path)
    parts = {section: slice_list(root, section, [2, 3]) for section in ("train", "validation", "test")}
    assert {name: len(items) for name, items in parts.items()} == {"train": 16, "validation": 4, "test": 4}
    assert {item["class"] for item in parts["train"]} == {0, 1} and not any("label" in i for i in parts["train"])
    item = next(item for item in parts["test"] if item["class"] == 1)
    load = Compose([LoadLabelMapd("label", labels=[2, 3], united=True), ObjectMaskd("label", [2, 3])])
    assert item["label"].endswith(".npy") and int(load(item)["label"].sum()) == 2
    assert len(inference_cases(root / "tumor", spatial_dims=None)[0]) == 12


def test_the_check_names_each_bad_array(tmp_path, capsys):
    root = folders(tmp_path)
    bad = grey()
    bad[2, 3], bad[0, 0] = np.nan, np.inf
    save(root / "normal" / "p0_s0.npy", bad)
    save(root / "normal" / "p0_s1.npy", 900 * grey())
    save(root / "seg" / "p0_s2.npy", np.zeros((9, 6), np.uint8))
    save(root / "seg" / "p0_s3.npy", np.full((6, 9), 0.5))
    findings = check_data(root, num_workers=1)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error")]
    expected = (
        "p0_s0: normal/p0_s0.npy: 1 NaN and 1 infinite voxels, the first at voxel (0, 0)",
        "p0_s1: normal/p0_s1.npy: floats ",
        "p0_s2: seg/p0_s2.npy: label on another grid than the image: 6x9 pixels",
        "p0_s3: seg/p0_s3.npy: non-integer labels: 54 voxels, such as 0.5",
    )
    assert len(lines) == 4 and all(text in line for text, line in zip(expected, lines))
    assert sum(finding.level == "error" for finding in findings) == 4
    with pytest.raises(InputError, match="p0_s0.npy: 1 NaN and 1 infinite voxels"):
        slice_list(root, "train", [2, 3])


def test_arrays_beside_images_are_no_images(tmp_path):
    save(tmp_path / "a.npy", grey())
    assert [file.name for file in image_files(tmp_path)] == ["a.npy"]
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    assert [file.name for file in image_files(tmp_path)] == ["a.png"]


def stack(root: Path, count: int) -> Path:
    """Patients as the published preparation has them: (slices, 2, rows, columns), kidneys in the second half."""
    for number in range(count):
        volume = np.random.default_rng(number).random((4, 2, 6, 9))
        volume[:, 1] = 0
        volume[2:, 1, 1, :3] = (1, 2, 3)
        save(root / f"p{number}.npy", volume)
    return root


@pytest.mark.parametrize("part", ["", "preprocessed"])
def test_the_published_preparation_is_volumes_to_make_slices_of(tmp_path, part, capsys):
    root = tmp_path / "abdomen"
    stack(root / part, 5)
    (root / "splits.pkl").write_bytes(pickle.dumps(Payload(tmp_path / "run")))
    folder = find_cases(root)
    assert folder.layout == "stacks" and [case.id for case in folder.cases] == [f"p{n}" for n in range(5)]
    assert [finding for finding in check_data(root, num_workers=1) if finding.level == "error"] == []
    item = folder.cases[1].datalist_item()
    loaded = Compose([LoadImageChannelsd("image", 1), LoadLabelMapd("label", labels=[1, 2, 3])])(item)
    stored = np.load(root / part / "p1.npy")
    assert loaded["image"].shape == loaded["label"].shape == (1, 9, 6, 4)
    assert np.allclose(loaded["image"][0].numpy(), stored[:, 0].T)
    assert np.array_equal(loaded["label"][0].numpy(), stored[:, 1].T)
    slices = prepare_slices(root, tmp_path / "slices", [2, 3], min_share=0.0)
    items = [item for name in ("train", "validation", "test") for item in slice_list(slices, name, [2, 3])]
    assert {(item["patient"], item["class"]) for item in items} == {
        (f"p{n}", kind) for n in range(5) for kind in (0, 1)
    }
    assert not (tmp_path / "run").exists()


def test_a_bad_stack_is_told(tmp_path, capsys):
    root = stack(tmp_path, 5)
    volume = np.load(root / "p2.npy")
    volume[1, 0, 2, 3], volume[0, 1, 0, 0] = np.nan, 1.5
    save(root / "p2.npy", volume)
    findings = check_data(root, num_workers=1)
    assert [finding.kind for finding in findings if finding.level == "error"] == ["nonfinite", "label_fraction"]
    assert "p2.npy: 1 NaN voxels, the first at voxel (3, 2, 1)" in capsys.readouterr().out
