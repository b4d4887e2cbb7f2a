"""The bundles that learn from image-level labels, as typed: training, resuming, comparing, predicting, sampling."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from shared_components.data.phantoms import make_phantoms
from tests.runs.cdm import TINY_NETWORK, TINY_TRAINING
from tests.runs.commands import bundle_command, files_below, run_bundle, run_python
from tests.runs.medsegdiff import bundle_folder, config_of
from tests.runs.test_multi_process import TORCHRUN
from tests.runs.test_train import check_same_training, history, kill_in_second_epoch, load

BUNDLE = "cdm_brats"
LABELS = {"label_values": "[1]"}


@pytest.fixture(scope="module")
def slices(tmp_path_factory) -> Path:
    return make_phantoms(tmp_path_factory.mktemp("slices") / "phantoms", num_cases=12, seed=1, kind="tumour_slices")


@pytest.fixture(scope="module")
def trained(slices, tmp_path_factory) -> Path:
    """An uninterrupted training of two epochs, started from the repository's root."""
    output_dir = tmp_path_factory.mktemp("trained_cdm") / "run"
    before = files_below(bundle_folder(BUNDLE)), files_below(slices)
    options = {**TINY_TRAINING, **LABELS, "dataset_dir": slices, "output_dir": output_dir}
    run_bundle(*config_of(BUNDLE, "train"), **options).check_done()
    assert (files_below(bundle_folder(BUNDLE)), files_below(slices)) == before
    return output_dir


def table(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as content:
        return list(csv.DictReader(content))


def test_a_training_leaves_weights_tables_and_pages(trained):
    for row in history(trained):
        assert 0 < float(row["loss"]) < 20 and np.isfinite(float(row["validation val_label_gain"]))
        assert 0 <= float(row["validation val_gate_accuracy"]) <= 1
        looks = [float(row[f"validation val_noisy_auroc_q{quarter}"]) for quarter in (1, 2, 3, 4)]
        assert all(0 <= auroc <= 1 or np.isnan(auroc) for auroc in looks)  # of the one class of few phantoms
    summary = {row["metric"]: row["meaning"] for row in table(trained / "weak_summary.csv")}
    assert {"gate_accuracy", "false_positive_share", "dice", "hd95_pooled_px", "dice_3d"} <= set(summary)
    assert {"draw_agreement", "draw_dice", "draw_dice_sd", "draw_dice_slice_sd"} <= set(summary)
    assert (trained / "report.html").is_file() and list((trained / "overlays").glob("*.png"))
    assert {name.split(".")[0] for name in load(trained / "model.pt")} == {
        "schedule", "conventions", "denoiser", "classifier", "gate",
    }  # fmt: skip


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(trained, slices, tmp_path):
    output_dir = tmp_path / "run"
    options = {**TINY_TRAINING, **LABELS, "dataset_dir": slices, "output_dir": output_dir}
    kill_in_second_epoch(bundle_command(*config_of(BUNDLE, "train"), **options), output_dir)
    run_bundle(*config_of(BUNDLE, "train"), **options, resume=True).check_done()
    check_same_training(trained, output_dir)


def test_classifiers_are_trained_on_top_of_a_denoiser(trained, slices, tmp_path):
    options = {**TINY_TRAINING, **LABELS, "dataset_dir": slices, "output_dir": tmp_path}
    files = config_of(BUNDLE, "train", "train_classifier")
    run_bundle(*files, **options, ckpt_path=trained / "model.pt").check_done()
    before, after = load(trained / "model.pt"), load(tmp_path / "model.pt")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"classifier", "gate"}
    assert all(f"validation val_noisy_auroc_q{quarter}" in history(tmp_path)[0] for quarter in (1, 2, 3, 4))


@pytest.mark.slow
def test_all_methods_are_compared(trained, slices, tmp_path):
    options = {**TINY_NETWORK, **LABELS, "dataset_dir": slices, "output_dir": tmp_path, "counterfactual_steps": 2}
    run_bundle(*config_of(BUNDLE, "train", "compare"), **options, ckpt_path=trained / "model.pt").check_done()
    rows = table(tmp_path / "comparison" / "methods.csv")
    names = {"CDM", "CG-CDM", "CG-Diff", "GradCAM", "GradCAM++", "LayerCAM", "ScoreCAM", "occlusion"}
    assert names <= {row["method"] for row in rows}
    assert len({row["gate_auroc"] for row in rows}) == 1  # one gate for all
    told = {row["method"] for row in rows if row["draw_agreement"] and row["draw_dice_sd"]}
    assert "CDM" in told and not told & {"CDM, one draw", "CG-Diff", "GradCAM", "occlusion"}


@pytest.mark.slow
@pytest.mark.parametrize("bundle", [BUNDLE, "cdm_abdomen"])
def test_a_plain_network_is_trained_on_few_outlines(bundle, slices, tmp_path):
    few = {"outlined#counts": [1, 2], "outlined#repeats": 1, "outlined#steps": 2}
    options = {**TINY_NETWORK, **LABELS, **few, "dataset_dir": slices, "output_dir": tmp_path}
    run_bundle(*config_of(bundle, "train", "outlined"), **options).check_done()
    assert [row["outlined"] for row in table(tmp_path / "outlined" / "outlined_slices.csv")] == ["1", "2"]


@pytest.mark.slow
def test_slices_and_volumes_are_predicted_on_their_own_grids(trained, slices, tmp_path):
    volume = np.stack([np.asarray(Image.open(file)) for file in sorted((slices / "images").iterdir())[:3]], axis=-1)
    affine = np.diag([2.0, -1.5, 4.0, 1.0])
    (tmp_path / "volumes").mkdir()
    nibabel.save(nibabel.Nifti1Image(volume.astype(np.float32), affine), tmp_path / "volumes" / "v.nii.gz")
    for name, folder in (("slices", slices / "images"), ("volumes", tmp_path / "volumes")):
        options = {**TINY_NETWORK, "dataset_dir": folder, "output_dir": tmp_path / f"out_{name}", "gated": False}
        files = config_of(BUNDLE, "inference")
        run_bundle(*files, **options, ckpt_path=trained / "model.pt").check_done()
    for kind in ("seg", "saliency", "uncertainty"):
        found = nibabel.load(tmp_path / "out_volumes" / f"v_{kind}.nii.gz")
        assert found.shape == volume.shape and np.allclose(found.affine, affine)
        assert Image.open(tmp_path / "out_slices" / f"phantom_000_{kind}.png").size == (64, 64)
    saliency = nibabel.load(tmp_path / "out_volumes" / "v_saliency.nii.gz").get_fdata()
    assert 0 <= saliency.min() and saliency.max() <= 1


@pytest.mark.slow
def test_images_of_both_classes_are_sampled(trained, tmp_path):
    options = {**TINY_NETWORK, "output_dir": tmp_path, "num_images": 3, "sampling_steps": 3}
    files = config_of(BUNDLE, "inference", "sample")
    run_bundle(*files, **options, ckpt_path=trained / "model.pt").check_done()
    names = {path.name for path in (tmp_path / "samples").iterdir()}
    assert names == {"class_0_0000.png", "class_1_0001.png", "class_0_0002.png", "samples_3x16x16x1.npz"}


@pytest.mark.slow
def test_a_denoiser_without_labels_trains_and_is_sampled(slices, tmp_path):
    published = {"learned_variance": False}
    options = {**TINY_TRAINING, **LABELS, **published, "dataset_dir": slices, "output_dir": tmp_path / "run"}
    run_bundle(*config_of(BUNDLE, "train", "unconditional"), **options).check_done()
    sampling = {"num_images": 2, "sampling_steps": 2, "denoiser#num_classes": 0, "null_class": False, **published}
    sampling["sampler"] = "ddpm"
    options = {**TINY_NETWORK, **sampling, "output_dir": tmp_path, "ckpt_path": tmp_path / "run" / "model.pt"}
    run_bundle(*config_of(BUNDLE, "inference", "sample"), **options).check_done()
    assert (tmp_path / "samples" / "image_0001.png").is_file()


@pytest.mark.slow
def test_two_processes_train(slices, tmp_path):
    options = {**TINY_TRAINING, **LABELS, "dataset_dir": slices, "output_dir": tmp_path}
    command = bundle_command(*config_of(BUNDLE, "train", "multi_gpu_train"), **options)
    run_python(*TORCHRUN, *command).check_done()
    assert load(tmp_path / "training_state.pt")["progress"]["epoch"] == 2


@pytest.mark.slow
def test_volumes_are_trained_on_as_slices(tmp_path):
    volumes = make_phantoms(tmp_path / "volumes", num_cases=4, seed=1, kind="tumour")
    options = {**TINY_TRAINING, "max_epochs": 1, "dataset_dir": volumes, "output_dir": tmp_path / "run"}
    run_bundle(*config_of(BUNDLE, "train"), **options).check_done()
    assert (tmp_path / "run" / "slices" / "manifest.csv").is_file()
    assert float(history(tmp_path / "run")[0]["loss"]) > 0


@pytest.mark.slow
def test_the_abdomen_trains_on_its_phantoms(tmp_path):
    kidneys = make_phantoms(tmp_path / "kidneys", num_cases=12, seed=1, kind="kidney_slices")
    options = {**TINY_TRAINING, **LABELS, "max_epochs": 1, "dataset_dir": kidneys, "output_dir": tmp_path / "run"}
    run_bundle(*config_of("cdm_abdomen", "train"), **options).check_done()
    assert (tmp_path / "run" / "weak_summary.csv").is_file()
