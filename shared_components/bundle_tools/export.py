"""A bundle made to stand alone: its own files and the part of this package that it needs, in a folder or zip.

A bundle's JSON names classes of this package, so its folder copied alone (into MONAI Label's ``model/``, a
model-zoo check-out, a colleague's disk) runs only where the package is installed. The export carries the
needed modules along.

They are carried under a name that their content determines, ``shared_components_<digest>``, and the
configurations and import statements are rewritten to it. A server loads every bundle into one process, where
the first package of a name serves all: two bundles exported from different versions of this package, or with
different parts of it, would mix silently under one name. With one name per content they cannot; what shares a
name is identical.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import shared_components
from shared_components.bundle_tools.targets import new_target
from shared_components.errors import InputError
from shared_components.training.files import load_state_dict

logger = logging.getLogger(__name__)

PACKAGE = "shared_components"
WEIGHTS = ("model.pt", "model.ts")

_REFERENCE = re.compile(rf"\b{PACKAGE}(?:\.\w+)+")
_FROM_IMPORT = re.compile(rf"\bfrom\s+({PACKAGE}(?:\.\w+)*)\s+import\s+(\w+)")
# Dotted names and import statements, in JSON and in Python alike; prose such as a command to type stays.
_RENAMED = re.compile(rf"\b{PACKAGE}(?=\.\w|\s+import\b)|(?<=import ){PACKAGE}\b")
_RUN = re.compile(r'(?m)^\s*"run"\s*:\s*\[')
_INITIALIZE = re.compile(r'(?m)^(\s*)"initialize"\s*:')
_INITIALIZE_IN_RUN = "initialize_in_run"
_LOGGER = re.compile(rf"(?m)^(qualname\s*=\s*){PACKAGE}\b")
_VENDORED = re.compile(rf"\b{PACKAGE}_[0-9a-f]{{8}}\.")


def export_bundle(bundle: str, output: str) -> str:
    """Write a bundle that needs neither this repository nor this package to be installed.

    Copied are ``configs/``, ``docs/``, ``LICENSE``, ``models/model.pt`` and, if present, ``models/model.ts``;
    training outputs stay behind. The modules that the configurations reach, directly or through imports, come
    along as ``shared_components_<digest>/``; the version they were taken from is recorded in
    ``configs/metadata.json`` as ``shared_components_version``. The result is complete or absent: it is built
    beside ``output`` and renamed.

    Args:
        bundle: a bundle folder, or the name of a folder in ``bundles/``.
        output: the folder to make, or a zip file if it ends with ``.zip`` (it holds one folder, named after
            the bundle). For MONAI Label: ``apps/monaibundle/model/NAME``.

    Returns:
        The absolute path of what was written.

    Raises:
        InputError: the bundle is unknown or incomplete, its weights no flat state dict, or ``output`` exists, lies in
            the bundle or cannot be written.
    """
    source = find_bundle(bundle)
    _require_complete(source)
    target = new_target(output, source.name)
    if target.is_relative_to(source):
        raise InputError(f"--output {target}: lies in the bundle that is exported; name a folder outside {source}")
    modules = needed_modules(_config_texts(source).values(), _package_folder())
    # The scratch folder lies beside the target, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(prefix=".export_", dir=target.parent) as scratch:
        built = Path(scratch) / source.name
        _copy_bundle(source, built)
        name = _vendor(modules, built)
        _rewrite_configs(built, name)
        if target.suffix == ".zip":
            built = Path(shutil.make_archive(f"{scratch}/archive", "zip", scratch, source.name))
        os.rename(built, target)
    logger.info("%s: stand-alone copy of %s with %d modules as %s", target, source.name, len(modules), name)
    return str(target)


def find_bundle(bundle: str) -> Path:
    """Return the folder of a bundle that is given by path or by its name in ``bundles/``.

    Raises:
        InputError: there is no such bundle; the nearest name is suggested.
    """
    shelves = [Path("bundles"), _package_folder().parent / "bundles"]
    for folder in [Path(bundle).expanduser(), *(shelf / bundle for shelf in shelves)]:
        if (folder / "configs" / "metadata.json").is_file():
            return folder.resolve()
    if Path(bundle).expanduser().is_dir():
        raise InputError(f"{bundle}: no bundle, configs/metadata.json is missing; name the bundle's own folder")
    known = sorted({file.parts[-3] for shelf in shelves for file in shelf.glob("*/configs/metadata.json")})
    nearest = difflib.get_close_matches(bundle, known, n=1)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    raise InputError(f"bundle '{bundle}' not found; {hint}known bundles: {', '.join(known) or 'none'}")


def needed_modules(config_texts: Iterable[str], package_folder: Path) -> dict[str, Path]:
    """Return the package's modules that configurations reach, following imports: dotted name to file.

    Every import statement counts, inside functions too, and so does a string that is a module's dotted name
    (``"shared_components.networks"``). The packages above a module belong to it.

    Args:
        config_texts: the texts of the configuration files.
        package_folder: the folder of ``shared_components`` itself.

    Raises:
        InputError: a configuration refers to a module that the package does not have.
    """
    found: dict[str, Path] = {}
    waiting: list[str] = []
    for text in config_texts:
        waiting += _REFERENCE.findall(text) + [".".join(pair) for pair in _FROM_IMPORT.findall(text)]
    for reference in waiting:
        _require_defined(reference, package_folder)
    while waiting:
        for name, file in _module_chain(waiting.pop(), package_folder).items():
            if name not in found:
                found[name] = file
                waiting += _imports_of(name, file)
    return dict(sorted(found.items()))


def _package_folder() -> Path:
    return Path(shared_components.__file__).resolve().parent


def _module_chain(reference: str, package_folder: Path) -> dict[str, Path]:
    """The modules that importing a dotted name loads; trailing parts may be classes or functions."""
    chain, folder, parts = {PACKAGE: package_folder / "__init__.py"}, package_folder, reference.split(".")
    for depth, part in enumerate(parts[1:], start=2):
        name = ".".join(parts[:depth])
        if (folder / part / "__init__.py").is_file():
            folder = folder / part
            chain[name] = folder / "__init__.py"
        elif (folder / f"{part}.py").is_file():
            chain[name] = folder / f"{part}.py"
            break
        else:
            break
    return chain


def _require_defined(reference: str, package_folder: Path) -> None:
    name, file = list(_module_chain(reference, package_folder).items())[-1]
    following = reference[len(name) + 1 :].split(".")[0]
    if following and not re.search(rf"\b{following}\b", file.read_text(encoding="utf-8")):
        raise InputError(f"configuration: '{reference}' not found, {name} has no '{following}'; mend it")


def _imports_of(name: str, file: Path) -> list[str]:
    """Dotted names in the package that a module's source refers to."""
    found: list[str] = []
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found += [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and _REFERENCE.fullmatch(str(node.value)):
            found.append(node.value)
    return [reference for reference in found if reference.split(".")[0] == PACKAGE]


def _config_texts(bundle: Path) -> dict[Path, str]:
    """The configurations that run; metadata.json is prose to this purpose."""
    files = [path for path in sorted((bundle / "configs").glob("*.json")) if path.name != "metadata.json"]
    return {path: path.read_text(encoding="utf-8") for path in files}


def _require_complete(bundle: Path) -> None:
    for part in ("configs/inference.json", "LICENSE", "models/model.pt"):
        if not (bundle / part).is_file():
            remedy = "train it or put its weights there" if part.endswith(".pt") else "restore the file"
            raise InputError(f"{bundle}: {part} is missing; {remedy}")
    for path, text in _config_texts(bundle).items():
        if _VENDORED.search(text):
            raise InputError(f"{path}: {bundle.name} stands alone already; copy its folder as it is")
    load_state_dict(bundle / "models" / "model.pt")


def _copy_bundle(source: Path, target: Path) -> None:
    files = [source / "LICENSE", *(source / "models" / name for name in WEIGHTS)]
    files += [*(source / "configs").rglob("*"), *(source / "docs").rglob("*")]
    for file in files:
        part = file.relative_to(source)
        if file.is_file() and not any(name.startswith(".") or name == "__pycache__" for name in part.parts):
            (target / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / part)


def _vendor(modules: dict[str, Path], bundle: Path) -> str:
    """Write the modules into the bundle under a name of their own, and return that name."""
    root = _package_folder()
    texts = {file.relative_to(root): file.read_text(encoding="utf-8") for file in modules.values()}
    digest = hashlib.sha256(repr(sorted((path.as_posix(), text) for path, text in texts.items())).encode())
    name = f"{PACKAGE}_{digest.hexdigest()[:8]}"
    for path, text in texts.items():
        file = bundle / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_RENAMED.sub(name, text), encoding="utf-8")
    return name


def _initialized_in_run(texts: dict[Path, str]) -> dict[Path, str]:
    """Move what ``initialize`` does to the beginning of ``run``.

    MONAI puts the bundle's folder on the path between the two, and evaluates all imports in the first: the
    carried package would be found from inside the folder alone.
    """
    contents = {path: json.loads(text) for path, text in texts.items()}
    initialized = {path.name for path, content in contents.items() if "initialize" in content}
    for path, content in contents.items():
        # A file without a network of its own is read after train.json, and inherits what that initializes.
        inherits = "network_def" not in content and "train.json" in initialized
        if "run" in content and (path.name in initialized or inherits):
            run = content["run"] if isinstance(content["run"], list) else [content["run"]]
            content["run"] = [f"$@{_INITIALIZE_IN_RUN}", *run]
        if "initialize" in content:
            content[_INITIALIZE_IN_RUN] = content.pop("initialize")
    return {path: _edited(texts[path], content) for path, content in contents.items()}


def _edited(text: str, content: dict) -> str:
    """The text with the edits that give ``content``, in the author's layout where that is possible."""
    edited = _INITIALIZE.sub(rf'\g<1>"{_INITIALIZE_IN_RUN}":', text)
    if json.loads(edited) != content:
        edited = _RUN.sub(rf'\g<0>\n        "$@{_INITIALIZE_IN_RUN}",', edited)
    try:
        return edited if json.loads(edited) == content else json.dumps(content, indent=4, ensure_ascii=False)
    except json.JSONDecodeError:
        return json.dumps(content, indent=4, ensure_ascii=False)


def _rewrite_configs(bundle: Path, name: str) -> None:
    texts = {path: _RENAMED.sub(name, text) for path, text in _config_texts(bundle).items()}
    for path, text in _initialized_in_run(texts).items():
        path.write_text(text, encoding="utf-8")
    logging_conf = bundle / "configs" / "logging.conf"
    if logging_conf.is_file():
        text = _LOGGER.sub(rf"\g<1>{name}", logging_conf.read_text(encoding="utf-8"))
        logging_conf.write_text(text, encoding="utf-8")
    metadata = bundle / "configs" / "metadata.json"
    content = json.loads(metadata.read_text(encoding="utf-8"))
    content[f"{PACKAGE}_version"] = shared_components.__version__
    metadata.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
