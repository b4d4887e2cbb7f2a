"""Exponential moving average of a network's weights."""

from __future__ import annotations

import logging
import math

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from torch import nn

from shared_components.errors import InputError
from shared_components.training.accumulation import has_stepped, optimizer_steps

logger = logging.getLogger(__name__)

MOST_OF_THE_START = 0.1


class WarmedEMAHandler(EMAHandler):
    """ignite's `EMAHandler` whose average starts from trained weights, not from the random ones.

    With ``warm_up`` the average moves by max(momentum, 10 / (n + 9)) towards the weights at the n-th step of the
    optimiser: it copies the first, then remembers about a tenth of the run until ``momentum`` is the slower of the two.
    Without it, the first step copies the weights and every later one moves by ``momentum``, as in the published cDAL.
    Batches whose gradients are only accumulated leave the average as it is. Weights loaded into the network when the
    run starts are taken over into it.

    A run without ``warm_up`` that is too short for its ``momentum``, so that more than `MOST_OF_THE_START` of the
    average would still be the network of the first step, says so when it starts.

    Args:
        model: the network being trained.
        momentum: 1 - decay, in (0, 1).
        warm_up: see above.

    Raises:
        InputError: the momentum is outside its range.
    """

    def __init__(self, model: nn.Module, momentum: float = 0.001, warm_up: bool = True) -> None:
        if type(momentum) not in (int, float) or not 0 < momentum < 1:
            raise InputError(f"the momentum of the moving average is {momentum!r}: it must be 1 - decay, in (0, 1)")
        super().__init__(model, momentum=momentum)
        self.warm_up = warm_up

    def attach(self, engine: Engine, *args, **kwargs) -> None:
        """Add the handler to a trainer, after those that load weights."""
        engine.add_event_handler(Events.STARTED, self._take_over)
        engine.add_event_handler(Events.STARTED, self._tell_too_short)
        super().attach(engine, *args, **kwargs)

    def _take_over(self, engine: Engine) -> None:
        if engine.state.iteration == 0:
            self.ema_model.load_state_dict(self.model.state_dict())

    def _tell_too_short(self, engine: Engine) -> None:
        steps = optimizer_steps(engine, engine.state.max_epochs * engine.state.epoch_length)
        left = (1 - self.momentum) ** steps
        if not self.warm_up and left > MOST_OF_THE_START:
            logger.warning(
                "the moving average, which is what is kept, will be %.0f %% the network of the first step after %d "
                "steps at momentum %g: train for %d steps (--max_epochs), or give --ema#warm_up True",
                100 * left,
                steps,
                self.momentum,
                math.ceil(math.log(MOST_OF_THE_START) / math.log(1 - self.momentum)),
            )

    @torch.no_grad()
    def _update_ema_model(self, engine: Engine, name: str) -> None:
        if not has_stepped(engine):
            return  # the weights are what they were
        count = optimizer_steps(engine)
        warm = 10 / (count + 9) if self.warm_up or count == 1 else 0.0
        momentum = max(self.momentum, warm)
        averages = list(self.ema_model.parameters())
        torch._foreach_lerp_(averages, [p.detach() for p in self.model.parameters()], momentum)
        for average, buffer in zip(self.ema_model.buffers(), self.model.buffers()):
            average.copy_(buffer)


def shared_handler(handler: object) -> object:
    """Return a handler that other parts of a configuration refer to.

    MONAI Label reads ``train#handlers`` as a list of dictionaries and fails on a reference in it.
    """
    return handler
