"""Progress on the terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from monai.utils import convert_to_tensor
from tqdm import tqdm

from shared_components.errors import InputError

logger = logging.getLogger(__name__)

LARGE_IMAGE = 1 << 25
_TRIAL_SLICES = 2


class RunProgress:
    """One bar over all iterations that are left of a run, with the epoch, the time left and the latest values.

    ignite's own bar starts anew at every epoch and so never says when the run ends. Place the handler after those that
    resume. Only the first process shows a bar. Before an evaluator starts on a volume of 32 million voxels and more,
    over which no bar moves for long, its size is told and about how long it will take (`announce_large_image`).

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
        if isinstance(engine, SupervisedEvaluator):
            engine.add_event_handler(Events.ITERATION_STARTED, announce_large_image)
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


def announce_large_image(engine: SupervisedEvaluator) -> None:
    """Tell the size of a large volume (B, C, H, W, D) in ``engine.state.batch`` and about how long its slices take.

    The time is that of a few slices from the middle, run twice because the first run is slower.
    """
    image = engine.state.batch.get("image") if isinstance(engine.state.batch, dict) else None
    if not isinstance(image, torch.Tensor) or image.ndim != 5 or image[0, 0].numel() < LARGE_IMAGE:
        return
    start = (image.shape[-1] - _TRIAL_SLICES) // 2
    trial = convert_to_tensor(image[..., max(start, 0) : start + _TRIAL_SLICES], device=engine.state.device)
    engine.network.eval()
    seconds = 0.0
    with torch.no_grad():
        for _ in range(2):
            since = time.perf_counter()
            try:
                engine.inferer(trial, engine.network)
            except InputError:  # it asks for more than the image, such as a real one to start from
                return
            seconds = time.perf_counter() - since
    size, slices = "x".join(map(str, image.shape[2:])), image.shape[-1]
    minutes = seconds * slices / trial.shape[-1] / 60
    logger.info("image of %s voxels (%d million): about %.1f minutes", size, image[0, 0].numel() // 10**6, minutes)
