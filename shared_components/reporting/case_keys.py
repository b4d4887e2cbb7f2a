"""What the handlers of an evaluation share: whose output files are, which case is which."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ignite.distributed as idist

from shared_components.reporting.files import claim_outputs

CaseKey = tuple[str, int]


class WritingHandler(Protocol):
    """A handler that writes files to a folder, over an earlier run's if it may."""

    output_dir: Path
    overwrite: bool


def claim(handler: WritingHandler, patterns: Sequence[str]) -> None:
    """Claim a handler's outputs once; what is there at its next start is its own."""
    if idist.get_rank() == 0:
        claim_outputs(handler.output_dir, patterns, handler.overwrite)
    idist.barrier()
    handler.overwrite = True


def next_key(file: str, taken: Mapping[CaseKey, Any]) -> CaseKey:
    """Return the file and how often it came before: several slices or patches may come from one file."""
    file = file or f"case_{len(taken) + 1:03d}"
    return next((file, number) for number in itertools.count() if (file, number) not in taken)
