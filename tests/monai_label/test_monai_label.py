"""Every bundle, exported, in a real MONAI Label server; and proof that the procedure rejects bad ones."""

from __future__ import annotations

import json
import os
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from shared_components.bundle_tools.export import export_bundle
from tests.bundle_weights import with_weights
from tests.monai_label.cases import BUNDLES, write_case
from tests.toy_bundle import INFERENCE, METADATA, write_ball, write_toy_bundle

HERE = Path(__file__).resolve().parent
pytestmark = [pytest.mark.slow, pytest.mark.monai_label]


@pytest.fixture(scope="session")
def label_python() -> Path:
    """The interpreter of the environment that has MONAI Label."""
    environment = os.environ.get("MONAI_LABEL_VENV", "")
    python = Path(environment).absolute() / "bin" / "python"
    if not environment or not python.exists():
        pytest.skip(
            "needs MONAI Label in an environment of its own: tests/monai_label/install.sh label_venv && "
            "MONAI_LABEL_VENV=label_venv python -m pytest -m monai_label"
        )
    return python


def run_acceptance(python: Path, bundle: Path, image: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        str(python),
        str(HERE / "acceptance.py"),
        "--bundle",
        str(bundle),
        "--image",
        str(image),
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=3600)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_the_exported_bundle_serves_and_trains(
    label_python: Path, real_data: Path, tmp_path: Path, bundle: Path
) -> None:
    image, label, least_dice = write_case(bundle.name, real_data, tmp_path)
    if not (bundle / "models" / "model.pt").is_file():
        least_dice = 0.0
    target = Path(export_bundle(str(with_weights(bundle, tmp_path / "source")), str(tmp_path / bundle.name)))
    arguments = ["--label", str(label), "--train", "--least_dice", str(least_dice)]
    done = run_acceptance(label_python, target, image, *arguments)
    assert done.returncode == 0, done.stderr


def test_a_good_bundle_is_accepted(label_python: Path, tmp_path: Path) -> None:
    image, label = write_ball(tmp_path)
    bundle = write_toy_bundle(tmp_path / "ball")
    arguments = ["--label", str(label), "--train", "--least_dice", "0.98", "--least_agreement", "0.999"]
    done = run_acceptance(label_python, bundle, image, *arguments)
    assert done.returncode == 0, done.stderr
    assert "training wrote models/fine_tuned.pt" in done.stderr


def without_inversion() -> dict[str, Any]:
    """A pipeline that returns the right shape and affine round a flipped mask."""
    changed = deepcopy(INFERENCE["postprocessing"])
    changed["transforms"] = changed["transforms"][1:]
    return {"postprocessing": changed}


def with_stock_spacing() -> dict[str, Any]:
    changed = deepcopy(INFERENCE["preprocessing"])
    changed["transforms"].append({"_target_": "Spacingd", "keys": "image", "pixdim": [1.0, 1.0, 1.0]})
    return {"preprocessing": changed}


def with_unread_option() -> dict[str, Any]:
    changed = deepcopy(INFERENCE["inferer"])
    changed["sw_batch_size"] = 2
    return {"inferer": changed}


def without_labels() -> dict[str, Any]:
    changed = deepcopy(METADATA["network_data_format"])
    del changed["outputs"]["pred"]["channel_def"]
    return {"network_data_format": changed}


ABSENT = {"inferer": {"_target_": "shared_components.errors.InputError"}}
BAD_TO_SERVE = {
    "a flipped mask": ({"inference": without_inversion()}, "is Invertd missing?"),
    "no labels": ({"metadata": without_labels()}, "/info gives no labels"),
    "an absent package": ({"inference": ABSENT}, "inference by datastore id: POST /infer/ball: HTTP 500"),
    "an option that nothing reads": ({"inference": with_unread_option()}, "option 'num_samples' is not read"),
    "a stock Spacingd": ({"inference": with_stock_spacing()}, "POST /infer/ball: HTTP 500"),
}
BAD_TO_TRAIN = {
    "nothing saved": ({"train#handlers": []}, "training wrote no weights"),
    "no validation data": ({"validate": None}, "training: POST /train/ball: HTTP 500"),
}


@pytest.mark.parametrize("case", BAD_TO_SERVE)
def test_a_bundle_that_serves_badly_is_rejected(label_python: Path, tmp_path: Path, case: str) -> None:
    changed, expected = BAD_TO_SERVE[case]
    image, _ = write_ball(tmp_path)
    done = run_acceptance(label_python, write_toy_bundle(tmp_path / "ball", **changed), image)
    assert done.returncode == 1
    assert expected in done.stderr


@pytest.mark.parametrize("case", BAD_TO_TRAIN)
def test_a_bundle_that_trains_badly_is_rejected(label_python: Path, tmp_path: Path, case: str) -> None:
    changed, expected = BAD_TO_TRAIN[case]
    image, label = write_ball(tmp_path)
    bundle = write_toy_bundle(tmp_path / "ball", train=changed)
    done = run_acceptance(label_python, bundle, image, "--label", str(label), "--train")
    assert done.returncode == 1
    assert expected in done.stderr


def test_wrong_weights_are_rejected(label_python: Path, tmp_path: Path) -> None:
    image, label = write_ball(tmp_path)
    bundle = write_toy_bundle(tmp_path / "ball")
    torch.save({"other": torch.zeros(1)}, bundle / "models" / "model.pt")
    (bundle / "models" / "ema.pt").write_bytes((bundle / "models" / "model.pt").read_bytes())
    (bundle / "docs" / "link.png").symlink_to("nowhere.png")
    done = run_acceptance(label_python, bundle, image, "--label", str(label))
    assert done.returncode == 1
    for expected in (
        "the weights are not this network's",
        "the server would load ema.pt in place of model.pt",
        "dangling links: ['docs/link.png']",
        "mean Dice",
    ):
        assert expected in done.stderr


def test_a_server_that_cannot_start_is_reported(label_python: Path, tmp_path: Path) -> None:
    image, _ = write_ball(tmp_path)
    bundle = write_toy_bundle(tmp_path / "ball")
    (bundle / "configs" / "inference.json").write_text(json.dumps({"network_def": "$1/0"}), encoding="utf-8")
    done = run_acceptance(label_python, bundle, image)
    assert done.returncode == 1
    assert "PROBLEM: the server ended" in done.stderr or "PROBLEM: /info does not list ball" in done.stderr
