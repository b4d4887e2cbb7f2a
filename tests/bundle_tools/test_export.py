"""Exporting a bundle: exactly what it needs, runnable anywhere, whole or absent."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from shared_components.bundle_tools import export
from shared_components.bundle_tools.export import export_bundle, needed_modules
from shared_components.errors import InputError

PACKAGE = {
    "__init__.py": '__version__ = "9.9.9"\n',
    "errors.py": "class InputError(ValueError):\n    pass\n",
    "networks/__init__.py": "",
    "networks/tiny.py": (
        "import torch\n"
        "from shared_components.networks.blocks import FACTOR\n"
        "class Tiny(torch.nn.Module):\n"
        '    """Its help text names `python -m shared_components check_data`."""\n'
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.weight = torch.nn.Parameter(torch.zeros(1))\n"
        "    def forward(self, image):\n"
        "        from shared_components.ensembling import mean_members\n"
        "        return mean_members(image) * FACTOR + self.weight\n"
    ),
    "networks/blocks.py": (
        "import shared_components.errors\nFACTOR = 3\nERROR = shared_components.errors.InputError\n"
    ),
    "networks/unused.py": "from shared_components.data import cases\n",
    "ensembling/__init__.py": "from .combine import mean_members\n",
    "ensembling/combine.py": "def mean_members(members):\n    return members.mean(0)\n",
    "ensembling/staple.py": "",
    "reporting/__init__.py": "LAZY = 'shared_components.reporting.overlays'\n",
    "reporting/overlays.py": "",
    "reporting/report.py": "",
    "data/__init__.py": "",
    "data/cases.py": "",
}
NEEDED = {
    "__init__.py", "errors.py", "networks/__init__.py", "networks/tiny.py", "networks/blocks.py",
    "ensembling/__init__.py", "ensembling/combine.py", "reporting/__init__.py", "reporting/overlays.py",
}  # fmt: skip
INFERENCE = {
    "imports": ["$import torch", "$import shared_components.reporting as parts"],
    "bundle_root": ".",
    "network_def": {"_target_": "shared_components.networks.tiny.Tiny"},
    "factor": "$parts.__name__.rsplit('.')[-1]",
    "initialize": ["$print('FIRST', @factor)"],
    "weights": "$torch.load(@bundle_root + '/models/model.pt', weights_only=True)",
    "run": [
        "$@network_def.load_state_dict(@weights)",
        "$print('RESULT', @network_def(torch.ones(4, 1)).item(), type(@network_def).__module__, parts.LAZY)",
    ],
}

LOGGING = """[loggers]
keys=root,parts
[handlers]
keys=console
[formatters]
keys=plain
[logger_root]
level=INFO
handlers=console
[logger_parts]
level=INFO
handlers=
qualname=shared_components
[handler_console]
class=StreamHandler
args=(sys.stderr,)
[formatter_plain]
format=%(message)s
"""


def write_package(folder: Path, **changed: str) -> Path:
    for name, text in {**PACKAGE, **changed}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def write_bundle(folder: Path, inference: dict = INFERENCE) -> Path:
    for part in ("configs", "models", "docs", "eval", "configs/__pycache__"):
        (folder / part).mkdir(parents=True)
    (folder / "configs/inference.json").write_text(json.dumps(inference), encoding="utf-8")
    (folder / "configs/metadata.json").write_text(
        json.dumps({"version": "0.1.0", "description": "shared_components.x"})
    )
    (folder / "configs/logging.conf").write_text(LOGGING, encoding="utf-8")
    (folder / "docs/README.md").write_text("card", encoding="utf-8")
    (folder / "LICENSE").write_text("licence", encoding="utf-8")
    for leftover in (
        "eval/pred.nii.gz",
        "models/checkpoint_epoch=3.pt",
        "configs/__pycache__/x.pyc",
        "run.log",
    ):
        (folder / leftover).write_text("output", encoding="utf-8")
    torch.save({"weight": torch.tensor([0.5])}, folder / "models/model.pt")
    return folder


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle, and a package of its own in place of the real one."""
    package = write_package(tmp_path / "source/shared_components")
    monkeypatch.setattr(export, "_package_folder", lambda: package)
    return write_bundle(tmp_path / "source/bundles/tiny_disc")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def vendored(folder: Path) -> Path:
    (found,) = folder.glob("shared_components_*")
    return found


def test_the_export_holds_the_bundle_and_exactly_the_modules_it_needs(bundle: Path, tmp_path: Path) -> None:
    before = {name: (bundle / name).read_bytes() for name in files(bundle)}
    target = Path(export_bundle(str(bundle), str(tmp_path / "made/here")))
    package = vendored(target)
    assert files(package) == NEEDED
    assert {name for name in files(target) if not name.startswith(package.name)} == {
        "LICENSE", "configs/inference.json", "configs/logging.conf", "configs/metadata.json",
        "docs/README.md", "models/model.pt",
    }  # fmt: skip
    assert {name: (bundle / name).read_bytes() for name in files(bundle)} == before
    assert os.listdir(tmp_path / "made") == ["here"]


def test_names_are_rewritten_and_prose_is_not(bundle: Path, tmp_path: Path) -> None:
    target = Path(export_bundle(str(bundle), str(tmp_path / "out")))
    name = vendored(target).name
    config = json.loads((target / "configs/inference.json").read_text(encoding="utf-8"))
    assert config["network_def"]["_target_"] == f"{name}.networks.tiny.Tiny"
    assert config["imports"][1] == f"$import {name}.reporting as parts"
    assert f"qualname={name}\n" in (target / "configs/logging.conf").read_text(encoding="utf-8")
    assert "`python -m shared_components check_data`" in (target / name / "networks/tiny.py").read_text(
        encoding="utf-8"
    )
    metadata = json.loads((target / "configs/metadata.json").read_text(encoding="utf-8"))
    assert metadata == {
        "version": "0.1.0",
        "description": "shared_components.x",
        "shared_components_version": export.shared_components.__version__,
    }


def test_the_export_runs_without_repository_and_package(bundle: Path, tmp_path: Path) -> None:
    target = Path(export_bundle(str(bundle), str(tmp_path / "out")))
    (tmp_path / "elsewhere").mkdir()
    config = str(target / "configs/inference.json")
    command = [
        sys.executable,
        "-I",
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        config,
        "--bundle_root",
        str(target),
    ]
    done = subprocess.run(command, cwd=tmp_path / "elsewhere", capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    name = vendored(target).name
    assert "FIRST reporting\n" in done.stdout
    assert f"RESULT 3.5 {name}.networks.tiny {name}.reporting.overlays" in done.stdout


def test_what_initialize_does_moves_into_run(bundle: Path, tmp_path: Path) -> None:
    """MONAI finds the carried package from any folder only then."""
    configs = {
        "train": {"network_def": 1, "initialize": ["$1"], "run": ["$2"]},
        "evaluate": {"run": "$3"},
        "multi_gpu_train": {"initialize": ["$4"]},
        "alone": {"network_def": 1, "run": ["$5"]},
    }
    for name, content in configs.items():
        (bundle / f"configs/{name}.json").write_text(json.dumps(content, indent=4), encoding="utf-8")
    target = Path(export_bundle(str(bundle), str(tmp_path / "out")))
    found = {name: json.loads((target / f"configs/{name}.json").read_text(encoding="utf-8")) for name in configs}
    assert found == {
        "train": {"network_def": 1, "initialize_in_run": ["$1"], "run": ["$@initialize_in_run", "$2"]},
        "evaluate": {"run": ["$@initialize_in_run", "$3"]},
        "multi_gpu_train": {"initialize_in_run": ["$4"]},
        "alone": {"network_def": 1, "run": ["$5"]},
    }
    lines = (target / "configs/train.json").read_text(encoding="utf-8").splitlines()
    assert lines[5:8] == ['    "run": [', '        "$@initialize_in_run",', '        "$2"']


def test_two_exports_from_different_versions_live_in_one_process(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Path(export_bundle(str(bundle), str(tmp_path / "first")))
    changed = write_package(tmp_path / "newer", **{"networks/blocks.py": "FACTOR = 7\n"})
    monkeypatch.setattr(export, "_package_folder", lambda: changed)
    second = Path(export_bundle(str(bundle), str(tmp_path / "second")))
    results = []
    for folder in (first, second):
        monkeypatch.syspath_prepend(str(folder))
        network = importlib.import_module(f"{vendored(folder).name}.networks.tiny").Tiny()
        results.append(network(torch.ones(2, 1)).item())
    assert results == [3.0, 7.0]
    again = Path(export_bundle(str(bundle), str(tmp_path / "third")))
    assert vendored(again).name == vendored(second).name  # one content, one name


def test_a_zip_holds_one_folder_named_after_the_bundle(bundle: Path, tmp_path: Path) -> None:
    folder = Path(export_bundle(str(bundle), str(tmp_path / "out")))
    archive = export_bundle(str(bundle), str(tmp_path / "out.zip"))
    with zipfile.ZipFile(archive) as opened:
        contents = {name: opened.read(name) for name in opened.namelist() if not name.endswith("/")}
    assert contents == {f"tiny_disc/{name}": (folder / name).read_bytes() for name in files(folder)}


def test_an_existing_output_is_refused_and_left_alone(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "out.zip").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"out.zip: exists; .* such as .*new_out.zip"):
        export_bundle(str(bundle), str(tmp_path / "out.zip"))
    assert (tmp_path / "out.zip").read_text(encoding="utf-8") == "mine"
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match=r"model: exists; .* such as .*model/tiny_disc"):
        export_bundle(str(bundle), str(tmp_path / "model"))
    assert os.listdir(tmp_path / "model") == []
    export_bundle(str(bundle), str(tmp_path / "done"))
    with pytest.raises(InputError, match=r"done: exists; .* such as .*new_done"):
        export_bundle(str(bundle), str(tmp_path / "done"))


def test_an_output_that_cannot_be_made_is_refused_in_one_line(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"file/out: cannot be made \(.*\); name another"):
        export_bundle(str(bundle), str(tmp_path / "file" / "out"))
    with pytest.raises(InputError, match="lies in the bundle that is exported"):
        export_bundle(str(bundle), str(bundle / "exported"))


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_a_failure_leaves_nothing_behind(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def disk_full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(export, "_rewrite_configs", disk_full)
    with pytest.raises(OSError, match="no space"):
        export_bundle(str(bundle), str(tmp_path / "made" / name))
    assert os.listdir(tmp_path / "made") == []


def test_a_bundle_is_found_by_name_and_the_nearest_is_suggested(bundle: Path, tmp_path: Path) -> None:
    assert (Path(export_bundle("tiny_disc", str(tmp_path / "out"))) / "LICENSE").is_file()
    with pytest.raises(InputError, match=r"'tiny_disk' not found; did you mean 'tiny_disc'\?"):
        export_bundle("tiny_disk", str(tmp_path / "other"))


def test_a_folder_that_is_no_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"models: no bundle, configs/metadata.json is missing"):
        export_bundle(str(bundle / "models"), str(tmp_path / "out"))


@pytest.mark.parametrize("part", ["models/model.pt", "LICENSE", "configs/inference.json"])
def test_an_incomplete_bundle_is_refused(bundle: Path, tmp_path: Path, part: str) -> None:
    (bundle / part).unlink()
    with pytest.raises(InputError, match=f"{part} is missing"):
        export_bundle(str(bundle), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_weights_that_others_could_not_load_are_refused(bundle: Path, tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(1)}, "ema": {}}, bundle / "models/model.pt")
    with pytest.raises(InputError, match=r"not a flat state dict of tensors, found the keys .*model., .ema"):
        export_bundle(str(bundle), str(tmp_path / "out"))
    (bundle / "models/model.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(InputError, match=r"model.pt: holds .* no weights at all, and was not loaded"):
        export_bundle(str(bundle), str(tmp_path / "out"))


def test_an_export_is_not_exported_again(bundle: Path, tmp_path: Path) -> None:
    first = export_bundle(str(bundle), str(tmp_path / "out"))
    with pytest.raises(InputError, match="stands alone already"):
        export_bundle(first, str(tmp_path / "again"))


@pytest.mark.parametrize("name", ["shared_components.nothing.Tiny", "shared_components.networks.tiny.Tniy"])
def test_a_misspelt_name_is_found_at_export(bundle: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"{name}' not found"):
        needed_modules([json.dumps({"_target_": name})], export._package_folder())


def test_the_real_package_gives_up_one_module_alone(tmp_path: Path) -> None:
    write_bundle(tmp_path / "small", {"network_def": {"_target_": "shared_components.errors.InputError"}})
    target = Path(export_bundle(str(tmp_path / "small"), str(tmp_path / "out")))
    assert files(vendored(target)) == {"__init__.py", "errors.py"}
