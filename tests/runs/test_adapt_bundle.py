"""From a folder that no bundle was written for to an evaluation report, as typed: adapt, train, evaluate, infer."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.runs.commands import run_bundle, run_python

TINY = {"device": "cpu", "amp": False, "num_samples": 2, "max_epochs": 1, "val_interval": 1, "batch_size": 2}
CDAL = {
    "backbone#channels": [8, 16],
    "backbone#attention_levels": [False, False],
    "backbone#condition_norm_groups": 4,
}
MEDSEGDIFF = {
    "denoiser#channel_mult": [1, 1, 1, 1],
    "denoiser#attention_factors": [8],
    "denoiser#highway_channels": 4,
    "image_size": [32, 32],
    "num_inference_steps": 2,
}
TILES = {"scale": 0.125, "crop_size": [32, 32], "tile_size": 32, "crops_per_case": 1}
MANY = 50
ORGANS = {"pixdim": [12.0, 12.0, 12.0], "patch_size": [16, 16, 4]}


class Proof(NamedTuple):
    """A data set, the bundle that it is adapted from, options of adapt_bundle, a network that takes seconds."""

    data: str
    bundle: str
    options: dict[str, str]
    tiny: dict[str, Any]
    classes: tuple[str, ...]
    num_test: int


PROOFS = {
    "spleen": Proof("MSD_Spleen_2D", "medsegdiff_isic", {"labels": "{'spleen': 1}"}, MEDSEGDIFF, ("spleen",), 2),
    "breast": Proof("BUSI", "cdal_lung_cxr", {}, {**CDAL, "image_size": [32, 32]}, ("foreground",), 5),
    "vessels": Proof("FIVES", "cdal_monuseg", {}, {**CDAL, **TILES}, ("foreground",), 3),
    "organs": Proof(
        "TotalSegmentator_example",
        "cdal_hippocampus",
        {"labels": "liver,spleen,kidney_left,kidney_right"},
        {**CDAL, **ORGANS},
        ("liver", "spleen", "kidney_left", "kidney_right"),
        1,
    ),
    "nuclei": Proof("DSB2018_nuclei", "cdal_monuseg", {}, {**CDAL, **TILES}, ("foreground",), 18),
    "glioma": Proof(
        "noncommercial/BRATS2015_volume",
        "medsegdiff_brats",
        {
            "channels": "Flair_subtrMeanDivStd,T1c_subtrMeanDivStd",
            "label_column": "OTMultiClass",
            "labels": "{'tumour': [1, 2, 3, 4]}",
        },
        {**MEDSEGDIFF, "slices_per_case": 2},
        ("tumour",),
        1,
    ),
}


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def adapted(proof: Proof, data: Path, folder: Path, name: str) -> Path:
    options = [part for key, value in proof.options.items() for part in (f"--{key}", value)]
    command = ["-m", "shared_components", "adapt_bundle", "--from", proof.bundle, "--dataset_dir", str(data)]
    run_python(*command, "--name", name, "--output", str(folder / name), *options).check_done()
    return folder / name


@pytest.mark.slow
@pytest.mark.parametrize("name", PROOFS)
def test_from_a_folder_to_an_evaluation_report(real_data: Path, tmp_path: Path, name: str) -> None:
    proof = PROOFS[name]
    data = real_data / proof.data
    bundle = adapted(proof, data, tmp_path, f"my_{name}")
    channels = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))["network_data_format"][
        "outputs"
    ]["pred"]
    assert tuple(channels["channel_def"].values()) == ("background", *proof.classes)

    train, evaluate, inference = (bundle / "configs" / f"{file}.json" for file in ("train", "evaluate", "inference"))
    options = {**TINY, **proof.tiny, "dataset_dir": data}
    run_bundle(train, **options, output_dir=tmp_path / "run", cwd=tmp_path).check_done()
    assert (tmp_path / "run" / "report.html").is_file()
    shutil.copyfile(tmp_path / "run" / "model.pt", bundle / "models" / "model.pt")

    run_bundle(train, evaluate, **options, output_dir=tmp_path / "run", cwd=tmp_path).check_done()
    scores = rows(tmp_path / "run" / "evaluation" / "metrics_per_case.csv")
    assert len(scores) == proof.num_test
    assert {f"dice_{label}" for label in proof.classes} <= set(scores[0])
    assert (tmp_path / "run" / "evaluation" / "report.html").stat().st_size > 10_000

    num_cases = json.loads((bundle / "docs" / "fingerprint.json").read_text(encoding="utf-8"))["num_cases"]
    if num_cases > MANY:  # the same bundle as the vessels', and minutes of pictures
        return
    trained_only = ("max_epochs", "val_interval", "patch_size", "crop_size", "crops_per_case", "slices_per_case")
    seen = {key: value for key, value in options.items() if key not in trained_only}
    run_bundle(inference, **seen, output_dir=tmp_path / "out", cwd=tmp_path).check_done()
    assert len(list((tmp_path / "out").glob("*_seg.*"))) == num_cases
