"""How a configuration is run: the arguments of the command, for a process or to be shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def command(files: Sequence[Path], overrides: Mapping[str, Any]) -> list[str]:
    """Return the arguments of ``python`` that run configurations with overrides."""
    names = str(files[0]) if len(files) == 1 else str([str(file) for file in files])
    options = []
    for key, value in overrides.items():
        options += [f"--{key}", "$None" if value is None else str(value)]
    return ["-m", "monai.bundle", "run", "--config_file", names, *options]
