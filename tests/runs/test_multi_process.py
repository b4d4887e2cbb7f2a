"""Training in two processes on the CPU (gloo), as ``torchrun`` starts it on two GPUs (nccl)."""

from __future__ import annotations

import csv
import shutil

import torch

from tests.runs.commands import BUNDLE, DISCRIMINATOR, TRAINING, bundle_command, config, files_below, run_python
from tests.runs.test_train import load, network

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node=2")


def test_two_processes_train_evaluate_report_and_name_what_was_left_out(phantoms, tmp_path):
    before = files_below(BUNDLE)
    folder = shutil.copytree(phantoms, tmp_path / "data")
    (folder / "imagesTr" / "phantom_002.nii.gz").write_bytes(b"")
    tmp_path = tmp_path / "out"
    options = {**TRAINING, **DISCRIMINATOR, "dataset_dir": folder, "output_dir": tmp_path, "roll_out_share": 0.5}
    command = bundle_command(config("train"), config("attention"), config("multi_gpu_train"), **options, skip_bad=True)
    run = run_python(*TORCHRUN, *command)
    line = "1 case could not be processed: phantom_002: imagesTr/phantom_002.nii.gz: empty file (0 bytes)"
    assert run.code == 1 and run.stderr.count(f"error: {line}") == 1
    network().load_state_dict(load(tmp_path / "model.pt"), strict=True)
    assert all(torch.isfinite(value).all() for value in load(tmp_path / "model.pt").values())
    with open(tmp_path / "metrics_per_case.csv", newline="", encoding="utf-8") as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["phantom_006"]
    with open(tmp_path / "training_history.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == TRAINING["max_epochs"]
    assert load(tmp_path / "training_state.pt")["progress"] == {"epoch": 2, "iteration": 2}  # four cases, two each
    assert (tmp_path / "report.html").is_file()
    assert files_below(BUNDLE) == before
