"""A folder of generated images with the masks they were generated from, complete or to be gone on with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shared_components.adaptation.mask_bank import DESCRIPTION as BANK
from shared_components.adaptation.mask_bank import bank_statement, write_mask_bank
from shared_components.data.checks.cases import check_cases
from shared_components.data.datalists import datalist, note_failure
from shared_components.data.formats.files import read_json_object, write_json
from shared_components.data.layouts.case_folder import describe
from shared_components.data.layouts.cases import find_cases
from shared_components.data.loaders import LoadLabelMapd
from shared_components.data.transforms import AveragingResized
from shared_components.errors import InputError
from shared_components.reporting.files import write_atomically
from shared_components.reporting.overlays import encode_png

DESCRIPTION = "pairs.json"
SHEET = "pairs.png"
_VALIDATION_EVERY = 8


def mask_items(
    dataset_dir: str | os.PathLike, labels: Mapping[str, int], skip_bad: bool = False, **split: Any
) -> list[dict[str, Any]]:
    """List the masks that images are to be generated for: all of a folder of masks, or a data set's training masks.

    Args:
        dataset_dir: pictures that are masks, directly or in ``masks/``, with nothing beside them; or a data set of any
            layout with masks.
        labels: the one label's name and value.
        skip_bad: leave out what cannot be used, with a warning, instead of refusing the folder.
        **split: how a data set is divided, as for `shared_components.data.datalists.datalist`.

    Returns:
        A dictionary a mask, with "label".

    Raises:
        InputError: there is no such folder, a mask cannot be read or holds other values, or the training section has
            none.
    """
    folder = find_cases(dataset_dir, 3)
    alone = [replace(case, images=(), label=case.images[0]) for case in folder.cases if case.images]
    if folder.layout != "images":
        alone = [] if alone else [case for case in folder.cases if case.label]
    if not alone:
        return datalist(dataset_dir, "train", labels, skip_bad, 3, spatial_dims=2, whole_labels=True, **split)
    folder.problems = []  # that masks have no images is no fault here
    found = [finding for finding in check_cases(folder, alone, labels, spatial_dims=2) if finding.level == "error"]
    bad = {finding.case for finding in found}
    usable = [case for case in alone if case.id not in bad]
    if found and (not skip_bad or not usable):
        more = f"; and {len(found) - 1} more" if len(found) > 1 else ""
        raise InputError(
            f"{folder.root}: as masks, {len(bad)} of {len(alone)} pictures cannot be used; expected masks of "
            f"0 and 255, alone or beside their images: {describe(found[0], folder.root)}{more}"
        )
    for finding in found:
        note_failure(folder.root, describe(finding, folder.root), describe(finding, folder.root))
    return [{"label": str(case.label)} for case in usable]


def read_masks(
    items: Sequence[Mapping[str, Any]], labels: Mapping[str, int], longest_side: int | None = None
) -> list[np.ndarray]:
    """Read the masks of a datalist, (rows, columns) uint8 in {0, 1}.

    Args:
        items: with "label".
        labels: the one label's name and value.
        longest_side: pixels that the longer side is brought to; as it is when ``None``.
    """
    load = LoadLabelMapd("label", labels)
    resize = None if longest_side is None else AveragingResized("label", longest_side, "longest", "nearest-exact")
    masks = []
    for item in items:
        loaded = load({"label": item["label"]})
        loaded = loaded if resize is None else resize(loaded)
        masks.append(np.asarray(loaded["label"][0]).T.astype(np.uint8))
    return masks


def pending_masks(
    items: Sequence[Mapping[str, Any]],
    masks: Sequence[np.ndarray],
    output_dir: str | os.PathLike,
    weights: str | os.PathLike,
    settings: Mapping[str, Any],
    size: Sequence[int],
    num_per_mask: int,
    seed: int = 0,
    min_foreground: float = 0.02,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Prepare a folder of pairs and list the masks whose images are still to be generated.

    The folder gets ``masks/`` (`write_mask_bank`), ``images/``, ``pairs.json``, which states what the images depend on,
    and ``split.json``, so that it is a data set as any other: every eighth pair is for validation.

    Args:
        items, masks, size, num_per_mask, min_foreground, seed: see `write_mask_bank`.
        output_dir: the folder.
        weights: of the generator.
        settings: what else the images depend on.
        overwrite: cut all windows and generate all images anew where the folder holds those of something else.

    Raises:
        InputError: no such weights, or the folder holds images of other masks, weights or settings.
    """
    if not Path(weights).is_file():
        raise InputError(f"{weights}: no such weights; run configs/train.json first, or give ckpt_path")
    folder = Path(output_dir)
    digest = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    windows = bank_statement(items, masks, size, num_per_mask, min_foreground, seed)
    stated = {"weights": digest, "settings": {key: str(value) for key, value in settings.items()}, "windows": windows}
    found = read_json_object(folder / DESCRIPTION) if (folder / DESCRIPTION).is_file() else None
    if found not in (None, stated):
        if not overwrite:
            raise InputError(
                f"{folder}: holds images of other weights or settings ({_changed(found, stated)}); set --overwrite "
                "True or give another output_dir"
            )
        _clear(folder)
    bank = write_mask_bank(items, masks, folder, size, num_per_mask, min_foreground, seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    write_json(folder / DESCRIPTION, stated)
    names = [Path(item["label"]).stem for item in bank]
    validation = names[_VALIDATION_EVERY - 1 :: _VALIDATION_EVERY] or names[-1:]
    train = [name for name in names if name not in set(validation)]
    write_json(folder / "split.json", {"train": train, "validation": validation, "test": []})
    return [item for item, name in zip(bank, names) if not (folder / "images" / f"{name}.png").is_file()]


def _changed(found: Mapping[str, Any], stated: Mapping[str, Any]) -> str:
    """Name what a folder of pairs was made with that is another now."""
    flat = [
        {**one.get("settings", {}), **one.get("windows", {}), "weights": one.get("weights")} for one in (found, stated)
    ]
    names = [key for key in sorted({*flat[0], *flat[1]}) if flat[0].get(key) != flat[1].get(key)]
    return ", ".join({"digest": "pixels of the masks", "least": "min_foreground"}.get(name, name) for name in names)


def _clear(folder: Path) -> None:
    """Remove what an earlier call has made."""
    for part in ("images", "masks"):
        for old in (folder / part).glob("*.png"):
            old.unlink()
    (folder / BANK).unlink(missing_ok=True)
    (folder / SHEET).unlink(missing_ok=True)
    (folder / DESCRIPTION).unlink()


def finish_pairs(output_dir: str | os.PathLike, num_shown: int = 12) -> Path:
    """Draw a sheet of the first pairs, each image above its mask, and return its path.

    Raises:
        InputError: masks without images are left.
    """
    folder = Path(output_dir)
    masks = sorted((folder / "masks").glob("*.png"))
    missing = [mask.stem for mask in masks if not (folder / "images" / mask.name).is_file()]
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} of {len(masks)} images are missing, {missing[0]} first; run it again"
        )
    shown = masks[:: max(1, len(masks) // num_shown)][:num_shown]
    columns = [np.concatenate([read_grey(folder / "images" / mask.name), read_grey(mask)]) for mask in shown]
    sheet = np.repeat(np.concatenate(columns, axis=1)[..., None], 3, axis=2)
    return write_atomically(folder / SHEET, encode_png(sheet))


def read_grey(path: str | os.PathLike) -> np.ndarray:
    """Read a grey picture of 8 or 16 bits as (rows, columns) uint8."""
    pixels = np.asarray(Image.open(path))
    if pixels.ndim == 3:
        pixels = pixels[..., 1]
    deep = pixels.dtype != np.uint8
    return (np.round(pixels.astype(np.float64) / 257) if deep else pixels).astype(np.uint8)
