"""Writing an adapted bundle: its configurations with the new settings, its documents, complete or not at all."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shared_components.bundle_tools.adaptation_plan import Choice, Task, settings_of
from shared_components.bundle_tools.adaptation_source import Source
from shared_components.bundle_tools.adaptation_texts import data_licence, metadata, model_card, plan_page
from shared_components.bundle_tools.config_text import config_text
from shared_components.data.fingerprint import Fingerprint
from shared_components.data.formats.files import read_json_object
from shared_components.data.layouts.cases import CaseFolder
from shared_components.data.layouts.split import sections
from shared_components.whole_files import whole_folder

OVERLAYS = ("evaluate", "fast", "multi_gpu_train", "plain", "plain_backbone", "attention")


def write_adapted(
    target: Path,
    name: str,
    source: Source,
    choices: list[Choice],
    folder: CaseFolder,
    found: Fingerprint,
    task: Task,
) -> None:
    settings = settings_of(choices)
    train = _adapted(source.train, settings, target, name, source.method)
    inference = _adapted(source.inference, settings, target, name, source.method)
    configs: dict[str, Any] = {"train": train, "inference": inference}
    for overlay in OVERLAYS:
        file = source.folder / "configs" / f"{overlay}.json"
        if file.is_file():
            configs[overlay] = _retitled(read_json_object(file), name, source.method)
    meta = metadata(source.metadata, source.folder.name, name, source.method, folder, found, task)
    docs = {
        "plan.md": plan_page(name, source.folder.name, folder, found, choices),
        "fingerprint.json": json.dumps(
            {**asdict(found), "sections": sections(folder), "patients": folder.patient_rule}, indent=1
        )
        + "\n",
        "README.md": model_card(
            name, source.folder.name, source.method, folder, found, task, train, sorted(configs), meta["references"][0]
        ),
        "data_license.txt": data_licence(folder),
    }
    with whole_folder(target) as built:
        for part in ("configs", "docs", "models"):
            (built / part).mkdir()
        for file, content in {**configs, "metadata": meta}.items():
            (built / "configs" / f"{file}.json").write_text(config_text(content), encoding="utf-8")
        for file, text in docs.items():
            (built / "docs" / file).write_text(text, encoding="utf-8")
        shutil.copyfile(source.folder / "configs" / "logging.conf", built / "configs" / "logging.conf")
        shutil.copyfile(source.folder / "LICENSE", built / "LICENSE")


def _adapted(config: Mapping[str, Any], settings: Mapping[str, Any], target: Path, name: str, method: str) -> dict:
    """Return a configuration with the settings that it has a key for, found where it lies and without phantoms."""
    content = copy.deepcopy(dict(config))
    content.update({key: value for key, value in settings.items() if key in content})
    content["bundle_root"] = _bundle_root(target, name)
    content["data_dir"] = "$settings.own_data(@dataset_dir)"
    content["imports"] = [line for line in content["imports"] if "demonstration_data" not in line]
    return _retitled(content, name, method)


def _bundle_root(target: Path, name: str) -> str:
    """Return the expression that finds the bundle: by --config_file, from inside, or from where it was made."""
    here = os.path.relpath(target)
    places = [".", f"bundles/{name}", *([here] if not here.startswith("..") and here != f"bundles/{name}" else [])]
    listed = ", ".join(repr(place.replace(os.sep, "/")) for place in places)
    given = """*(a.split('=')[-1].lstrip("['").split('/configs/')[0] for a in sys.argv if '/configs/' in a)"""
    return (
        f"$next((p for p in ({given}, {listed}) if os.path.isfile(os.path.join(p, 'configs', 'metadata.json'))), '.')"
    )


def _retitled(content: Any, name: str, method: str) -> Any:
    """Return the content with this bundle's name in every title."""
    if isinstance(content, list):
        return [_retitled(item, name, method) for item in content]
    if not isinstance(content, dict):
        return content
    titles = {key for key, value in content.items() if key.split("#")[-1] == "title" and ": " in str(value)}
    return {
        key: f"{method}, {name}: {str(value).split(': ', 1)[1]}" if key in titles else _retitled(value, name, method)
        for key, value in content.items()
    }
