"""Volumes made into a folder of slices with image-level labels, for methods that are trained on those alone."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import Compose, Orientationd
from PIL import Image
from tqdm import tqdm

from shared_components.data.cases import Case, find_cases
from shared_components.data.check import usual_spatial_dims
from shared_components.data.image_labels import find_labelled_slices
from shared_components.data.loaders import LoadImageChannelsd, LoadLabelMapd
from shared_components.data.split import sections
from shared_components.errors import InputError

logger = logging.getLogger(__name__)

MARKER = "slices.json"
_COLUMNS = ("id", "split", "image", "mask", "class", "patient", "z", "object_pixels", "body_pixels")


def prepare_slices(
    dataset_dir: str | os.PathLike,
    output_dir: str | os.PathLike,
    values: Sequence[int] = (1,),
    channel: int = 0,
    window: Sequence[float] | None = None,
    min_share: float = 0.01,
    min_body: float = 0.05,
    every: int = 1,
) -> Path:
    """Write the axial slices of labelled volumes as 8-bit pictures, with their labels in ``manifest.csv``.

    Grey values are clipped to the 0.5 and 99.5 percentile of a volume's voxels that are not zero, or to ``window``, and
    scaled to 0..255 for the whole volume; so a slice keeps its brightness beside the others. A slice is positive if the
    object covers at least ``min_share`` of the body and negative if it is not there; slices between are left out, as
    are those with little body. The sections of the volumes are kept, so a patient lies in one of them.

    The folder appears when it is complete; one that holds the same slices already is used as it is.

    Args:
        dataset_dir: volumes with label maps: MSD, nnU-Net, or two folders (`shared_components.data.cases.find_cases`).
        output_dir: folder to make.
        values: values of the label maps that are the object; several are merged.
        channel: index of the image channel to take.
        window: lowest and highest grey value, for CT such as -160 and 240. ``None`` takes percentiles.
        min_share: see above; of the body's pixels.
        min_body: share of a slice's pixels that must be body: not zero, or above the window's lower end.
        every: take every n-th slice.

    Returns:
        The folder.

    Raises:
        InputError: the folder has no labelled volumes, the output holds something else, or a number is out of range.
    """
    target = Path(os.path.abspath(os.path.expanduser(output_dir)))
    if not 0 <= min_share < 1 or not 0 <= min_body < 1 or every < 1:
        raise InputError(f"min_share {min_share}, min_body {min_body}, every {every}: expected shares, and at least 1")
    folder = find_cases(dataset_dir)
    cases = [case for case in folder.cases if case.images and case.label]
    if not cases or usual_spatial_dims(cases) != 3:
        raise InputError(f"{folder.root}: {len(cases)} labelled cases, expected volumes with label maps")
    settings = {
        "source": str(folder.root), "values": list(values), "channel": channel, "min_share": min_share,
        "min_body": min_body, "window": None if window is None else list(window), "every": every,
    }  # fmt: skip
    if _is_complete(target, settings):
        return target
    place = {case: section for section, ids in sections(folder).items() for case in ids}
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".slices-", dir=target.parent) as temporary:
        scratch = Path(temporary) / "set"
        for name in ("images", "masks"):
            (scratch / name).mkdir(parents=True)
        rows = []
        for case in tqdm(cases, desc="slices", disable=len(cases) < 5):
            rows += _write_case(scratch, case, place.get(case.id, ""), len(folder.channels), settings)
        _write_manifest(scratch, rows)
        (scratch / MARKER).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        os.rename(scratch, target)
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
        channels, label_column: columns of a manifest, as in `find_labelled_slices`.
        **options: of `prepare_slices`.

    Raises:
        InputError: see there.
    """
    named = (channels, label_column) if (Path(dataset_dir).expanduser() / "manifest.csv").is_file() else ()
    if usual_spatial_dims(find_labelled_slices(dataset_dir, *named).folder.cases) == 2:
        return str(dataset_dir)
    return str(prepare_slices(dataset_dir, Path(output_dir) / "slices", **options))


def _is_complete(target: Path, settings: dict[str, Any]) -> bool:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        found = json.loads((target / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found != settings:
        raise InputError(f"{target}: holds something other than the slices of {settings}; remove it or name another")
    return True


def _write_case(
    folder: Path, case: Case, section: str, num_channels: int, settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """Write the slices of a volume and return their rows of the manifest."""
    load = Compose(
        [
            LoadImageChannelsd("image", num_channels),
            LoadLabelMapd("label"),
            Orientationd(["image", "label"], axcodes="RAS", labels=None),
        ]
    )
    loaded = load(case.datalist_item())
    image = loaded["image"][settings["channel"]].numpy().astype(np.float64)
    mask = np.isin(loaded["label"][0].numpy(), settings["values"])
    if image.shape != mask.shape:
        raise InputError(f"{case.label}: shape {mask.shape}, expected {image.shape}, that of the image")
    low, high = _limits(image, settings["window"])
    body = image > low if settings["window"] else image != 0
    grey = np.where(body, np.clip((image - low) / max(high - low, 1e-12), 0, 1), 0)
    rows = []
    for z in range(0, image.shape[2], settings["every"]):
        inside, present = int(body[..., z].sum()), int(mask[..., z].sum())
        if inside < settings["min_body"] * body[..., z].size or 0 < present < settings["min_share"] * inside:
            continue
        name = f"{case.id}_z{z:03d}"
        files = {"image": f"images/{name}.png", "mask": f"masks/{name}.png"}
        # columns are the first axis, as the loaders have it
        Image.fromarray(np.round(255 * grey[..., z].T).astype(np.uint8)).save(folder / files["image"])
        Image.fromarray((255 * mask[..., z].T).astype(np.uint8)).save(folder / files["mask"])
        kind = "tumor" if present else "normal"
        numbers = {"z": z, "object_pixels": present, "body_pixels": inside}
        rows.append({"id": name, "split": section, "class": kind, "patient": case.id, **files, **numbers})
    return rows


def _limits(image: np.ndarray, window: Sequence[float] | None) -> tuple[float, float]:
    if window is not None:
        return float(window[0]), float(window[1])
    inside = image[image != 0]
    low, high = np.percentile(inside, [0.5, 99.5]) if inside.size else (0.0, 1.0)
    return float(low), float(high)


def _write_manifest(folder: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    (folder / "manifest.csv").write_text(text.getvalue(), encoding="utf-8")
