"""Many small pictures on one sheet: images with the label maps that they were made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from shared_components.reporting.overlays import CAPTION, GAP, displayed, informative_slice, paint_labels, write_text

TILE = 160


class Tile(NamedTuple):
    """One image of a sheet.

    Attributes:
        title: written below.
        image: (*spatial) or (K, *spatial), 2-D or 3-D.
        label: (*spatial) class indices, or ``None``.
    """

    title: str
    image: np.ndarray
    label: np.ndarray | None = None


def contact_sheet(tiles: Sequence[Tile], columns: int = 4) -> np.ndarray:
    """Draw images in rows, each beside itself with its label map laid over it.

    Of a volume the slice of the last axis with the most foreground is shown; the first axis runs to the right, as in a
    picture, in a volume the second upwards (with axes in RAS order, the patient's front is up).

    Args:
        tiles: the images.
        columns: images a row.

    Returns:
        (height, width, 3) uint8.
    """
    return sheet_of([draw_tile(tile) for tile in tiles], columns)


def sheet_of(drawn: Sequence[Image.Image], columns: int = 4) -> np.ndarray:
    """Put pictures of `draw_tile` in rows of so many ``columns``, as (height, width, 3) uint8."""
    columns = max(1, min(columns, len(drawn)))
    width = max((picture.width for picture in drawn), default=TILE)
    height = max((picture.height for picture in drawn), default=TILE)
    rows = -(-len(drawn) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP), "black")
    for index, picture in enumerate(drawn):
        row, column = divmod(index, columns)
        sheet.paste(picture, (GAP + column * (width + GAP), GAP + row * (height + GAP)))
    return np.asarray(sheet)


def draw_tile(tile: Tile) -> Image.Image:
    """Draw one image of a sheet."""
    spatial = tile.label.ndim if tile.label is not None else tile.image.ndim - (tile.image.ndim > 3)
    label = tile.label if tile.label is not None else np.zeros(tile.image.shape[-spatial:], np.uint8)
    image = displayed(np.asarray(tile.image), spatial, None)
    if spatial == 3:
        index = informative_slice(2, label, None, None)
        image, label = image[:, ::-1, index], label[:, ::-1, index]
    scale = TILE / max(label.shape)
    size = tuple(max(1, round(length * scale)) for length in label.shape)
    grey = Image.fromarray(np.clip(image.swapaxes(0, 1), 0, 255).astype(np.uint8)).convert("RGB")
    base = np.asarray(grey.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    panels = [base]
    if tile.label is not None:
        enlarged = Image.fromarray(label.T.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
        panels.append(paint_labels(base, np.asarray(enlarged)))
    picture = Image.new("RGB", (len(panels) * (TILE + GAP) - GAP, TILE + CAPTION), "black")
    for column, panel in enumerate(panels):
        left = column * (TILE + GAP) + (TILE - size[0]) // 2
        picture.paste(Image.fromarray(np.clip(panel, 0, 255).astype(np.uint8)), (left, (TILE - size[1]) // 2))
    write_text(ImageDraw.Draw(picture), (picture.width / 2, TILE + CAPTION / 2), tile.title, size=11, anchor="mm")
    return picture
