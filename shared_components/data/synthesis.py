"""Which images are to be generated: a request for each, from a folder of label maps."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import TraceKeys
from PIL import Image

from shared_components.data.checks.cases import check_cases, usual_spatial_dims
from shared_components.data.datalists import SECTIONS, refuse_ignored
from shared_components.data.formats.files import IMAGE_SUFFIXES
from shared_components.data.layouts.case_folder import errors_by_case
from shared_components.data.layouts.cases import Case, CaseFolder, find_cases
from shared_components.data.layouts.split import sections
from shared_components.errors import InputError, check_choice, check_count
from shared_components.whole_files import whole_file

MODES = ("generate", "remove_classes", "translate", "interpolate")
ALL_CLASSES = "all"


def synthesis_requests(
    dataset_dir: str | os.PathLike,
    labels: Mapping[str, int],
    mode: str = "generate",
    num_samples: int = 1,
    num_images: int | None = None,
    seed: int = 0,
    drop_classes: Sequence[str | int] | str = (),
    section: str | None = None,
    num_channels: int = 1,
    spatial_dims: int | None = 3,
) -> tuple[list[dict[str, Any]], list[str]]:
    """List the images to generate, and say of each label map that cannot be used why.

    Image i has the seed ``seed`` + i, so it can be made again alone with its map and its seed. ``generate`` makes
    ``num_samples`` images of each label map, or ``num_images`` in all, exactly, going round the maps with new seeds.
    A map that cannot be used keeps its seeds, unless ``num_images`` has others take its place: those of the others are
    the same once it is mended.
    ``remove_classes`` makes a series of each label map with one seed: all classes, each one missing, and one after
    another missing. ``translate`` and ``interpolate`` start from the real image of a label map.

    Args:
        dataset_dir: a folder with label maps in any layout of `find_cases`, or of label maps alone.
        labels: name to value of the classes.
        mode: one of `MODES`.
        num_samples: images of a label map (``generate``, ``translate``, ``interpolate``).
        num_images: images in all; ``None`` for ``num_samples`` of each.
        seed: of the first image.
        drop_classes: names or values of classes to delete from every map, or ``all``.
        section: ``train``, ``validation`` or ``test`` of the folder; all when ``None``.
        num_channels: of the real images.
        spatial_dims: 3 for volumes, 2 for pictures and other 2-D images; ``None`` for what most of the maps are.

    Returns:
        Requests with ``image`` (path of the label map, which is the network's input), ``source`` (path or paths of the
        real image, where one is wanted), ``name``, ``seed``, ``dropped`` (names joined by ``+``) and ``series``
        (the case's name), and one line for each bad case.

    Raises:
        InputError: an unknown mode, section or class, a number out of range, or a folder without usable label maps.
    """
    _check(mode, num_samples, num_images, section)
    dropped = dropped_names(drop_classes, labels)
    folder = find_cases(dataset_dir, num_channels)
    refuse_ignored(folder)
    with_source = mode in ("translate", "interpolate")
    cases, failures = _usable_cases(folder, labels, section, with_source, num_channels, spatial_dims)
    if mode == "remove_classes":
        chosen = [*cases.items()][:num_images]
        return [item for place, case in chosen for item in _series(case, labels, seed + place)], failures
    total = len(cases) * num_samples if num_images is None else num_images
    each = max(-(-total // len(cases)), 1)
    width = max(len(str(each)), 2)
    # map by map where every one has its images, round and round where the number in all decides
    order = [(place * each + n, case, n) for place, case in cases.items() for n in range(each)]
    if num_images is not None:
        used = [*cases.values()]
        order = [(i, used[i % len(used)], i // len(used)) for i in range(total)]
    return [_request(case, seed + i, dropped, f"_{n + 1:0{width}d}") for i, case, n in order], failures


def dropped_names(drop_classes: Sequence[str | int] | str, labels: Mapping[str, int]) -> list[str]:
    """Return the names of classes given by name or value, one or several, or of all.

    Raises:
        InputError: one is no class.
    """
    if drop_classes == ALL_CLASSES:
        return list(labels)
    given = [drop_classes] if isinstance(drop_classes, (str, int)) else list(drop_classes)
    by_value = {value: name for name, value in labels.items()}
    names = [by_value.get(item, item) for item in given]
    for name in names:
        if name not in labels:
            raise InputError(f"drop_classes: {name!r} is no class; expected some of {', '.join(labels)}, or all")
    return names


def blank_label_map(output_dir: str | os.PathLike, size: Sequence[int], spacing: Sequence[float] | None = None) -> str:
    """Write a label map without labels, for images without any condition, into a folder of its own; return the folder.

    Args:
        output_dir: where the folder ``blank`` is made.
        size: of a volume (x, y, z), which is a NIfTI file, or a picture (columns, rows), a PNG.
        spacing: of a volume, in mm; 1 when ``None``.

    Raises:
        InputError: the size is not two or three positive numbers.
    """
    if not isinstance(size, Sequence) or len(size) not in (2, 3) or any(type(n) is not int or n < 1 for n in size):
        raise InputError(f"blank_size {size}: expected two or three positive whole numbers such as [64,64]")
    folder = Path(output_dir) / "blank"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ("blank.png" if len(size) == 2 else "blank.nii.gz")
    with whole_file(file) as temporary:
        if len(size) == 2:
            Image.fromarray(np.zeros(tuple(size)[::-1], np.uint8)).save(temporary)
        else:
            affine = np.diag([*(spacing or (1.0, 1.0, 1.0)), 1.0])
            nibabel.save(nibabel.Nifti1Image(np.zeros(tuple(size), np.uint8), affine), temporary)
    return str(folder)


class DropClassesd(MapTransform):
    """Delete from label maps the classes that the entry ``dropped`` of a request names.

    Args:
        keys: label maps (1, *spatial).
        labels: name to value of the classes.
        dropped_key: the entry: names joined by ``+``; absent or empty for none.
    """

    def __init__(
        self, keys: Hashable | Sequence[Hashable], labels: Mapping[str, int], dropped_key: str = "dropped"
    ) -> None:
        super().__init__(keys)
        self.labels = dict(labels)
        self.dropped_key = dropped_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Delete the classes."""
        result = dict(data)
        names = [name for name in str(result.get(self.dropped_key, "")).split("+") if name]
        values = torch.tensor([self.labels[name] for name in names])
        for key in self.key_iterator(result):
            label = result[key]
            result[key] = torch.where(torch.isin(label, values.to(label)), torch.zeros_like(label), label)
        return result


class InvertLinearlyd(MapTransform):
    """Have what was resampled by nearest neighbour inverted linearly.

    `Invertd` resamples a prediction as its original was: a generated image as the label map that it was made from.

    Args:
        keys: `MetaTensor` label maps, after their resampling.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Change the mode in the list of applied transforms."""
        result = dict(data)
        for key in self.key_iterator(result):
            for operation in result[key].applied_operations:
                extra = operation.get(TraceKeys.EXTRA_INFO, {})
                if extra.get("mode") in ("nearest", "nearest-exact"):
                    extra["mode"] = "bilinear"
        return result


class NameAfterRequestd(MapTransform):
    """Give images the file name that a request asks for, with the suffix of the file that they come from.

    Args:
        keys: `MetaTensor` images; their ``filename_or_obj`` becomes ``<name><suffix>``.
        source_key: the image whose file name has the suffix.
    """

    def __init__(self, keys: Hashable | Sequence[Hashable], source_key: str = "image") -> None:
        super().__init__(keys)
        self.source_key = source_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Name the images."""
        source = data[self.source_key]
        file = str(source.meta["filename_or_obj"])
        suffix = next((suffix for suffix in IMAGE_SUFFIXES if file.lower().endswith(suffix)), ".nii.gz")
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            meta = {**(image.meta if isinstance(image, MetaTensor) else {}), "filename_or_obj": data["name"] + suffix}
            result[key] = MetaTensor(torch.as_tensor(image), meta=meta)
        return result


def _check(mode: str, num_samples: int, num_images: int | None, section: str | None) -> None:
    check_choice("mode", mode, MODES)
    if section is not None and section not in SECTIONS:
        raise InputError(f"section must be one of {', '.join(SECTIONS)}, or none for all, not {section!r}")
    for name, value in (("num_samples", num_samples), ("num_images", num_images)):
        if value is not None:
            check_count(name, value)


def _usable_cases(
    folder: CaseFolder,
    labels: Mapping[str, int],
    section: str | None,
    with_source: bool,
    num_channels: int,
    spatial_dims: int | None,
) -> tuple[dict[int, Case], list[str]]:
    """Return the usable cases, each by its place among all, and a line for each other one."""
    if folder.labelled:
        cases = [case for case in folder.cases if case.label is not None]
        cases = [case if with_source else Case(case.id, (), case.label) for case in cases]
        if section is not None:
            chosen = set(sections(folder)[section])
            cases = [case for case in cases if case.id in chosen]
    else:  # label maps alone
        if section is not None:
            raise InputError(
                f"{folder.root}: label maps without images have no sections; leave out --section {section}"
            )
        cases = [Case(case.id, (), case.images[0]) for case in folder.cases if case.images]
    if with_source:
        cases = [case for case in cases if case.images]
    what = "label map with an image" if with_source else "label map"
    if not cases:
        raise InputError(f"{folder.root}: no {what}{f' in section {section!r}' if section else ''}; add some")
    spatial_dims = spatial_dims or usual_spatial_dims([Case(case.id, (case.label,)) for case in cases])
    stripped = CaseFolder(folder.root, folder.layout, folder.channels, dict(labels), cases)
    bad = errors_by_case(check_cases(stripped, cases, labels, num_channels, spatial_dims=spatial_dims), folder.root)
    good, failures = {place: case for place, case in enumerate(cases) if case.id not in bad}, list(bad.values())
    if not good:
        raise InputError(f"{folder.root}: no usable label map of {len(cases)}: {failures[0]}")
    return good, failures


def _request(case: Case, seed: int, dropped: Sequence[str], postfix: str) -> dict[str, Any]:
    item = {"source": str(case.images[0]) if len(case.images) == 1 else [str(path) for path in case.images]}
    return {
        "image": str(case.label),
        **(item if case.images else {}),
        "name": f"{case.id}{postfix}",
        "seed": seed % 2**31,
        "dropped": "+".join(dropped),
        "series": case.id,
    }


def _series(case: Case, labels: Mapping[str, int], seed: int) -> list[dict[str, Any]]:
    """All classes, each one missing, and the first two, three, ... missing."""
    names = list(labels)
    subsets = [(), *itertools.combinations(names, 1), *(tuple(names[:n]) for n in range(2, len(names) + 1))]
    # a class's name becomes part of a file's
    shown = {name: re.sub(r"[^\w.+-]+", "-", name) for name in names}
    return [
        _request(case, seed, subset, "_without_" + "_".join(shown[name] for name in subset) if subset else "_complete")
        for subset in subsets
    ]
