"""Image files written whole or not at all, each kind of image in a format of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import DtypeLike, NdarrayOrTensor
from monai.data import ImageWriter, MetaTensor, NibabelWriter, PILWriter
from monai.utils import ensure_tuple, get_equivalent_dtype
from PIL.PngImagePlugin import PngInfo

from shared_components.data.formats.files import IMAGE_SUFFIXES, NIFTI_SUFFIXES, PICTURE_SUFFIXES
from shared_components.errors import InputError
from shared_components.whole_files import whole_file

UNIT_SCALE = 65535


def _spatial_ndim(data_array: NdarrayOrTensor, channel_dim: int | None) -> int:
    return len(data_array.shape) - (0 if channel_dim is None else len(ensure_tuple(channel_dim)))


class AtomicNibabelWriter(NibabelWriter):
    """MONAI's `NibabelWriter` that writes beside the final name and renames: no half-written file keeps it.

    It also keeps the image's own axes of length 1: MONAI's drops that of a single slice and fails on a voxel. And
    it leaves the resampler alone where nothing is to be resampled: MONAI's fails there on some 2-D images. A label map
    with an index above 255 is stored in 16 bits where 8 were asked for.
    """

    def set_data_array(
        self,
        data_array: NdarrayOrTensor,
        channel_dim: int | None = 0,
        squeeze_end_dims: bool = True,
        spatial_ndim: int | None = 3,
        **options: Any,
    ) -> None:
        """Take the data, (C, *spatial) unless ``channel_dim`` says otherwise.

        ``squeeze_end_dims`` drops a channel axis of length 1 and nothing else.
        """
        own = _spatial_ndim(data_array, channel_dim)
        ndim = None if spatial_ndim is None else min(own, spatial_ndim)
        super().set_data_array(data_array, channel_dim, squeeze_end_dims=False, spatial_ndim=ndim, **options)
        if squeeze_end_dims and self.data_obj.shape[-1] == 1:
            self.data_obj = self.data_obj[..., 0]

    def set_metadata(self, meta_dict: Mapping | None = None, resample: bool = True, **options: Any) -> None:
        """Take the affine, and resample to ``original_affine`` if ``resample`` is set."""
        if resample:
            super().set_metadata(meta_dict, resample=True, **options)
            return
        self.affine = self.get_meta_info(meta_dict)[1]
        if self.affine is None and isinstance(self.data_obj, MetaTensor):
            self.affine = self.data_obj.affine
        self.output_dtype = self.data_obj.dtype if self.output_dtype is None else self.output_dtype

    def write(self, filename: str | os.PathLike, verbose: bool = False, **obj_kwargs: Any) -> None:
        """Write the data set before to ``filename`` (``.nii`` or ``.nii.gz``)."""
        if np.dtype(get_equivalent_dtype(self.output_dtype, np.ndarray)) == np.uint8 and self.data_obj.max() > 255:
            self.output_dtype = np.uint16
        with whole_file(filename) as temporary:
            super().write(temporary, verbose=verbose, **obj_kwargs)


class AtomicPNGWriter(PILWriter):
    """MONAI's `PILWriter` for results on the pixels of a picture, written beside the final name and renamed.

    The first spatial axis of the data runs to the right and the second down, as MONAI's `PILReader` and this
    package's readers load a picture: the file's rows and columns are those of the picture that was read. (A
    picture that EXIF says to turn was turned when it was read; the result lies as viewers show it.)

    What is written follows from the output type. A whole-number type is a label map: grey values are the class
    indices themselves, in 8 bits, or in 16 where an index exceeds 255. (A label map of few classes looks black;
    the overlays are for looking.) A floating-point type is a map of values in [0, 1], such as an uncertainty:
    grey values are ``round(value * 65535)`` in 16 bits, which the file's text entry "Scale" says too.
    """

    def __init__(self, output_dtype: DtypeLike = np.float32, scale: int | None = None, **options: Any) -> None:
        """Create the writer.

        Args:
            output_dtype: a whole-number type for label maps, a floating-point type for values in [0, 1].
            scale: must be left out; the type decides.
            **options: metadata, kept as it is.
        """
        if scale is not None:
            raise InputError(f"scale {scale}: a PNG's scale follows from its output_dtype; leave scale out")
        super().__init__(output_dtype=output_dtype, scale=None, **options)

    def set_data_array(
        self, data_array: NdarrayOrTensor, channel_dim: int | None = 0, squeeze_end_dims: bool = True, **options: Any
    ) -> None:
        """Take the data, (1, width, height) unless ``channel_dim`` says otherwise.

        Raises:
            InputError: it is no picture of one channel.
        """
        shape = tuple(data_array.shape)
        if _spatial_ndim(data_array, channel_dim) != 2 or (channel_dim is not None and shape[channel_dim] != 1):
            raise InputError(f"data of shape {shape}: a PNG holds one channel of a 2-D image, (1, width, height)")
        super().set_data_array(data_array, channel_dim, squeeze_end_dims=False, **options)
        self.data_obj = self.data_obj[..., 0]

    def write(self, filename: str | os.PathLike, verbose: bool = False, **options: Any) -> None:
        """Write the data set before to ``filename`` (``.png``).

        Raises:
            InputError: an index is negative or above 65535, or a value lies outside [0, 1].
        """
        values = np.asarray(self.data_obj)
        info = PngInfo()
        if np.issubdtype(get_equivalent_dtype(self.output_dtype, np.ndarray), np.floating):
            self.data_obj = _unit_to_16_bit(values, filename)
            info.add_text("Scale", f"grey value / {UNIT_SCALE}")
        else:
            self.data_obj = _indices(values, filename)
        self.output_dtype = self.data_obj.dtype
        with whole_file(filename) as temporary:
            super().write(temporary, verbose=verbose, format="PNG", pnginfo=info, **options)


def _unit_to_16_bit(values: np.ndarray, filename: str | os.PathLike) -> np.ndarray:
    if not (values.min() >= 0 and values.max() <= 1):
        raise InputError(
            f"{filename}: found values {values.min():g} to {values.max():g}, expected 0 to 1; "
            "give a label map a whole-number output_dtype"
        )
    return np.round(values.astype(np.float64) * UNIT_SCALE).astype(np.uint16)


def _indices(values: np.ndarray, filename: str | os.PathLike) -> np.ndarray:
    values = np.round(values)
    if not (values.min() >= 0 and values.max() <= 65535):
        raise InputError(f"{filename}: found class indices {values.min():g} to {values.max():g}, expected 0 to 65535")
    return values.astype(np.uint8 if values.max() <= 255 else np.uint16)


class AtomicWriter(ImageWriter):
    """Write each result as its image was stored: PNG for a picture, NIfTI for everything else.

    For `SaveImaged` as ``writer``, in a bundle that takes pictures and volumes alike. The metadata's
    ``filename_or_obj`` decides: the result of a PNG, JPEG, TIFF or the like with two axes is a PNG as
    `AtomicPNGWriter` makes it; any other, a 2-D NIfTI among them, is a NIfTI as `AtomicNibabelWriter` makes it.
    The suffix of the file name, `SaveImaged`'s ``output_ext``, is replaced accordingly.
    """

    def __init__(self, output_dtype: DtypeLike = np.float32, **options: Any) -> None:
        """Create the writer; see the two writers for ``output_dtype``."""
        super().__init__(output_dtype=output_dtype, **options)
        self.options = {"output_dtype": output_dtype, **options}
        self.writer: AtomicPNGWriter | AtomicNibabelWriter | None = None

    def set_data_array(self, data_array: NdarrayOrTensor, channel_dim: int | None = 0, **options: Any) -> None:
        """Take the data, (C, *spatial) unless ``channel_dim`` says otherwise."""
        self.data_obj = data_array
        self.data_options = {"channel_dim": channel_dim, **options}

    def set_metadata(self, meta_dict: Mapping | None = None, resample: bool = True, **options: Any) -> None:
        """Take the metadata, by default the data's own, and with it the format."""
        own = self.data_obj.meta if isinstance(self.data_obj, MetaTensor) else {}
        meta = own if meta_dict is None else meta_dict
        flat = _spatial_ndim(self.data_obj, self.data_options["channel_dim"]) == 2
        picture = flat and str(meta.get("filename_or_obj", "")).lower().endswith(PICTURE_SUFFIXES)
        self.writer = (AtomicPNGWriter if picture else AtomicNibabelWriter)(**self.options)
        self.writer.set_data_array(self.data_obj, **self.data_options)
        self.writer.set_metadata(meta, resample=resample, **options)

    def write(self, filename: str | os.PathLike, verbose: bool = False, **options: Any) -> None:
        """Write to ``filename``, its suffix replaced by the format's."""
        if self.writer is None:
            self.set_metadata(resample=False)
        suffixes = (".png",) if isinstance(self.writer, AtomicPNGWriter) else NIFTI_SUFFIXES
        self.writer.write(_with_suffix(Path(filename), suffixes), verbose=verbose, **options)


def _with_suffix(path: Path, suffixes: tuple[str, ...]) -> Path:
    """Return the path with the first of ``suffixes`` in place of another image suffix, if it has none of them."""
    name = path.name.lower()
    if name.endswith(suffixes):
        return path
    other = next((suffix for suffix in IMAGE_SUFFIXES if name.endswith(suffix)), "")
    return path.with_name(path.name[: len(name) - len(other)] + suffixes[0])
