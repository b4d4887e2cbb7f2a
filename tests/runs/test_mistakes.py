"""A user's mistakes through the public commands: exit code 1 and one line with file, value and remedy."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.runs.commands import NETWORK, TRAINING, check_refused, config, run_bundle


def copy_of(phantoms: Path, folder: Path) -> Path:
    return Path(shutil.copytree(phantoms, folder))


def rewrite(path: Path, change) -> None:
    """Change the voxels of a NIfTI file."""
    image = nibabel.load(path)
    array = np.array(image.dataobj)
    nibabel.save(nibabel.Nifti1Image(change(array), image.affine), path)


def with_nan(array: np.ndarray) -> np.ndarray:
    array = array.astype(np.float32)
    array[3, 4, 5] = np.nan
    return array


def check_training_refused(phantoms: Path, output_dir: Path, *parts: str, **overrides) -> None:
    """The training is refused, and leaves no weights and no state."""
    options = {**TRAINING, "dataset_dir": phantoms, "output_dir": output_dir, **overrides}
    check_refused(run_bundle(config("train"), **options), *parts)
    assert not list(output_dir.rglob("*.pt"))
    assert not (output_dir / "report.html").exists()


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"dataset_dir": "no_such_folder"}, ["dataset_dir", "no_such_folder", "no such folder"]),
        ({"max_epoch": 3}, ["--max_epoch", "did you mean --max_epochs"]),
        ({"combine": "vote"}, ["combine", "vote", "majority", "mean", "staple"]),
        ({"num_inference_steps": 9}, ["num_inference_steps", "9", "2"]),
        ({"device": "cuda"}, ["device", "cuda", "--device cpu"]),
        ({"ckpt_path": "no_such_weights.pt"}, ["ckpt_path", "no_such_weights.pt", "no such file"]),
        ({"resume": True}, ["training_state.pt", "no saved state", "--resume"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_option_of_a_training(phantoms, tmp_path, overrides, parts):
    check_training_refused(phantoms, tmp_path / "run", *parts, **overrides)


def test_phantoms_never_stand_in_for_a_folder_that_is_not_there(tmp_path):
    missing = tmp_path / "no_such_folder"
    options = {**NETWORK, "dataset_dir": missing, "output_dir": tmp_path / "run", "ckpt_path": None}
    check_refused(run_bundle(config("inference"), **options), str(missing), "no such folder")
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_network(trained, phantoms, tmp_path):
    options = {**NETWORK, "dataset_dir": phantoms, "output_dir": tmp_path, "backbone#channels": [8, 24]}
    run = run_bundle(config("inference"), **options, ckpt_path=trained.output_dir / "model.pt")
    check_refused(run, "model.pt", "weights of another network", "size mismatch", "denoiser.")
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_checkpoint(trained, phantoms, tmp_path):
    weights = tmp_path / "half.pt"
    content = (trained.output_dir / "model.pt").read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    options = {**NETWORK, "dataset_dir": phantoms, "output_dir": tmp_path / "out", "ckpt_path": weights}
    check_refused(run_bundle(config("inference"), **options), str(weights), "truncated or corrupt")
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_changed_settings_of_a_resumed_run_are_listed(trained, phantoms, tmp_path):
    for name in ("training_state.pt", "training_history.csv"):
        shutil.copy(trained.output_dir / name, tmp_path / name)
    options = {**TRAINING, "dataset_dir": phantoms, "output_dir": tmp_path, "resume": True, "seed": 5}
    check_refused(run_bundle(config("train"), **options), "training_state.pt", "seed was 0, is 5")


def test_a_nan_voxel_in_a_training_image(phantoms, tmp_path):
    folder = copy_of(phantoms, tmp_path / "data")
    rewrite(folder / "imagesTr" / "phantom_001.nii.gz", with_nan)
    check_training_refused(folder, tmp_path / "run", "phantom_001", "NaN", "(3, 4, 5)", "check_data")


def test_a_label_without_an_image_and_one_of_another_grid(phantoms, tmp_path):
    folder = copy_of(phantoms, tmp_path / "data")
    (folder / "imagesTr" / "phantom_000.nii.gz").unlink()
    rewrite(folder / "labelsTr" / "phantom_002.nii.gz", lambda array: array[:-2])
    parts = ("2 of 5 train cases", "phantom_000", "phantom_002", "skip_bad", "check_data")
    check_training_refused(folder, tmp_path / "run", *parts)


@pytest.mark.slow
def test_bad_pairs_are_left_out_when_asked_and_named_at_the_end(phantoms, tmp_path):
    folder = copy_of(phantoms, tmp_path / "data")
    rewrite(folder / "imagesTr" / "phantom_001.nii.gz", with_nan)
    options = {**TRAINING, "dataset_dir": folder, "output_dir": tmp_path / "run", "skip_bad": True}
    run = run_bundle(config("train"), **options)
    check_refused(run, "1 case could not be processed", "phantom_001.nii.gz", "1 NaN voxels")
    assert "4 of 5 train cases are used" in run.stderr
    assert (tmp_path / "run" / "model.pt").is_file() and (tmp_path / "run" / "report.html").is_file()
