"""CHAOS's ground truth: a picture a slice, in the order of a DICOM series, as the label map of the volume."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shared_components.data.formats.dicom import itk_affine, read_series, series_files
from shared_components.data.formats.files import UnusableImage, image_files, image_stem
from shared_components.data.formats.pictures import read_picture

GROUND, SERIES = "Ground", "DICOM_anon"
GROUND_LABELS = {"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4}
_MR_GREY = {63: 1, 126: 2, 189: 3, 252: 4}
_CT_GREY = {1: 1, 255: 1}


def is_ground(path: Path) -> bool:
    """Tell whether a path is a folder of ground truth beside a DICOM series."""
    return path.name == GROUND and (path.parent / SERIES).is_dir()


def read_ground(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the pictures of a folder ``Ground/`` as a label map on the grid of the series beside it.

    A picture belongs to the DICOM file of its name; where the names differ, the first of the sorted pictures to the
    first of the sorted files, and so on, which has to go along the body. Its slice is where that file lies by its
    position in space, not by its name. Rows and columns are those of the file.

    Args:
        path: the folder; ``DICOM_anon/`` is beside it.

    Returns:
        Label map (x, y, z) uint8 of `GROUND_LABELS`: CHAOS's MR grey values 63, 126, 189 and 252, or CT's white, which
        is the liver; and the affine (4, 4) from voxel to mm in RAS.

    Raises:
        UnusableImage: pictures are missing or left over, of another size, of other values, or cannot be told apart.
    """
    series = path.parent / SERIES
    image = read_series(series)
    size = tuple(int(n) for n in image.GetLargestPossibleRegion().GetSize())
    files, pictures = series_files(series), image_files(path)
    if len(pictures) != len(files):
        raise UnusableImage(f"{len(pictures)} pictures for {len(files)} DICOM files in {SERIES}/; expected one a file")
    grey = np.zeros(size, np.int32)
    for picture, z in zip(pictures, _places(files, pictures)):
        pixels = read_picture(picture, is_label=True).pixels[..., 0]
        if pixels.shape != size[:2]:
            found, wanted = ("x".join(map(str, shape)) for shape in (pixels.shape, size[:2]))
            raise UnusableImage(f"{picture.name}: {found} pixels, expected {wanted}, those of the series", "label_grid")
        grey[..., z] = pixels
    return _numbered(grey), itk_affine(image)


def _places(files: list[Path], pictures: list[Path]) -> list[int]:
    """Return the slice of each picture, of files in the order of their positions."""
    by_name = {file.stem: z for z, file in enumerate(files)}
    stems = [image_stem(picture.name) for picture in pictures]
    if set(stems) == set(by_name):
        return [by_name[stem] for stem in stems]
    places = [by_name[stem] for stem in sorted(by_name)]
    if places not in (sorted(places), sorted(places, reverse=True)):
        raise UnusableImage(
            f"pictures are not called as the files of {SERIES}/, whose names are in another order than their "
            "positions; name each picture as its DICOM file",
            "label_grid",
        )
    return places


def _numbered(grey: np.ndarray) -> np.ndarray:
    """Replace grey values by the numbers of organs: all are those of MR, or all are CT's."""
    found = set(np.unique(grey).tolist()) - {0}
    numbers = next((numbers for numbers in (_MR_GREY, _CT_GREY) if found <= set(numbers)), None)
    if numbers is None:
        some = ", ".join(map(str, sorted(found)[:5]))
        text = f"grey values {some}; expected 63, 126, 189 and 252 (MR), or 255 (CT)"
        raise UnusableImage(f"{text}; get the pictures again", "label_values")
    labels = np.zeros(grey.shape, np.uint8)
    for value, number in numbers.items():
        labels[grey == value] = number
    return labels
