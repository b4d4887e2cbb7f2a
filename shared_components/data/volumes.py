"""Reading a volume once, in blocks, so that any size is checked in bounded memory."""

from __future__ import annotations

import gzip
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError

from shared_components.data.files import NIFTI_SUFFIXES

BLOCK_VOXELS = 1 << 21
_GZIP_MAGIC = b"\x1f\x8b"
_ITK_LOCK = threading.Lock()

Blocks = Iterator[tuple[int, int, np.ndarray]]


class UnusableVolume(Exception):
    """A file that holds no usable 3-D volume; ``kind`` is a short stable word for the reason."""

    def __init__(self, message: str, kind: str = "unreadable") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Grid:
    """The voxel grid of a volume: shape, and the 4x4 affine from voxel index to millimetres in RAS."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighbouring voxels along each axis, in mm."""
        return tuple(np.linalg.norm(self.affine[:3, :3], axis=0).tolist())

    def corner_distance(self, other: Grid) -> float:
        """Return how far apart, in mm, the two affines place a corner of this grid at most."""
        corners = np.stack(
            np.meshgrid(*[(0, size - 1) for size in self.shape], [1], indexing="ij"), -1
        ).reshape(-1, 4)
        moved = corners @ (self.affine - other.affine).T
        return float(np.linalg.norm(moved[:, :3], axis=1).max())

    def __str__(self) -> str:
        shape = "x".join(str(size) for size in self.shape)
        return f"{shape} voxels of {'x'.join(f'{step:.4g}' for step in self.spacing)} mm"


@dataclass(frozen=True)
class Volume:
    """An open volume.

    ``blocks()`` yields (channel, position, values): each channel's voxels in consecutive blocks, first axis
    fastest, in the stored type or as scaled float64 where the header has a scale factor. It can be run once,
    and reads the file to its end, so that a checksum is verified.
    """

    grid: Grid
    num_channels: int
    blocks: Callable[[], Blocks]


@contextmanager
def open_volume(path: Path) -> Iterator[Volume]:
    """Open a volume for one pass over its voxels.

    NIfTI is read as a stream; the other formats by ITK, one whole file at a time.

    Raises:
        UnusableVolume: on opening, or while its blocks are read: the file is empty, truncated, corrupt or not
            what its name says; no 3-D volume; without voxels; or its spacing or affine cannot be used.
    """
    try:
        if path.stat().st_size == 0:
            raise UnusableVolume("empty file (0 bytes)")
        if path.name.lower().endswith(NIFTI_SUFFIXES):
            with _open_stream(path) as stream:
                yield _nifti_volume(stream)
        else:
            yield _itk_volume(path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnusableVolume(f"truncated or corrupt ({error})") from error
    except OSError as error:
        raise UnusableVolume(f"cannot be read ({error.strerror or error})") from error


def _open_stream(path: Path) -> IO[bytes]:
    with open(path, "rb") as file:
        head = file.read(16)
    compressed = head.startswith(_GZIP_MAGIC)
    if path.name.lower().endswith(".gz") != compressed:
        what = (
            "gzip-compressed, but its name does not end in .gz"
            if compressed
            else f"no gzip file (starts {head!r})"
        )
        raise UnusableVolume(f"truncated/corrupt or wrongly named: {what}")
    return gzip.open(path, "rb") if compressed else open(path, "rb")


def _nifti_volume(stream: IO[bytes]) -> Volume:
    header = _nifti_header(stream)
    shape = header.get_data_shape()
    grid_shape, num_channels = _spatial_shape(shape)
    spacing = np.asarray(header["pixdim"][1:4], dtype=float)
    try:
        dtype = header.get_data_dtype()
        slope, inter = header.get_slope_inter()
        affine = header.get_best_affine() if (spacing > 0).all() else np.eye(4)
    except (HeaderDataError, KeyError, ValueError) as error:
        raise UnusableVolume(f"unusable NIfTI header ({error})", "header") from error
    if dtype.kind not in "iuf":
        raise UnusableVolume(f"voxels of type {dtype}, expected one real number a voxel", "dtype")
    grid = Grid(grid_shape, np.asarray(affine, dtype=float))
    _check_geometry(spacing, grid.affine)
    _skip(stream, header.get_data_offset() - header["sizeof_hdr"].item())
    scale = None if slope is None or (slope, inter) == (1.0, 0.0) else (slope, inter)
    return Volume(grid, num_channels, lambda: _nifti_blocks(stream, dtype, grid.shape, num_channels, scale))


def _nifti_header(stream: IO[bytes]) -> nibabel.Nifti1Header:
    """Read a NIfTI-1 or -2 header as it stands: `nibabel.load` would mend some of its faults."""
    kinds = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
    block = stream.read(348)
    sizes = [int.from_bytes(block[:4], order) for order in ("little", "big")]
    size = next((size for size in sizes if size in kinds), None)
    if len(block) < 348 or size is None:
        raise UnusableVolume(
            f"truncated/corrupt or no NIfTI file ({len(block)} bytes, starts {block[:16]!r})"
        )
    block += stream.read(size - 348)
    if len(block) < size:
        raise UnusableVolume(f"truncated: {len(block)} bytes, the header alone has {size}")
    header = kinds[size](block, check=False)
    if not header["magic"].item().startswith(b"n+"):
        raise UnusableVolume(
            "header of a NIfTI or Analyze file pair; convert it to a single .nii.gz file", "header"
        )
    if not 1 <= header["dim"][0] <= 7:
        raise UnusableVolume(f"unusable NIfTI header (dim {header['dim'].tolist()})", "header")
    return header


def _spatial_shape(shape: tuple[int, ...]) -> tuple[tuple[int, int, int], int]:
    """Return the spatial shape and the number of channels of an array whose first three axes are spatial."""
    more = [size for size in shape[3:] if size != 1]
    if len(shape) < 3 or len(more) > 1:
        raise UnusableVolume(f"{len(shape)}-D image of shape {shape}, the model takes 3-D volumes", "rank")
    if min(shape) < 1:
        raise UnusableVolume(f"shape {shape}: holds no voxels", "zero_size")
    return (int(shape[0]), int(shape[1]), int(shape[2])), int(more[0]) if more else 1


def _check_geometry(spacing: np.ndarray, affine: np.ndarray) -> None:
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise UnusableVolume(
            f"spacing {spacing.tolist()} mm, expected positive numbers; mend the header", "spacing"
        )
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    usable = np.isfinite(affine).all() and (lengths > 0).all()
    if not usable or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
        raise UnusableVolume(f"singular affine {affine[:3].tolist()}; mend the header", "affine")


def _skip(stream: IO[bytes], count: int) -> None:
    if len(stream.read(max(count, 0))) < count:
        raise UnusableVolume("truncated: ends before its voxels")


def _nifti_blocks(
    stream: IO[bytes],
    dtype: np.dtype,
    shape: tuple[int, int, int],
    num_channels: int,
    scale: tuple[float, float] | None,
) -> Blocks:
    total = int(np.prod(shape, dtype=np.int64))
    for channel in range(num_channels):
        for start in range(0, total, BLOCK_VOXELS):
            wanted = min(BLOCK_VOXELS, total - start) * dtype.itemsize
            block = stream.read(wanted)
            if len(block) < wanted:
                done = channel * total + start + len(block) // dtype.itemsize
                raise UnusableVolume(f"truncated: {done} of {num_channels * total} voxels")
            values = np.frombuffer(block, dtype)
            yield channel, start, values if scale is None else values * scale[0] + scale[1]
    while stream.read(BLOCK_VOXELS):
        pass


def _itk_volume(path: Path) -> Volume:
    """Open a file by ITK; its LPS coordinates are turned to RAS."""
    import itk

    with _ITK_LOCK:
        try:
            image = itk.imread(str(path))
            array = np.asarray(itk.array_from_image(image))
        except Exception as error:  # ITK raises RuntimeError, TypeError and its own kinds
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise UnusableVolume(
                f"truncated/corrupt or not readable by ITK ({lines[-1] if lines else error})"
            ) from error
    if image.GetNumberOfComponentsPerPixel() > 1:
        spatial = array.shape[-2::-1]
        shape = (*spatial, array.shape[-1]) if len(spatial) >= 3 else spatial
        array = np.moveaxis(array, -1, 0)
    else:
        shape = array.shape[::-1]
    grid_shape, num_channels = _spatial_shape(shape)
    spacing = np.array([float(step) for step in image.GetSpacing()][:3])
    affine = np.eye(4)
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection())[:3, :3] * spacing
    affine[:3, 3] = [float(x) for x in image.GetOrigin()][:3]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    _check_geometry(spacing, affine)
    channels = array.reshape(num_channels, -1)
    return Volume(Grid(grid_shape, affine), num_channels, lambda: _array_blocks(channels))


def _array_blocks(channels: np.ndarray) -> Blocks:
    for channel, values in enumerate(channels):
        for start in range(0, values.size, BLOCK_VOXELS):
            yield channel, start, values[start : start + BLOCK_VOXELS]
