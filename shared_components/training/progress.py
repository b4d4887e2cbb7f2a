"""Progress on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import ignite.distributed as idist
from ignite.engine import Engine, Events
from tqdm import tqdm


class RunProgress:
    """One bar over all iterations that are left of a run, with the epoch, the time left and the latest values.

    ignite's own bar starts anew at every epoch and so never says when the run ends. Place the handler after those that
    resume. Only the first process shows a bar.

    Args:
        description: what is running.
        output_keys: values of the engine's output to show, where it is a dictionary.
    """

    def __init__(self, description: str, output_keys: Sequence[str] = ()) -> None:
        self.description = description
        self.output_keys = tuple(output_keys)
        self.bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Add the bar to a trainer or an evaluator."""
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def _open(self, engine: Engine) -> None:
        epochs = engine.state.max_epochs - engine.state.epoch
        self.bar = tqdm(
            total=epochs * engine.state.epoch_length,
            desc=self.description,
            disable=idist.get_rank() > 0,
            mininterval=1.0,
            leave=epochs > 1,
        )

    def __call__(self, engine: Engine) -> None:
        """Move on by one iteration."""
        values = {key: f"{engine.state.output[key]:.3g}" for key in self.output_keys if key in engine.state.output}
        if engine.state.max_epochs > 1 and self.output_keys:
            values = {"epoch": f"{engine.state.epoch}/{engine.state.max_epochs}", **values}
        self.bar.set_postfix(values, refresh=False)
        self.bar.update()

    def _close(self, engine: Engine) -> None:
        self.bar.close()
