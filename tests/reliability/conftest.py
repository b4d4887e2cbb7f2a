"""Weights and predictions that several rows look at, made once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from shared_components.data.phantoms import phantom_case
from tests.data.folders import save
from tests.reliability.in_process import random_weights, run_here
from tests.runs.commands import NETWORK

OBLIQUE = np.array([[0.96, -0.28, 0, 3], [0.28, 0.96, 0, -7], [0, 0, 1, 11], [0, 0, 0, 1]], float)


class Predictions(NamedTuple):
    """A folder of odd images, and what came of it."""

    images: Path
    output_dir: Path
    warnings: str
    found_before: list[str]

    def image(self, case: str) -> nibabel.Nifti1Image:
        return nibabel.load(self.images / f"{case}.nii.gz")

    def result(self, case: str, postfix: str = "seg") -> nibabel.Nifti1Image:
        return nibabel.load(self.output_dir / f"{case}_{postfix}.nii.gz")

    def labels(self, case: str) -> np.ndarray:
        return np.asarray(self.result(case).dataobj)


def reoriented(image: nibabel.Nifti1Image, axcodes: str) -> nibabel.Nifti1Image:
    """The same volume with its axes permuted and flipped; no voxel is interpolated."""
    return image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(axcodes)))


def small_phantom() -> np.ndarray:
    """A piece of a phantom's image that takes no time to segment."""
    return phantom_case(11, 1)[0][4:28, 6:37, 6:12].astype(np.float32)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the small network of the tests."""
    return random_weights(tmp_path_factory.mktemp("weights") / "model.pt")


@pytest.fixture(scope="session")
def predictions(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Predictions:
    """Predictions of one image of each odd but valid kind."""
    images = tmp_path_factory.mktemp("images with späces")
    output_dir = tmp_path_factory.mktemp("predictions")
    array = small_phantom()
    plain = nibabel.Nifti1Image(array, np.eye(4))
    outlier = array.copy()
    outlier[0, 0, 0] = 1e30
    stored = nibabel.Nifti1Image(np.round(array / array.max() * 60000 - 30000).astype(np.int16), np.eye(4))
    stored.header.set_slope_inter(0.5, 15000.0)
    odd = {
        "plain": plain,
        "constant": nibabel.Nifti1Image(np.full((9, 8, 3), 7, np.float32), np.eye(4)),
        "zero": nibabel.Nifti1Image(np.zeros((9, 8, 3), np.float32), np.eye(4)),
        "bright": nibabel.Nifti1Image(array * np.float32(1.7e6 / array.max()), np.eye(4)),
        "outlier": nibabel.Nifti1Image(outlier, np.eye(4)),
        "one_more_dimension": nibabel.Nifti1Image(array[..., None], np.eye(4)),
        "scaled": stored,
        "unsigned": nibabel.Nifti1Image(np.round(array / array.max() * 65535).astype(np.uint16), np.eye(4)),
        "anisotropic": nibabel.Nifti1Image(array[..., ::3].copy(), np.diag([0.7, 0.7, 5.0, 1.0])),
        "las": reoriented(plain, "LAS"),
        "pir": reoriented(plain, "PIR"),
        "oblique": nibabel.Nifti1Image(array, OBLIQUE),
        "single_slice": nibabel.Nifti1Image(array[..., :1], np.eye(4)),
        "one_voxel": nibabel.Nifti1Image(array[:1, :1, :1], np.eye(4)),
    }
    for name, content in odd.items():
        nibabel.save(content, images / f"{name}.nii.gz")
    save(images.parent / "linked.nii.gz", array)
    (images / "linked.nii.gz").symlink_to(images.parent / "linked.nii.gz")
    found = sorted(path.name for path in images.iterdir())
    images.chmod(0o555)
    with pytest.MonkeyPatch.context() as patch:
        logged: list[str] = []
        patch.setattr("shared_components.data.datalists.logger.warning", lambda text, *args: logged.append(text % args))
        run_here("inference", **NETWORK, dataset_dir=str(images), output_dir=str(output_dir), ckpt_path=str(weights))
    images.chmod(0o755)
    return Predictions(images, output_dir, "\n".join(logged), found)
