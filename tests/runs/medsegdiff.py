"""The MedSegDiff bundles' commands with a network that takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from torch import nn

from tests.runs.commands import REPOSITORY

TINY_NETWORK = {
    "denoiser#channel_mult": [1, 1, 1, 1],
    "denoiser#attention_factors": [8],
    "denoiser#highway_channels": 4,
    "image_size": [32, 32],
    "num_samples": 2,
    "num_inference_steps": 2,
    "amp": False,
    "device": "cpu",
}
TINY_TRAINING = {**TINY_NETWORK, "max_epochs": 2, "val_interval": 1, "batch_size": 2}


def config_of(bundle: str, *names: str) -> list[str]:
    """Configurations' paths as typed in the repository's root."""
    return [f"bundles/{bundle}/configs/{name}.json" for name in names]


def network_of(bundle: str, *overlays: str, **overrides: Any) -> nn.Module:
    """The bundle's network, tiny."""
    parser = ConfigParser()
    parser.read_config([str(REPOSITORY / file) for file in config_of(bundle, "inference", *overlays)])
    parser.update({**TINY_NETWORK, **overrides})
    return parser.get_parsed_content("network_def")


def bundle_folder(bundle: str) -> Path:
    return REPOSITORY / "bundles" / bundle
