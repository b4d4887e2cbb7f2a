"""Files and folders that are whole or not there at all, whatever moment the process that makes them ends at."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Give a path to write to, beside ``path`` and with its suffix, which takes its name when the block has ended well.

    What was there before stays until then, and for good where the block raises.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | os.PathLike, replace: bool = False) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes ``path`` when the block has ended well.

    Args:
        path: folder to make, in one that is made if need be; where something is there already it must be an empty
            folder.
        replace: whether it takes the place of whatever folder is there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as scratch:
        folder = Path(scratch) / path.name
        folder.mkdir()
        yield folder
        if replace:
            shutil.rmtree(path, ignore_errors=True)
        os.rename(folder, path)
