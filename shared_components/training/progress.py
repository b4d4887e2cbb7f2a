"""Progress on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ignite.engine import Engine, Events
from ignite.handlers.tqdm_logger import ProgressBar


class RunProgress(ProgressBar):
    """ignite's progress bar over all iterations of a run, with the time left and the latest values.

    Args:
        description: what is running.
        output_keys: values of the engine's output to show, where it is a dictionary.
    """

    def __init__(self, description: str, output_keys: Sequence[str] = (), **options: Any) -> None:
        self.output_keys = tuple(output_keys)
        super().__init__(desc=description, persist=True, **options)

    def attach(self, engine: Engine) -> None:
        """Add the bar to a trainer or an evaluator."""
        show = self._values if self.output_keys else None
        super().attach(
            engine, output_transform=show, event_name=Events.ITERATION_COMPLETED, closing_event_name=Events.COMPLETED
        )

    def _values(self, output: Any) -> dict[str, float]:
        return {key: output[key] for key in self.output_keys if key in output}
