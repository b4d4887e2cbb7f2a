"""Weights for the checks of bundles that have none yet."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from monai.bundle import ConfigParser


def with_weights(bundle: Path, folder: Path) -> Path:
    """Return the bundle, or if it has no weights yet a copy of it in ``folder`` with random ones."""
    if (bundle / "models" / "model.pt").is_file():
        return bundle
    copy = folder / bundle.name
    shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns("output", "eval", "__pycache__"))
    parser = ConfigParser()
    parser.read_config(str(copy / "configs" / "inference.json"))
    network = parser.get_parsed_content("network_def")
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():  # what starts at zero would hide mistakes
        parameter.data += 0.03 * torch.randn(parameter.shape, generator=generator)
    (copy / "models").mkdir(exist_ok=True)
    torch.save(network.state_dict(), copy / "models" / "model.pt")
    return copy
