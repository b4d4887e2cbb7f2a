"""Photographs of a retina made into angiograms: a shift of modality whose true labels are known, for scoring."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from shared_components.data.datalists import datalist
from shared_components.data.formats.files import image_stem, write_json
from shared_components.data.layouts.dataset_json import SECTIONS
from shared_components.data.loaders import LoadImageChannelsd, LoadLabelMapd
from shared_components.data.vessels import field_of_view
from shared_components.errors import InputError
from shared_components.whole_files import whole_folder

logger = logging.getLogger(__name__)

_GREEN = 1
_LABELS = {"vessel": 1}


def simulate_angiograms(
    dataset_dir: str | os.PathLike, output_dir: str | os.PathLike, speckle: float = 0.4, seed: int = 0
) -> Path:
    """Write a copy of a labelled data set of fundus photographs with the contrast of angiograms.

    What is simulated is the contrast, not the physics: vessels bright on a dark ground, multiplicative speckle, a
    square frame filled with retina. The labels are those of the photographs, cut alike.

    Args:
        dataset_dir: colour pictures with masks of vessels.
        output_dir: folder to make, of ``images/``, ``masks/`` and ``split.json``; must not exist.
        speckle: standard deviation of the factor of mean 1 that every pixel is multiplied by.
        seed: of the speckle.

    Returns:
        The folder.

    Raises:
        InputError: the folder exists, or ``dataset_dir`` is no such data set.
    """
    target = Path(output_dir).expanduser().absolute()
    if target.exists():
        raise InputError(f"{target}: exists; remove it or name another output_dir")
    load = (LoadImageChannelsd("image", num_channels=3), LoadLabelMapd("label", labels=_LABELS))
    with whole_folder(target) as folder:
        split, rng = {}, np.random.default_rng(seed)
        for name in ("images", "masks"):
            (folder / name).mkdir()
        for section in SECTIONS:
            items = datalist(dataset_dir, section, _LABELS, num_channels=3, spatial_dims=2)
            for item in items:
                loaded = load[1](load[0](item))
                picture, mask = (np.asarray(loaded[key]).transpose(0, 2, 1) for key in ("image", "label"))
                frame = largest_square(field_of_view(picture.max(axis=0), margin=0.01))
                name = f"{image_stem(Path(item['image']).name)}.png"
                Image.fromarray(angiogram(picture[_GREEN][frame], rng, speckle)).save(folder / "images" / name)
                Image.fromarray(np.where(mask[0][frame] > 0, 255, 0).astype(np.uint8)).save(folder / "masks" / name)
            split[section] = [image_stem(Path(item["image"]).name) for item in items]
        write_json(folder / "split.json", split)
    logger.info("%s: %d simulated angiograms", target, sum(map(len, split.values())))
    return target


def largest_square(field: np.ndarray, step: int = 4) -> tuple[slice, slice]:
    """Return the rows and columns of the largest square inside of a field (rows, columns) bool, to ``step`` pixels."""
    coarse = field[::step, ::step]
    sides = np.zeros(coarse.shape, int)  # of the largest square whose last corner is here
    for row, column in zip(*np.nonzero(coarse)):
        before = [sides[row - 1, column], sides[row, column - 1], sides[row - 1, column - 1]] if row and column else [0]
        sides[row, column] = 1 + min(before)
    row, column = np.unravel_index(sides.argmax(), sides.shape)
    side = sides[row, column]
    return tuple(slice(step * (last - side + 1), step * last + 1) for last in (row, column))


def angiogram(green: np.ndarray, rng: np.random.Generator, speckle: float) -> np.ndarray:
    """Return a picture (rows, columns) uint8 with bright vessels of a green channel (rows, columns).

    How much darker than its surroundings a pixel is becomes its brightness, so that an optic disc is no dark hole.
    Speckle is about two pixels wide.
    """
    side = max(green.shape)
    ground = gaussian_filter(green, side / 40) + 1
    darker = 1 - gaussian_filter(green, side / 1000) / ground
    low, high = np.percentile(darker, (25, 99.5))
    contrast = 0.15 + 0.85 * np.clip((darker - low) / max(high - low, 1e-6), 0, 1)
    noise = gaussian_filter(rng.standard_normal(green.shape), 1.0)
    factor = np.clip(1 + speckle * noise / noise.std(), 0, None)
    return np.clip(200 * contrast * factor, 0, 255).astype(np.uint8)
