"""Bundles run in this process, for tests that would wait for Python's imports more than for the bundle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from shared_components.errors import one_line
from tests.runs.commands import BUNDLE, NETWORK

PERTURBATION = 0.2


def run_here(*names: str, bundle: Path = BUNDLE, **overrides: Any) -> ConfigWorkflow:
    """Do what ``python -m monai.bundle run`` does with configurations of a bundle, with its errors as they are."""
    files = [str(bundle / "configs" / f"{name}.json") for name in names]
    options = {"config_file": files, "meta_file": None, "logging_file": False, "bundle_root": str(bundle)}
    hook = sys.excepthook
    try:
        workflow = ConfigWorkflow(workflow_type=None, **options, **overrides)
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    finally:
        sys.excepthook = hook
    return workflow


def refusal(*names: str, **options: Any) -> str:
    """Run configurations that end with an error, and return the line that a user would see of it."""
    with pytest.raises(Exception) as caught:  # MONAI wraps what its expressions raise
        run_here(*names, **options)
    line = one_line(caught.value)
    assert line and "\n" not in line, caught.value
    return line


def random_weights(path: Path, **overrides: Any) -> Path:
    """Save weights that nobody trained but that find every label somewhere."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.json"))
    parser.update({**NETWORK, **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = parser.get_parsed_content("network_def").state_dict()
        for name, value in weights.items():
            if name != "schedule":
                value += PERTURBATION * torch.randn(value.shape)
    torch.save(weights, path)
    return path
