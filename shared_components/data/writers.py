"""Image files written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from monai.data import NibabelWriter


class AtomicNibabelWriter(NibabelWriter):
    """MONAI's `NibabelWriter` that writes beside the final name and renames: no half-written file keeps it."""

    def write(self, filename: str | os.PathLike, verbose: bool = False, **obj_kwargs: Any) -> None:
        """Write the data set before to ``filename`` (``.nii`` or ``.nii.gz``)."""
        path = Path(filename)
        temporary = path.with_name(f".{os.getpid()}-{path.name}")
        try:
            super().write(temporary, verbose=verbose, **obj_kwargs)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
