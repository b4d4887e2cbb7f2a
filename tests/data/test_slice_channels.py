"""Slices of volumes with several channels, and of volumes with errors."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from shared_components.data.image_labels import slice_list
from shared_components.data.slice_folder import prepare_slices, slice_folder
from shared_components.errors import InputError

PLACES = {
    "nnunet": {
        "t1": "imagesTr/c{}_0000.nii.gz",
        "flair": "imagesTr/c{}_0001.nii.gz",
        "seg": "labelsTr/c{}.nii.gz",
    },
    "case": {"t1": "c{}/a_t1.nii.gz", "flair": "c{}/flair.nii.gz", "seg": "c{}/seg.nii.gz"},
    "manifest": {"t1": "t1/c{}.nii.gz", "flair": "flair/c{}.nii.gz", "seg": "seg/c{}.nii.gz"},
}


def make_volumes(root: Path, layout: str, num_cases: int = 3) -> Path:
    """Volumes whose object is bright in FLAIR, the second channel, and dark in T1."""
    for number in range(num_cases):
        rng = np.random.default_rng(number)
        label = np.zeros((16, 16, 8), np.float32)
        label[6:10, 6:10, 3:6] = 1
        for kind, place in PLACES[layout].items():
            image = np.zeros((16, 16, 8), np.float32)
            image[2:14, 2:14] = rng.uniform(50, 60, (12, 12, 8))
            image[label > 0] = 10 if kind == "t1" else 150
            file = root / place.format(number)
            file.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(label if kind == "seg" else image, np.eye(4)), file)
    if layout == "nnunet":
        meta = {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": {"background": 0, "tumour": 1}}
        (root / "dataset.json").write_text(
            json.dumps({**meta, "numTraining": num_cases, "file_ending": ".nii.gz"}), encoding="utf-8"
        )
    if layout == "manifest":
        rows = [",".join([f"c{n}", *(place.format(n) for place in PLACES[layout].values())]) for n in range(num_cases)]
        (root / "manifest.csv").write_text("\n".join(["id,t1,flair,seg", *rows]) + "\n", encoding="utf-8")
    return root


def brightness(folder: Path) -> tuple[int, int]:
    """Grey values of the object and of the body in a slice that shows it."""
    pixels = np.asarray(Image.open(folder / "images" / "c0_z004.png"))
    return int(pixels[8, 8]), int(pixels[4, 4])


@pytest.mark.parametrize("layout", list(PLACES))
def test_training_sees_the_channel_that_inference_sees(layout, tmp_path):
    """A bundle of FLAIR was trained on T1, the first channel, in silence, or refused a manifest of named columns."""
    root = make_volumes(tmp_path / "volumes", layout)
    folder = Path(slice_folder(root, tmp_path / "run", ["flair"], values=[1]))
    inside, body = brightness(folder)
    assert inside == 255 and body < 100
    assert {item["class"] for item in slice_list(folder, "train", channels=["flair"])} == {0, 1}
    inside, body = brightness(
        Path(slice_folder(root, tmp_path / "t1", ["a_t1" if layout == "case" else "t1"], values=[1]))
    )
    assert inside == 0 and body > 150


def test_a_channel_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    root = make_volumes(tmp_path / "volumes", "nnunet")
    with pytest.raises(InputError, match="the volumes hold T1, FLAIR, and the slices are to show t2: give the name"):
        slice_folder(root, tmp_path / "run", ["t2"])
    with pytest.raises(InputError, match="hold T1, FLAIR: channel 7 is not there; expected a number from 0 to 1"):
        prepare_slices(root, tmp_path / "out", channel=7)
    with pytest.raises(InputError, match="channel -1 is not there"):
        prepare_slices(root, tmp_path / "out", channel=-1)
    assert brightness(prepare_slices(root, tmp_path / "by_number", channel=1, channels=["t1"]))[0] == 255
    assert brightness(prepare_slices(root, tmp_path / "first"))[0] == 0
    assert not (tmp_path / "out").exists() and not (tmp_path / "run").exists()


def test_one_channel_may_have_any_name(tmp_path):
    root = make_volumes(tmp_path / "volumes", "case")
    for file in root.glob("*/a_t1.nii.gz"):
        file.unlink()
    assert brightness(Path(slice_folder(root, tmp_path / "run", ["image"], values=[1])))[0] == 255


def test_a_broken_volume_is_named_or_left_out(tmp_path):
    """It ended in a traceback without the file's name."""
    root = make_volumes(tmp_path / "volumes", "nnunet", num_cases=4)
    file = root / "imagesTr" / "c2_0001.nii.gz"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(InputError, match=r"c2_0001.nii.gz: truncated or corrupt .*; correct them, or leave them out"):
        slice_folder(root, tmp_path / "run", ["flair"], values=[1])
    assert not (tmp_path / "run").exists()
    folder = slice_folder(root, tmp_path / "run", ["flair"], values=[1], skip_bad=True)
    patients = {path.name[:2] for path in (Path(folder) / "images").glob("*.png")}
    assert patients == {"c0", "c1", "c3"}
