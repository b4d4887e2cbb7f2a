"""What a prediction scores that looks at no image: the bar below which a training has learnt nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.metrics import compute_dice
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d, one_hot

GRID = 32
METRIC = "blind_guess_dice"

logger = logging.getLogger(__name__)


def blind_guess_dice(maps: Sequence[Tensor]) -> float:
    """Return the best mean Dice of the validation cases that a guess without images reaches.

    Guessed for a case is, whichever suits the cases better, the class that is the most frequent at each place in the
    other cases, or one and the same class everywhere. Dice is the mean over the classes that a case has, background
    apart, and over the cases, as `monai.metrics.MeanDice` takes it.

    Args:
        maps: of each case the shares of the classes (classes, *grid), on one grid for all (`shares_on_grid`).

    Returns:
        Dice in [0, 1]; 0 where no case has any foreground.
    """
    shares = torch.stack(list(maps))
    reference = shares.argmax(dim=1)
    guesses = [torch.full_like(reference, index) for index in range(1, shares.shape[1])]
    if len(maps) > 1:
        guesses.append((shares.sum(dim=0, keepdim=True) - shares).argmax(dim=1))
    return max((_mean_dice(guess, reference, shares.shape[1]) for guess in guesses), default=0.0)


def _mean_dice(guess: Tensor, reference: Tensor, classes: int) -> float:
    coded = [one_hot(item, classes).movedim(-1, 1) for item in (guess, reference)]
    cases = compute_dice(*coded, include_background=False).nanmean(dim=1)
    return float(cases.nanmean().nan_to_num())


def shares_on_grid(label: Tensor, classes: int, size: int = GRID) -> Tensor:
    """Return the share of every class in the cells of a grid.

    Args:
        label: (1, *spatial) class indices, 2-D or 3-D.
        classes: number of classes, background included.
        size: cells an axis.

    Returns:
        (classes, *grid) float32 that sum to 1 over the classes.
    """
    coded = one_hot(convert_to_tensor(label, device="cpu")[0].round().long(), classes).movedim(-1, 0).float()
    return (adaptive_avg_pool3d if coded.ndim == 4 else adaptive_avg_pool2d)(coded, size)


class BlindGuess:
    """Say so when a training validates no better than a guess that looks at no image (`blind_guess_dice`).

    A network that has learnt nothing can still have a fair Dice where a structure lies at the same place in every case,
    or fills half of the image. The guess's score is a metric of the validation, ``blind_guess_dice``, in its curves
    and tables; from the middle of the training on, a warning says when the validation does not exceed it. The usual
    reasons: too few epochs, labels that belong to other images, a wrong intensity range.

    Args:
        classes: number of classes of the labels, background included.
        max_epochs: of the training.
        metric: of the validation, that is compared.
        label_key: key of the (1, *spatial) label map.
    """

    def __init__(self, classes: int, max_epochs: int, metric: str = "val_mean_dice", label_key: str = "label") -> None:
        self.classes, self.max_epochs, self.metric, self.label_key = classes, max_epochs, metric, label_key
        self._maps: list[Tensor] = []
        self._guess: float | None = None

    def attach(self, engine: Engine) -> None:
        """Add the handler to a validation's evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _collect(self, engine: Engine) -> None:
        if self._guess is None:
            self._maps += [shares_on_grid(case[self.label_key], self.classes) for case in engine.state.output]

    def __call__(self, engine: Engine) -> None:
        """Compare; the labels are the same in every validation, so the guess is made once."""
        if self._guess is None:
            self._guess = blind_guess_dice([item for part in idist.all_gather(self._maps) for item in part])
            self._maps = []
        engine.state.metrics[METRIC] = self._guess
        reached, epoch = engine.state.metrics.get(self.metric), engine.state.epoch
        if reached is None or idist.get_rank() != 0 or 2 * epoch < self.max_epochs:
            return
        if float(reached) <= self._guess:
            logger.warning(
                "validation Dice %.3f after epoch %d does not exceed %.3f, what a guess without an image scores: "
                "train longer, or see whether images and labels belong together (check_data) and look alike in scale",
                float(reached),
                epoch,
                self._guess,
            )
