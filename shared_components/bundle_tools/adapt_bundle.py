"""A bundle of this collection made over for other data: its settings follow from what the data are like."""

from __future__ import annotations

import copy
import json
import logging
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from shared_components.bundle_tools.adaptation_plan import (
    Choice,
    Task,
    cached_bytes,
    fit_batch,
    plan,
    settings_of,
    usable_memory,
)
from shared_components.bundle_tools.adaptation_source import Source, adaptable, read_source
from shared_components.bundle_tools.adapted_files import write_adapted
from shared_components.bundle_tools.export import find_bundle
from shared_components.bundle_tools.targets import new_target
from shared_components.bundle_tools.training_memory import bytes_a_pixel
from shared_components.data.checks.cases import usual_spatial_dims
from shared_components.data.checks.understood import overview_text, split_source
from shared_components.data.fingerprint import Fingerprint, fingerprint
from shared_components.data.layouts.cases import CaseFolder, find_cases
from shared_components.data.layouts.split import group_patients, guess_patient_pattern, overlapping, sections
from shared_components.errors import InputError

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z]\w*")
# Words from which MONAI Label takes another type than segmentation.
_OTHER_TYPES = ("detection", "deepedit", "deepgrow", "classification")
_NAMED = 3

Labels = Mapping[str, int | Sequence[int]] | Sequence[str | int] | str | int | None


def adapt_bundle(
    bundle: str,
    dataset_dir: str,
    name: str,
    output: str | None = None,
    labels: Labels = None,
    channels: Sequence[str] | int | str | None = None,
    label_column: str | None = None,
    patient_pattern: str | None = None,
    fold: int | None = None,
    num_folds: int = 5,
    device: str | None = None,
    memory: float | None = None,
    skip_bad: bool = False,
    num_workers: int | None = None,
) -> str:
    """Write a new, complete bundle for a folder of labelled images, without weights.

    The data are measured once (`shared_components.data.fingerprint`), the settings follow by the rules of
    `shared_components.bundle_tools.adaptation_plan`. Copied are the configurations that hold for any data; the presets
    of a publication stay with the data that they are about. Beside them lie ``docs/fingerprint.json``,
    ``docs/plan.md`` with the reason for every setting, a model card and a note on the data's licence. The result is
    complete or absent.

    Args:
        bundle: a segmentation bundle's folder, or its name in ``bundles/``.
        dataset_dir: the folder; `shared_components.data.layouts.cases.find_cases` says which it understands.
        name: of the new bundle: letters, digits and underscores.
        output: folder to make; by default ``bundles/<name>`` where there is a folder ``bundles``, else ``<name>``.
        labels: the classes to segment: names of the data's own labels, or name to value or values; by default all.
        channels, label_column: as in `find_cases`.
        patient_pattern: regular expression that finds the patient in a case id; by default a manifest's column, else
            guessed where all ids look alike.
        fold, num_folds: part of what is not tested that validates; by default the first, unless a split names one.
        device: "cpu" or "cuda", on which it is to be trained; by default CUDA where there is one.
        memory: GiB that a training may take; by default four fifths of the GPU's, or half of the machine's.
        skip_bad: leave out cases that cannot be used, here and in the new bundle's runs.
        num_workers: threads that measure.

    Returns:
        The absolute path of the new bundle.

    Raises:
        InputError: the bundle cannot be adapted or not to such data, the folder has no labels or bad cases, a class is
            not in it, or ``output`` exists.
    """
    if memory is not None and memory <= 0:
        raise InputError(f"--memory {memory}: expected GiB, more than 0")
    target = _target(name, output)
    source = read_source(find_bundle(bundle))
    folder = find_cases(dataset_dir, channels, label_column)
    _group(folder, patient_pattern, fold, num_folds)
    sys.stdout.write(overview_text(folder))
    sys.stdout.flush()
    _refuse_misfit(source, usual_spatial_dims(folder.cases) == 2)
    found = fingerprint(folder, num_workers, _wanted_values(folder.label_names, labels))
    _refuse_unusable(folder, found, skip_bad)
    task = _task(folder, found, labels, channels, device, memory)
    choices = [choice for choice in plan(found, source.template, task) if choice.key in source.train]
    choices += _given(source, label_column, skip_bad)
    choices = _fitted(source, choices, found, task)
    write_adapted(target, name, source, choices, folder, found, task)
    for choice in choices:
        logger.info("%s: %s (%s)", choice.key, _shown(choice.value), choice.reason)
    if shared := overlapping(sections(folder)):
        logger.warning("%s: one patient to train on: %s holds the same, its scores mean nothing", folder.root, shared)
    return str(target)


def _target(name: str, output: str | None) -> Path:
    if not _NAME.fullmatch(name) or any(word in name.lower() for word in _OTHER_TYPES):
        raise InputError(
            f"name '{name}': expected letters, digits and underscores, a letter first, and none of the words "
            f"{', '.join(_OTHER_TYPES)}, from which MONAI Label takes it for something else"
        )
    default = Path("bundles") / name if Path("bundles").is_dir() else Path(name)
    return new_target(output or default)


def _group(folder: CaseFolder, pattern: str | None, fold: int | None, num_folds: int) -> None:
    if not folder.labelled:
        raise InputError(f"{folder.root}: no labels; a bundle is adapted to images with label maps beside them")
    guessed = None if pattern or folder.groups else guess_patient_pattern([case.id for case in folder.cases])
    if pattern or guessed:
        group_patients(folder, pattern or guessed)
    if guessed:
        folder.patient_rule += " (guessed; --patient_pattern gives another)"
    named = folder.split is not None and "validation" in folder.split
    folder.fold, folder.num_folds = (None if named else 0) if fold is None else fold, num_folds
    sections(folder)  # an unknown fold is told before anything long starts


def _refuse_unusable(folder: CaseFolder, found: Fingerprint, skip_bad: bool) -> None:
    problems = [problem for problem in folder.problems if problem.level == "error" and problem.case]
    bad = {problem.case: problem.message for problem in problems} | found.unusable
    if bad and not skip_bad:
        some = "; ".join(f"{case}: {text}" for case, text in list(bad.items())[:_NAMED])
        raise InputError(
            f"{folder.root}: {len(bad)} cases cannot be used ({some}); mend them (check_data lists all that is wrong), "
            "or leave them out with --skip_bad true"
        )
    if not found.classes:
        raise InputError(f"{folder.root}: no voxel of any of the {found.num_labelled} label maps is labelled")
    if bad:
        logger.warning("%s: %d cases are left out", folder.root, len(bad))


def _refuse_misfit(source: Source, pictures: bool) -> None:
    family, what = source.template.family, "pictures" if pictures else "volumes"
    if family == "either" or (family == "volumes") is not pictures:
        return
    takes = "volumes" if family == "volumes" else "pictures"
    fit = ", ".join(adaptable(source.folder, pictures))
    raise InputError(f"{source.folder.name} segments {takes}, the folder holds {what}; adapt one of {fit}")


def _task(
    folder: CaseFolder,
    found: Fingerprint,
    labels: Labels,
    channels: Sequence[str] | int | str | None,
    device: str | None,
    memory: float | None,
) -> Task:
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda"):
        raise InputError(f"device is {device!r}; expected cpu or cuda")
    named = not isinstance(channels, int) and channels is not None
    return Task(
        classes=chosen_classes(folder.label_names, found, labels),
        channels=channel_names(folder, found),
        columns=named
        or (folder.layout in ("manifest", "bids", "channel folders", "case folders") and len(folder.channels) > 1),
        num_train=max(1, len([case for case in sections(folder)["train"] if case not in found.unusable])),
        fold=folder.fold,
        num_folds=folder.num_folds,
        patient_pattern=folder.patient_pattern,
        patient_rule=folder.patient_rule,
        split_source=split_source(folder),
        device=device,
        memory=int(memory * 2**30) if memory else usable_memory(device),
    )


def chosen_classes(names: Mapping[str, int], found: Fingerprint, labels: Labels = None) -> dict[str, list[int]]:
    """Return the classes to segment, name to stored values, in the order of their numbers.

    Args:
        names: name to value, as the data say; values without a name are called "label <value>", and a single one
            "foreground".
        found: the data's fingerprint.
        labels: see `adapt_bundle`.

    Raises:
        InputError: a name or a value that the data do not have.
    """
    values = [item.value for item in found.classes]
    own = {value: name for name, value in names.items()}
    default = {value: "foreground" if len(values) == 1 else f"label {value}" for value in values}
    all_names = {own.get(value, default[value]): value for value in values}
    if labels is None:
        return {name: [value] for name, value in all_names.items()}
    if isinstance(labels, Mapping):
        chosen = {str(name): [v] if isinstance(v, int) else list(v) for name, v in labels.items()}
    else:
        wanted = [part.strip() for part in labels.split(",")] if isinstance(labels, str) else labels
        wanted = [wanted] if isinstance(wanted, int) else list(wanted)
        by_value = {str(value): name for name, value in all_names.items()}
        chosen = {}
        for item in map(str, wanted):
            name = item if item in all_names else by_value.get(item)
            if name is None:
                raise InputError(f"labels: no label '{item}' in the data; there are {_listed(all_names)}")
            chosen[name] = [all_names[name]]
    missing = sorted({value for part in chosen.values() for value in part} - set(values))
    if missing or not chosen:
        raise InputError(f"labels: no voxel has the value {missing}; there are {_listed(all_names)}")
    return chosen


def _wanted_values(names: Mapping[str, int], labels: Labels) -> set[int] | None:
    """Return the values that the labels asked for have, as far as that is known before the data are measured."""
    if isinstance(labels, Mapping):
        listed = [[v] if isinstance(v, int) else v for v in labels.values()]
        return {value for values in listed for value in values}
    wanted = labels.split(",") if isinstance(labels, str) else [labels] if isinstance(labels, int) else labels or ()
    texts = [str(item).strip() for item in wanted]
    return {names[text] if text in names else int(text) for text in texts if text in names or text.isdigit()} or None


def _listed(names: Mapping[str, int]) -> str:
    some = [f"{name} {value}" for name, value in list(names.items())[:12]]
    return ", ".join(some) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def channel_names(folder: CaseFolder, found: Fingerprint) -> tuple[str, ...]:
    """Return a name for each image channel: the data's own, the colours, or numbers."""
    if found.colour:
        return ("red", "green", "blue")
    if len(folder.channels) == found.num_channels:
        return tuple(folder.channels)
    return ("image",) if found.num_channels == 1 else tuple(f"channel {i}" for i in range(found.num_channels))


def _given(source: Source, label_column: str | None, skip_bad: bool) -> list[Choice]:
    given = [Choice("label_column", label_column, "column of the labels" if label_column else "found by its name")]
    if skip_bad:
        given.append(Choice("skip_bad", True, "cases that cannot be used are left out"))
    given.append(Choice("stains", False, "the colours; for H&E train the bundle itself, which sees stains"))
    given.append(Choice("threshold", 0.5, "the most probable class; validation may tell a better one"))
    given.append(
        Choice("max_hole_size", None, "holes are kept; for solid objects a size in pixels below which none is")
    )
    given.append(Choice("num_objects", None, "every object; 1 for one structure in the middle of every picture"))
    return [choice for choice in given if choice.key in source.train]


def _fitted(source: Source, choices: list[Choice], found: Fingerprint, task: Task) -> list[Choice]:
    """Return the choices with a batch that the memory allows, and told if the training data do not fit into it."""
    parser = ConfigParser({**copy.deepcopy(source.train), **settings_of(choices)})
    settings = {choice.key: choice.value for choice in choices}
    if "patch_size" in settings:
        pixels = math.prod(settings["patch_size"])
    elif "crop_size" in settings:
        pixels = math.prod(settings["crop_size"]) * settings["crops_per_case"]
    else:
        pixels = math.prod(settings["image_size"]) * source.template.slices_per_case
    choices = fit_batch(choices, found, task, int(bytes_a_pixel(parser) * pixels))
    cached = cached_bytes(found, task, choices)
    if cached > task.memory:
        logger.warning(
            "training keeps its cases in memory, about %.3g GiB of the %.3g GiB there are: choose a coarser pixdim, "
            "scale or image_size, keep fewer with --train#dataset#cache_num N, or take a machine with more",
            cached / 2**30,
            task.memory / 2**30,
        )
    return choices


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
