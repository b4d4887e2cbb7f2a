"""The values a user overrides on the command line, checked before anything long starts."""

from __future__ import annotations

import difflib
import inspect
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from pydoc import ErrorDuringImport, locate
from typing import Any

import ignite.distributed as idist
import torch
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser
from monai.networks.schedulers.scheduler import NoiseSchedules
from torch import nn

from shared_components.ensembling.combine import COMBINE_CHOICES
from shared_components.errors import InputError, install_one_line_errors, missing_package

logger = logging.getLogger(__name__)

LEAST_FREE_BYTES = 100_000_000
# what is imported only when it is used, which may be hours after the start
_LATE_PACKAGES = ("itk", "tensorboard")
_RUN_OPTIONS = {
    "run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file", "bundle_root",
    "workflow_name",
}  # fmt: skip


Test = Callable[[Any], bool]
Rule = tuple[str, Test]  # what is expected, and whether a value is that


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_whole(minimum: int) -> Test:
    return lambda v: type(v) is int and v >= minimum


def _are(count: int, holds: Test) -> Test:
    return lambda v: isinstance(v, (list, tuple)) and len(v) == count and all(map(holds, v))


def _none_or(holds: Test) -> Test:
    return lambda v: v is None or holds(v)


def _whole(minimum: int) -> Rule:
    return f"a whole number of at least {minimum}", _is_whole(minimum)


def _are_classes(value: Any) -> bool:
    return isinstance(value, Mapping) and sorted(map(str, value.values())) == [str(n + 1) for n in range(len(value))]


def _is_orientation(value: Any) -> bool:
    return isinstance(value, str) and sorted("LPI".find(c) + "RAS".find(c) + 1 for c in value) == [0, 1, 2]


_SWITCH = ("True or False", lambda v: isinstance(v, bool))
_SHARE = ("a share from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1)
_RULES: dict[str, Rule] = {
    "ablation": _SHARE,
    "affine_tolerance": ("a distance in mm, at least 0", lambda v: _is_number(v) and v >= 0),
    "amp": _SWITCH,
    "axcodes": ("three letters such as RAS or LPI, one for each axis of the body", _is_orientation),
    "batch_size": _whole(1),
    "channel": ("the number of a channel, from 0, or none", _none_or(_is_whole(0))),
    "combine": (f"one of {', '.join(COMBINE_CHOICES)}", lambda v: v in COMBINE_CHOICES),
    "image_size": ("two whole numbers of pixels such as [128,128]", _are(2, _is_whole(1))),
    "drop_last": _SWITCH,
    "flip_prob": _SHARE,
    "guidance_scale": ("a number", _is_number),
    "labels": (
        "each name with a number of its own from 1 on, such as {'liver': 1, 'spleen': 2}; where the files store other "
        "values, renumber them, or let adapt_bundle make a bundle for them",
        _are_classes,
    ),
    "learned_variance": _SWITCH,
    "learning_rate": ("a positive number", lambda v: _is_number(v) and v > 0),
    "max_epochs": _whole(1),
    "num_classes": ("a whole number of at least 1, or none (leave it out)", _none_or(_is_whole(1))),
    "noise_length": (
        "a number of slices of at least 0, or none ('$None')",
        _none_or(lambda v: _is_number(v) and v >= 0),
    ),
    "num_adjacent_slices": _whole(0),
    "num_channels": _whole(1),
    "num_inference_steps": ("a whole number of at least 1", _none_or(_is_whole(1))),
    "num_samples": _whole(1),
    "num_train_timesteps": _whole(1),
    "num_workers": _whole(0),
    "overwrite": _SWITCH,
    "patch_size": ("three whole numbers of voxels, one for each axis, such as [40,56,6]", _are(3, _is_whole(1))),
    "pixdim": ("three distances in mm such as [1.0,1.0,1.0]", _are(3, lambda v: _is_number(v) and v > 0)),
    "recycled_share": _SHARE,
    "resume": _SWITCH,
    "roll_out_share": _SHARE,
    "seed": ("a whole number from 0 to 4294967295", lambda v: type(v) is int and 0 <= v < 2**32),
    "shuffle": _SWITCH,
    "similarity": _SHARE,
    "skip_bad": _SWITCH,
    "source_share": ("a share of at least 0 and less than 1", lambda v: _is_number(v) and 0 <= v < 1),
    "strength": ("a share above 0 and at most 1", lambda v: _is_number(v) and 0 < v <= 1),
    "val_interval": _whole(1),
}
# of keys inside others, which are checked where the command line gives them, as the rules above are too
_INNER_RULES: dict[str, Rule] = {
    "ablation": _SHARE,
    "ema#momentum": (
        "1 - decay, such as 0.0001 for the published decay 0.9999 (above 0.5 in a configuration file only)",
        lambda v: _is_number(v) and 0 < v <= 0.5,
    ),
    "optimizer#weight_decay": ("a number of at least 0", lambda v: _is_number(v) and v >= 0),
    "train#trainer#accumulation_steps": _whole(1),
}


def check_settings(**settings: Any) -> None:
    """Check the values that a configuration was started with, and the names given on the command line.

    Also makes a user's mistake end with one line instead of a traceback for the rest of the process.

    Args:
        **settings: the configuration's override keys with their values; paths (``dataset_dir``, ``output_dir``,
            ``ckpt_path``) and ``device`` among them.

    Raises:
        InputError: a value outside its range, a path that is not there, a device that is not there, or an option on
            the command line that the configuration does not know (the nearest name is suggested).
    """
    install_one_line_errors()
    _check_packages()
    if any("monai" in argument and "bundle" in argument for argument in sys.argv[:1]):  # by MONAI's command line
        _check_names(settings)
        _check_none()
    for name, value in settings.items():
        expected, holds = _RULES.get(name, ("", lambda v: True))
        if not holds(value):
            raise InputError(f"{name} is {value!r}; expected {expected}")
    _check_schedule(settings.get("schedule"))
    _check_paths(settings)
    check_device(settings.get("device", "cpu"))
    _check_writable(settings.get("output_dir"))


def _check_paths(settings: Mapping[str, Any]) -> None:
    weights = settings.get("ckpt_path")
    files = weights if isinstance(weights, (list, tuple)) else [weights]
    named = [(name, settings.get(name)) for name in ("bundle_root", "dataset_dir", "output_dir")]
    for name, value in [*named, *[("ckpt_path", file) for file in files]]:
        if value is not None and not isinstance(value, (str, os.PathLike)):
            raise InputError(f"{name} is {value!r}, which the command line takes for no path; write --{name} ./NAME")
        if str(value).startswith("~"):
            raise InputError(f"{name} {value}: expected a path without ~; write {os.path.expanduser(value)}")
    folder, output = settings.get("dataset_dir"), settings.get("output_dir")
    if folder is not None and not Path(folder).is_dir():
        found = "is a file" if Path(folder).is_file() else "no such folder"
        raise InputError(f"dataset_dir {folder}: {found}; give the folder that holds the images")
    if folder is not None and output is not None and Path(output).resolve().is_relative_to(Path(folder).resolve()):
        raise InputError(
            f"output_dir {output}: lies in dataset_dir {folder}, where results would become images; choose another "
            "--output_dir"
        )
    for file in files:
        if file is not None and not Path(file).is_file():
            found = "is a folder" if Path(file).is_dir() else "no such file"
            raise InputError(f"ckpt_path {file}: {found}; give the weights, such as <output_dir>/model.pt")


def fitting(network: nn.Module, image_size: Sequence[int]) -> nn.Module:
    """Return a segmenter that is to be trained on images of a size.

    Args:
        network: with the attribute ``downsampling``.
        image_size: pixels along each axis of what the training shows it.

    Raises:
        InputError: a size is no multiple of ``downsampling``.
    """
    stride = network.downsampling
    if any(size % stride for size in image_size):
        near = [max(stride, round(size / stride) * stride) for size in image_size]
        raise InputError(
            f"image_size is {list(image_size)}; expected multiples of {stride}, by which the network's levels reduce "
            f"an image; give {str(near).replace(' ', '')}"
        )
    return network


def check_device(device: str | torch.device) -> torch.device:
    """Return the device.

    Raises:
        InputError: it is no device, or a CUDA device that this machine does not have.
    """
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device is {device!r}; expected cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device is {str(device)!r}; expected cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device is {str(device)!r}, this machine has {torch.cuda.device_count()} CUDA devices; give --device cpu"
        )
    return device


def _check_writable(output_dir: str | os.PathLike | None) -> None:
    if output_dir is None:
        return
    folder = Path(output_dir).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"output_dir {output_dir}: {existing} cannot be written to; choose another --output_dir")
    free = shutil.disk_usage(existing).free
    if free < LEAST_FREE_BYTES:
        found, wanted = (f"{size / 1e6:.0f} MB" for size in (free, LEAST_FREE_BYTES))
        raise InputError(f"output_dir {output_dir}: {found} free, at least {wanted} expected; free some space")


def _check_schedule(name: Any) -> None:
    # the schedules of this package are registered by the configuration's imports
    if name is not None and name not in NoiseSchedules.names:
        raise InputError(f"schedule is {name!r}; expected one of {', '.join(NoiseSchedules.names)}")


def _check_packages() -> None:
    for package in _LATE_PACKAGES:
        if find_spec(package) is None:
            raise InputError(missing_package(package))


def _check_names(options: Iterable[str]) -> None:
    """Compare the options of ``python -m monai.bundle run`` with the configuration's keys.

    MONAI adds an unknown option to the configuration, where nothing reads it: a misspelt one would be lost.
    """
    arguments = [*sys.argv[1:], *_of_args_file(sys.argv)]
    content = _configuration(arguments)
    known = {*options, *_RUN_OPTIONS, *content}
    for argument, following in zip(arguments, [*arguments[1:], ""]):
        match = re.match(r"--?([A-Za-z_][\w-]*)((?:(?:#|::)[\w-]+)*)(=|$)", argument)
        if match is None:
            continue
        name = match.group(1).replace("-", "_")
        if name not in known and (content or not match.group(2)):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean --{near[0]}?" if near else f"known are {', '.join(sorted(options))}"
            raise InputError(f"--{name}: no such option; {hint}")
        if name in content:
            parts = re.split("#|::", match.group(2))[1:]
            _check_inner_name(name, parts, content[name])
            _check_given_value("#".join((name, *parts)), argument[match.end() :] or following)


def _check_inner_name(name: str, parts: Sequence[str], content: Any) -> None:
    """Compare an option such as ``--train#trainer#max_epochs`` with what the configuration has there."""
    for part in parts:
        if isinstance(content, list) and part.isdigit() and int(part) < len(content):
            content = content[int(part)]
        elif isinstance(content, dict) and part in content:
            content = content[part]
        elif not isinstance(content, dict) or re.fullmatch("_.*_", part):
            return  # a reference, or one of MONAI's own words: MONAI looks at it
        else:
            arguments = _arguments_of(content.get("_target_", ""))
            known = list(dict.fromkeys(key for key in (*content, *arguments) if key != "_target_"))
            if part in known or ("_target_" in content and not arguments):
                return
            near = difflib.get_close_matches(part, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise InputError(f"--{'#'.join((name, *parts))}: no '{part}' there; {hint}")


def _check_given_value(name: str, text: str) -> None:
    if not text or text.startswith("--"):
        return  # a switch without a value, which stands for True
    expected, holds = {**_RULES, **_INNER_RULES}.get(name, ("", lambda v: True))
    value = DefaultParseValue(text)
    is_expression = isinstance(value, str) and value.startswith(("$", "@", "%"))
    if not is_expression and not holds(value):
        raise InputError(f"{name} is {value!r}; expected {expected}")


def _arguments_of(target: str) -> list[str]:
    """Return the names of a class's or function's arguments; none if it takes any or cannot be looked at."""
    try:
        parameters = inspect.signature(locate(target)).parameters.values()
    except (TypeError, ValueError, ErrorDuringImport):
        return []
    return [] if any(p.kind is p.VAR_KEYWORD for p in parameters) else [p.name for p in parameters]


def _check_none() -> None:
    """Refuse ``--key None``: MONAI's command line leaves such an option out, and the configuration's value stays."""
    for option, following in zip(sys.argv[1:], [*sys.argv[2:], ""]):
        name, _, value = option.partition("=")
        if name.startswith("--") and (value or following) == "None":
            raise InputError(f"{name} None: MONAI leaves such an option out; write {name} '$None', or leave it out")


def _option(arguments: Sequence[str], wanted: str) -> str:
    """Return the value of an option of a command, '' where it is not given."""
    for option, following in zip(arguments, [*arguments[1:], ""]):
        name, _, value = option.partition("=")
        if name.lstrip("-") == wanted:
            return value or following
    return ""


def _of_args_file(arguments: Sequence[str]) -> list[str]:
    """Return what MONAI's ``--args_file`` holds as options of the command."""
    file = _option(arguments, "args_file")
    content = ConfigParser.load_config_file(file) if Path(file).is_file() else {}
    return [f"--{key}={value}" for key, value in content.items()]


def _configuration(arguments: list[str]) -> dict[str, Any]:
    """Return the content of the files that ``--config_file`` names, merged and parsed as MONAI's command line does."""
    given = _option(arguments, "config_file")
    if not given:
        return {}
    files = DefaultParseValue(given)
    files = files.split(",") if isinstance(files, str) else files
    parser = ConfigParser()
    parser.read_config([file for file in files if Path(file).is_file()])
    return {key: value for key, value in parser.get().items() if key != "_meta_"}


def bfloat16_pays() -> bool:
    """Whether mixed precision is faster here: on GPUs and processors that calculate in bfloat16.

    GPUs from before Ampere (V100, T4, RTX 20) only imitate it, which is slower than single precision.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()


def in_monai_label() -> bool:
    """Whether MONAI Label is what runs the bundle; there, trained weights belong in the bundle's ``models``.

    MONAI Label trains in its own process, or through ``torchrun`` with a configuration of its own name.
    """
    return "monailabel" in sys.modules or any("monailabel_train.json" in argument for argument in sys.argv)


def is_demonstration(dataset_dir: str | os.PathLike | None) -> bool:
    """Whether a run trains on phantoms, for want of data; MONAI Label gives its data without a folder."""
    return dataset_dir is None and not in_monai_label()


def own_data(dataset_dir: str | os.PathLike | None) -> str:
    """Return the folder of the data of a bundle that was adapted to them and has no demonstration.

    Raises:
        InputError: none was given.
    """
    if dataset_dir is None:
        raise InputError("dataset_dir is missing: this bundle was adapted to own data; give --dataset_dir FOLDER")
    return str(dataset_dir)


def default_output_dir(bundle_root: str | os.PathLike, dataset_dir: str | os.PathLike | None) -> str:
    """Where a run writes unless told: ``<bundle>/output/<name of the data set>``, or ``.../phantoms``."""
    without_data = "monai_label" if in_monai_label() else "phantoms"
    name = without_data if dataset_dir is None else os.path.basename(os.path.abspath(dataset_dir))
    return str(Path(bundle_root) / "output" / name)


def is_main_process() -> bool:
    """Whether this is the only process or the first of several."""
    return idist.get_rank() == 0


def report_failures(failures: Sequence[str], evaluator: Any = None) -> None:
    """End a run that left out cases, or could not finish some.

    Args:
        failures: one line for each case left out before the run.
        evaluator: whose ``failures`` there were besides (`shared_components.training.CaseEvaluator`).

    Raises:
        InputError: there were any; the message names each, all others having been finished.
    """
    failures = [*failures, *getattr(evaluator, "failures", ())]
    if failures:
        count = f"{len(failures)} case{'s' if len(failures) > 1 else ''}"
        raise InputError(f"{count} could not be processed: {' | '.join(failures)}")
