"""Where a new bundle goes, checked before the work that fills it."""

from __future__ import annotations

import os
from pathlib import Path

from shared_components.errors import InputError


def new_target(path: str | os.PathLike, name: str | None = None) -> Path:
    """Return the absolute path of a bundle to be made, after making the folder that it goes into.

    Args:
        path: of a file or folder that is not there yet; ``~`` is the home folder.
        name: of the bundle, suggested where ``path`` is a folder of bundles.

    Raises:
        InputError: it exists, or its folder cannot be made or written to.
    """
    target = Path(os.path.abspath(os.path.expanduser(path)))
    if os.path.lexists(target):
        of_bundles = name and target.is_dir() and not (target / "configs").is_dir()
        other = target / name if of_bundles else target.with_name(f"new_{target.name}")
        raise InputError(f"--output {target}: exists; remove it or name another, such as {other}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {target}: cannot be made ({error.strerror}); name another") from error
    if not os.access(target.parent, os.W_OK):
        raise InputError(f"--output {target}: {target.parent} cannot be written to; name another")
    return target
