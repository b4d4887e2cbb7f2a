"""The CDM bundles' commands with networks that take seconds."""

from __future__ import annotations

TINY_NETWORK = {
    "denoiser#channels": [32, 32],
    "denoiser#attention_levels": [False, False],
    "classifier#channel_mult": [1, 1],
    "classifier#attention_factors": [2],
    "image_size": [16, 16],
    "num_samples": 2,
    "amp": False,
    "device": "cpu",
}
TINY_TRAINING = {**TINY_NETWORK, "max_epochs": 2, "val_interval": 1}
