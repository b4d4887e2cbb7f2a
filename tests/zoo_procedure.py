"""The model zoo's checks, as a script for a fresh process that has no repository on its path.

``python -I zoo_procedure.py BUNDLE SCHEMA RESULT [HIDDEN]`` works in the current folder: it copies the bundle
to ``models/NAME``, runs every step and writes ``{step: [problem, ...]}`` to RESULT. The bundle itself is left
as it is. HIDDEN is a package that shall not be found even where it is installed.

The zoo does the file, version, schema, shape and TorchScript steps; the ids and the names that a
configuration refers to it checks for few bundles or not at all. The functions serve the bundle contract's own
tests too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out
from monai.bundle.config_item import ConfigComponent, ConfigExpression
from monai.bundle.properties import InferProperties, MetaProperties, TrainProperties
from monai.bundle.reference_resolver import ReferenceResolver
from monai.utils.module import locate

# The zoo keeps such lists too: bundles whose network cannot be scripted, or takes more than one image. The
# reason for an entry stands in the bundle's model card.
SKIP_SHAPE: frozenset[str] = frozenset()
SKIP_TORCHSCRIPT: frozenset[str] = frozenset()
# Networks on MONAI's diffusion U-Net, which cannot be scripted: they are exported by tracing, which writes out every
# reverse step, here two to be quick.
TRACED: frozenset[str] = frozenset(
    {"segguided_hippocampus", "segguided_ct_organs", "segguided_breast_mri", "cdm_abdomen", "cdm_brats"}
)

REQUIRED_FILES = (
    "LICENSE", "configs/metadata.json", "configs/inference.json", "configs/train.json",
    "configs/logging.conf", "docs/README.md", "models/model.pt",
)  # fmt: skip
INFERENCE_IDS = (
    "bundle_root",
    "device",
    "network_def",
    "inferer",
    "output_dir",
    "preprocessing",
    "postprocessing",
)
TRAIN_IDS = (
    "bundle_root", "device", "dataset_dir", "output_dir", "val_interval", "network_def", "network",
    "train#trainer", "train#trainer#max_epochs", "train#dataset", "train#dataset#data", "train#handlers",
    "train#inferer", "train#preprocessing", "validate#evaluator", "validate#handlers", "validate#dataset",
    "validate#dataset#data", "validate#inferer", "validate#preprocessing", "validate#postprocessing",
    "validate#key_metric",
)  # fmt: skip
LARGEST_FILE = 25 * 2**20


def config_sets(bundle: Path) -> dict[str, list[str]]:
    """The configuration files that are read together, by a name for each set: the last one's."""
    train = str(bundle / "configs" / "train.json")
    sets = {}
    for file in sorted((bundle / "configs").glob("*.json")):
        if file.name != "metadata.json":
            alone = file.name == "train.json" or "network_def" in json.loads(file.read_text(encoding="utf-8"))
            sets[file.stem] = [str(file)] if alone else [train, str(file)]
    return sets


def wrong_ids(files: list[str], metadata: str, kind: str) -> list[str]:
    """Properties of MONAI's bundle specification that are absent or under another id; no object is built."""
    workflow = ConfigWorkflow(config_file=files, meta_file=metadata, workflow_type=kind)
    workflow.parser.parse()
    properties = {**(TrainProperties if kind == "train" else InferProperties), **MetaProperties}
    missing = [n for n, p in properties.items() if p["required"] and p["id"] not in workflow.parser]
    optional = [n for n, p in properties.items() if not p["required"]]
    missing += [name for name in optional if not workflow._check_optional_id(name, properties[name])]
    named = TRAIN_IDS if kind == "train" else INFERENCE_IDS
    return sorted({*missing, *(name for name in named if name not in workflow.parser)})


def unresolved(files: list[str], metadata: str) -> list[str]:
    """Every ``_target_``, import and reference of a set of files that leads nowhere."""
    parser = ConfigParser()
    parser.read_config(files)
    parser.read_meta(metadata)
    parser.parse()
    items, missing = parser.ref_resolver.items, set()
    for name, item in items.items():
        content = item.get_config()
        if isinstance(item, ConfigComponent):
            target = content["_target_"]
            if isinstance(target, str) and not target.startswith(("$", "@")) and not _found(item):
                missing.add(target)
        elif isinstance(item, ConfigExpression) and ConfigExpression.is_import_statement(content):
            if _is_unusable_import(content) or type(item.evaluate()).__name__ == "_LazyRaise":
                missing.add(content)
        references = ReferenceResolver.find_refs_in_config(content, name)
        missing |= {f"@{reference} in {name}" for reference in references if reference not in items}
    return sorted(missing)


def _found(item: ConfigComponent) -> bool:
    name = item.resolve_module_name()
    try:
        return callable(name) or locate(name) is not None
    except Exception:  # the module is there and fails to import
        return False


def _is_unusable_import(statement: str) -> bool:
    """MONAI binds one name a statement, and ``import a.b`` to "a.b", which no expression can spell."""
    return "," in statement or (statement.startswith("$import ") and "." in statement and " as " not in statement)


def copy_bundle(bundle: Path) -> Path:
    """Copy a bundle as the zoo would hold it, with random weights where it has none yet."""
    copy = Path("models") / bundle.name
    shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns("eval", "__pycache__", "large_files.*"))
    if not (copy / "models" / "model.pt").exists():
        (copy / "models").mkdir(exist_ok=True)
        sys.path.insert(0, str(copy))
        torch.save(_network(copy).state_dict(), copy / "models" / "model.pt")
        sys.path.remove(str(copy))
    return copy


def _network(bundle: Path, **override: Any) -> torch.nn.Module:
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.update({"bundle_root": str(bundle), **override})
    return parser.get_parsed_content("network_def")


def check_files(bundle: Path) -> list[str]:
    problems = [f"{name} is missing" for name in REQUIRED_FILES if not (bundle / name).is_file()]
    files = [path for path in bundle.rglob("*") if path.is_file()]
    problems += [f"{path} is larger than 25 MB" for path in files if path.stat().st_size > LARGEST_FILE]
    for config in (bundle / "configs").glob("*"):
        if config.is_file() and re.search(r"/(home|Users|root)/", config.read_text(encoding="utf-8")):
            problems.append(f"{config} holds a personal path")
    return problems


def check_version(bundle: Path) -> list[str]:
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    version, changelog = metadata.get("version"), metadata.get("changelog", {})
    return [] if version in changelog else [f"version {version} is not in the changelog: {sorted(changelog)}"]


def check_schema(bundle: Path, schema: Path) -> list[str]:
    named = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8")).get("schema", "")
    (bundle / "eval").mkdir(exist_ok=True)
    shutil.copy(schema, bundle / "eval" / "schema.json")  # a file that is already there is not downloaded
    verify_metadata(meta_file=f"{bundle}/configs/metadata.json", filepath=f"{bundle}/eval/schema.json")
    return [] if named.endswith(schema.name) else [f"metadata names the schema '{named}', expected {schema.name}"]


def check_shape(bundle: Path) -> list[str]:
    verify_net_in_out(net_id="network_def", **_inference_files(bundle))
    return []


def check_torchscript(bundle: Path) -> list[str]:
    """Export as the zoo does; the exported module must also give what the network gives, both in single precision."""
    exported, weights = f"{bundle}/models/verify_model.ts", f"{bundle}/models/model.pt"
    traced = bundle.name in TRACED
    override = {"num_inference_steps": 2, "amp": False} if traced else {}
    tracing = {"use_trace": True, "input_shape": [1, *input_shape(bundle)], **override} if traced else {}
    ckpt_export(net_id="network_def", filepath=exported, ckpt_file=weights, **_inference_files(bundle), **tracing)
    if (bundle / "models" / "model.ts").exists():
        torch.jit.load(bundle / "models" / "model.ts")
    network = _network(bundle, **override)
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.amp = False  # the exported network has no mixed precision
    image = torch.rand(1, *input_shape(bundle), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (network.eval()(image) - torch.jit.load(exported).eval()(image)).abs().max().item()
    return [] if difference <= 1e-4 else [f"the exported network differs from the network by {difference}"]


def _inference_files(bundle: Path) -> dict[str, str]:
    configs = f"{bundle}/configs"
    return {
        "meta_file": f"{configs}/metadata.json",
        "config_file": f"{configs}/inference.json",
        "bundle_root": str(bundle),
    }


def input_shape(bundle: Path) -> list[int]:
    """Channels and spatial shape of the network's input; ``n`` and ``p`` are 1, as the zoo tries them."""
    image = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    image = image["network_data_format"]["inputs"]["image"]
    spatial = [1 if size == "*" else eval(str(size), {"n": 1, "p": 1}) for size in image["spatial_shape"]]
    return [image["num_channels"], *spatial]


def check_ids(bundle: Path) -> list[str]:
    configs, metadata = bundle / "configs", f"{bundle}/configs/metadata.json"
    train, evaluate = str(configs / "train.json"), str(configs / "evaluate.json")
    problems = [f"train: {name}" for name in wrong_ids([train], metadata, "train")]
    problems += [f"train and evaluate: {name}" for name in wrong_ids([train, evaluate], metadata, "train")]
    return problems + [f"inference: {n}" for n in wrong_ids([str(configs / "inference.json")], metadata, "infer")]


def check_names(bundle: Path) -> list[str]:
    metadata, sets = f"{bundle}/configs/metadata.json", config_sets(bundle)
    return [f"{name}: {problem}" for name, files in sets.items() for problem in unresolved(files, metadata)]


def run_steps(bundle: Path, schema: Path) -> dict[str, list[str]]:
    """Run every step on a copy of the bundle; a step that raises has that as its problem."""
    copy = copy_bundle(bundle)
    sys.path.insert(0, str(copy))  # all that the zoo puts on the path
    steps: dict[str, Callable[[], list[str]]] = {
        "files": lambda: check_files(copy),
        "version": lambda: check_version(copy),
        "schema": lambda: check_schema(copy, schema),
        "shape": lambda: [] if bundle.name in SKIP_SHAPE else check_shape(copy),
        "torchscript": lambda: [] if bundle.name in SKIP_TORCHSCRIPT else check_torchscript(copy),
        "ids": lambda: check_ids(copy),
        "names": lambda: check_names(copy),
    }
    results: dict[str, list[str]] = {}
    for name, step in steps.items():
        try:
            results[name] = step()
        except Exception:
            results[name] = [traceback.format_exc()]
    return results


if __name__ == "__main__":
    source, schema_file, result = (Path(argument).absolute() for argument in sys.argv[1:4])
    sys.modules.update(dict.fromkeys(sys.argv[4:]))  # None makes an import fail
    outcome = run_steps(source, schema_file)
    result.write_text(json.dumps(outcome, indent=2), encoding="utf-8")
    sys.exit(1 if any(outcome.values()) else os.EX_OK)
