"""A published checkpoint made into weights of a bundle."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from shared_components.bundle_tools.export import find_bundle
from shared_components.bundle_tools.published_names import (
    PUBLISHED_FORMS,
    Comparison,
    compare,
    convert,
    find_form,
)
from shared_components.data.formats.files import read_json_object
from shared_components.errors import InputError, find_input_error
from shared_components.training.files import save_atomically

SEED = 0
# Configurations whose network may have a published form; a method may generate images by another one than it infers by.
BASES = ("inference.json", "generate.json")
# Parts of a network that a published file may hold: one that denoises, one that segments, one that guides.
PARTS = ("denoiser", "network", "classifier")


class _Found(NamedTuple):
    """A network that the tensors fit: its configurations, built; the part; what the file lacks."""

    config: Path
    overlay: Path
    parser: ConfigParser
    network: nn.Module
    part: str
    unsaved: tuple[str, ...]


def import_checkpoint(
    bundle: str,
    source: str,
    output: str,
    allow_missing_projections: bool = False,
    base: str | None = None,
    overrides: str | Mapping[str, Any] | None = None,
) -> str:
    """Write weights for a bundle's network from a checkpoint that a method's published code saved.

    The bundle holds one overlay configuration for each published form (``configs/paper*.json``), with which the
    ``network_def`` of ``inference.json``, or of ``generate.json``, has a ``denoiser``, a ``classifier`` or (a
    segmenter) a ``network`` of that form. Overlay and part are found by the checkpoint's tensors; what is written is
    the state dict of its ``network_def``, noise schedule included, so the weights will not load with another overlay.
    Nothing in the file is run, and the output is complete or absent.

    Moving averages are imported as raw weights are. In those of MedSegDiff the statistics of the batch
    normalisations are the raw network's: its published code averages parameters alone.

    Args:
        bundle: a bundle folder, or the name of a folder in ``bundles/``.
        source: the published file: a flat state dict, names with or without ``module.``, saved by torch or as
            ``.safetensors``; or the folder that holds one ``.safetensors`` file. A ``config.json`` beside it is
            compared with the network in what tensors do not show.
        output: the file to write; it must not exist.
        allow_missing_projections: write weights for a network with tensors that files of the source's revision
            cannot hold, such as projections of MedSegDiff V1 that its published code neither trains nor saves.
            They are initialised as in a new network, always the same, and the weights need fine-tuning.
        base: weights of the same overlay, written by an earlier import, that the network's other parts are taken from;
            without it those are as in a new network.
        overrides: configuration keys with their values, as an object, as JSON or as a JSON file, such as
            ``{"num_channels": 4, "denoiser#num_heads": 4}``: for a file of another configuration than the overlay's.

    Returns:
        A sentence that says which overlay belongs to the weights, which tensors are new, and what was assumed because
        no tensor shows it.

    Raises:
        InputError: the bundle has no such overlay, an override is unknown or nonsense, the source is unreadable, holds
            other things than tensors or does not fit (every missing, surplus or misshapen tensor is listed), cannot
            hold tensors that the network needs while ``allow_missing_projections`` is not set, or the output exists.
    """
    folder, target = find_bundle(bundle), Path(output).expanduser()
    if os.path.lexists(target):
        raise InputError(f"{target}: exists; remove it or name another output")
    file = _weights_file(Path(source).expanduser())
    tensors = read_tensors(file)
    given = _read_overrides(overrides)
    found = _find_network(folder, source, tensors, given)
    config, overlay, _, network, part, unsaved = found
    module = getattr(network, part)
    _check_config(file, module)
    new = f"{len(unsaved)} tensors that a file of this revision cannot hold ({', '.join(unsaved)})"
    if unsaved and not allow_missing_projections:
        raise InputError(
            f"{source}: fits {overlay.name} but for {new}; they would be initialised and need fine-tuning: "
            "pass --allow_missing_projections true to import it so"
        )
    if base is not None:
        _load_base(network, Path(base).expanduser(), overlay)
    module.load_state_dict(convert(tensors, module))
    save_atomically(network.state_dict(), target)
    written = shlex.quote(str(target))
    remark = f"{new} are newly initialised and need fine-tuning; " if unsaved else ""
    others = [name for name in PARTS if name != part and isinstance(getattr(network, name, None), nn.Module)]
    if others and base is None:
        remark += f"the {' and '.join(others)} as in a new network: import it too, with --base {written}; "
    configs = f"['{config}','{overlay}']"
    options = "".join(f" --{key} {shlex.quote(str(value))}" for key, value in given.items())
    return (
        f"{target}: {len(tensors)} tensors imported for {overlay.name}; {remark}{_assumed(found)}"
        f'use it with --config_file "{configs}"{options} --ckpt_path {written}'
    )


def _assumed(found: _Found) -> str:
    """Say what the tensors do not show and is taken from the configuration; '' where they show all."""
    form = find_form(getattr(found.network, found.part))
    if form.assumed is None:
        return ""
    steps, schedule = len(found.network.schedule), ""
    if isinstance(found.parser["scheduler"], dict) and "schedule" in found.parser["scheduler"]:
        schedule = f" {found.parser.get_parsed_content('scheduler#schedule')}"
    return (
        f"no tensor shows, and assumed are: {form.assumed(getattr(found.network, found.part))}, schedule{schedule} of "
        f"{steps} steps, prediction_type {found.network.process.prediction_type} (others with --overrides); "
    )


def _read_overrides(overrides: str | Mapping[str, Any] | None) -> dict[str, Any]:
    if overrides is None or isinstance(overrides, Mapping):
        return dict(overrides or {})
    if not overrides.lstrip().startswith("{"):
        return dict(read_json_object(Path(overrides).expanduser()))
    try:
        return json.loads(overrides)
    except json.JSONDecodeError as error:
        raise InputError(f"overrides: {error}; expected JSON such as '{{\"num_channels\": 4}}', or a file") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a flat state dict; a file that holds anything else is refused and nothing in it is run.

    Raises:
        InputError: there is no such file, it is damaged, or it holds something other than named tensors.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the published checkpoint")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds pickled objects other than tensors, or is no checkpoint; expected a state dict; "
            "nothing in it was run, do not trust it"
        ) from error
    except Exception as error:
        kind = type(error).__name__
        raise InputError(f"{path}: not a readable checkpoint ({kind}); download it again") from error
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: holds {type(content).__name__}, expected a state dict of named tensors")
    strangers = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if strangers:
        raise InputError(f"{path}: expected a state dict, but these are no tensors: {', '.join(strangers)}")
    return {str(name): tensor for name, tensor in content.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise InputError(f"{path}: reading it needs safetensors; pip install safetensors") from error
    try:
        return load_file(path)
    except Exception as error:
        raise InputError(f"{path}: not a readable checkpoint ({type(error).__name__}); download it again") from error


def _weights_file(source: Path) -> Path:
    """Return the file, or the only safetensors file of a folder."""
    if not source.is_dir():
        return source
    found = sorted(source.glob("*.safetensors"))
    if len(found) != 1:
        raise InputError(f"{source}: {len(found)} .safetensors files, expected one; name the file")
    return found[0]


def _check_config(file: Path, denoiser: nn.Module) -> None:
    form, config = find_form(denoiser), file.with_name("config.json")
    if form.check_config is not None and config.is_file():
        form.check_config(read_json_object(config), denoiser, str(config))


def _load_base(network: nn.Module, path: Path, overlay: Path) -> None:
    try:
        network.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        raise InputError(f"{path}: no weights of {overlay.name}; give what an import for it has written") from error


def _find_network(bundle: Path, source: str, tensors: dict[str, Tensor], overrides: Mapping[str, Any]) -> _Found:
    """Return what has a part that the tensors fit."""
    overlays = sorted((bundle / "configs").glob("paper*.json"))
    if not overlays:
        raise InputError(f"{bundle}: no configs/paper*.json; choose a bundle that has a published form")
    nearest: tuple[Path, Comparison] | None = None
    bases = [bundle / "configs" / name for name in BASES if (bundle / "configs" / name).is_file()]
    for overlay, base in itertools.product(overlays, bases):
        parser, network = _build_network(base, overlay, overrides)
        for part in PARTS:
            module = getattr(network, part, None)
            if not isinstance(module, nn.Module) or find_form(module) is None:
                continue
            comparison = compare(tensors, module)
            if not comparison.differences:
                return _Found(base, overlay, parser, network, part, comparison.unsaved)
            if nearest is None or comparison.num_differences < nearest[1].num_differences:
                nearest = overlay, comparison
    if nearest is None:
        raise InputError(
            f"{bundle}: the denoisers of its configs/paper*.json have no published form; choose a bundle with one of "
            f"{', '.join(PUBLISHED_FORMS)}"
        )
    raise InputError(
        f"{source}: fits no overlay of {bundle.name}; {nearest[0].name} is nearest: {nearest[1]}; if its configuration "
        "was another, give its keys, such as --overrides '{\"num_channels\": 4}'"
    )


def _build_network(base: Path, overlay: Path, overrides: Mapping[str, Any]) -> tuple[ConfigParser, nn.Module]:
    """Build the overlay's network: always the same one, and no random numbers of the caller are used up."""
    parser = ConfigParser()
    parser.read_config([str(base), str(overlay)])
    parser["bundle_root"] = str(base.parent.parent)
    for key, value in overrides.items():
        if key.split("#")[0] not in parser.get():
            raise InputError(f"overrides: '{key}' is no key of {base.name} and {overlay.name}; see the bundle's card")
        parser[key] = value
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)
        try:
            return parser, parser.get_parsed_content("network_def")
        except Exception as error:
            if not overrides or find_input_error(error) is not None:
                raise
            reason = " ".join(str(error.__cause__ or error).split())
            raise InputError(f"overrides {dict(overrides)}: no network can be built with them: {reason}") from error
