"""Training as typed: where it can be started, what it leaves, what it repeats, and being killed."""

from __future__ import annotations

import csv
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from tests.runs.commands import (
    BUNDLE,
    DISCRIMINATOR,
    NETWORK,
    REPOSITORY,
    TIMEOUT,
    TRAINING,
    bundle_command,
    check_refused,
    config,
    environment,
    files_below,
    run_bundle,
)


def load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def differences(first: Any, second: Any, name: str = "") -> list[str]:
    """Where two nested contents of a checkpoint differ in any bit."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        same = first.dtype == second.dtype and torch.equal(first, second)
        return [] if same else [name]
    if type(first) is not type(second):
        return [name]
    if isinstance(first, dict):
        if list(first) != list(second):
            return [name]
        return [d for key in first for d in differences(first[key], second[key], f"{name}/{key}")]
    if isinstance(first, (list, tuple)):
        if len(first) != len(second):
            return [name]
        pairs = enumerate(zip(first, second))
        return [found for index, pair in pairs for found in differences(*pair, f"{name}/{index}")]
    return [] if first == second else [name]


def history(output_dir: Path) -> list[dict[str, str]]:
    """The table of losses and validation metrics, without the time each epoch took."""
    with open(output_dir / "training_history.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def check_same_training(first: Path, second: Path) -> None:
    for name in ("model.pt", "training_state.pt"):
        assert differences(load(first / name), load(second / name)) == []
    assert history(first) == history(second)


def network(**overrides: Any) -> torch.nn.Module:
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.json"))
    parser.update({**NETWORK, **overrides})
    return parser.get_parsed_content("network_def")


def test_a_training_leaves_weights_state_tables_and_pages(trained):
    found = files_below(trained.output_dir)
    events = [name for name in found if name.startswith("tensorboard/events.out.tfevents.")]
    assert events and all(found[name][0] > 100 for name in events)
    assert {name for name in found if name not in events} - {".lock"} == {
        "denoising.png",
        "metrics_per_case.csv",
        "metrics_summary.csv",
        "model.pt",
        "overlays/phantom_006_overlay.png",
        "report.html",
        "training.html",
        "training_history.csv",
        "training_state.pt",
    }
    assert "phantom_006" in (trained.output_dir / "report.html").read_text(encoding="utf-8")


def test_the_weights_are_a_flat_state_dict_of_the_inference_network(trained):
    weights = load(trained.output_dir / "model.pt")
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    network().load_state_dict(weights, strict=True)


def test_the_history_has_losses_and_a_validation_metric_of_every_epoch(trained):
    rows = history(trained.output_dir)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row in rows:
        assert 0 < float(row["loss"]) < 10
        assert 0 <= float(row["validation val_mean_dice"]) <= 1


def test_nothing_is_written_outside_the_output_folder(trained, phantoms):
    assert trained.untouched
    names = sorted(path.name for path in phantoms.iterdir())
    assert names == ["dataset.json", "imagesTr", "labelsTr", "split.json"]


def test_predictions_are_brought_back_to_the_grid_of_the_image(trained):
    assert "no InvertibleTransform applied" not in trained.run.stderr
    assert "error" not in trained.run.stderr.lower().replace("error_auroc", "")


def test_from_inside_the_bundle_the_same_seed_repeats_every_bit(trained, phantoms, tmp_path):
    before = files_below(BUNDLE)
    run_bundle(
        "configs/train.json", cwd=BUNDLE, **TRAINING, dataset_dir=phantoms, output_dir=tmp_path / "run"
    ).check_done()
    check_same_training(trained.output_dir, tmp_path / "run")
    assert files_below(BUNDLE) == before


def test_from_elsewhere_with_another_number_of_workers_every_bit_is_the_same(trained, phantoms, tmp_path):
    bundle = tmp_path / "elsewhere" / BUNDLE.name
    shutil.copytree(BUNDLE, bundle, ignore=shutil.ignore_patterns("output", "eval"))
    run_bundle(
        str(BUNDLE / "configs" / "train.json"),
        cwd=tmp_path,
        **TRAINING,
        dataset_dir=phantoms,
        bundle_root=bundle,
        num_workers=1,
    ).check_done()
    check_same_training(trained.output_dir, bundle / "output" / phantoms.name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere"]


def test_another_seed_gives_another_training(trained, phantoms, tmp_path):
    run_bundle(config("train"), **TRAINING, dataset_dir=phantoms, output_dir=tmp_path, seed=1).check_done()
    losses = [[row["loss"] for row in history(folder)] for folder in (trained.output_dir, tmp_path)]
    assert [loss for loss in losses[0] if loss in losses[1]] == []
    changed = differences(load(trained.output_dir / "model.pt"), load(tmp_path / "model.pt"))
    assert len(changed) > 50


def kill_in_second_epoch(arguments: list[str], output_dir: Path) -> None:
    """Start a training and SIGKILL it as soon as the state of its first epoch is there."""
    command, options = [sys.executable, *arguments], {"cwd": REPOSITORY, "env": environment()}
    with open(output_dir.parent / "killed.log", "wb") as log:
        process = subprocess.Popen(command, **options, stderr=log, stdout=log)
        deadline = time.monotonic() + TIMEOUT
        while not (output_dir / "training_state.pt").exists():
            assert process.poll() is None and time.monotonic() < deadline, log.name
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def test_row_40_killed_and_resumed_equals_uninterrupted(phantoms, tmp_path):
    """With the discriminator, whose weights and optimiser are to be brought back too."""
    configs, output_dir = (config("train"), config("attention")), tmp_path / "run"
    options = {**TRAINING, **DISCRIMINATOR, "dataset_dir": phantoms}
    run_bundle(*configs, **options, output_dir=tmp_path / "whole").check_done()
    kill_in_second_epoch(bundle_command(*configs, **options, output_dir=output_dir), output_dir)
    state = load(output_dir / "training_state.pt")
    assert state["progress"]["epoch"] == 1 and {"discriminator", "discriminator_optimizer"} <= set(state)
    assert not (output_dir / "report.html").exists()
    run_bundle(*configs, **options, output_dir=output_dir, resume=True).check_done()
    check_same_training(tmp_path / "whole", output_dir)
    assert (output_dir / "report.html").is_file()
    assert [name for name in files_below(output_dir) if name.startswith(".") and name != ".lock"] == []


def test_a_run_killed_while_its_report_was_written_resumes_to_the_report(trained, phantoms, tmp_path):
    shutil.copytree(trained.output_dir, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    left = sorted((tmp_path / "run" / "overlays").iterdir())
    assert left
    options = {**TRAINING, "dataset_dir": phantoms, "output_dir": tmp_path / "run", "resume": True}
    weights = (tmp_path / "run" / "model.pt").read_bytes()
    run_bundle(config("train"), **options).check_done()
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "run" / "model.pt").read_bytes() == weights


def test_row_43_another_preprocessing_is_no_training_to_resume(trained, phantoms, tmp_path):
    shutil.copytree(trained.output_dir, tmp_path / "run")
    options = {**TRAINING, "dataset_dir": phantoms, "output_dir": tmp_path / "run", "resume": True}
    run = run_bundle(config("train"), **options, pixdim=[2.0, 2.0, 2.0], flip_prob=0.0)
    check_refused(run, "flip_prob was 0.5, is 0.0", "pixdim was [1.0, 1.0, 1.0], is [2.0, 2.0, 2.0]")


def test_an_earlier_run_is_kept(trained, phantoms):
    before = files_below(trained.output_dir)
    run = run_bundle(config("train"), **TRAINING, dataset_dir=phantoms, output_dir=trained.output_dir)
    check_refused(run, str(trained.output_dir), "--resume True", "--overwrite True")
    after = files_below(trained.output_dir)
    assert {name: after[name] for name in before if name != ".lock"} == {
        name: stamp for name, stamp in before.items() if name != ".lock"
    }


@pytest.mark.slow
def test_the_demonstration_as_typed_reaches_its_score(tmp_path):
    """No override but where it writes: phantoms, on two CPU cores, in at most ten minutes."""
    since = time.monotonic()
    run_bundle(config("train"), output_dir=tmp_path).check_done()
    minutes = (time.monotonic() - since) / 60
    dice = max(float(row.get("validation val_mean_dice") or 0) for row in history(tmp_path))
    assert dice >= 0.85
    assert minutes <= 10
