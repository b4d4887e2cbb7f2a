"""Rows 54 to 60 of the table of cases: devices, memory, interruption, packages, names, weights, folders."""

from __future__ import annotations

import functools
import importlib
import re
import resource
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from shared_components.__main__ import main
from shared_components.bundle_tools.settings import check_settings
from shared_components.errors import InputError, one_line
from shared_components.output_lock import LOCK_FILE, lock_folder, release_folder
from shared_components.reporting.files import claim_outputs
from shared_components.training import TrainingState
from shared_components.training.files import load_safely
from tests.data.folders import save
from tests.diffusion.test_segmenter import VOLUME
from tests.diffusion.test_segmenter import segmenter as small_segmenter
from tests.reliability.conftest import small_phantom
from tests.reliability.in_child import in_child
from tests.reliability.in_process import refusal, run_here
from tests.runs.commands import BUNDLE, NETWORK, REPOSITORY, TRAINING, bundle_command, config, environment
from tests.training.test_handlers import engine_of


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_row_54_no_cuda_though_asked_for():
    with pytest.raises(InputError, match="device is 'cuda:0'.*0 CUDA devices; give --device cpu"):
        check_settings(device="cuda:0")


def test_row_54_out_of_memory_halves_the_batch(caplog):
    """A device with room for four slices at once."""
    expected = small_segmenter(num_samples=2, combine="mean")(VOLUME)
    network = small_segmenter(num_samples=2, combine="mean", max_batch_size=32)

    def limited(module: nn.Module, inputs: tuple) -> None:
        if len(inputs[0]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    network.denoiser.register_forward_pre_hook(limited)
    torch.testing.assert_close(network(VOLUME), expected, atol=1e-5, rtol=0)
    assert network.max_batch_size == 4
    told = [line for line in caplog.messages if "out of memory" in line]
    assert told == [f"out of memory: going on with {size} slices and members at once" for size in (16, 8, 4)]


def test_row_54_not_enough_memory_is_one_line():
    def too_much() -> torch.Tensor:
        resource.setrlimit(
            resource.RLIMIT_AS, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + (1 << 32),) * 2
        )
        return torch.empty(1 << 36)

    assert one_line(in_child(too_much)) == (
        "out of memory; lower --batch_size or --num_samples, or end what else uses the memory"
    )


INTERRUPTED = (
    "import signal, time, shared_components.errors as e; e.install_one_line_errors(); "
    "signal.signal(signal.SIGINT, signal.default_int_handler); print(flush=True); time.sleep(60)"
)


def test_row_55_ctrl_c():
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": REPOSITORY, "env": environment()}
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED], **options)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.decode() == (
        "interrupted; with --resume True a training goes on after its last complete epoch, an inference after "
        "its last case\n"
    )


@pytest.mark.slow
def test_row_55_ctrl_c_in_a_training(phantoms, tmp_path):
    output_dir = tmp_path / "run"
    options = {**TRAINING, "max_epochs": 50, "val_interval": 50, "dataset_dir": phantoms, "output_dir": output_dir}
    with open(tmp_path / "log", "wb") as log:
        command = [sys.executable, *bundle_command(config("train"), **options)]
        heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # jobs in the background ignore it
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stdout=log, stderr=log, preexec_fn=heard)
        while not (output_dir / "training_state.pt").exists():
            assert process.poll() is None, (tmp_path / "log").read_text(encoding="utf-8")
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    told = (tmp_path / "log").read_text(encoding="utf-8")
    assert "Traceback" not in told and "--resume True" in told
    assert not (output_dir / LOCK_FILE).exists()
    assert load_safely(output_dir / "training_state.pt")["progress"]["epoch"] >= 1


def test_row_56_missing_package(monkeypatch, tmp_path):
    for package in ("tensorboard", "itk"):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "path", [str(tmp_path)])
            for name in ("itk", "tensorboard"):
                patch.delitem(sys.modules, name, raising=False)
            if package == "tensorboard":
                (tmp_path / "itk.py").write_text("", encoding="utf-8")
            importlib.invalidate_caches()
            with pytest.raises(InputError, match=f"the package {package} is not installed; pip install {package}"):
                check_settings()
        (tmp_path / "itk.py").unlink(missing_ok=True)
    code = "import shared_components.errors as e; e.install_one_line_errors(); import skimage_not_there"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=REPOSITORY)
    assert done.returncode == 1
    assert done.stderr == "error: the package skimage_not_there is not installed; pip install skimage_not_there\n"


@pytest.mark.parametrize(
    "option, hint",
    [
        ("--max_epoch", "--max_epoch: no such option; did you mean --max_epochs?"),
        ("--train#trainer#max_epoch", "no 'max_epoch' there; did you mean max_epochs?"),
        ("--backbone#chanels", "no 'chanels' there; did you mean channels?"),
        ("--train#dataloder#num_workers", "no 'dataloder' there; did you mean dataloader?"),
    ],
)
def test_row_57_misspelt_key(monkeypatch, option, hint):
    files = str(BUNDLE / "configs" / "train.json")
    monkeypatch.setattr(sys, "argv", ["/x/monai/bundle/__main__.py", "run", "--config_file", files, option, "3"])
    with pytest.raises(InputError, match=re.escape(hint)):
        check_settings(max_epochs=3)
    for known in (
        "--train#dataloader#drop_last",
        "--optimizer#betas",
        "--backbone#channels",
        "--discriminator",
        "--seed",
    ):
        monkeypatch.setattr(sys, "argv", ["/x/monai/bundle/__main__.py", "run", "--config_file", files, known, "3"])
        check_settings(max_epochs=3)


def test_row_57_misspelt_option_of_a_command():
    with pytest.raises(InputError, match="check_data: no option '--dataset_dri'; did you mean '--dataset_dir'"):
        main(["check_data", "--dataset_dri", "x"])
    with pytest.raises(InputError, match="no command 'chek_data'; did you mean 'check_data'"):
        main(["chek_data"])


def test_row_58_no_network_is_needed_and_absent_weights_are_named(weights, tmp_path, monkeypatch):
    def refuse(*address: object) -> None:
        raise AssertionError(f"connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    save(tmp_path / "images" / "a.nii.gz", small_phantom()[..., :2].copy())
    options = {"dataset_dir": str(tmp_path / "images"), "output_dir": str(tmp_path / "out")}
    absent = tmp_path / "models" / "model.pt"
    line = refusal("inference", **NETWORK, **options, ckpt_path=str(absent))
    assert str(absent) in line and "no such file" in line
    run_here("inference", **NETWORK, **options, ckpt_path=str(weights))
    assert (tmp_path / "out" / "a_seg.nii.gz").is_file()


def test_row_59_two_processes_one_folder(tmp_path):
    folder = tmp_path / "run"
    lock_folder(folder)
    expected = f"{folder}: another run is writing here; wait for it or choose another --output_dir"

    def elsewhere(claim) -> str:
        import shared_components.output_lock as output_lock

        def apart() -> str:
            output_lock._held.clear()  # what a process of its own would not have
            claim()
            return ""

        return str(in_child(apart))

    assert elsewhere(lambda: claim_outputs(folder, ["*.csv"], False)) == expected
    assert elsewhere(lambda: TrainingState(folder, {"model": nn.Linear(2, 1)})._start(engine_of())) == expected
    claim_outputs(folder, ["*.csv"], False)  # parts of one run
    release_folder(folder)
    assert not (folder / LOCK_FILE).exists()
    assert elsewhere(lambda: claim_outputs(folder, ["*.csv"], False)) == ""
    (folder / LOCK_FILE).write_text("")  # left by a process that was killed
    claim_outputs(folder, ["*.csv"], False)
