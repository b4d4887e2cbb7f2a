"""Runs on data that are partly bad: all good cases are finished, the bad ones named at the end."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

from shared_components.data.datalists import _LEFT_OUT
from tests.reliability.in_process import refusal
from tests.runs.commands import NETWORK


def test_an_evaluation_finishes_the_good_cases(phantoms, weights, tmp_path):
    folder = Path(shutil.copytree(phantoms, tmp_path / "data"))
    broken = folder / "imagesTr" / "phantom_003.nii.gz"
    broken.write_bytes(broken.read_bytes()[:500])
    options = {**NETWORK, "num_samples": 1, "dataset_dir": str(folder), "ckpt_path": str(weights)}
    line = refusal("train", "evaluate", **options, output_dir=str(tmp_path / "refused"))
    assert "1 of 2 test cases cannot be used" in line and "--skip_bad True" in line and "phantom_003.nii.gz" in line
    _LEFT_OUT.clear()
    line = refusal("train", "evaluate", **options, output_dir=str(tmp_path / "out"), skip_bad=True)
    assert line.startswith("1 case could not be processed: phantom_003: imagesTr/phantom_003.nii.gz: truncated")
    with open(tmp_path / "out" / "evaluation" / "metrics_per_case.csv", newline="", encoding="utf-8") as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["phantom_007"]
    page = (tmp_path / "out" / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "1 case could not be processed" in page
    for stated in ("num_inference_steps", "sha256", "seed", "seconds in all", "shared_components"):
        assert stated in page
