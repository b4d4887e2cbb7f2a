from __future__ import annotations

import json
import sys
from contextlib import nullcontext

import pytest
import torch

from shared_components.bundle_tools.settings import (
    bfloat16_pays,
    check_settings,
    default_output_dir,
    is_demonstration,
    report_failures,
)
from shared_components.errors import InputError


@pytest.fixture(autouse=True)
def keep_the_hook(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"batch_size": 0}, "batch_size is 0; expected a whole number of at least 1"),
        ({"max_epochs": 1.5}, "max_epochs is 1.5"),
        ({"combine": "vote"}, "combine is 'vote'; expected one of majority, mean, staple"),
        ({"amp": "yes"}, "amp is 'yes'; expected True or False"),
        ({"learning_rate": 0}, "learning_rate is 0; expected a positive number"),
        ({"seed": -1}, "seed is -1; expected a whole number from 0"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"source_share": 1}, "source_share is 1; expected a share of at least 0 and less than 1"),
        ({"source_share": -0.1}, "source_share is -0.1"),
        ({"dataset_dir": "nowhere"}, "dataset_dir nowhere: no such folder"),
        ({"ckpt_path": "nowhere.pt"}, "ckpt_path nowhere.pt: no such file"),
        ({"ckpt_path": [__file__, "nowhere.pt"]}, "ckpt_path nowhere.pt: no such file"),
        ({"ckpt_path": [__file__, 7]}, "ckpt_path is 7, which .* no path"),
        ({"dataset_dir": 2024}, "dataset_dir is 2024, which .*; write --dataset_dir ./NAME"),
        ({"dataset_dir": "~/x"}, "dataset_dir ~/x: expected a path without ~; write .*/x"),
        ({"dataset_dir": __file__}, "test_settings.py: is a file; give the folder"),
        ({"dataset_dir": ".", "output_dir": "./out"}, "output_dir ./out: lies in dataset_dir ., .* another"),
        ({"dataset_dir": ".", "output_dir": "."}, "output_dir .: lies in dataset_dir"),
        ({"ckpt_path": "."}, "ckpt_path .: is a folder; give the weights"),
        ({"axcodes": "XYZ"}, "axcodes is 'XYZ'; expected three letters such as RAS"),
        ({"axcodes": "RLS"}, "axcodes is 'RLS'"),
        ({"num_adjacent_slices": -1}, "num_adjacent_slices is -1; expected a whole number of at least 0"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0"),
        ({"patch_size": [40, 0, 6]}, r"patch_size is \[40, 0, 6\]; expected three whole numbers of voxels"),
        ({"patch_size": [40, 56]}, r"patch_size is \[40, 56\]; expected three whole numbers of voxels"),
        (
            {"labels": {"liver": 3, "spleen": 6}},
            "expected each name with a number of its own.*adapt_bundle",
        ),
        ({"labels": {"liver": 1, "spleen": 1}}, "labels is .*; expected each name with a number of its own"),
        ({"labels": {"background": 0, "liver": 1}}, "labels is .*; expected each name with a number of its own"),
        ({"labels": [1, 2]}, r"labels is \[1, 2\]; expected each name with a number"),
        ({"num_channels": 0}, "num_channels is 0; expected a whole number of at least 1"),
        ({"pixdim": [1, 1]}, r"pixdim is \[1, 1\]; expected three distances in mm"),
        ({"pixdim": [0, 1, 1]}, r"pixdim is \[0, 1, 1\]"),
        ({"device": "gpu"}, "device is 'gpu'; expected cpu, cuda or cuda:N"),
        ({"device": "mps"}, "device is 'mps'; expected cpu, cuda or cuda:N"),
        ({"output_dir": "/proc/1/x"}, "output_dir /proc/1/x: .* cannot be written"),
    ],
)
def test_wrong_values_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        check_settings(**settings)


@pytest.mark.parametrize("calculates", [True, False])
def test_mixed_precision_is_for_gpus_that_calculate_in_bfloat16(monkeypatch, calculates):
    """torch counts a GPU that imitates bfloat16, slower than float32, among those that support it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or calculates
    )
    assert bfloat16_pays() is calculates


def test_right_values_pass(tmp_path):
    (tmp_path / "data").mkdir()
    paths = {"dataset_dir": tmp_path / "data", "output_dir": tmp_path / "a" / "b"}
    check_settings(**paths, device="cpu", amp=False, seed=0, num_inference_steps=None)
    check_settings(axcodes="LPI", pixdim=[1, 0.5, 3.0], patch_size=[40, 56, 6], num_adjacent_slices=0)
    check_settings(labels={"spleen": 2, "liver": 1}, num_channels=3)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("option", ["--max_epoch", "--max_epoch=3"])
def test_misspelt_option_gets_the_nearest_name(monkeypatch, option):
    monkeypatch.setattr(sys, "argv", ["/x/monai/bundle/__main__.py", "run", "--config_file", "c.json", option, "3"])
    with pytest.raises(InputError, match="--max_epoch: no such option; did you mean --max_epochs"):
        check_settings(max_epochs=3)


@pytest.mark.parametrize("option", [["--clip", "None"], ["--clip=None"], ["--train#handlers", "None"]])
def test_none_that_monai_would_leave_out_is_refused(monkeypatch, option):
    monkeypatch.setattr(sys, "argv", ["/x/monai/bundle/__main__.py", "run", "--seed", "0", *option])
    with pytest.raises(InputError, match=r"None: MONAI leaves such an option out; write --\S+ '\$None'"):
        check_settings(seed=0, clip=None)
    monkeypatch.setattr(sys, "argv", ["/x/monai/bundle/__main__.py", "run", "--seed", "0", "--clip", "$None"])
    check_settings(seed=0, clip=None)


def test_nested_overrides_and_monais_own_options_pass(monkeypatch):
    arguments = ["run", "--config_file", "c.json", "--train#dataloader#num_workers", "1", "--logging_file=x"]
    monkeypatch.setattr(sys, "argv", ["/x/monai/bundle/__main__.py", *arguments])
    check_settings(max_epochs=3)


def test_a_value_given_for_a_key_that_the_configuration_does_not_hand_over(monkeypatch, tmp_path):
    (tmp_path / "c.json").write_text('{"flip_prob": 0.5, "resume": false, "num_folds": 5}', encoding="utf-8")
    command = ["/x/monai/bundle/__main__.py", "run", "--config_file", str(tmp_path / "c.json")]
    monkeypatch.setattr(sys, "argv", [*command, "--flip_prob", "3"])
    with pytest.raises(InputError, match="flip_prob is 3; expected a share from 0 to 1"):
        check_settings()
    monkeypatch.setattr(sys, "argv", [*command, "--resume", "--flip_prob=0.2", "--num_folds", "$2 + 1"])
    check_settings()


def test_what_monais_args_file_holds_is_checked_like_the_command(monkeypatch, tmp_path):
    (tmp_path / "c.json").write_text('{"flip_prob": 0.5, "depth": 2}', encoding="utf-8")
    arguments = {"config_file": [str(tmp_path / "c.json")], "depth": 3}
    command = ["/x/monai/bundle/__main__.py", "run", "--args_file", str(tmp_path / "args.json")]
    monkeypatch.setattr(sys, "argv", [*command, "--flip_prob", "0.2"])
    for more, message in [
        ({}, ""),
        ({"flip_prop": 1}, "--flip_prop: no such option; did you mean --flip_prob"),
        ({"flip_prob": 7}, "flip_prob is 7; expected a share"),
    ]:
        (tmp_path / "args.json").write_text(json.dumps({**arguments, **more}), encoding="utf-8")
        with pytest.raises(InputError, match=message) if message else nullcontext():
            check_settings()


def test_output_folder_is_named_after_the_data(tmp_path, monkeypatch):
    assert default_output_dir("b", None).endswith("b/output/phantoms")
    assert default_output_dir("b", tmp_path / "Task04_Hippocampus").endswith("output/Task04_Hippocampus")
    (tmp_path / "clinic" / "scans").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "clinic" / "scans")
    for folder in ("..", "../", "../../clinic", "../scans/.."):
        assert default_output_dir("b", folder) == "b/output/clinic"


def test_failures_end_the_run():
    report_failures([])
    with pytest.raises(InputError, match="2 cases could not be processed: a | b"):
        report_failures(["a", "b"])


def test_only_phantoms_are_a_demonstration(monkeypatch):
    assert is_demonstration(None) and not is_demonstration("data")
    monkeypatch.setitem(sys.modules, "monailabel", sys)
    assert not is_demonstration(None)


def test_names_that_are_known_are_told_once(monkeypatch, tmp_path):
    part = '{"_target_": "torch.optim.lr_scheduler.ConstantLR", "optimizer": "@optimizer"}'
    (tmp_path / "c.json").write_text(f'{{"lr_scheduler": {part}}}', encoding="utf-8")
    command = ["/x/monai/bundle/__main__.py", "run", "--config_file", str(tmp_path / "c.json")]
    monkeypatch.setattr(sys, "argv", [*command, "--lr_scheduler#xyz", "3"])
    with pytest.raises(InputError, match="no 'xyz' there; known are optimizer, factor, total_iters, last_epoch$"):
        check_settings()
