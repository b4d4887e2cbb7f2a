"""The ``dataset.json`` of phantoms that lie as a Medical Segmentation Decathlon set does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def msd_description(
    name: str, modality: str, labels: Mapping[str, int], version: Any, num_cases: int, seed: int
) -> dict[str, Any]:
    """Return the content of ``dataset.json``, which also marks the set as complete.

    Args:
        name: of the set.
        modality: such as "MRI".
        labels: name to value, background included.
        version: of how the phantoms are drawn.
        num_cases: volumes ``phantom_NNN.nii.gz``.
        seed: of the set.
    """
    names = [f"phantom_{index:03d}.nii.gz" for index in range(num_cases)]
    return {
        "name": name,
        "description": "Synthetic volumes for demonstrations; no patient data",
        "licence": "CC0 1.0",
        "tensorImageSize": "3D",
        "modality": {"0": modality},
        "labels": {str(value): label for label, value in labels.items()},
        "numTraining": num_cases,
        "numTest": 0,
        "training": [{"image": f"./imagesTr/{file}", "label": f"./labelsTr/{file}"} for file in names],
        "test": [],
        "phantoms": {"version": version, "num_cases": num_cases, "seed": seed},
    }
