"""Windows of real masks, as conditions for images that are to be generated."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shared_components.data.formats.files import image_stem, write_json
from shared_components.errors import InputError

logger = logging.getLogger(__name__)

DESCRIPTION = "mask_bank.json"
_TRIES = 20


def windows(
    mask: np.ndarray,
    size: tuple[int, int],
    count: int,
    rng: np.random.Generator,
    min_foreground: float = 0.0,
) -> list[np.ndarray]:
    """Cut windows from a mask at places drawn evenly among all that there are.

    The published code never draws the last place, and fails on a mask of the window's own size.

    Args:
        mask: (rows, columns), any values; a smaller one is padded with zeros to the right and below.
        size: rows and columns of the windows.
        count: number of windows.
        rng: draws the places.
        min_foreground: share of a window that should be foreground; the fullest of 20 tries where there is none.

    Returns:
        ``count`` arrays of ``size``, of the mask's type.
    """
    padding = [(0, max(0, want - have)) for want, have in zip(size, mask.shape)]
    mask = np.pad(mask, padding)
    found = []
    for _ in range(count):
        best: np.ndarray | None = None
        for _ in range(_TRIES):
            top, left = (int(rng.integers(0, have - want + 1)) for want, have in zip(size, mask.shape))
            window = mask[top : top + size[0], left : left + size[1]]
            if best is None or np.count_nonzero(window) > np.count_nonzero(best):
                best = window
            if np.count_nonzero(window) >= min_foreground * window.size:
                best = window
                break
        found.append(best)
    return found


def write_mask_bank(
    items: Sequence[Mapping[str, Any]],
    masks: Sequence[np.ndarray],
    output_dir: str | os.PathLike,
    size: Sequence[int],
    num_per_mask: int,
    min_foreground: float = 0.02,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Write a bank of masks, a folder ``masks/`` of pictures of 0 and 255, and list it for generation.

    Masks are saved as masks (the published code saves them through the mapping of images, which makes 0 into 0.5).

    Args:
        items: datalist of the labels.
        masks: of each item (rows, columns), 0 or 1.
        output_dir: folder of the bank; what an equal call wrote there is used.
        size: rows and columns of the windows.
        num_per_mask: windows of each mask.
        min_foreground: see `windows`.
        seed: of the places; a window depends on it and on its number alone.

    Returns:
        ``[{"label": path, "seed": number}, ...]``.

    Raises:
        InputError: no masks, a number out of range, or a folder with another bank.
    """
    if not items or num_per_mask < 1 or len(size) != 2 or min(size) < 1:
        raise InputError(
            f"mask bank of {len(items)} masks, {num_per_mask} windows each of {list(size)}: expected at least one each"
        )
    folder = Path(output_dir)
    stated = bank_statement(items, masks, size, num_per_mask, min_foreground, seed)
    listed = [
        {"label": str(folder / "masks" / f"{name}_{number:03d}.png"), "seed": index * num_per_mask + number}
        for index, name in enumerate(stated["masks"])
        for number in range(num_per_mask)
    ]
    if _is_current(folder, stated) and all(Path(item["label"]).is_file() for item in listed):
        return listed
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    for index, mask in enumerate(masks):
        rng = np.random.default_rng((seed, index))
        for number, window in enumerate(windows(mask, tuple(size), num_per_mask, rng, min_foreground)):
            path = Path(listed[index * num_per_mask + number]["label"])
            Image.fromarray(np.where(window != 0, 255, 0).astype(np.uint8)).save(path)
    write_json(folder / DESCRIPTION, stated)
    logger.info("%s: a bank of %d masks", folder, len(listed))
    return listed


def bank_statement(
    items: Sequence[Mapping[str, Any]],
    masks: Sequence[np.ndarray],
    size: Sequence[int],
    num_per_mask: int,
    min_foreground: float,
    seed: int,
) -> dict[str, Any]:
    """Return what the windows of a bank depend on, the masks themselves among it; arguments of `write_mask_bank`."""
    names = [str(item.get("case") or image_stem(Path(str(item["label"])).name)) for item in items]
    if len(set(names)) < len(names):
        names = [f"{index:04d}_{name}" for index, name in enumerate(names)]
    digest = hashlib.sha256()
    for mask in masks:
        digest.update(str(mask.shape).encode() + np.packbits(mask != 0).tobytes())
    return {
        "masks": names, "digest": digest.hexdigest(), "size": list(size), "num_per_mask": num_per_mask, "seed": seed,
        "least": min_foreground,
    }  # fmt: skip


def _is_current(folder: Path, stated: Mapping[str, Any]) -> bool:
    try:
        found = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if found != stated:
        raise InputError(
            f"{folder}: holds a bank of other masks ({found.get('num_per_mask')} windows each of {found.get('size')}); "
            "remove it or give another output_dir"
        )
    return True
