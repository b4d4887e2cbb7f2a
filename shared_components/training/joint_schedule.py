"""Several learning-rate schedules that are stepped, saved and resumed as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim.lr_scheduler import LRScheduler


class JointSchedule:
    """Step several schedules together, so that a second optimizer, such as a discriminator's, follows its own.

    Stands where one schedule is expected: `monai.handlers.LrScheduleHandler`, `TrainingState`.

    Args:
        schedules: of one optimizer each.
    """

    def __init__(self, schedules: Sequence[LRScheduler]) -> None:
        self.schedules = list(schedules)

    def step(self) -> None:
        """Step each of them."""
        for schedule in self.schedules:
            schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each, by its number."""
        return {str(number): schedule.state_dict() for number, schedule in enumerate(self.schedules)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Bring the states back.

        Raises:
            KeyError: one of them is not in ``state``.
        """
        for number, schedule in enumerate(self.schedules):
            schedule.load_state_dict(state[str(number)])
