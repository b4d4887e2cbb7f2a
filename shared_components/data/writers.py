"""Image files written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from monai.config import NdarrayOrTensor
from monai.data import NibabelWriter
from monai.utils import ensure_tuple


class AtomicNibabelWriter(NibabelWriter):
    """MONAI's `NibabelWriter` that writes beside the final name and renames: no half-written file keeps it.

    It also keeps the image's own axes of length 1: MONAI's drops that of a single slice and fails on a voxel.
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
        own = len(data_array.shape) - (0 if channel_dim is None else len(ensure_tuple(channel_dim)))
        ndim = None if spatial_ndim is None else min(own, spatial_ndim)
        super().set_data_array(data_array, channel_dim, squeeze_end_dims=False, spatial_ndim=ndim, **options)
        if squeeze_end_dims and self.data_obj.shape[-1] == 1:
            self.data_obj = self.data_obj[..., 0]

    def write(self, filename: str | os.PathLike, verbose: bool = False, **obj_kwargs: Any) -> None:
        """Write the data set before to ``filename`` (``.nii`` or ``.nii.gz``)."""
        path = Path(filename)
        temporary = path.with_name(f".{os.getpid()}-{path.name}")
        try:
            super().write(temporary, verbose=verbose, **obj_kwargs)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
