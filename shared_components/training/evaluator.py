"""An evaluator that one bad case does not end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.data import Dataset
from monai.engines import SupervisedEvaluator
from monai.utils import ImageMetaKey

from shared_components.errors import InputError, one_line

logger = logging.getLogger(__name__)

FAILURE = "failure"


class CaseEvaluator(SupervisedEvaluator):
    """MONAI's `SupervisedEvaluator` that finishes all good cases where some cannot be loaded, predicted or written.

    What a case fails with is told at once and kept in ``failures``, a line a case with its file; handlers of the end of
    an iteration see an empty ``engine.state.output`` for it. For batches of one case.

    Args:
        **options: those of `SupervisedEvaluator`.

    Raises:
        InputError: every case failed, and a run that goes on (``finished_earlier``) has none from before.
    """

    def __init__(self, **options: Any) -> None:
        dataset = getattr(options["val_data_loader"], "dataset", None)
        if type(dataset) is Dataset:  # one with a cache has loaded its cases by now
            dataset.transform = _Guarded(dataset.transform)
        super().__init__(**options)
        self.failures: list[str] = []
        self.finished_earlier = 0
        self.add_event_handler(Events.STARTED, lambda engine: self.failures.clear())

    def _iteration(self, engine: Engine, batchdata: Mapping[str, Any]) -> Any:
        """Evaluate a batch; an empty list is the output of a case that failed."""
        if FAILURE in batchdata:
            return self._failed(engine, batchdata[FAILURE][0], batchdata["file"][0])
        try:
            return super()._iteration(engine, batchdata)
        except Exception as error:  # whatever a bad case makes MONAI, nibabel or torch raise
            if not one_line(error):
                logger.debug("what the case failed with:", exc_info=True)
            return self._failed(engine, failure_text(error), _file_of(batchdata))

    def _failed(self, engine: Engine, text: str, file: str) -> list:
        line = text if not file or Path(file).name in text else f"{file}: {text}"
        logger.error("%s", line)
        self.failures.append(line)
        if len(self.failures) == engine.state.epoch_length and not self.finished_earlier:
            raise InputError(f"none of {len(self.failures)} cases could be processed: {self.failures[0]}")
        engine.state.output = []
        return engine.state.output


def failure_text(error: BaseException) -> str:
    """Return one line about an error, without what MONAI adds to it."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return one_line(error) or f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"


class _Guarded:
    """A transform that returns what it failed with instead of raising it."""

    def __init__(self, transform: Callable) -> None:
        self.transform = transform

    def __call__(self, item: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return self.transform(item)
        except Exception as error:
            if not one_line(error):
                logger.debug("what the case failed with:", exc_info=True)
            return {FAILURE: failure_text(error), "file": str(item.get("image", ""))}

    def __getattr__(self, name: str) -> Any:
        if name == "transform":  # not there yet while it is unpickled
            raise AttributeError(name)
        return getattr(self.transform, name)


def _file_of(batchdata: Mapping[str, Any]) -> str:
    names = getattr(batchdata.get("image"), "meta", {}).get(ImageMetaKey.FILENAME_OR_OBJ, "")
    return str(names[0] if isinstance(names, (list, tuple)) and names else names)
