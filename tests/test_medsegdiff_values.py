"""Nonsense for a documented key of MedSegDiff ends with one line: key, value, what is expected."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from shared_components.bundle_tools.settings import check_settings
from shared_components.data.phantoms import make_phantoms
from shared_components.errors import InputError
from tests.reliability.in_process import refusal, run_here
from tests.runs.commands import REPOSITORY
from tests.runs.medsegdiff import TINY_TRAINING

BUNDLE = REPOSITORY / "bundles" / "medsegdiff_isic"
CONFIG = str(BUNDLE / "configs" / "train.json")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    return make_phantoms(tmp_path_factory.mktemp("data") / "phantoms", num_cases=4, kind="lesion")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"image_size": [60, 60]}, ["image_size is [60, 60]", "multiples of 8", "[64,64]"]),
        ({"image_size": [32, 30]}, ["image_size is [32, 30]", "[32,32]"]),
        ({"image_size": 32}, ["image_size is 32", "two whole numbers"]),
        ({"num_classes": 0}, ["num_classes is 0", "at least 1"]),
        ({"num_classes": -1}, ["num_classes is -1"]),
        ({"num_classes": 1.5}, ["num_classes is 1.5"]),
        ({"clip": 1}, ["clip must be the two numbers", "[-1.0,1.0]", "not 1"]),
        ({"clip": [1.0, -1.0]}, ["clip must be the two numbers low < high"]),
        ({"schedule": "foo"}, ["schedule is 'foo'", "cosine_double"]),
        ({"learned_variance": "yes"}, ["learned_variance is 'yes'", "True or False"]),
        ({"learned_variance": True}, ["learned_variance", "3 channels", "2 x 1"]),
        ({"recycled_share": 2.0}, ["recycled_share is 2.0", "0 to 1"]),
        ({"train_inferer#share": 2.0}, ["share", "2.0", "0 to 1"]),
        ({"num_train_timesteps": 0}, ["num_train_timesteps is 0"]),
        ({"denoiser#dropout": 1.5}, ["dropout is 1.5", "less than 1"]),
        ({"denoiser#attention_factors": 16}, ["attention_factors is 16", "[16]"]),
        ({"denoiser#attention_factors": "16"}, ["attention_factors is '16'", "[16]"]),
        ({"denoiser#channels": 32.0}, ["channels is 32.0", "multiple of 32"]),
        ({"denoiser#channel_mult": 4}, ["channel_mult is 4"]),
        ({"denoiser#image_size": 128.0}, ["image_size is 128.0", "whole number"]),
        ({"denoiser#timestep_scale": 0}, ["timestep_scale is 0", "positive number"]),
        ({"ema#momentum": 2}, ["momentum", "is 2", "1 - decay"]),
        ({"calibration_loss#interval": 0}, ["interval must be", "at least 1, not 0"]),
        ({"spacing": "every"}, ["spacing must be one of", "'every'"]),
        ({"spacing": 100}, ["spacing '100' gives 100 num_inference_steps, not 2"]),
    ],
    ids=lambda value: "-".join(f"{key}={item}" for key, item in value.items()) if isinstance(value, dict) else "",
)
def test_one_line(phantoms, tmp_path, overrides: dict[str, Any], parts: list[str]) -> None:
    options = {**TINY_TRAINING, "dataset_dir": str(phantoms), "output_dir": str(tmp_path), **overrides}
    line = refusal("train", bundle=BUNDLE, **options)
    assert [part for part in parts if part not in line] == [], line
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize(
    ("option", "value", "parts"),
    [
        ("ema#momentum", "0.9999", ["ema#momentum is 0.9999", "0.0001 for the published decay 0.9999"]),
        ("ema#momentum", "2", ["ema#momentum is 2"]),
        ("optimizer#weight_decay", "-1", ["optimizer#weight_decay is -1", "at least 0"]),
        ("train#trainer#accumulation_steps", "0", ["train#trainer#accumulation_steps is 0", "at least 1"]),
        ("train::trainer::accumulation_steps", "1.5", ["train#trainer#accumulation_steps is 1.5"]),
    ],
)
@pytest.mark.parametrize("joined", [False, True])
def test_inner_values_of_the_command_line(monkeypatch, option: str, value: str, parts: list[str], joined: bool) -> None:
    given = [f"--{option}={value}"] if joined else [f"--{option}", value]
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "argv", ["/x/monai/bundle/__main__.py", "run", "--config_file", CONFIG, *given])
    with pytest.raises(InputError) as error:
        check_settings()
    assert [part for part in parts if part not in str(error.value)] == [] and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("ema#momentum", "0.0001"),
        ("ema#momentum", "@momentum"),
        ("optimizer#weight_decay", "0"),
        ("train#trainer#accumulation_steps", "4"),
    ],
)
def test_inner_values_that_make_sense_pass(monkeypatch, option: str, value: str) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(
        sys, "argv", ["/x/monai/bundle/__main__.py", "run", "--config_file", CONFIG, f"--{option}", value]
    )
    check_settings()


@pytest.mark.parametrize(("spacing", "count"), [(100, 100), ((10, 15, 25), 50), ([10, 15, 25], 50), ("ddim50", 50)])
def test_a_respacing_may_come_as_numbers(spacing: Any, count: int) -> None:
    parser = ConfigParser()
    parser.read_config([CONFIG, str(BUNDLE / "configs" / "paper.json")])
    parser.update({**TINY_TRAINING, "spacing": spacing, "num_inference_steps": None})
    assert parser.get_parsed_content("network_def").num_inference_steps == count


@pytest.mark.slow
def test_a_size_that_the_network_can_halve_trains(phantoms, tmp_path) -> None:
    options = {
        **TINY_TRAINING,
        "dataset_dir": str(phantoms),
        "output_dir": str(tmp_path),
        "max_epochs": 1,
        "image_size": [32, 40],
    }
    run_here("train", bundle=BUNDLE, **options)
    assert (tmp_path / "model.pt").is_file()
