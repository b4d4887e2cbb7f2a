"""Stop a run that cannot recover."""

from __future__ import annotations

import math

import torch
from ignite.engine import Engine, Events

from shared_components.errors import InputError


class StopOnNonFinite:
    """Stop a training whose loss is NaN or infinite, and say where; the last complete epoch's state stays.

    Args:
        keys: values of the trainer's output to watch; absent ones are skipped.
    """

    def __init__(self, keys: tuple[str, ...] = ("loss", "real", "fake")) -> None:
        self.keys = tuple(keys)

    def attach(self, engine: Engine) -> None:
        """Add the handler to a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Look at the output of an iteration.

        Raises:
            InputError: a value is not finite.
        """
        for key in self.keys:
            value = float(torch.as_tensor(engine.state.output.get(key, 0.0)).detach())
            if not math.isfinite(value):
                raise InputError(
                    f"{key} is {value} at epoch {engine.state.epoch}, iteration {engine.state.iteration}"
                    f"{_files(engine.state.batch)}: lower --learning_rate, set --amp False, or look for broken images "
                    "with check_data; the state of the last complete epoch is kept"
                )


def _files(batch: object) -> str:
    image = batch.get("image") if isinstance(batch, dict) else None
    names = getattr(image, "meta", {}).get("filename_or_obj", [])
    return f" (images {', '.join(map(str, names))})" if names and not isinstance(names, str) else ""
