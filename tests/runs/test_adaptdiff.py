"""AdaptDiff's stages as typed, on networks that take seconds: each alone, all in one run, stopped and gone on with."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from monai.bundle import ConfigParser
from PIL import Image

from shared_components.data.phantoms import make_phantoms
from tests.runs.commands import REPOSITORY, bundle_command, check_refused, files_below, run_bundle, run_python
from tests.runs.test_train import check_same_training, history, kill_in_second_epoch, load

BUNDLE = "bundles/adaptdiff_octa"
SEGMENTER = {"segmenter#channels": [4, 4, 4], "num_samples": 1, "device": "cpu", "amp": False}
GENERATOR = {
    "denoiser#channels": [8, 8, 16], "denoiser#spade_channels": 4, "num_inference_steps": 3, "device": "cpu",
    "amp": False,
}  # fmt: skip
TRAINING = {"max_epochs": 2, "val_interval": 1, "batch_size": 4}
SETTINGS = {
    "all": {"amp": False, "device": "cpu"},
    "segmenter": {**SEGMENTER, **TRAINING},
    "diffusion": {**SEGMENTER, **GENERATOR, **TRAINING},
    "pairs": {**GENERATOR, "num_per_mask": 2, "image_size": [64, 64]},
    "adapted": {**SEGMENTER, **TRAINING, "crop_size": [64, 64]},
    "ceiling": {**SEGMENTER, **TRAINING},
    "evaluation": SEGMENTER,
}


def config(name: str) -> str:
    return f"{BUNDLE}/configs/{name}.json"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("vessels")
    return {kind: make_phantoms(folder / kind, num_cases=6, seed=3, kind=kind) for kind in ("fundus", "octa")}


@pytest.fixture(scope="module")
def stages(data, tmp_path_factory) -> Path:
    """Segmenter and generator, trained for two epochs from the repository's root."""
    folder = tmp_path_factory.mktemp("stages")
    before = files_below(REPOSITORY / BUNDLE), files_below(data["fundus"]), files_below(data["octa"])
    options = {**SEGMENTER, **TRAINING, "dataset_dir": data["fundus"], "output_dir": folder / "segmenter"}
    run_bundle(config("train_segmenter"), **options).check_done()
    options = {**SEGMENTER, **GENERATOR, **TRAINING, "dataset_dir": data["octa"], "output_dir": folder / "diffusion"}
    run_bundle(config("train"), **options).check_done()
    assert (files_below(REPOSITORY / BUNDLE), files_below(data["fundus"]), files_below(data["octa"])) == before
    return folder


def network_of(name: str, overrides: dict):
    parser = ConfigParser()
    parser.read_config(str(REPOSITORY / config(name)))
    parser.update(overrides)
    return parser.get_parsed_content("network_def")


def test_training_leaves_weights_tables_labels_and_previews(stages):
    network_of("inference", SEGMENTER).load_state_dict(load(stages / "segmenter" / "model.pt"), strict=True)
    network_of("generate", GENERATOR).load_state_dict(load(stages / "diffusion" / "model.pt"), strict=True)
    for stage, metric in (("segmenter", "validation val_mean_dice"), ("diffusion", "validation explained_share")):
        rows = history(stages / stage)
        assert len(rows) == 2 and all(0 < float(row["loss"]) < 20 and metric in row for row in rows)
    labels = sorted((stages / "diffusion" / "pseudo_labels" / "train").glob("*.png"))
    assert len(labels) == 4 and set(np.unique(Image.open(labels[0]))) <= {0, 255}
    assert {path.name for path in (stages / "diffusion" / "previews").iterdir()} == {"epoch_0001.png", "epoch_0002.png"}


def test_pairs_are_generated_tuned_on_and_used(stages, data):
    options = {**GENERATOR, "num_per_mask": 2, "image_size": [64, 64], "dataset_dir": data["fundus"]}
    run_bundle(config("generate"), **options, output_dir=stages / "pairs").check_done()
    images = sorted((stages / "pairs" / "images").iterdir())
    assert len(images) == 8 and Image.open(images[0]).size == (64, 64)
    assert not np.array_equal(np.asarray(Image.open(images[0])), np.asarray(Image.open(images[1])))
    images[3].unlink()  # as if stopped before
    before = files_below(stages / "pairs" / "images")
    run_bundle(config("generate"), **options, output_dir=stages / "pairs").check_done()
    assert before.items() < files_below(stages / "pairs" / "images").items()
    tuned = {**SEGMENTER, **TRAINING, "crop_size": [64, 64], "output_dir": stages / "adapted"}
    tuned["source_dir"] = data["fundus"]
    run_bundle(config("finetune"), **tuned).check_done()
    weights = {"ckpt_path": stages / "adapted" / "model.pt"}
    found = {**SEGMENTER, **weights, "dataset_dir": data["octa"]}
    run_bundle(config("evaluate"), **found, output_dir=stages / "scores").check_done()
    with open(stages / "scores" / "metrics_per_case.csv", newline="", encoding="utf-8") as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["phantom_003"]
    found["dataset_dir"] = data["octa"] / "images"
    run_bundle(config("inference"), **found, output_dir=stages / "out").check_done()
    assert Image.open(stages / "out" / "phantom_000_seg.png").size == (128, 128)


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(stages, data, tmp_path):
    options = {
        **SEGMENTER, **GENERATOR, **TRAINING, "dataset_dir": data["octa"], "output_dir": tmp_path / "run",
        "segmenter_ckpt": stages / "segmenter" / "model.pt",
    }  # fmt: skip
    kill_in_second_epoch(bundle_command(config("train"), **options), tmp_path / "run")
    run_bundle(config("train"), **options, resume=True).check_done()
    check_same_training(stages / "diffusion", tmp_path / "run")


@pytest.mark.slow
def test_label_noise_on_true_labels(data, tmp_path):
    options = {**SEGMENTER, **GENERATOR, **TRAINING, "max_epochs": 1, "dataset_dir": data["octa"]}
    noise = {"true_labels": True, "label_noise": {"fp": 0.2, "fn": 0.2}}
    run_bundle(config("train"), **options, **noise, output_dir=tmp_path).check_done()
    assert (tmp_path / "model.pt").is_file() and not (tmp_path / "pseudo_labels").exists()


def test_a_generator_without_a_segmenter_says_what_to_run_first(data, tmp_path):
    options = {**SEGMENTER, **GENERATOR, **TRAINING, "dataset_dir": data["octa"], "output_dir": tmp_path / "diffusion"}
    check_refused(run_bundle(config("train"), **options), "segmenter", "train_segmenter.json", "segmenter_ckpt")


@pytest.mark.slow
def test_all_stages_in_one_command(data, tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    command = [
        "-m", "shared_components", "run_stages", "--bundle", BUNDLE, "--source_dir", str(data["fundus"]),
        "--target_dir", str(data["octa"]), "--output_dir", str(tmp_path / "run"), "--target_labels", "true",
        "--settings", str(tmp_path / "settings.json"),
    ]  # fmt: skip
    run_python(*command).check_done()
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for text in ("source only", "adapted", "trained on the target", "Generated pairs", "phantom_003.png"):
        assert text in page
    before = files_below(tmp_path / "run")
    again = run_python(*command).check_done()
    assert again.stderr.count("finished already") == 10
    changed = {name for name, entry in files_below(tmp_path / "run").items() if before.get(name) != entry}
    assert changed == {"report.html"}
