"""One process at a time writes to an output folder, so that the files of two runs never mix."""

from __future__ import annotations

import atexit
import fcntl
import os
from pathlib import Path
from typing import IO

from shared_components.errors import InputError

LOCK_FILE = ".lock"

_held: dict[Path, IO[str]] = {}
_holder = os.getpid()


def lock_folder(folder: str | os.PathLike) -> None:
    """Claim a folder, made if it is not there, for this process; each part of a run may claim it.

    The lock is the system's, on the file ``.lock``, and ends with the process however that ends: the file that a killed
    run leaves behind locks nothing.

    Raises:
        InputError: another process has claimed it, or it cannot be written to.
    """
    folder = Path(folder).resolve()
    if folder in _held:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _held[folder] = _locked(folder / LOCK_FILE)
    except BlockingIOError as error:
        raise InputError(
            f"{folder}: another run is writing here; wait for it or choose another --output_dir"
        ) from error
    except OSError as error:
        raise InputError(
            f"output_dir {folder}: cannot be written to ({error.strerror}); choose another output_dir"
        ) from error


def _locked(path: Path) -> IO[str]:
    """Open and lock the file; once more where its last holder has removed it in between."""
    while True:
        file = open(path, "w", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except FileNotFoundError:
            pass
        except OSError:
            file.close()
            raise
        file.close()


def release_folder(folder: str | os.PathLike) -> None:
    """Give up a folder and remove the lock's file; nothing happens to one that was never claimed."""
    folder = Path(folder).resolve()
    file = _held.pop(folder, None)
    if file is not None:
        (folder / LOCK_FILE).unlink(missing_ok=True)
        file.close()


@atexit.register
def _release_all() -> None:
    if os.getpid() == _holder:  # what a child of the process holds is its parent's
        for folder in list(_held):
            release_folder(folder)
