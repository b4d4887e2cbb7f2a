"""An ignite handler that writes the page of an evaluation."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from ignite.handlers import Timer

from shared_components.errors import InputError
from shared_components.reporting.case_keys import claim
from shared_components.reporting.report import Picture, failures_of, weights_and_sampling, write_report

logger = logging.getLogger(__name__)


class ReportHandler:
    """Write ``report.html`` when an evaluation is complete: tables, charts, pictures, settings
    (`write_report`).

    It reads what `CaseMetrics` left in ``engine.state`` and, if `SaveOverlays` ran, shows the worst, the
    median and the best cases by mean Dice. Handlers before it may leave further tables in
    ``engine.state.report_tables``, a list of `shared_components.reporting.tables.Table`.

    Args:
        output_dir: where the page goes; made when the run starts.
        title: heading of the page.
        settings: what to state about the run: configuration, seed, weights. Versions and timing are added.
        pictures_per_end: how many worst and how many best cases are shown.
        left_out: a line for each case that was left out before the run, or a function that tells when it is over.
        overwrite: whether a page of an earlier run may be replaced.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        title: str = "Evaluation",
        settings: Mapping[str, Any] | None = None,
        pictures_per_end: int = 2,
        overwrite: bool = False,
        left_out: Sequence[str] | Callable[[], Sequence[str]] = (),
    ) -> None:
        self.output_dir = Path(output_dir)
        self.left_out = left_out
        self.title, self.settings = title, dict(settings or {})
        self.pictures_per_end, self.overwrite = pictures_per_end, overwrite
        self._timer = Timer()

    def attach(self, engine: Engine) -> None:
        """Add the handler to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self)

    def _start(self, engine: Engine) -> None:
        claim(self, ["report.html"])
        self._timer.reset()

    def __call__(self, engine: Engine) -> None:
        """Write the page."""
        state = engine.state
        rows, tables = getattr(state, "case_metrics", None), getattr(state, "report_tables", ())
        if rows is None and not tables:
            raise InputError("ReportHandler: found no case metrics; put CaseMetrics before it in the handlers")
        if idist.get_rank() != 0 or not (rows or tables):
            return
        seconds = {"seconds in all": round(self._timer.value(), 1)}
        path = write_report(
            self.output_dir,
            self.title,
            rows or [],
            state.case_summary if rows else [],
            self._pictures(engine) if rows else [],
            {**self.settings, **weights_and_sampling(engine), **seconds},
            state.calibration.tolist() if rows else None,
            state.near_foreground if rows else "",
            tables=tables,
            failures=failures_of(engine, self.left_out),
        )
        logger.info("report: %s", path)

    def _pictures(self, engine: Engine) -> list[Picture]:
        keys, overlays = engine.state.case_keys, getattr(engine.state, "overlays", {})
        return [
            Picture(f"{kind} case", row["case"], overlays[keys[row["case"]]].read_bytes(), _dice_of(row))
            for kind, row in choose_cases(engine.state.case_metrics, self.pictures_per_end)
            if keys[row["case"]] in overlays
        ]


def choose_cases(rows: Sequence[Mapping[str, Any]], ends: int) -> list[tuple[str, Mapping[str, Any]]]:
    """Return up to ``ends`` worst, the median and up to ``ends`` best cases by mean Dice, none twice."""
    ranked = sorted(rows, key=lambda row: (row["dice_mean"], row["case"]))
    count, middle = len(ranked), (len(ranked) - 1) // 2
    kinds = {middle: "Median"}
    kinds.update({index: "Best" for index in range(max(count - ends, 0), count) if index != middle})
    kinds.update({index: "Worst" for index in range(min(ends, count)) if index != middle})
    return [(kinds[index], ranked[index]) for index in sorted(kinds)]


def _dice_of(row: Mapping[str, Any]) -> str:
    return "Dice: " + ", ".join(f"{key[5:]} {row[key]:.3f}" for key in row if key.startswith("dice_"))
