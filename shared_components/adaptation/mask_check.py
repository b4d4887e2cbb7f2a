"""Whether masks can be of vessels and of the polarity that was said, before hours are spent on what they are not."""

from __future__ import annotations

import os

import numpy as np
from scipy.ndimage import binary_dilation

from shared_components.adaptation.scale import mask_width
from shared_components.data.layouts.cases import Case, find_cases
from shared_components.data.loaders import LoadImageChannelsd, LoadLabelMapd
from shared_components.errors import InputError

_SHOWN = 8
_GREEN = 1
_WIDEST = 10, 0.04  # pixels, and share of the longer side: vessels of photographs have 0.007


def about_masks(folder: str | os.PathLike, polarity: str) -> list[str]:
    """Return what speaks against masks being of vessels that are darker or brighter than what surrounds them.

    The first pictures are looked at. What cannot be read is passed over: the stage that trains on it says so.

    Args:
        folder: pictures with masks, of any layout.
        polarity: ``dark`` or ``bright``.
    """
    try:
        cases = [case for case in find_cases(folder, 3).cases if case.images and case.label is not None]
        measured = [_measured(case) for case in cases[:_SHOWN]]
    except (InputError, RuntimeError, OSError, ValueError):
        return []
    measured = [one for one in measured if one is not None]
    if not measured:
        return []
    wide = [width for width, side, _ in measured if width > max(_WIDEST[0], _WIDEST[1] * side)]
    if len(wide) > len(measured) / 2:
        return [
            f"{folder}: what the masks mark is {np.median(wide):.0f} pixels wide in {len(wide)} of {len(measured)} "
            "pictures, far more than vessels are: are these masks of vessels, and source and target not mixed up?"
        ]
    against = sum((contrast > 0) == (polarity == "dark") for _, _, contrast in measured)
    if against > len(measured) / 2:
        found, other = ("brighter", "bright") if polarity == "dark" else ("darker", "dark")
        return [
            f"{folder}: what the masks mark is {found} than what surrounds it in {against} of {len(measured)} "
            f"pictures, but the polarity is {polarity}: give {other}, or see that source and target are not mixed up"
        ]
    return []


def _measured(case: Case) -> tuple[float, int, float] | None:
    """Return width of what is marked, the picture's longer side, and how much brighter it is than its surroundings."""
    item = LoadLabelMapd("label", united=True)(LoadImageChannelsd("image", 3)(case.datalist_item()))
    mask, grey = np.asarray(item["label"][0]) > 0, np.asarray(item["image"])[_GREEN]
    if mask.shape != grey.shape or not mask.any() or mask.all():
        return None
    width = mask_width([mask])
    around = binary_dilation(mask, iterations=max(2, round(width))) & ~mask
    return width, max(mask.shape), float(grey[mask].mean() - grey[around].mean())
