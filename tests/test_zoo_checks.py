"""The model zoo's checks on every bundle, exported, in a process that cannot see this repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shared_components.bundle_tools.export import export_bundle
from tests.bundle_weights import with_weights
from tests.toy_bundle import METADATA, write_toy_bundle

REPOSITORY = Path(__file__).resolve().parent.parent
BUNDLES = sorted(path.parent.parent for path in REPOSITORY.glob("bundles/*/configs/metadata.json"))
SCHEMA = REPOSITORY / "tests" / "schema" / "meta_schema_20240725.json"
PROCEDURE = REPOSITORY / "tests" / "zoo_procedure.py"
STEPS = ["files", "version", "schema", "shape", "torchscript", "ids", "names"]

pytestmark = pytest.mark.slow


def run_procedure(bundle: Path, scratch: Path, *hidden: str) -> dict[str, list[str]]:
    """Run the procedure on a bundle in a fresh, isolated process, and return the problems of each step."""
    scratch.mkdir(parents=True, exist_ok=True)
    # Nothing answers on the loopback's discard port: a check that reaches for the network fails at once.
    offline = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            str(PROCEDURE),
            str(bundle),
            str(SCHEMA),
            str(scratch / "result.json"),
            *hidden,
        ],
        cwd=scratch,
        env={**os.environ, **offline, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=900,
    )
    assert (scratch / "result.json").is_file(), done.stderr
    return json.loads((scratch / "result.json").read_text(encoding="utf-8"))


def failed_steps(results: dict[str, list[str]]) -> dict[str, list[str]]:
    return {step: problems for step, problems in results.items() if problems}


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda path: path.name)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    scratch = tmp_path_factory.mktemp("zoo")
    source = with_weights(request.param, scratch / "source")
    target = export_bundle(str(source), str(scratch / "exported" / request.param.name))
    return run_procedure(Path(target), scratch / "work", "shared_components")


@pytest.mark.parametrize("step", STEPS)
def test_the_exported_bundle_passes(exported: dict[str, list[str]], step: str) -> None:
    assert exported[step] == []


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_the_plain_bundle_passes_where_the_package_is_installed(bundle: Path, tmp_path: Path) -> None:
    probe = [sys.executable, "-I", "-c", "import shared_components"]
    if subprocess.run(probe, cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("needs the package in site-packages: pip install .")
    assert failed_steps(run_procedure(bundle, tmp_path / "work")) == {}


def test_a_good_bundle_passes(tmp_path: Path) -> None:
    results = run_procedure(write_toy_bundle(tmp_path / "ball"), tmp_path / "work")
    assert list(results) == STEPS
    assert failed_steps(results) == {}


def with_shape(shape: list[str]) -> dict[str, Any]:
    text = json.dumps(METADATA["network_data_format"]).replace(json.dumps(["8*n"] * 3), json.dumps(shape))
    return {"network_data_format": json.loads(text)}


BAD = {
    "version without a changelog entry": ({"metadata": {"version": "0.2.0"}}, "version", "0.2.0 is not in"),
    "missing numpy_version": ({"metadata": {"numpy_version": None}}, "schema", "numpy_version"),
    "another rank": ({"metadata": with_shape(["8*n", "8*n", "8*n", "8*n"])}, "shape", "conv3d"),
    "a target of the repository alone": (
        {"inference": {"inferer": {"_target_": "shared_components.errors.InputError"}}},
        "names",
        "inference: shared_components.errors.InputError",
    ),
    "a reference to nothing": ({"train": {"run": ["$@trainer.run()"]}}, "names", "train: @trainer in run::0"),
    "an import that binds nothing": ({"train": {"imports": ["$import os.path"]}}, "names", "$import os.path"),
    "no validation interval": ({"train": {"val_interval": None}}, "ids", "train: val_interval"),
    "no output folder": ({"inference": {"output_dir": None}}, "ids", "inference: output_dir"),
    "a personal path": ({"train": {"dataset_dir": str(Path("/home") / "somebody" / "data")}}, "files", "personal path"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_bundle_is_rejected(tmp_path: Path, case: str) -> None:
    changed, step, expected = BAD[case]
    results = run_procedure(write_toy_bundle(tmp_path / "ball", **changed), tmp_path / "work", "shared_components")
    assert expected in "\n".join(results[step])


def test_a_wrong_checkpoint_is_rejected(tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "ball")
    (bundle / "models" / "model.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert set(failed_steps(run_procedure(bundle, tmp_path / "work"))) == {"torchscript"}
