"""Prediction of a folder of images, as typed: odd but valid images, and broken ones among good ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from shared_components.data.phantoms import phantom_case
from tests.runs.commands import BUNDLE, NETWORK, check_refused, config, files_below, run_bundle

PHANTOM = "phantom_007"
REPORT = {"report.html", "inference_per_case.csv"}
LEDGER = ".inference.jsonl"
SPACING = np.diag([0.7, 0.7, 3.0, 1.0])
OBLIQUE = np.array([[0.96, -0.28, 0, 3], [0.28, 0.96, 0, -7], [0, 0, 1, 11], [0, 0, 0, 1]], float)


class Predictions(NamedTuple):
    """A folder of images, and what came of it."""

    images: Path
    output_dir: Path

    def image(self, case: str) -> nibabel.Nifti1Image:
        return nibabel.load(self.images / f"{case}.nii.gz")

    def result(self, case: str, postfix: str = "seg") -> nibabel.Nifti1Image:
        return nibabel.load(self.output_dir / f"{case}_{postfix}.nii.gz")


def reoriented(image: nibabel.Nifti1Image, axcodes: str) -> nibabel.Nifti1Image:
    """The same volume with its axes permuted and flipped; no voxel is interpolated."""
    return image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(axcodes)))


def scaled_int16(array: np.ndarray, affine: np.ndarray) -> nibabel.Nifti1Image:
    """An image stored as int16 with a slope and an intercept in its header."""
    stored = np.round(array / array.max() * 30000 - 10000).astype(np.int16)
    image = nibabel.Nifti1Image(stored, affine)
    image.header.set_slope_inter(0.25, 2500.0)
    return image


def write_images(folder: Path, phantom: Path) -> None:
    """One image of each kind; ``phantom`` is the first."""
    image = nibabel.load(phantom)
    array = np.asarray(image.dataobj, np.float32)
    small = phantom_case(11, 1)[0][4:28, 6:37]
    images = {
        PHANTOM: image,
        "psl": reoriented(image, "PSL"),
        "las": reoriented(image, "LAS"),
        "rescaled": scaled_int16(array, image.affine),
        "anisotropic": nibabel.Nifti1Image(array[:, :, ::3], SPACING),
        "oblique": nibabel.Nifti1Image(array[2:, 3:, 10:20], OBLIQUE),
        "thin": nibabel.Nifti1Image(small[:1, :, 8:10], np.eye(4)),
        "odd": nibabel.Nifti1Image(small[:, :, 8:11], np.eye(4)),
        "single_slice": nibabel.Nifti1Image(small[:, :, 8:9], np.eye(4)),
        "one_voxel": nibabel.Nifti1Image(small[:1, :1, :1], np.eye(4)),
        "four_dimensional": nibabel.Nifti1Image(small[:, :, 8:11, None], np.eye(4)),
        "constant": nibabel.Nifti1Image(np.full((9, 8, 3), 7, np.float32), np.eye(4)),
    }
    for name, content in images.items():
        nibabel.save(content, folder / f"{name}.nii.gz")


@pytest.fixture(scope="session")
def predictions(phantoms, lively_weights, tmp_path_factory) -> Predictions:
    """Predictions of one image of each kind, by a run from the repository's root."""
    images = tmp_path_factory.mktemp("images of patients")
    output_dir = tmp_path_factory.mktemp("predictions")
    write_images(images, phantoms / "imagesTr" / f"{PHANTOM}.nii.gz")
    before = files_below(images), files_below(BUNDLE)
    run_bundle(
        config("inference"), **NETWORK, dataset_dir=images, output_dir=output_dir, ckpt_path=lively_weights
    ).check_done()
    assert (files_below(images), files_below(BUNDLE)) == before
    return Predictions(images, output_dir)


CASES = (
    PHANTOM, "psl", "las", "rescaled", "anisotropic", "oblique", "thin", "odd", "single_slice", "one_voxel",
    "four_dimensional", "constant",
)  # fmt: skip


def test_there_is_one_label_map_uncertainty_and_picture_a_case_and_a_report_of_all(predictions):
    endings = ("_seg.nii.gz", "_uncertainty.nii.gz", "_overlay.png")
    expected = {case + ending for case in CASES for ending in endings} | REPORT
    assert set(files_below(predictions.output_dir)) == expected
    page = (predictions.output_dir / "report.html").read_text(encoding="utf-8")
    assert [case for case in CASES if f">{case}</" not in page] == []


@pytest.mark.parametrize("case", CASES)
def test_results_lie_on_the_grid_of_the_image(predictions, case):
    image = predictions.image(case)
    for postfix, kind in (("seg", np.uint8), ("uncertainty", np.float32)):
        result = predictions.result(case, postfix)
        assert result.shape == image.shape[:3]
        assert np.allclose(result.affine, image.affine, atol=1e-5)
        assert result.get_data_dtype() == kind
        assert result.header.get_slope_inter() in ((None, None), (1.0, 0.0))


@pytest.mark.parametrize("case", CASES)
def test_labels_are_the_bundles_and_uncertainty_is_a_share(predictions, case):
    assert set(np.unique(np.asarray(predictions.result(case).dataobj))) <= {0, 1, 2}
    uncertainty = predictions.result(case, "uncertainty").get_fdata()
    assert np.isfinite(uncertainty).all()
    assert uncertainty.min() >= 0 and uncertainty.max() <= 1


def test_every_label_is_found_somewhere_and_members_disagree_somewhere(predictions):
    """Without which the other comparisons would hold for an empty label map too."""
    assert (np.bincount(np.asarray(predictions.result(PHANTOM).dataobj).ravel(), minlength=3) > 20).all()
    assert predictions.result(PHANTOM, "uncertainty").get_fdata().max() > 0.1


@pytest.mark.parametrize("case", ["psl", "las"])
@pytest.mark.parametrize("postfix", ["seg", "uncertainty"])
def test_prediction_of_a_reoriented_image_is_the_reoriented_prediction(predictions, case, postfix):
    found = reoriented(predictions.result(case, postfix), "RAS")
    expected = reoriented(predictions.result(PHANTOM, postfix), "RAS")
    assert np.array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
    assert np.allclose(found.affine, expected.affine)


def test_scale_and_offset_of_the_header_change_next_to_nothing(predictions):
    found, expected = (np.asarray(predictions.result(case).dataobj) for case in ("rescaled", PHANTOM))
    assert np.mean(found != expected) < 0.01


def test_a_last_dimension_of_one_is_none(predictions):
    found, expected = (np.asarray(predictions.result(case).dataobj) for case in ("four_dimensional", "odd"))
    assert np.array_equal(found, expected)


def test_from_inside_the_bundle_the_result_is_the_same(predictions, lively_weights, tmp_path):
    folder, before = tmp_path / "images", files_below(BUNDLE)
    folder.mkdir()
    for case in ("odd", "anisotropic"):
        nibabel.save(predictions.image(case), folder / f"{case}.nii.gz")
    run_bundle(
        "configs/inference.json",
        cwd=BUNDLE,
        **NETWORK,
        dataset_dir=folder,
        output_dir=tmp_path / "out",
        ckpt_path=lively_weights,
    ).check_done()
    again = Predictions(folder, tmp_path / "out")
    for case in ("odd", "anisotropic"):
        for postfix in ("seg", "uncertainty"):
            assert np.array_equal(
                again.result(case, postfix).get_fdata(), predictions.result(case, postfix).get_fdata()
            )
    assert files_below(BUNDLE) == before


@pytest.fixture
def two_images(tmp_path: Path) -> Callable[[bool], Path]:
    """Makes a folder with a good image, if asked for, and a truncated one."""

    def make(good: bool) -> Path:
        folder = tmp_path / "images"
        folder.mkdir()
        image = nibabel.Nifti1Image(phantom_case(11, 1)[0][4:28, 6:37, 8:11], np.eye(4))
        if good:
            nibabel.save(image, folder / "good.nii.gz")
        nibabel.save(image, folder / "truncated.nii.gz")
        content = (folder / "truncated.nii.gz").read_bytes()
        (folder / "truncated.nii.gz").write_bytes(content[: len(content) // 2])
        return folder

    return make


@pytest.mark.parametrize("good", [True, False])
def test_a_broken_file_is_named_and_the_others_are_predicted(two_images, lively_weights, tmp_path, good):
    options = {"dataset_dir": two_images(good), "output_dir": tmp_path / "out", "ckpt_path": lively_weights}
    run = run_bundle(config("inference"), **NETWORK, **options)
    check_refused(run, "truncated.nii.gz")
    assert "good" not in run.errors[0]
    written = set(files_below(tmp_path / "out")) if (tmp_path / "out").exists() else set()
    cases = ["good"] if good else []
    results = {f"{c}_{e}" for c in cases for e in ("seg.nii.gz", "uncertainty.nii.gz", "overlay.png")}
    assert written == (results | REPORT | {LEDGER} if good else set())  # with which --resume tries the broken one again


@pytest.mark.parametrize("left", ["odd_seg.nii.gz", "odd_uncertainty.nii.gz", "odd_overlay.png"])
def test_earlier_results_are_refused_before_any_work(predictions, lively_weights, tmp_path, left):
    (tmp_path / left).write_bytes(b"earlier")
    options = {"dataset_dir": predictions.images, "output_dir": tmp_path, "ckpt_path": lively_weights}
    check_refused(run_bundle(config("inference"), **NETWORK, **options), left, "overwrite")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(left, b"earlier")]


def test_earlier_results_are_replaced_when_asked(predictions, lively_weights, tmp_path):
    folder, output_dir = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    output_dir.mkdir()
    nibabel.save(predictions.image("odd"), folder / "odd.nii.gz")
    (output_dir / "odd_seg.nii.gz").write_bytes(b"earlier")
    options = {"dataset_dir": folder, "output_dir": output_dir, "ckpt_path": lively_weights}
    run_bundle(config("inference"), **NETWORK, **options, overwrite=True).check_done()
    assert nibabel.load(output_dir / "odd_seg.nii.gz").shape == predictions.image("odd").shape
