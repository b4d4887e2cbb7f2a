"""Ignite handler for a bundle's JSON: the scores of a weakly supervised segmentation, in an evaluator."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Timer
from monai.networks.utils import eval_mode
from torch import nn

from shared_components.reporting.case_keys import CaseKey, claim, next_key
from shared_components.reporting.files import case_file, case_name
from shared_components.reporting.metrics import write_table
from shared_components.reporting.tables import Table
from shared_components.reporting.weak_metrics import LISTS, MEANINGS, score_slice, summarise_slices

logger = logging.getLogger(__name__)

PER_SLICE, SUMMARY = "weak_per_slice.csv", "weak_summary.csv"


class WeakMetrics:
    """Write what `summarise_slices` tells of an evaluation: ``weak_per_slice.csv`` and ``weak_summary.csv``.

    The batches must have ``class`` (0 or 1) and ``patient``; ``label``, the mask, may be missing. Where the output has
    ``draws`` (`DrawsInferer`), the tables tell how far the noise draws agree. ``engine.state`` receives
    ``weak_summary``.

    Args:
        output_dir: where the tables go; made when the run starts.
        network: whose gate is asked, ``positive_probability(image)`` and ``gate_threshold`` (`SaliencyNetwork`).
        overwrite: whether tables of an earlier run may be replaced.
    """

    def __init__(self, output_dir: str | os.PathLike, network: nn.Module, overwrite: bool = False) -> None:
        self.output_dir = Path(output_dir)
        self.network = network
        self.overwrite = overwrite
        self._rows: dict[CaseKey, dict] = {}
        self._timer = Timer()

    def attach(self, engine: Engine) -> None:
        """Add the handler to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, self._timer.reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        claim(self, [PER_SLICE, SUMMARY])
        self._rows = {}

    def __call__(self, engine: Engine) -> None:
        """Score the slices of one iteration."""
        seconds = self._timer.value() / max(len(engine.state.output), 1)
        for case, loaded in zip(engine.state.output, engine.state.batch):
            # the evaluator has left the mode in which batch statistics are not learnt
            with eval_mode(self.network):
                image = torch.as_tensor(case["image"])[None].to(engine.state.device)
                positive = float(self.network.positive_probability(image))
            mask = loaded.get("label")
            key = next_key(case_file(mask, case["image"]), self._rows)
            name = case_name(key[0])
            self._rows[key] = {
                "case": name,
                "patient": str(loaded.get("patient", name)),
                "class": int(loaded["class"]),
                "positive": positive,
                "open": positive >= self.network.gate_threshold,
                "seconds": seconds,
                **score_slice(case["pred"], mask, draws=case.get("draws")),
            }

    def _finish(self, engine: Engine) -> None:
        # a distributed sampler repeats slices to fill up; they count once
        rows = list({key: row for part in idist.all_gather(self._rows) for key, row in part.items()}.values())
        if not rows:
            return
        engine.state.weak_summary = summarise_slices(rows)
        if idist.get_rank() == 0:
            table = [
                {"metric": name, "value": value, "meaning": MEANINGS[name]}
                for name, value in engine.state.weak_summary.items()
            ]
            engine.state.report_tables = [
                Table("Gate and masks", table),
                Table("Slices and their gate", [_shown(row) for row in rows], "Click a heading to sort."),
            ]
            write_table(
                self.output_dir / PER_SLICE,
                [{name: value for name, value in row.items() if name not in LISTS} for row in rows],
            )
            write_table(self.output_dir / SUMMARY, table)
            logger.info("%d slices, tables in %s", len(rows), self.output_dir)


def _shown(row: dict) -> dict:
    """The columns of a slice that the page shows."""
    names = ("case", "patient", "class", "positive", "open", "marked", "draw_agreement", "draw_dice_sd", "seconds")
    return {name: row[name] for name in names if name in row}
