"""Readers for `monai.transforms.LoadImage` of what MONAI's own do not read, or read otherwise than it is meant."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.data.image_reader import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from shared_components.data.formats.aperio import read_annotation
from shared_components.data.formats.arrays import is_stack, read_stack
from shared_components.data.formats.ground import is_ground, read_ground
from shared_components.data.formats.pictures import Picture, is_picture, read_picture

PICTURE_FORMAT = "picture_format"
_DEEP_TO_8_BIT = 257


class PictureReader(ImageReader):
    """Reads pictures for `monai.transforms.LoadImage` by `shared_components.data.formats.pictures.read_picture`.

    MONAI's own `PILReader` keeps alpha channels, palette indices and EXIF-rotated pixels as they are, and TIFF goes to
    another reader. The order of the axes is the same: columns first, which `PILWriter` undoes, so that a picture
    written from what was loaded lies as its source does. Values of 16 bits are divided by 257 as floats, so that
    pictures of both depths go from 0 to 255 and nothing is rounded; label maps are never scaled.
    """

    def __init__(self, is_label: bool = False) -> None:
        """Create the reader, for label maps if ``is_label``."""
        super().__init__()
        self.is_label = is_label

    def verify_suffix(self, filename: Sequence[str | os.PathLike] | str | os.PathLike) -> bool:
        """Tell whether all of the files are pictures."""
        return all(is_picture(Path(name)) for name in ensure_tuple(filename))

    def read(self, data: Sequence[str | os.PathLike] | str | os.PathLike, **_: Any) -> Picture:
        """Read one picture.

        Raises:
            UnusableImage: as `read_picture`.
        """
        (name,) = ensure_tuple(data)
        return read_picture(Path(name), self.is_label)

    def get_data(self, img: Picture) -> tuple[np.ndarray, dict[str, Any]]:
        """Return (columns, rows, channels) and the metadata, with an identity affine."""
        pixels = img.pixels
        if pixels.dtype == np.uint16 and not self.is_label:
            pixels = pixels.astype(np.float32) / _DEEP_TO_8_BIT
        meta = {
            MetaKeys.AFFINE: np.eye(4),
            MetaKeys.ORIGINAL_AFFINE: np.eye(4),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.asarray(pixels.shape[:2]),
            MetaKeys.ORIGINAL_CHANNEL_DIM: -1,
            PICTURE_FORMAT: img.file_format,
        }
        return pixels, meta


class VolumeReader(ImageReader):
    """Reads volumes that ITK does not know, for `monai.transforms.LoadImage`.

    They are stacks of slices as NumPy arrays (`shared_components.data.formats.arrays.read_stack`) and, as label maps,
    folders of CHAOS's ground truth (`shared_components.data.formats.ground.read_ground`).
    """

    def __init__(self, is_label: bool = False) -> None:
        """Create the reader, for label maps if ``is_label``."""
        super().__init__()
        self.is_label = is_label

    def verify_suffix(self, filename: Sequence[str | os.PathLike] | str | os.PathLike) -> bool:
        """Tell whether all of the paths are such volumes."""
        paths = [Path(name) for name in ensure_tuple(filename)]
        return all(is_stack(path) or (self.is_label and is_ground(path)) for path in paths)

    def read(self, data: Sequence[str | os.PathLike] | str | os.PathLike, **_: Any) -> tuple[np.ndarray, np.ndarray]:
        """Read one volume and its affine.

        Raises:
            UnusableImage: as `read_stack` and `read_ground`.
        """
        (name,) = ensure_tuple(data)
        path = Path(name)
        return (read_stack(path, self.is_label), np.eye(4)) if is_stack(path) else read_ground(path)

    def get_data(self, img: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the volume (x, y, z) and the metadata."""
        volume, affine = img
        meta = {
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.asarray(volume.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: "no_channel",
        }
        return volume, meta


@dataclass(frozen=True)
class Annotation:
    """An Aperio annotation in place of a label map, and the picture that it belongs to, if that is known."""

    path: str
    image: Path | None

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class PartlyLabelled:
    """A label map in which a value marks the voxels that nobody judged."""

    path: str
    ignored: int

    def __str__(self) -> str:
        return self.path


class AnnotationReader(PictureReader):
    """Draws one annotation."""

    def __init__(self, annotation: Annotation, numbered: bool) -> None:
        super().__init__(is_label=True)
        self.image, self.numbered = annotation.image, numbered

    def read(self, data: Sequence[str | os.PathLike] | str | os.PathLike, **_: Any) -> Picture:
        (name,) = ensure_tuple(data)
        return read_annotation(Path(name), self.image, self.numbered)
