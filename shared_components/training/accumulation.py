"""Handlers that count optimiser steps where a trainer accumulates gradients over several batches."""

from __future__ import annotations

from ignite.engine import Engine
from monai.handlers import LrScheduleHandler


def optimizer_steps(engine: Engine, iteration: int | None = None) -> int:
    """Return how many steps the optimiser has made after an iteration.

    MONAI's ``SupervisedTrainer`` steps after every ``accumulation_steps`` iterations and at an epoch's end; an engine
    without that attribute after every iteration.

    Args:
        engine: the trainer.
        iteration: number of iterations done; by default the engine's own.
    """
    done = engine.state.iteration if iteration is None else iteration
    accumulated = getattr(engine, "accumulation_steps", 1)
    length = engine.state.epoch_length
    if not length:
        return done // accumulated
    epochs, within = divmod(done, length)
    return epochs * -(-length // accumulated) + within // accumulated


def has_stepped(engine: Engine) -> bool:
    """Tell whether the optimiser made a step in the iteration that is being completed."""
    return optimizer_steps(engine) > optimizer_steps(engine, engine.state.iteration - 1)


class OptimizerStepLrSchedule(LrScheduleHandler):
    """MONAI's `LrScheduleHandler`, a step of the schedule for each step of the optimiser instead of for each batch.

    Args:
        lr_scheduler: torch's scheduler; its length counts steps of the optimiser.
        print_lr: whether to log the learning rate.
    """

    def __init__(self, lr_scheduler: object, print_lr: bool = False) -> None:
        super().__init__(lr_scheduler, print_lr=print_lr, epoch_level=False)

    def __call__(self, engine: Engine) -> None:
        """Go on, if the optimiser did."""
        if has_stepped(engine):
            super().__call__(engine)
