"""The command line, as a user types it: subprocesses, exit codes, one-line errors."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tests.data.folders import SHAPE, case_names, msd_folder, save, some_image, some_label


def run(*arguments: object) -> subprocess.CompletedProcess:
    """Run the command line from the repository root."""
    return subprocess.run(
        [sys.executable, "-m", "shared_components", *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )


def refused(*arguments: object) -> str:
    """Return the one error line of a command that must fail."""
    result = run(*arguments)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def many_broken_cases(root: Path) -> dict[str, str]:
    """Write a folder of broken cases; return a phrase that must be told of each file."""
    msd_folder(root, case_names(16))
    images, labels = root / "imagesTr", root / "labelsTr"
    content = (images / "case_00.nii.gz").read_bytes()
    raw = gzip.decompress(content)

    nan = some_image()
    nan[1, 1, 1] = np.nan
    unknown = some_label()
    unknown[0, 0, 0] = 5
    shifted = np.eye(4)
    shifted[1, 3] = 4

    (images / "case_00.nii.gz").write_bytes(content[: len(content) // 2])
    (images / "case_01.nii.gz").write_bytes(content[:-8] + b"wrong!!!")
    (images / "case_02.nii.gz").write_bytes(b"")
    (images / "case_03.nii.gz").write_bytes(b"<!DOCTYPE html><title>404</title>")
    (images / "case_04.nii.gz").write_bytes(gzip.compress(raw[:80] + bytes(4) + raw[84:]))
    save(images / "case_05.nii.gz", nan)
    save(images / "case_06.nii.gz", nan[..., 0])
    save(images / "case_07.nii.gz", some_image(shape=(*SHAPE, 4)))
    (images / "case_08.nii.gz").unlink()
    (labels / "case_09.nii.gz").unlink()
    save(labels / "case_10.nii.gz", some_label((9, 9, 9)))
    save(labels / "case_11.nii.gz", some_label(), shifted)
    save(labels / "case_12.nii.gz", unknown)
    save(labels / "case_13.nii.gz", some_label() * np.float32(0.37))
    save(labels / "case_14.nii.gz", np.zeros(SHAPE, np.uint8))
    return {
        "imagesTr/case_00.nii.gz": "truncated or corrupt",
        "imagesTr/case_01.nii.gz": "truncated or corrupt",
        "imagesTr/case_02.nii.gz": "empty file (0 bytes)",
        "imagesTr/case_03.nii.gz": "no gzip file",
        "imagesTr/case_04.nii.gz": "spacing [0.0, 1.0, 1.0] mm",
        "imagesTr/case_05.nii.gz": "1 NaN voxels, the first at voxel (1, 1, 1)",
        "imagesTr/case_06.nii.gz": "2-D image of shape (6, 5)",
        "imagesTr/case_07.nii.gz": "4 channels, model takes 1",
        "labelsTr/case_08.nii.gz": "label without an image",
        "imagesTr/case_09.nii.gz": "image without a label",
        "labelsTr/case_10.nii.gz": "9x9x9 voxels",
        "labelsTr/case_11.nii.gz": "corners up to 4 mm apart",
        "labelsTr/case_12.nii.gz": "unknown label values 5 (1 voxels)",
        "labelsTr/case_13.nii.gz": "non-integer labels",
        "labelsTr/case_14.nii.gz": "empty mask",
    }


def test_check_data_lists_every_broken_case_in_one_pass_and_writes_nothing(tmp_path):
    phrases = many_broken_cases(tmp_path)
    before = tree(tmp_path)
    result = run("check_data", "--dataset_dir", tmp_path)
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    for file, phrase in phrases.items():
        told = [line for line in lines if f" {file}: " in line]
        assert len(told) == 1 and phrase in told[0], (file, told)
        assert told[0].startswith("warning" if "case_14" in file else "error")
    assert lines[-1] == "16 cases checked, 2 usable: 14 errors, 1 warnings"
    assert "Traceback" not in result.stderr
    assert tree(tmp_path) == before


def test_check_data_of_a_good_folder_ends_with_0(tmp_path):
    root = msd_folder(tmp_path / "mit Leerzeichen é", case_names(3))
    result = run("check_data", "--dataset_dir", root, "--labels", "1,2", "--report", tmp_path / "r.json")
    assert result.returncode == 0, result.stderr
    assert "3 cases checked, 3 usable: 0 errors, 0 warnings" in result.stdout
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["num_cases"] == 3


def test_check_data_of_the_real_bad_inputs(real_data, tmp_path):
    folder = real_data / "bad_inputs" / "Task04_Hippocampus"
    result = run("check_data", f"--dataset_dir={folder}", "--skip-bad", tmp_path / "good.json")
    assert result.returncode == 1
    for file in ("imagesTr/hippocampus_118", "labelsTr/hippocampus_010", "labelsTr/hippocampus_281"):
        assert any(line.startswith("error") and file in line for line in result.stdout.splitlines())
    assert json.loads((tmp_path / "good.json").read_text(encoding="utf-8")) == []


def test_make_phantoms_prints_the_folder(tmp_path):
    result = run("make_phantoms", "--output_dir", tmp_path / "set", "--num_cases", 3)
    assert (result.returncode, result.stdout) == (0, f"{tmp_path / 'set'}\n")
    assert len(list((tmp_path / "set" / "imagesTr").iterdir())) == 3


@pytest.mark.parametrize(
    "arguments, phrases",
    [
        (("chek_data",), ("no command 'chek_data'", "did you mean 'check_data'?")),
        (("check_data", "--datset_dir", "x"), ("no option '--datset_dir'", "did you mean '--dataset_dir'?")),
        (("check_data",), ("--dataset_dir is missing",)),
        (("check_data", "--dataset_dir"), ("--dataset_dir needs a value",)),
        (("check_data", "--dataset_dir", "absent"), ("absent: no such folder", "imagesTr/")),
        (("check_data", "a", "b"), ("2 values without a name",)),
        (("check_data", ".", "--spatial_dims", "4"), ("--spatial_dims 4", "expected 2 or 3")),
        (("check_data", ".", "--affine_tolerance", "-1"), ("--affine_tolerance -1", "at least 0")),
        (("check_data", ".", "--num_workers", "0"), ("--num_workers 0", "at least 1")),
        (("check_data", ".", "--skip_bad", "true"), ("--skip_bad true", "names a folder to make")),
        (
            ("adapt_bundle", "cdal_hippocampus", ".", "--name", "mine", "--output", "absent/mine", "--memory", "-3"),
            ("--memory -3", "more than 0"),
        ),
        (("make_phantoms", "x", "--num_cases", "many"), ("found 'many', expected a whole number",)),
        (("make_phantoms", "x", "--num_cases", "2"), ("at least 3 cases",)),
    ],
)
def test_mistakes_get_one_line_with_a_remedy(arguments, phrases):
    line = refused(*arguments)
    assert all(phrase in line for phrase in phrases)


def test_help_tells_commands_and_options():
    overview = run("--help")
    assert overview.returncode == 0
    for command in ("check_data", "make_phantoms", "export_bundle", "import_checkpoint"):
        assert command in overview.stdout
    details = run("check_data", "--help")
    assert details.returncode == 0 and "--skip_bad" in details.stdout and "exit code 1" in details.stdout
    assert run().returncode == 2


def test_start_up_imports_nothing_heavy():
    code = "import sys, shared_components.__main__ as m; print({'torch', 'monai', 'itk'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, encoding="utf-8", timeout=60
    )
    assert result.stdout == "set()\n"
