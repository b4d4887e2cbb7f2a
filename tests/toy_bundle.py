"""A small complete bundle of MONAI's own parts, to know that the checks of bundles accept a good one.

It finds a bright ball by a threshold: its network is one 1x1x1 convolution whose weights are written down, so
that it needs no training, segments well, scripts and can be trained on.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

METADATA: dict[str, Any] = {
    "schema": "https://project-monai.github.io/schema/meta_schema_20240725.json",
    "version": "0.1.0",
    "changelog": {"0.1.0": "first"},
    "monai_version": "1.6.1",
    "pytorch_version": "2.13.0",
    "numpy_version": "1.26.4",
    "required_packages_version": {},
    "task": "find a bright ball",
    "description": "threshold",
    "authors": "test",
    "copyright": "test",
    "network_data_format": {
        "inputs": {
            "image": {
                "type": "image", "format": "magnitude", "num_channels": 1, "spatial_shape": ["8*n"] * 3,
                "dtype": "float32", "value_range": [0, 1], "channel_def": {"0": "image"},
            }
        },
        "outputs": {
            "pred": {
                "type": "image", "format": "segmentation", "num_channels": 2, "spatial_shape": ["8*n"] * 3,
                "dtype": "float32", "value_range": [0, 1], "channel_def": {"0": "background", "1": "ball"},
            }
        },
    },
}  # fmt: skip

LOAD = [
    {"_target_": "LoadImaged", "keys": "@keys", "ensure_channel_first": True},
    {"_target_": "Orientationd", "keys": "@keys", "axcodes": "RAS", "labels": None},
    {"_target_": "ScaleIntensityd", "keys": "image"},
]
COMMON: dict[str, Any] = {
    "imports": ["$import os", "$import glob", "$import torch"],
    "bundle_root": ".",
    "dataset_dir": "$@bundle_root + '/data'",
    "output_dir": "$@bundle_root + '/output'",
    "ckpt_path": "$@bundle_root + '/models/model.pt'",
    "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
    "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1},
    "network": "$@network_def.to(torch.device(@device))",
}
INFERENCE: dict[str, Any] = {
    **COMMON,
    "keys": ["image"],
    "displayable_configs": {"overlap": 0.25, "num_samples": 2},
    "preprocessing": {"_target_": "Compose", "transforms": LOAD},
    "dataset": {
        "_target_": "Dataset",
        "data": "$[{'image': file} for file in sorted(glob.glob(@dataset_dir + '/*.nii.gz'))]",
        "transform": "@preprocessing",
    },
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
    "inferer": {
        "_target_": "SlidingWindowInferer", "roi_size": [16] * 3, "overlap": "@displayable_configs#overlap",
        "sw_batch_size": "$4 // @displayable_configs#num_samples",  # an option that must not be 0
    },
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Invertd", "keys": "pred", "orig_keys": "image", "transform": "@preprocessing",
             "nearest_interp": False},
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir"},
        ],
    },
    "handlers": [],
    "evaluator": {
        "_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": "@dataloader",
        "network": "@network", "inferer": "@inferer", "postprocessing": "@postprocessing",
        "val_handlers": "@handlers",
    },
    "run": ["$@evaluator.run()"],
}  # fmt: skip
TRAIN: dict[str, Any] = {
    **COMMON,
    "keys": ["image", "label"],
    "val_interval": 1,
    "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": 0.001},
    "train": {
        "preprocessing": {"_target_": "Compose", "transforms": LOAD},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': f, 'label': f} for f in glob.glob(@dataset_dir + '/*.nii.gz')]",
            "transform": "@train#preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@train#dataset", "batch_size": 1},
        "inferer": {"_target_": "SimpleInferer"},
        "handlers": [
            {"_target_": "ValidationHandler", "validator": "@validate#evaluator", "epoch_level": True,
             "interval": "@val_interval"},
            {"_target_": "CheckpointSaver", "save_dir": "$@bundle_root + '/models'",
             "save_dict": {"model": "@network"}, "save_final": True, "final_filename": "fine_tuned.pt"},
        ],
        "trainer": {
            "_target_": "SupervisedTrainer", "device": "$torch.device(@device)", "max_epochs": 1,
            "train_data_loader": "@train#dataloader", "network": "@network", "optimizer": "@optimizer",
            "loss_function": {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True},
            "inferer": "@train#inferer", "train_handlers": "@train#handlers",
        },
    },
    "validate": {
        "preprocessing": "@train#preprocessing",
        "dataset": {
            "_target_": "Dataset", "data": "@train#dataset#data", "transform": "@validate#preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@validate#dataset", "batch_size": 1},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True, "to_onehot": 2},
                {"_target_": "AsDiscreted", "keys": "label", "to_onehot": 2},
            ],
        },
        "key_metric": {
            "dice": {"_target_": "MeanDice", "include_background": False,
                     "output_transform": "$monai.handlers.from_engine(['pred', 'label'])"}
        },
        "handlers": [],
        "evaluator": {
            "_target_": "SupervisedEvaluator", "device": "$torch.device(@device)",
            "val_data_loader": "@validate#dataloader", "network": "@network", "inferer": "@validate#inferer",
            "postprocessing": "@validate#postprocessing", "key_val_metric": "@validate#key_metric",
            "val_handlers": "@validate#handlers",
        },
    },
    "run": ["$@train#trainer.run()"],
}  # fmt: skip
EVALUATE = {"validate#handlers": [], "run": ["$@validate#evaluator.run()"]}
LOGGING = """[loggers]
keys=root
[handlers]
keys=console
[formatters]
keys=plain
[logger_root]
level=INFO
handlers=console
[handler_console]
class=StreamHandler
level=INFO
formatter=plain
args=(sys.stdout,)
[formatter_plain]
format=%(levelname)s - %(message)s
"""


def write_toy_bundle(folder: Path, **changed: dict[str, Any]) -> Path:
    """Write the bundle; ``inference={...}`` and the like replace top-level keys, with None drop them."""
    contents = {"inference": INFERENCE, "train": TRAIN, "metadata": METADATA, "evaluate": EVALUATE}
    for part in ("configs", "models", "docs"):
        (folder / part).mkdir(parents=True)
    for name, content in contents.items():
        merged = {**deepcopy(content), **changed.get(name, {})}
        kept = {key: value for key, value in merged.items() if value is not None}
        (folder / "configs" / f"{name}.json").write_text(json.dumps(kept, indent=4), encoding="utf-8")
    (folder / "configs" / "logging.conf").write_text(LOGGING, encoding="utf-8")
    (folder / "docs" / "README.md").write_text("A toy.", encoding="utf-8")
    (folder / "LICENSE").write_text("Apache-2.0", encoding="utf-8")
    # Class 1 wins where the scaled intensity exceeds one half.
    state = {"weight": torch.tensor([-20.0, 20.0]).view(2, 1, 1, 1, 1), "bias": torch.tensor([10.0, -10.0])}
    torch.save(state, folder / "models" / "model.pt")
    return folder


def write_ball(folder: Path) -> tuple[Path, Path]:
    """Write an image of an off-centre bright ball and its label map, on an oblique, flipped, uneven grid."""
    place = np.stack(np.meshgrid(*(np.arange(size) for size in (26, 22, 18)), indexing="ij"), axis=-1)
    ball = ((place - np.array([8, 13, 6])) ** 2).sum(-1) <= 25
    angle = np.deg2rad(10)
    affine = np.diag([-1.0, 1.5, 2.0, 1.0])
    affine[:3, :3] = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    ) @ affine[:3, :3]  # fmt: skip
    affine[:3, 3] = [12.5, -30.0, 7.25]
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).normal(0, 5, ball.shape)
    nib.save(nib.Nifti1Image((100.0 * ball + noise).astype(np.float32), affine), folder / "image.nii.gz")
    nib.save(nib.Nifti1Image(ball.astype(np.uint8), affine), folder / "label.nii.gz")
    return folder / "image.nii.gz", folder / "label.nii.gz"
