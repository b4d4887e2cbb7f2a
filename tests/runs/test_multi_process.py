"""Training in two processes on the CPU (gloo), as ``torchrun`` starts it on two GPUs (nccl)."""

from __future__ import annotations

import csv

import torch

from tests.runs.commands import BUNDLE, DISCRIMINATOR, TRAINING, bundle_command, config, files_below, run_python
from tests.runs.test_train import load, network

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node=2")


def test_two_processes_train_evaluate_and_report(phantoms, tmp_path):
    before = files_below(BUNDLE)
    options = {**TRAINING, **DISCRIMINATOR, "dataset_dir": phantoms, "output_dir": tmp_path, "roll_out_share": 0.5}
    command = bundle_command(config("train"), config("attention"), config("multi_gpu_train"), **options)
    run = run_python(*TORCHRUN, *command).check_done()
    assert "Traceback" not in run.stderr
    network().load_state_dict(load(tmp_path / "model.pt"), strict=True)
    assert all(torch.isfinite(value).all() for value in load(tmp_path / "model.pt").values())
    with open(tmp_path / "metrics_per_case.csv", newline="", encoding="utf-8") as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["phantom_006"]
    with open(tmp_path / "training_history.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == TRAINING["max_epochs"]
    assert load(tmp_path / "training_state.pt")["progress"] == {"epoch": 2, "iteration": 4}
    assert (tmp_path / "report.html").is_file()
    assert files_below(BUNDLE) == before
