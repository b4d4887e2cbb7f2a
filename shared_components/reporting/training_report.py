"""The curves of a training run, as a table and a page that are up to date after every epoch."""

from __future__ import annotations

import csv
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Timer

from shared_components.reporting.charts import line_chart
from shared_components.reporting.denoising import DENOISING_FILE
from shared_components.reporting.files import claim_outputs, write_atomically
from shared_components.reporting.metrics import write_table
from shared_components.reporting.page import page, section
from shared_components.reporting.report import Picture, environment, figures, subtitle
from shared_components.reporting.tables import settings_table

HISTORY = "training_history.csv"


class TrainingReportHandler:
    """Write ``training_history.csv`` and ``training.html`` after every epoch of a trainer.

    The table has one row per epoch: the mean over its iterations of each of ``output_keys``, the metrics of
    the validation if there was one, and the seconds it took. A resumed run goes on with the table it finds. The page
    shows the picture that a `DenoisingPreview` of the same folder has left.

    Args:
        output_dir: where both go; made when the run starts.
        title: heading of the page.
        output_keys: scalars of the trainer's output to follow, such as ``loss``; one that is not there is
            left out.
        evaluator: the validation's evaluator, whose metrics are followed.
        settings: what to state about the run: configuration, seed. Versions and timing are added.
        overwrite: whether the table of another run may be replaced by a run that starts from the first epoch.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        title: str = "Training",
        output_keys: Sequence[str] = ("loss",),
        evaluator: Engine | None = None,
        settings: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.title, self.output_keys, self.evaluator = title, tuple(output_keys), evaluator
        self.settings, self.overwrite = dict(settings or {}), overwrite
        self._history: dict[int, dict[str, float]] = {}
        self._sums: dict[str, list[float]] = defaultdict(list)
        self._timer = Timer()

    def attach(self, engine: Engine) -> None:
        """Add the handler to a trainer, and to its evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._collect_validation, engine)

    def _start(self, engine: Engine) -> None:
        epoch = engine.state.epoch
        if idist.get_rank() == 0:
            claim_outputs(self.output_dir, [HISTORY, "training.html"], self.overwrite or epoch > 0)
            if epoch == 0:
                (self.output_dir / DENOISING_FILE).unlink(missing_ok=True)
        self._history = {n: row for n, row in read_history(self.output_dir / HISTORY).items() if n <= epoch}

    def _start_epoch(self, engine: Engine) -> None:
        self._timer.reset()
        self._sums.clear()

    def _collect(self, engine: Engine) -> None:
        output = engine.state.output
        output = output[0] if isinstance(output, (list, tuple)) and output else output
        for key in self.output_keys:
            if isinstance(output, Mapping) and key in output:
                self._sums[key].append(float(torch.as_tensor(output[key]).detach().float().mean()))

    def _collect_validation(self, evaluator: Engine, trainer: Engine) -> None:
        row = self._history.setdefault(trainer.state.epoch, {"epoch": trainer.state.epoch})
        for name, value in evaluator.state.metrics.items():
            values = np.atleast_1d(torch.as_tensor(value).detach().cpu().numpy()).ravel()
            names = [name] if len(values) == 1 else [f"{name}_{index}" for index in range(len(values))]
            row.update({f"validation {key}": float(v) for key, v in zip(names, values)})
        self._write(trainer)

    def __call__(self, engine: Engine) -> None:
        """Add the epoch to the table and write both files."""
        epoch = engine.state.epoch
        means = {key: math.fsum(values) / len(values) for key, values in self._sums.items()}
        seconds = round(self._timer.value(), 3)
        self._history[epoch] = {"epoch": epoch, **means, "seconds": seconds, **self._history.get(epoch, {})}
        self._write(engine)

    def _write(self, engine: Engine) -> None:
        if idist.get_rank() != 0:
            return
        rows = [self._history[epoch] for epoch in sorted(self._history)]
        write_table(self.output_dir / HISTORY, rows)
        done, planned = engine.state.epoch, engine.state.max_epochs
        took = sum(row.get("seconds", 0.0) for row in rows)
        what = f"epoch {done} of {planned}, {took / 60:.1f} minutes"
        names = [key for key in dict.fromkeys(key for row in rows for key in row) if key != "epoch"]
        charts = [line_chart([(row["epoch"], row[name]) for row in rows if name in row], name) for name in names]
        body = [
            section("Curves", f'<div class="charts">{"".join(charts)}</div>'),
            section("How the first validation case is denoised", self._denoising()),
            section("How it was made", settings_table({**self.settings, "environment": environment()})),
        ]
        write_atomically(self.output_dir / "training.html", page(self.title, subtitle(what), body))

    def _denoising(self) -> str:
        path = self.output_dir / DENOISING_FILE
        what = "from noise to a label map, and what the denoiser takes the clean map for in each step"
        return figures([Picture("First case", "", path.read_bytes(), what)]) if path.exists() else ""


def read_history(path: str | os.PathLike) -> dict[int, dict[str, float]]:
    """Read ``training_history.csv`` back, by epoch; nothing where there is none."""
    if not Path(path).exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    return {int(row["epoch"]): {**row, "epoch": int(row["epoch"])} for row in rows}
