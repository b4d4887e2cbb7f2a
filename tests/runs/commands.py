"""The public commands in processes of their own, as a user types them, on a network that takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
BUNDLE = REPOSITORY / "bundles" / "cdal_hippocampus"
TIMEOUT = 900

NETWORK = {
    "backbone#channels": [8, 16],
    "backbone#attention_levels": [False, False],
    "backbone#condition_norm_groups": 4,
    "num_samples": 2,
    "device": "cpu",
}
TRAINING = {**NETWORK, "max_epochs": 2, "val_interval": 1, "batch_size": 2}
DISCRIMINATOR = {"discriminator_def#channels": [8, 8, 8, 8, 8]}


class Run(NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def errors(self) -> list[str]:
        """The lines that tell an error, without the progress bars before them."""
        lines = self.stderr.replace("\r", "\n").splitlines()
        return [line for line in lines if line.startswith("error:")]

    def check_done(self) -> Run:
        """Return the run; fail with what it said if it did not end well."""
        assert self.code == 0, f"exit code {self.code}\n{self.stdout[-2000:]}\n{self.stderr[-9000:]}"
        return self


def bundle_command(*configs: str | Path, **overrides: Any) -> list[str]:
    """The arguments of ``python`` that run configurations with overrides (``None`` leaves one out)."""
    files = str(configs[0]) if len(configs) == 1 else str([str(config) for config in configs])
    given = {f"--{key}": str(value) for key, value in overrides.items() if value is not None}
    options = [part for pair in given.items() for part in pair]
    return ["-m", "monai.bundle", "run", "--config_file", files, *options]


def environment() -> dict[str, str]:
    """One thread a process, no accelerator, and the package of this tree wherever the command runs."""
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}


def run_python(*arguments: str, cwd: Path = REPOSITORY) -> Run:
    """Run ``python`` with arguments."""
    options = {"cwd": cwd, "env": environment(), "timeout": TIMEOUT}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, encoding="utf-8", **options)
    return Run(done.returncode, done.stdout, done.stderr)


def run_bundle(*configs: str | Path, cwd: Path = REPOSITORY, **overrides: Any) -> Run:
    """Run ``python -m monai.bundle run`` with configurations and overrides, from a folder."""
    return run_python(*bundle_command(*configs, **overrides), cwd=cwd)


def config(name: str) -> str:
    """A configuration's path as typed in the repository's root."""
    return f"bundles/{BUNDLE.name}/configs/{name}.json"


def files_below(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file of a folder with its size and time of change; compiled Python is no output."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def check_refused(run: Run, *parts: str) -> None:
    """A user's mistake ends with exit code 1 and one line that holds every part, and without a traceback."""
    assert run.code == 1, run.stderr[-4000:]
    assert "Traceback" not in run.stderr, run.stderr[-4000:]
    assert len(run.errors) == 1, run.stderr[-4000:]
    assert [part for part in parts if part not in run.errors[0]] == [], run.errors[0]
    assert "terminating due to exception" not in run.stderr
