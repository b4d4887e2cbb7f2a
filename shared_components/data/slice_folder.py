"""Volumes made into a folder of slices with image-level labels, for methods that are trained on those alone."""

from __future__ import annotations

import csv
import json
import logging
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, Orientationd
from PIL import Image
from tqdm import tqdm

from shared_components.data.checks.cases import check_cases, usual_spatial_dims
from shared_components.data.datalists import note_left_out
from shared_components.data.formats.files import write_json
from shared_components.data.image_labels import find_labelled_slices
from shared_components.data.layouts.case_folder import describe_some
from shared_components.data.layouts.cases import Case, CaseFolder
from shared_components.data.layouts.class_folders import LabelledSlices
from shared_components.data.layouts.dataset_json import named_channels
from shared_components.data.layouts.split import sections
from shared_components.data.loaders import LoadImageChannelsd, LoadLabelMapd
from shared_components.data.slice_transforms import is_foreground
from shared_components.errors import InputError, check_choice
from shared_components.whole_files import whole_folder

logger = logging.getLogger(__name__)

MARKER = "slices.json"
LABELS_OF = ("slice", "volume")
_KINDS = ("normal", "tumor")
_COMPARED = 1 << 16  # bytes at a file's end; a gzip file's has the checksum of all that is in it
_COLUMNS = ("id", "split", "image", "mask", "class", "patient", "z", "object_pixels", "body_pixels")


def prepare_slices(
    dataset_dir: str | os.PathLike,
    output_dir: str | os.PathLike,
    values: Sequence[int] = (1,),
    channel: int | None = None,
    window: Sequence[float] | None = None,
    min_share: float = 0.01,
    min_body: float = 0.05,
    every: int = 1,
    labels_of: str = "slice",
    channels: Sequence[str] | None = None,
    label_column: str | None = None,
    skip_bad: bool = False,
) -> Path:
    """Write the axial slices of labelled volumes as 8-bit pictures, with their labels in ``manifest.csv``.

    Grey values are clipped to the 0.5 and 99.5 percentile of a volume's voxels that are not background
    (`is_foreground`), or to ``window``, and scaled to 0..255 for the whole volume; so a slice keeps its brightness
    beside the others. A slice is positive if the object covers at least ``min_share`` of the body and negative if it
    is not there; slices between are left out, as are those with little body. Or every slice has the label of its
    volume (``labels_of``), for volumes of which only is known whether they show the object. The sections of the
    volumes are kept, so a patient lies in one of them.

    The folder appears when it is complete; one that holds the same slices already is used as it is, where the
    volumes' files still have the names, sizes and ends that they had.

    Args:
        dataset_dir: volumes with label maps: MSD, nnU-Net, two folders, CHAOS, BTCV
            (`shared_components.data.layouts.cases.find_cases`); or a ``manifest.csv`` with a label a volume
            (`shared_components.data.image_labels.find_labelled_slices`).
        output_dir: folder to make.
        values: values of the label maps that are the object; several are merged.
        channel: index of the image channel to take; by default the one that ``channels`` names, the first if it names
            none.
        window: lowest and highest grey value, for CT such as -160 and 240. ``None`` takes percentiles.
        min_share: see above; of the body's pixels.
        min_body: share of a slice's pixels that must be body: not background, or above the window's lower end.
        every: take every n-th slice.
        labels_of: what a label tells about, one of `LABELS_OF`: the ``slice``, by the label map; or the ``volume``, by
            the manifest, or by whether its label map holds the object anywhere.
        channels: name of the image channel to take, as ``dataset.json``, a manifest's columns or the files have it; of
            volumes with one channel any.
        label_column: the manifest's column of label maps.
        skip_bad: leave out volumes with errors, with a warning, instead of refusing the folder.

    Returns:
        The folder.

    Raises:
        InputError: the folder has no labelled volumes, a volume has an error and ``skip_bad`` is not set, the output
            holds something else or slices of data that have changed, a number is out of range, the channel is not
            there, or ``labels_of`` is unknown.
    """
    target = Path(os.path.abspath(os.path.expanduser(output_dir)))
    if not 0 <= min_share < 1 or not 0 <= min_body < 1 or every < 1:
        raise InputError(f"min_share {min_share}, min_body {min_body}, every {every}: expected shares, and at least 1")
    check_choice("labels_of", labels_of, LABELS_OF)
    found = _find(dataset_dir, channels, label_column)
    folder, classes = found.folder, found.classes if labels_of == "volume" else {}
    cases = [case for case in folder.cases if case.images and (case.label or case.id in classes)]
    if usual_spatial_dims(folder.cases) != 3:
        raise InputError(f"{folder.root}: holds pictures, which are slices already; give the folder as dataset_dir")
    if not cases:
        text = f"{folder.root}: no labelled case, expected volumes with label maps"
        text += "" if labels_of == "slice" else ", or a label each in manifest.csv or by its folder"
        hint = "; --slices#labels_of volume (--labels_of of prepare_slices) takes the label that each volume has"
        raise InputError(text + (hint if found.classes else ""))
    settings = {
        "source": str(folder.root), "values": list(values), "channel": _index(folder, channel, channels),
        "min_share": min_share, "min_body": min_body, "window": None if window is None else list(window),
        "every": every, "labels_of": labels_of, "data": _checksum(cases, [*classes.items()], sections(folder)),
    }  # fmt: skip
    if _is_complete(target, settings):
        return target
    cases = _usable(folder, cases, skip_bad)
    place = {case: section for section, ids in sections(folder).items() for case in ids}
    with whole_folder(target) as made:
        for name in ("images", "masks"):
            (made / name).mkdir()
        rows, values_found = [], set()
        for case in tqdm(cases, desc="slices", disable=len(cases) < 5):
            loaded = _load(case, len(folder.channels))
            values_found |= set(loaded["label"].unique().int().tolist()) if case.label else set()
            written = _write_case(made, case.id, loaded, settings)
            if labels_of == "volume":
                present = any(row["object_pixels"] for row in written)
                kind = _KINDS[classes.get(case.id, int(present))]
                written = [{**row, "class": kind} for row in written]
            rows += [{**row, "split": place.get(case.id, "")} for row in written]
        if not classes and values_found.isdisjoint(values):
            held = ", ".join(map(str, sorted(values_found)))
            raise InputError(
                f"{folder.root}: the label maps hold {held} and none of {', '.join(map(str, values))}, the values of "
                "the object; name those that are it (label_values of a bundle, --values of prepare_slices)"
            )
        with open(made / "manifest.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        write_json(made / MARKER, settings)
    logger.info("%s: %d slices of %d volumes", target, len(rows), len(cases))
    return target


def slice_folder(
    dataset_dir: str | os.PathLike,
    output_dir: str | os.PathLike,
    channels: Sequence[str] | None = None,
    label_column: str | None = None,
    **options: Any,
) -> str:
    """Return ``dataset_dir`` if it holds slices; of volumes a folder of slices made under ``output_dir``.

    Args:
        dataset_dir: of slices (`find_labelled_slices`) or of volumes (`prepare_slices`).
        output_dir: folder of the run; the slices go into its folder ``slices``.
        channels, label_column: of a manifest the columns, as in `find_labelled_slices`; of volumes with several
            channels the one to take.
        **options: of `prepare_slices`.

    Raises:
        InputError: see there.
    """
    if usual_spatial_dims(_find(dataset_dir, channels, label_column).folder.cases) == 2:
        return str(dataset_dir)
    named = {"channels": channels, "label_column": label_column}
    return str(prepare_slices(dataset_dir, Path(output_dir) / "slices", **named, **options))


def _find(dataset_dir: str | os.PathLike, channels: Sequence[str] | None, label_column: str | None) -> LabelledSlices:
    """Find all channels of the cases; of a manifest, whose columns may be anything, those that are named."""
    named = (channels, label_column) if (Path(dataset_dir).expanduser() / "manifest.csv").is_file() else ()
    return find_labelled_slices(dataset_dir, *named)


def _index(folder: CaseFolder, channel: int | None, channels: Sequence[str] | None) -> int:
    """Return which of the folder's channels the slices show."""
    own, named = [name.lower() for name in folder.channels], [name.lower() for name in named_channels(channels)]
    held = f"{folder.root}: the volumes hold {', '.join(folder.channels)}"
    if channel is None and named and len(own) > 1:
        if len(named) > 1 or named[0] not in own:
            raise InputError(
                f"{held}, and the slices are to show {', '.join(named_channels(channels))}: give the name of one of "
                "them with --channels, or its number, from 0, with --slices#channel (--channel of prepare_slices)"
            )
        channel = own.index(named[0])
    channel = channel or 0
    if not 0 <= channel < len(own):
        raise InputError(f"{held}: channel {channel} is not there; expected a number from 0 to {len(own) - 1}")
    if len(own) > 1:
        logger.info("%s: slices of channel %d, %s", folder.root, channel, folder.channels[channel])
    return channel


def _usable(folder: CaseFolder, cases: list[Case], skip_bad: bool) -> list[Case]:
    """Return the volumes without errors, after reading them all; refuse the others, or leave them out."""
    errors = [
        finding
        for finding in check_cases(folder, cases, num_channels=len(folder.channels))
        if finding.level == "error" and finding.kind not in ("no_label", "label_values")
    ]
    bad = {error.case for error in errors}
    good = [case for case in cases if case.id not in bad]
    if errors and (not skip_bad or not good):
        raise InputError(
            f"{folder.root}: {describe_some(errors, folder.root)}; correct them, or leave them out: check_data "
            "--skip_bad FOLDER makes a folder of the others"
        )
    if bad:
        logger.warning("%s: %d of %d volumes are left out, they have errors", folder.root, len(bad), len(cases))
        note_left_out(folder, errors)
    return good


def _is_complete(target: Path, settings: dict[str, Any]) -> bool:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        found = json.loads((target / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or {**found, "data": 0} != {**settings, "data": 0}:
        raise InputError(f"{target}: holds something other than the slices of {settings}; remove it or name another")
    if found.get("data") != settings["data"]:
        changed = f"the data in {settings['source']} have changed since, or an earlier version made it"
        raise InputError(f"{target}: {changed}; remove it or name another")
    return True


def _checksum(cases: Sequence[Case], *told: Any) -> int:
    """Return a number for the names, sizes and ends of the cases' files, and for what else is told of them."""
    checksum = zlib.crc32(repr(told).encode())
    for path in (path for case in cases for path in (*case.images, case.label, *case.masks) if path):
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            with open(file, "rb") as opened:
                size = opened.seek(0, os.SEEK_END)
                opened.seek(max(0, size - _COMPARED))
                checksum = zlib.crc32(opened.read(), zlib.crc32(f"{file.name} {size}".encode(), checksum))
    return checksum


def _load(case: Case, num_channels: int) -> dict[str, Any]:
    """Load image and, if there is one, label map of a volume, their axes in the order R, A, S."""
    keys = ["image", "label"] if case.label else ["image"]
    load = Compose(
        [
            LoadImageChannelsd("image", num_channels),
            LoadLabelMapd("label", allow_missing_keys=True),
            Orientationd(keys, axcodes="RAS", labels=None),
        ]
    )
    loaded = load(case.datalist_item())
    if case.label and loaded["image"].shape[1:] != loaded["label"].shape[1:]:
        shapes = tuple(loaded["label"].shape[1:]), tuple(loaded["image"].shape[1:])
        raise InputError(f"{case.label}: shape {shapes[0]}, expected {shapes[1]}, that of the image")
    return loaded


def _write_case(folder: Path, case: str, loaded: dict[str, Any], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Write the slices of a volume and return their rows of the manifest, without the section."""
    image = loaded["image"][settings["channel"]].numpy().astype(np.float64)
    mask = np.isin(loaded["label"][0].numpy(), settings["values"]) if "label" in loaded else None
    least = settings["min_share"] if settings["labels_of"] == "slice" else 0.0
    low, high = _limits(image, settings["window"])
    body = image > low if settings["window"] else is_foreground(torch.from_numpy(image)).numpy()
    grey = np.where(body, np.clip((image - low) / max(high - low, 1e-12), 0, 1), 0)
    rows = []
    for z in range(0, image.shape[2], settings["every"]):
        inside, present = int(body[..., z].sum()), 0 if mask is None else int(mask[..., z].sum())
        if inside < settings["min_body"] * body[..., z].size or 0 < present < least * inside:
            continue
        name = f"{case}_z{z:03d}"
        files = {"image": f"images/{name}.png", "mask": "" if mask is None else f"masks/{name}.png"}
        # columns are the first axis, as the loaders have it
        Image.fromarray(np.round(255 * grey[..., z].T).astype(np.uint8)).save(folder / files["image"])
        if mask is not None:
            Image.fromarray((255 * mask[..., z].T).astype(np.uint8)).save(folder / files["mask"])
        numbers = {"z": z, "object_pixels": present, "body_pixels": inside}
        rows.append({"id": name, "class": _KINDS[present > 0], "patient": case, **files, **numbers})
    return rows


def _limits(image: np.ndarray, window: Sequence[float] | None) -> tuple[float, float]:
    if window is not None:
        return float(window[0]), float(window[1])
    inside = image[is_foreground(torch.from_numpy(image)).numpy()]
    low, high = np.percentile(inside, [0.5, 99.5]) if inside.size else (0.0, 1.0)
    return float(low), float(high)
