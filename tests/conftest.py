"""Fixtures every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores, so each takes one; before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.runs.fixtures import lively_weights, phantoms, trained  # noqa: E402, F401  fixtures that are made once

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the public data sets (MSD Task04 Hippocampus and others); tests that need it skip without it."""
    root = Path(os.environ.get("DIFFUSION_BUNDLES_DATA", REPOSITORY.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip("needs the public data sets: set DIFFUSION_BUNDLES_DATA to the folder that holds them")
    return root
