"""DICOM series: which folders are one, and whether it is a single volume without gaps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from shared_components.data.formats.files import ITK_LOCK, UnusableImage, last_line

_TOLERANCE = 0.05  # of the usual distance of slices
_POSITION, _ORIENTATION = "0020|0032", "0020|0037"


def read_series(folder: Path) -> Any:
    """Read the one DICOM series of a folder as an ITK image, its slices ordered by position.

    Raises:
        UnusableImage: the folder holds several series, a file of it cannot be read, or slices are missing, stand at one
            position or are not parallel; the message says where.
    """
    import itk

    with ITK_LOCK:
        files = _sorted_files(itk, folder)
        _check_positions(itk, files)
        try:
            return itk.imread(files if len(files) > 1 else files[0])
        except RuntimeError as error:
            raise UnusableImage(f"DICOM series that cannot be read ({last_line(error)})") from error


def series_files(folder: Path) -> list[Path]:
    """Return the files of the one DICOM series of a folder in the order of their positions, as `read_series` has them.

    Raises:
        UnusableImage: the folder holds several series or none.
    """
    import itk

    with ITK_LOCK:
        return [Path(file) for file in _sorted_files(itk, folder)]


def itk_affine(image: Any) -> np.ndarray:
    """Return the affine (4, 4) from voxel index to mm in RAS of an ITK image of 2 or 3 axes, which has LPS itself."""
    import itk

    spacing = np.array([float(step) for step in image.GetSpacing()][:3])
    size = len(spacing)
    affine = np.eye(4)
    affine[:size, :size] = itk.array_from_matrix(image.GetDirection())[:size, :size] * spacing
    affine[:size, 3] = [float(x) for x in image.GetOrigin()][:size]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _sorted_files(itk: Any, folder: Path) -> list[str]:
    try:
        names = itk.GDCMSeriesFileNames.New()
        names.SetUseSeriesDetails(False)
        names.SetDirectory(str(folder))
        series = list(names.GetSeriesUIDs())
        files = [list(names.GetFileNames(uid)) for uid in series]
    except RuntimeError as error:
        raise UnusableImage(f"DICOM files that cannot be read ({last_line(error)})") from error
    if not series:
        raise UnusableImage("no readable DICOM file")
    if len(series) > 1:
        counts = ", ".join(str(len(part)) for part in files)
        raise UnusableImage(
            f"{len(series)} DICOM series in one folder ({counts} files); keep one series a folder", "mixed_series"
        )
    return files[0]


def _check_positions(itk: Any, files: list[str]) -> None:
    places = []
    normal = None
    for file in files:
        tags = _tags(itk, file)
        if _POSITION not in tags or _ORIENTATION not in tags:
            return  # not a stack of slices: a multi-frame file holds its own geometry
        axes = np.array([float(part) for part in tags[_ORIENTATION].split("\\")]).reshape(2, 3)
        across = np.cross(axes[0], axes[1])
        normal = across if normal is None else normal
        if np.dot(across, normal) < 0.999:
            raise UnusableImage(f"slices that are not parallel, such as {Path(file).name}", "mixed_series")
        places.append((float(np.dot([float(part) for part in tags[_POSITION].split("\\")], normal)), file))
    places.sort()
    steps = np.diff([place for place, _ in places])
    if len(steps) == 0:
        return
    usual = float(np.median(steps))
    for step, (place, file), (following, _) in zip(steps, places, places[1:]):
        if step <= _TOLERANCE * max(usual, 1e-6):
            raise UnusableImage(f"two slices at {place:.4g} mm, such as {Path(file).name}; keep one", "series_gap")
        if abs(step - usual) > _TOLERANCE * usual:
            missing = max(1, round(step / usual) - 1)
            raise UnusableImage(
                f"gap between the slices at {place:.4g} and {following:.4g} mm, which otherwise lie {usual:.4g} mm "
                f"apart: about {missing} missing; add what is missing or export the series again",
                "series_gap",
            )


def _tags(itk: Any, file: str) -> dict[str, str]:
    reader = itk.GDCMImageIO.New()
    reader.SetFileName(file)
    reader.ReadImageInformation()
    found = reader.GetMetaDataDictionary()
    return {key: str(found[key]).strip() for key in (_POSITION, _ORIENTATION) if found.HasKey(key)}
