"""What a bundle's settings should be for the data that a fingerprint describes, and why: rules, no files."""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shared_components.data.fingerprint import Fingerprint

_SIDES = re.compile(r"(?:^|[^a-z])(left|right|l|r)(?:$|[^a-z])", re.IGNORECASE)
_CUBES = 1.25  # ratio of voxel sizes up to which a volume is taken for isotropic
_COARSE_AXIS = 1.5  # ratio from which on the coarsest axis is the one to slice along
_FAR_NEIGHBOURS_MM = 6.0
_ZERO_BACKGROUND = 0.2
_STEPS_A_SLICE, _LEAST_STEPS, _MOST_STEPS = 15, 1000, 4000
_PLANE = {"cpu": 128, "cuda": 256}  # longest side of a volume's slices, in pixels
_PICTURE = {"cpu": 512, "cuda": 1024}  # longest side of pictures that are cut into tiles
_PATCH = {"cpu": 96, "cuda": 160}
_PATCH_SLICES = 6
_MANY_CASES = 100


@dataclass(frozen=True)
class Choice:
    """A setting of ``train.json`` (and of ``inference.json``, where it has it), and why it is what it is."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Template:
    """What is to be known of the bundle that is adapted.

    Attributes:
        family: "volumes", "pictures", "tiles" (pictures at one magnification) or "either" (volumes and pictures).
        batch_size, pixels: of its own training: cases a batch, and pixels of slices that a case brings to it.
        plane: (columns, rows) that it brings slices to; ``None`` where it does not.
        multiple: that the sides of slices must be multiples of.
        slices_per_case: slices that a case brings to a batch, where that is a setting.
    """

    family: str
    batch_size: int
    pixels: int
    plane: tuple[int, int] | None
    multiple: int
    slices_per_case: int = 1


@dataclass(frozen=True)
class Task:
    """What the data are for.

    Attributes:
        classes: name to the values that files store for it, in the order of the class numbers.
        channels: names of the image channels.
        columns: whether these name columns (files) that hold a channel each.
        num_train: training cases of the fold.
        fold, num_folds, patient_pattern, patient_rule, split_source: how the sections are made.
        device: "cpu" or "cuda".
        memory: bytes that a training may take.
    """

    classes: Mapping[str, Sequence[int]]
    channels: tuple[str, ...]
    columns: bool
    num_train: int
    fold: int | None
    num_folds: int
    patient_pattern: str | None
    patient_rule: str
    split_source: str
    device: str
    memory: int


def plan(found: Fingerprint, template: Template, task: Task) -> list[Choice]:
    """Return the choices, in the order in which a reader wants them; the batch size is `fit_batch`'s to finish."""
    choices = [*_classes(found, template, task), *_channels(found, template, task)]
    geometry, per_case = _geometry(found, template, task)
    choices += geometry
    choices.append(_normalisation(found, template))
    choices += _random(found, template, task)
    batch = max(1, min(template.batch_size, round(template.batch_size * template.pixels / per_case), task.num_train))
    text = f"{batch} of the template's {template.batch_size}: {per_case} pixels a case against {template.pixels} there"
    choices.append(Choice("batch_size", batch, text))
    choices += _length(found, task, batch, choices)
    return [*choices, *_sections(task)]


def fit_batch(choices: Sequence[Choice], found: Fingerprint, task: Task, bytes_a_case: int) -> list[Choice]:
    """Return the choices with a batch that fits into the memory, and the number of epochs that follows from it.

    Args:
        choices: of `plan`.
        found, task: as given to `plan`.
        bytes_a_case: what the training of one case takes.
    """
    settings = {choice.key: choice for choice in choices}
    batch = settings["batch_size"].value
    while batch > 1 and batch * bytes_a_case > task.memory:
        batch //= 2
    need, have = batch * bytes_a_case / 2**30, task.memory / 2**30
    text = f"{settings['batch_size'].reason}; about {need:.2g} GiB of the {have:.3g} GiB there are"
    if batch < settings["batch_size"].value:
        text = f"{batch} cases are what fits: about {need:.2g} GiB of the {have:.3g} GiB there are"
    changed = {"batch_size": replace(settings["batch_size"], value=batch, reason=text)}
    changed.update({choice.key: choice for choice in _length(found, task, batch, choices)})
    return [changed.get(choice.key, choice) for choice in choices]


def settings_of(choices: Sequence[Choice]) -> dict[str, Any]:
    """Return key to value, copied."""
    return {choice.key: copy.deepcopy(choice.value) for choice in choices}


def cached_bytes(found: Fingerprint, task: Task, choices: Sequence[Choice]) -> int:
    """Return what the training cases take in memory, where they are kept after loading and resampling."""
    settings = {choice.key: choice.value for choice in choices}
    size = found.median_size
    if "pixdim" in settings:
        order = _permutation(settings["axcodes"])
        size = tuple(size[a] * found.median_spacing[a] / step for a, step in zip(order, settings["pixdim"]))
    elif "image_size" in settings:
        size = (*settings["image_size"], *(size[2:]))
    elif "scale" in settings:
        size = tuple(side * settings["scale"] for side in size)
    return int(task.num_train * math.prod(size) * (found.num_channels + 1) * 4)


def _classes(found: Fingerprint, template: Template, task: Task) -> Iterator[Choice]:
    numbers = {name: number for number, name in enumerate(task.classes, 1)}
    stored = [list(values) for values in task.classes.values()]
    in_files = sorted({item.value for item in found.classes})
    shares = {item.value: item.share_of_labelled for item in found.classes}
    shown = ", ".join(
        f"{name} {100 * sum(shares.get(v, 0.0) for v in values):.3g} %" for name, values in task.classes.items()
    )
    yield Choice("labels", numbers, f"share of the labelled voxels: {shown}")
    if template.family == "either":
        yield Choice("label_values", [[number] for number in numbers.values()], "a class is diffused as a channel")
    if stored == [[number] for number in numbers.values()] and set(in_files) <= set(numbers.values()):
        if template.family == "either":
            yield Choice("known_labels", "$list(@labels.values())", "values that label files may hold")
        return
    label = "in files of MONAI Label a class is its number"
    yield Choice(
        "stored_values",
        f"$None if settings.in_monai_label() else {stored}",
        f"values that the files store for the classes, in their order; other values are background; {label}",
    )
    known = sorted({*in_files, *(value for values in stored for value in values)})
    yield Choice(
        "known_labels",
        f"$list(@labels.values()) if settings.in_monai_label() else {known}",
        "values that label files may hold; any other is reported",
    )


def _channels(found: Fingerprint, template: Template, task: Task) -> Iterator[Choice]:
    names = ", ".join(task.channels)
    if template.family == "either":
        yield Choice("channels", list(task.channels), f"{found.num_channels} image channels: {names}")
        return
    yield Choice("num_channels", found.num_channels, f"{found.num_channels} image channels: {names}")
    if task.columns:
        yield Choice("channels", list(task.channels), "a file a channel, of these names")


def _geometry(found: Fingerprint, template: Template, task: Task) -> tuple[list[Choice], int]:
    """Return the choices, and the pixels of slices that a case brings to a batch."""
    if template.family == "volumes":
        return _volume_geometry(found, template, task)
    if template.family == "tiles":
        return _tile_geometry(found, template, task)
    width, height = found.median_size[:2]
    plane = template.plane or (128, 128)
    budget = math.prod(plane) * (4 if task.device == "cuda" else 1)
    factor = min(1.0, math.sqrt(budget / (width * height)))
    size = [_upwards(width * factor, template.multiple), _upwards(height * factor, template.multiple)]
    what = "slices" if len(found.median_size) > 2 else "pictures"
    brought = f"brought to about the template's {plane[0]}x{plane[1]} pixels in their own proportions"
    reason = f"{what} of {width:g}x{height:g} in the median, {brought if factor < 1 else 'left as large as they are'}"
    reason += f", sides multiples of {template.multiple}"
    choices = [Choice("image_size", size, reason)]
    if template.family == "either" and not found.pictures:
        choices += _adjacent(found.median_spacing[2], found.median_size[2])
    return choices, math.prod(size) * template.slices_per_case


def _volume_geometry(found: Fingerprint, template: Template, task: Task) -> tuple[list[Choice], int]:
    spacing, size = found.median_spacing, found.median_size
    ratio = max(spacing) / min(spacing)
    cubes = ratio <= _CUBES
    axis = spacing.index(max(spacing)) if ratio >= _COARSE_AXIS else 2
    axcodes = ("ASR", "SRA", "RAS")[axis]
    order = _permutation(axcodes)
    extent = [size[a] * spacing[a] for a in order]
    target = [max(spacing)] * 3 if cubes else [spacing[a] for a in order]
    limit = _PLANE[task.device]
    coarsest = max(extent[0] / target[0], extent[1] / target[1]) / limit
    shrunk = coarsest > 1
    if shrunk:
        target = [step * coarsest if a < 2 or cubes else step for a, step in enumerate(target)]
    target = [float(f"{step:.3g}") for step in target]
    plane = [extent[a] / target[a] for a in range(3)]
    seen = "x".join(f"{step:.3g}" for step in spacing)
    why = f"the median of {seen} mm" + (f", coarsened so that slices have at most {limit} pixels" if shrunk else "")
    patch = [min(_PATCH[task.device], _upwards(side, template.multiple)) for side in plane[:2]]
    patch.append(max(3, min(_PATCH_SLICES, round(plane[2]))))
    names = ("sagittal", "coronal", "axial")
    slicing = (
        "voxels are nearly cubes: members slice along all three axes, each sees what the others cannot"
        if cubes
        else f"{names[axis]} slices: voxels are {max(spacing):.3g} mm along that axis against {min(spacing):.3g} mm"
    )
    choices = [
        Choice("axcodes", axcodes, f"the last axis is the one to slice along ({names[axis]} slices)"),
        Choice("slice_axes", [2, 0, 1] if cubes else [2], slicing),
        Choice(
            "num_samples",
            6 if cubes else 4,
            "members, the same number along each axis, half of them mirrored",
        ),
        Choice("pixdim", target, why),
        Choice("patch_size", patch, f"of volumes of {'x'.join(f'{side:.0f}' for side in plane)} voxels after that"),
        *_adjacent(target[2], plane[2]),
    ]
    return choices, math.prod(patch)


def _tile_geometry(found: Fingerprint, template: Template, task: Task) -> tuple[list[Choice], int]:
    longest, limit = max(found.median_size), _PICTURE[task.device]
    scale = float(f"{min(1.0, limit / longest):.3g}")
    shortest = min(size[0] for size in found.sizes) * scale
    side = max(template.multiple, min(template.plane[0] if template.plane else 128, _downwards(shortest, 8)))
    crops = template.slices_per_case if task.num_train < _MANY_CASES else 1
    text = f"pictures of up to {longest:g} pixels in the median, seen at no more than {limit}"
    choices = [
        Choice("scale", scale, text),
        Choice("crop_size", [side, side], f"the smallest picture has {shortest:.0f} pixels on its shorter side"),
        Choice("tile_size", 2 * side, "twice a crop; larger pictures are denoised in blended tiles"),
        Choice("crops_per_case", crops, f"random crops of each of {task.num_train} pictures an epoch"),
    ]
    return choices, side * side * crops


def _adjacent(step: float, num_slices: float) -> list[Choice]:
    near = step <= _FAR_NEIGHBOURS_MM and num_slices >= 3
    text = f"slices lie {step:.3g} mm apart: " + (
        "neighbours are seen too" if near else "too far to tell of each other"
    )
    return [Choice("num_adjacent_slices", int(near), text)]


def _normalisation(found: Fingerprint, template: Template) -> Choice:
    key, means = "normalisation", "shared_components.data.transforms.PercentileNormalized"
    if found.modality == "CT" and found.num_channels == 1:
        values = (found.foreground or found.intensities)[0]
        low, high, mean, std = (values[name] for name in ("p0_5", "p99_5", "mean", "std"))
        std = std or 1.0
        window = {
            "_target_": "ScaleIntensityRanged",
            "keys": "image",
            "a_min": round(low, 3),
            "a_max": round(high, 3) if high > low else round(low, 3) + 1,
            "b_min": round((low - mean) / std, 4),
            "b_max": round((high - mean) / std, 4) if high > low else 1.0,
            "clip": True,
        }
        where = "the labelled voxels" if found.foreground else "all voxels"
        text = f"CT ({found.modality_source}): one window for all cases, the 0.5 and 99.5 percentiles of {where}"
        return Choice(key, window, f"{text} ({low:.4g} to {high:.4g}), scaled by their mean and deviation")
    fixed = {
        "_target_": "NormalizeIntensityd",
        "keys": "image",
        "subtrahend": [round(values["mean"], 2) for values in found.intensities],
        "divisor": [round(values["std"], 2) or 1.0 for values in found.intensities],
        "channel_wise": True,
    }
    if found.modality == "RGB":
        return Choice(key, fixed, "colours: each channel by its mean and deviation over all pictures")
    if template.family == "tiles":
        return Choice(key, fixed, "one scale for all pictures, as crops of one picture must have the same")
    if found.pictures:
        return Choice(key, {"_target_": means, "keys": "image"}, "grey pictures: each by its own percentiles")
    nonzero = found.zero_share > _ZERO_BACKGROUND
    text = f"{found.modality} ({found.modality_source}): scales differ, so each case by its own percentiles"
    text += f"; of voxels that are not 0, as {100 * found.zero_share:.0f} % are" if nonzero else ""
    return Choice(key, {"_target_": means, "keys": "image", **({"nonzero": True} if nonzero else {})}, text)


def _random(found: Fingerprint, template: Template, task: Task) -> Iterator[Choice]:
    sided = [name for name in task.classes if _SIDES.search(name.replace("_", " "))]
    if sided:
        reason = f"{sided[0]} is on one side of the body: nothing is mirrored"
        yield Choice("mirror_members", False, reason)
        yield Choice("flip_prob", 0.0, reason)
    if template.family == "tiles":
        if found.num_channels != 3:
            value = {
                "_target_": "RandAdjustContrastd", "keys": "image", "gamma": [0.7, 1.5], "retain_stats": True,
                "prob": 0.5,
            }  # fmt: skip
            yield Choice("colour_transform", value, f"{found.num_channels} channels have no colours to change")
        if not found.instances:
            yield Choice("instance_scores", None, "no instances/ beside the masks: single objects are not scored")
            yield Choice("save_instances", False, "nor numbered at inference")
    if template.family == "pictures" and not found.colour:
        yield Choice("rotate_range", 0.3, "grey pictures are taken for upright ones")


def _length(found: Fingerprint, task: Task, batch: int, choices: Sequence[Choice]) -> list[Choice]:
    axes = {choice.key: choice.value for choice in choices}
    axis = 0 if found.pictures else _permutation(axes.get("axcodes", "RAS"))[2]
    slices = max(1, round(found.num_slices[axis] * task.num_train / max(1, found.num_cases)))
    steps = min(_MOST_STEPS, max(_LEAST_STEPS, _STEPS_A_SLICE * slices))
    a_epoch = math.ceil(task.num_train / batch)
    epochs = math.ceil(steps / a_epoch)
    what = "pictures" if found.pictures else "slices"
    text = f"{slices} {what} to train on: about {steps} steps, {a_epoch} an epoch"
    return [Choice("max_epochs", epochs, text), Choice("val_interval", max(1, epochs // 20), "twenty times a training")]


def _sections(task: Task) -> Iterator[Choice]:
    rule = task.patient_rule or "every case is taken for a patient of its own"
    yield Choice("patient_pattern", task.patient_pattern, f"patients: {rule}")
    yield Choice("fold", task.fold, task.split_source)
    yield Choice("num_folds", task.num_folds, "parts of what is not tested; a part validates")


def _permutation(axcodes: str) -> list[int]:
    """Return which of the axes left-right, posterior-anterior, inferior-superior comes first, second and last."""
    return ["RAS".index(code) for code in axcodes]


def _upwards(value: float, multiple: int) -> int:
    return max(multiple, math.ceil(value / multiple - 1e-6) * multiple)


def _downwards(value: float, multiple: int) -> int:
    return max(multiple, int(value // multiple) * multiple)


def usable_memory(device: str) -> int:
    """Return the bytes that a training may take: 80 % of a GPU's memory, or half of the machine's."""
    if device == "cuda":
        import torch

        return int(0.8 * torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
