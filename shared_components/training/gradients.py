"""Gradients between the backward pass and the optimiser's step."""

from __future__ import annotations

from ignite.engine import Engine
from monai.engines import IterationEvents
from torch import nn

from shared_components.errors import InputError
from shared_components.training.accumulation import has_stepped


class ClipGradientNorm:
    """Scale the gradients down where their norm over all parameters is above a bound.

    Gradients that are accumulated over several batches are clipped once, as a whole, before the optimiser's step. For a
    `SupervisedTrainer` without gradient scaling (``amp`` off, or bfloat16 inside the inferer).

    Args:
        network: whose gradients.
        max_norm: the bound; ``None`` for none.

    Raises:
        InputError: the bound is not positive.
    """

    def __init__(self, network: nn.Module, max_norm: float | None = 1.0) -> None:
        if max_norm is not None and not max_norm > 0:
            raise InputError(f"max_norm must be positive, or none for no clipping, not {max_norm}")
        self.network = network
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """Add the handler to a trainer."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Clip."""
        if self.max_norm is not None and has_stepped(engine):
            nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
