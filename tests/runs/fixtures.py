"""A small phantom data set, and one finished training on it, made once for all tests of runs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from shared_components.data.phantoms import make_phantoms
from tests.runs.commands import BUNDLE, TRAINING, Run, config, files_below, run_bundle

PERTURBATION = 0.05


class Training(NamedTuple):
    """A finished training run."""

    run: Run
    output_dir: Path
    untouched: bool  # whether the bundle's folder is what it was before


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight phantoms: five to train on, one to validate on, two to test on."""
    return make_phantoms(tmp_path_factory.mktemp("data") / "phantoms", num_cases=8, seed=3)


@pytest.fixture(scope="session")
def trained(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """An uninterrupted training of two epochs, started from the repository's root."""
    output_dir = tmp_path_factory.mktemp("trained") / "run"
    before = files_below(BUNDLE)
    run = run_bundle(config("train"), **TRAINING, dataset_dir=phantoms, output_dir=output_dir)
    return Training(run.check_done(), output_dir, files_below(BUNDLE) == before)


@pytest.fixture(scope="session")
def lively_weights(trained: Training) -> Path:
    """Weights that find every label somewhere, which those of a training of seconds do not."""
    weights = torch.load(trained.output_dir / "model.pt", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name, value in weights.items():
        if name != "schedule":
            value += PERTURBATION * torch.randn(value.shape, generator=generator)
    path = trained.output_dir.parent / "lively.pt"
    torch.save(weights, path)
    return path
