"""Reading an image once, in blocks, so that a volume of any size is checked in bounded memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError

from shared_components.data.formats.aperio import is_annotation, read_annotation
from shared_components.data.formats.arrays import is_stack, read_stack
from shared_components.data.formats.dicom import itk_affine, read_series
from shared_components.data.formats.files import ITK_LOCK, NIFTI_SUFFIXES, UnusableImage, last_line
from shared_components.data.formats.ground import is_ground, read_ground
from shared_components.data.formats.pictures import Notes, Picture, is_picture, read_picture

BLOCK_VOXELS = 1 << 21
_GZIP_MAGIC = b"\x1f\x8b"

Blocks = Iterator[tuple[int, int, np.ndarray]]


@dataclass(frozen=True)
class Grid:
    """The voxel grid of an image: its shape of 2 or 3 axes, and the 4x4 affine from voxel index to millimetres in RAS.

    The affine is ``None`` for a picture, which has pixels and no place in space.
    """

    shape: tuple[int, ...]
    affine: np.ndarray | None

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighbouring voxels along each axis, in mm; empty for a picture."""
        if self.affine is None:
            return ()
        return tuple(np.linalg.norm(self.affine[:3, : len(self.shape)], axis=0).tolist())

    def corner_distance(self, other: Grid) -> float:
        """Return how far apart, in mm, the two affines place a corner of this grid at most; 0 for a picture."""
        if self.affine is None or other.affine is None:
            return 0.0
        sizes = (*self.shape, *[1] * (3 - len(self.shape)))
        corners = np.stack(np.meshgrid(*[(0, size - 1) for size in sizes], [1], indexing="ij"), -1).reshape(-1, 4)
        moved = corners @ (self.affine - other.affine).T
        return float(np.linalg.norm(moved[:, :3], axis=1).max())

    def __str__(self) -> str:
        shape = "x".join(str(size) for size in self.shape)
        if self.affine is None:
            return f"{shape} pixels"
        return f"{shape} voxels of {'x'.join(f'{step:.4g}' for step in self.spacing)} mm"


@dataclass(frozen=True)
class Volume:
    """An open volume or picture.

    ``blocks()`` yields (channel, position, values): each channel's voxels in consecutive blocks, first axis
    fastest, in the stored type or as scaled float64 where the header has a scale factor. It can be run once,
    and reads the file to its end, so that a checksum is verified. ``notes`` are a picture's.
    """

    grid: Grid
    num_channels: int
    blocks: Callable[[], Blocks]
    notes: Notes = ()


@contextmanager
def open_volume(
    path: Path, spatial_dims: int = 3, is_label: bool = False, image: Path | None = None
) -> Iterator[Volume]:
    """Open an image for one pass over its voxels.

    NIfTI is read as a stream; pictures by `read_picture`, a label's annotation by `read_annotation`, its folder of
    pictures by `read_ground`, a stack of slices by `read_stack`, another folder as a DICOM series by `read_series` and
    the other formats by ITK, one whole file at a time.

    Args:
        path: the file.
        spatial_dims: 3 for volumes, 2 for pictures and other 2-D images.
        is_label: read a picture as a label map.
        image: the image that a label belongs to; an annotation is drawn in its size.

    Raises:
        UnusableImage: on opening, or while its blocks are read: the file is empty, truncated, corrupt or not
            what its name says; of another number of axes; without voxels; or its spacing or affine cannot be used.
    """
    try:
        if path.stat().st_size == 0:
            raise UnusableImage("empty file (0 bytes)")
        if path.name.lower().endswith(NIFTI_SUFFIXES):
            with _open_stream(path) as stream:
                yield _nifti_volume(stream, spatial_dims)
        elif is_label and is_annotation(path):
            yield _picture_volume(read_annotation(path, image), spatial_dims)
        elif is_picture(path):
            yield _picture_volume(read_picture(path, is_label), spatial_dims)
        elif is_label and is_ground(path):
            yield _array_volume(*read_ground(path), spatial_dims)
        elif is_stack(path):
            yield _array_volume(read_stack(path, is_label), np.eye(4), spatial_dims)
        else:
            yield _itk_volume(path, spatial_dims)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnusableImage(f"truncated or corrupt ({error})") from error
    except OSError as error:
        gone = path.is_symlink() and not path.exists()
        reason = f"a link to {path.readlink()}, which is not there" if gone else error.strerror or error
        raise UnusableImage(f"cannot be read ({reason})") from error


def _open_stream(path: Path) -> IO[bytes]:
    with open(path, "rb") as file:
        head = file.read(16)
    compressed = head.startswith(_GZIP_MAGIC)
    if path.name.lower().endswith(".gz") != compressed:
        what = "gzip-compressed, but its name does not end in .gz" if compressed else f"no gzip file (starts {head!r})"
        raise UnusableImage(f"truncated/corrupt or wrongly named: {what}")
    return gzip.open(path, "rb") if compressed else open(path, "rb")


def _nifti_volume(stream: IO[bytes], spatial_dims: int) -> Volume:
    header = _nifti_header(stream)
    shape = header.get_data_shape()
    grid_shape, num_channels = _spatial_shape(shape, spatial_dims)
    spacing = np.asarray(header["pixdim"][1 : 1 + spatial_dims], dtype=float)
    try:
        dtype = header.get_data_dtype()
        slope, inter = header.get_slope_inter()
        affine = header.get_best_affine() if (spacing > 0).all() else np.eye(4)
    except (HeaderDataError, KeyError, ValueError) as error:
        raise UnusableImage(f"unusable NIfTI header ({error})", "header") from error
    if dtype.kind not in "iuf":
        raise UnusableImage(f"voxels of type {dtype}, expected one real number a voxel", "dtype")
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
        raise UnusableImage(f"truncated/corrupt or no NIfTI file ({len(block)} bytes, starts {block[:16]!r})")
    block += stream.read(size - 348)
    if len(block) < size:
        raise UnusableImage(f"truncated: {len(block)} bytes, the header alone has {size}")
    header = kinds[size](block, check=False)
    if not header["magic"].item().startswith(b"n+"):
        raise UnusableImage("header of a NIfTI or Analyze file pair; convert it to a single .nii.gz file", "header")
    if not 1 <= header["dim"][0] <= 7:
        raise UnusableImage(f"unusable NIfTI header (dim {header['dim'].tolist()})", "header")
    return header


def _spatial_shape(shape: tuple[int, ...], spatial_dims: int) -> tuple[tuple[int, ...], int]:
    """Return the spatial shape and the number of channels of an array whose first axes are spatial."""
    more = [size for size in shape[3:] if size != 1]
    if min(len(shape), 3) != spatial_dims or len(more) > 1:
        expected = "2-D images" if spatial_dims == 2 else "3-D volumes"
        raise UnusableImage(f"{len(shape)}-D image of shape {shape}, the model takes {expected}", "rank")
    if min(shape) < 1:
        raise UnusableImage(f"shape {shape}: holds no voxels", "zero_size")
    return tuple(int(size) for size in shape[:3]), int(more[0]) if more else 1


def _check_geometry(spacing: np.ndarray, affine: np.ndarray) -> None:
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise UnusableImage(f"spacing {spacing.tolist()} mm, expected positive numbers; mend the header", "spacing")
    axes = affine[:3, : len(spacing)]
    lengths = np.linalg.norm(axes, axis=0)
    usable = np.isfinite(affine).all() and (lengths > 0).all()
    if not usable or np.linalg.svd(axes / lengths, compute_uv=False).prod() < 1e-6:
        raise UnusableImage(f"singular affine {affine[:3].tolist()}; mend the header", "affine")


def _skip(stream: IO[bytes], count: int) -> None:
    if len(stream.read(max(count, 0))) < count:
        raise UnusableImage("truncated: ends before its voxels")


def _nifti_blocks(
    stream: IO[bytes],
    dtype: np.dtype,
    shape: tuple[int, ...],
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
                raise UnusableImage(f"truncated: {done} of {num_channels * total} voxels")
            values = np.frombuffer(block, dtype)
            yield channel, start, values if scale is None else values * scale[0] + scale[1]
    while stream.read(BLOCK_VOXELS):
        pass


def _picture_volume(picture: Picture, spatial_dims: int) -> Volume:
    shape, _ = _spatial_shape(picture.pixels.shape[:2], spatial_dims)
    channels = picture.pixels.T.reshape(picture.pixels.shape[-1], -1)
    return Volume(Grid(shape, None), len(channels), lambda: _array_blocks(channels), picture.notes)


def _array_volume(array: np.ndarray, affine: np.ndarray, spatial_dims: int) -> Volume:
    shape, _ = _spatial_shape(array.shape, spatial_dims)
    channels = array.T.reshape(1, -1)
    return Volume(Grid(shape, affine), 1, lambda: _array_blocks(channels))


def _itk_volume(path: Path, spatial_dims: int) -> Volume:
    """Open a file by ITK; its LPS coordinates are turned to RAS."""
    import itk

    series = read_series(path) if path.is_dir() else None
    with ITK_LOCK:
        try:
            image = itk.imread(str(path)) if series is None else series
            array = np.asarray(itk.array_from_image(image))
        except Exception as error:  # ITK raises RuntimeError, TypeError and its own kinds
            raise UnusableImage(f"truncated/corrupt or not readable by ITK ({last_line(error)})") from error
    components = image.GetNumberOfComponentsPerPixel()
    spatial = array.shape[-2::-1] if components > 1 else array.shape[::-1]
    further = (components,) if components > 1 and len(spatial) > 2 else ()
    grid_shape, num_channels = _spatial_shape(spatial + further, spatial_dims)
    affine = itk_affine(image)
    _check_geometry(np.array([float(step) for step in image.GetSpacing()][:3]), affine)
    channels = np.moveaxis(array, -1, 0) if components > 1 else array
    channels = channels.reshape(max(num_channels, components), -1)
    return Volume(Grid(grid_shape, affine), len(channels), lambda: _array_blocks(channels))


def _array_blocks(channels: np.ndarray) -> Blocks:
    for channel, values in enumerate(channels):
        for start in range(0, values.size, BLOCK_VOXELS):
            yield channel, start, values[start : start + BLOCK_VOXELS]
