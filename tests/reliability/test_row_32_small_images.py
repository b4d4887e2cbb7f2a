"""Row 32 over all bundles: images far smaller than a crop, a tile or the network's input, down to one pixel."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import decollate_batch, list_data_collate
from PIL import Image

from tests.data.folders import save, save_picture
from tests.test_bundle_contract import BUNDLES, REPOSITORY, generates, parser, read, takes_pictures

PICTURES = ((1, 1), (7, 5), (1, 60), (40, 300), (33, 1))
VOLUMES = ((1, 1, 1), (7, 5, 3), (40, 30, 2), (3, 60, 1), (2, 2, 9))
CONFIGS = [(bundle, "train") for bundle in BUNDLES] + [
    (bundle, name)
    for bundle in BUNDLES
    for name in ("paper", "paper_released", "train_segmenter", "finetune")
    if (bundle / "configs" / f"{name}.json").is_file()
]


def write_cases(folder: Path, sizes: tuple[tuple[int, ...], ...], channels: int) -> Path:
    """Images and label maps of the sizes, two of each to train on, one to validate and one to test."""
    random = np.random.default_rng(0)
    for size in sizes:
        for copy in range(4):
            name = f"case_{'x'.join(map(str, size))}_{copy}"
            image = random.integers(0, 200, size if channels == 1 else (*size, channels))
            label = random.integers(0, 2, size).astype(np.uint8)
            label.flat[0] = 1  # empty masks are rows 21 to 23
            if len(size) == 2:
                save_picture(folder / "images" / f"{name}.png", image.astype(np.uint8))
                save_picture(folder / "masks" / f"{name}.png", label)
            else:
                save(folder / "images" / f"{name}.nii.gz", image.astype(np.float32))
                save(folder / "labels" / f"{name}.nii.gz", label)
    return folder


def write_slices(folder: Path) -> Path:
    """Pictures of two classes for CDM: a patient each."""
    random = np.random.default_rng(0)
    for number, size in enumerate(PICTURES * 4):
        for kind in ("normal", "tumor"):
            image = random.integers(1, 200, size).astype(np.uint8)
            save_picture(folder / kind / f"{kind[0]}{number}_1.png", image)
    return folder


def write_empty_cases(folder: Path, size: tuple[int, ...], channels: int) -> Path:
    """Constant images of a size with nothing labelled: a sequence that was not taken, a slice beyond the body."""
    for value in (0, 7, 100):
        image = np.full(size if channels == 1 else (*size, channels), value)
        if len(size) == 2:
            save_picture(folder / "images" / f"constant_{value}.png", image.astype(np.uint8))
            save_picture(folder / "masks" / f"constant_{value}.png", np.zeros(size, np.uint8))
        else:
            save(folder / "images" / f"constant_{value}.nii.gz", image.astype(np.float32))
            save(folder / "labels" / f"constant_{value}.nii.gz", np.zeros(size, np.uint8))
    return folder


def small_cases(bundle: Path, folder: Path, channels: int) -> Path:
    if bundle.name.startswith("cdm"):
        return write_slices(folder)
    sizes = PICTURES if takes_pictures(bundle) else VOLUMES
    return write_empty_cases(write_cases(folder, sizes, channels), sizes[1], channels)


@pytest.mark.parametrize(("bundle", "name"), CONFIGS, ids=[f"{bundle.name}-{name}" for bundle, name in CONFIGS])
def test_row_32_training_on_small_images(bundle: Path, name: str, tmp_path, monkeypatch):
    """Whatever the sizes, the crops of a batch have one size, and the network's depth divides what it is shown.

    Among the cases are some with a constant image and an empty mask (rows 4 and 21).
    """
    monkeypatch.chdir(REPOSITORY)
    configs = (name,) if name.startswith(("train", "finetune")) else ("train", name)
    made = parser(bundle, *configs, device="cpu", batch_size=4, output_dir=str(tmp_path / "out"))
    made.update({"true_labels": True} if "true_labels" in made.get() else {})  # no pseudo-labels
    folder = small_cases(bundle, tmp_path / "data", made.get_parsed_content("num_channels"))
    made.update({"dataset_dir": str(folder)})
    if "source_dir" in made.get():  # crops of colour pictures beside those of grey ones
        made.update({"source_dir": str(write_cases(tmp_path / "source", PICTURES, 3)), "source_share": 0.5})
    batches = list(made.get_parsed_content("train#dataloader"))
    shapes = {tuple(batch["image"].shape[1:]) for batch in batches}
    assert len(shapes) == 1 and all(batch["image"].abs().max() <= 10 for batch in batches)
    assert len(list(made.get_parsed_content("validate#dataloader"))) > 0


def predicted(made: ConfigParser, file: Path, classes: int) -> None:
    """Write what a network that answers at random makes of a file."""
    batch = list_data_collate([made.get_parsed_content("preprocessing")({"image": str(file)})])
    image = batch["image"]
    batch["pred"] = torch.softmax(torch.rand_like(image[:, :1].repeat(1, classes, *[1] * (image.ndim - 2))), dim=1)
    made.get_parsed_content("postprocessing")(decollate_batch(batch)[0])


@pytest.mark.parametrize("bundle", [b for b in BUNDLES if not generates(b)], ids=lambda path: path.name)
def test_row_32_predictions_of_small_images(bundle: Path, tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    channels = read(bundle, "metadata")["network_data_format"]["inputs"]["image"]["num_channels"]
    classes = read(bundle, "metadata")["network_data_format"]["outputs"]["pred"]["num_channels"]
    flat = takes_pictures(bundle) or bundle.name in ("cdm_brats", "cdm_abdomen")
    folder = write_cases(tmp_path / "data", PICTURES if flat else VOLUMES, channels)
    made = parser(bundle, "inference", device="cpu", output_dir=str(tmp_path / "out"))
    for file in sorted((folder / "images").iterdir())[::4]:
        predicted(made, file, classes)
        (written,) = (tmp_path / "out").glob(f"{file.name.split('.')[0]}_seg.*")
        if flat:
            assert Image.open(written).size == Image.open(file).size
        else:
            stored, source = nibabel.load(written), nibabel.load(file)
            assert stored.shape == source.shape[:3] and np.allclose(stored.affine, source.affine)
