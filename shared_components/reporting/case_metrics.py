"""An ignite handler that scores each case of an evaluation."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Timer
from torch import Tensor

from shared_components.errors import InputError
from shared_components.reporting.case_keys import CaseKey, claim, next_key
from shared_components.reporting.files import case_file, case_name, file_of, foreground_names, is_picture, unique_name
from shared_components.reporting.instances import InstanceScores
from shared_components.reporting.member_scores import MemberScores
from shared_components.reporting.metrics import UNITS, expected_dice_order, score_case, summarise, write_table

logger = logging.getLogger(__name__)


class CaseRecord(NamedTuple):
    """What is kept of a scored case: its row of the table, its calibration bins, the unit of its distances."""

    scores: dict[str, float]
    bins: Tensor
    unit: str


class CaseMetrics:
    """Score every case of an evaluation and write ``metrics_per_case.csv`` and ``metrics_summary.csv``.

    `score_case` says which scores, and on what conventions. The distances are in the units of the label's
    affine, so the evaluation should compare on the label's own grid: load the label without spatial
    transforms and invert the prediction's. Pictures (PNG, JPEG, TIFF, ...) have no size: theirs are in pixels,
    and the columns are called so. ``seconds`` is the time of an iteration, after loading, divided by its cases.

    ``engine.state`` receives ``case_metrics`` (the rows), ``case_summary``, ``calibration`` (summed bins) and
    ``case_keys`` (the files).

    Args:
        output_dir: where the tables go; made when the run starts.
        label_names: ``{"anterior": 1}`` or ``{"1": "anterior"}``; classes without a name are numbered.
        pred_key: key of the (C, *spatial) probabilities or one-hot, or (1, *spatial) label map.
        label_key: key of the (1, *spatial) label map or (C, *spatial) one-hot reference.
        distance_unit: unit of the affine, for all cases; by default ``"px"`` for pictures, whose pixels then
            count as 1 whatever the file says, and ``"mm"`` for everything else.
        region_margin: how far "near the foreground" reaches, in that unit.
        num_bins: bins of the calibration error.
        overwrite: whether tables of an earlier run may be replaced.
        iou: whether to add the intersection over union to Dice.
        instances: how to score single objects, if they matter (`InstanceScores`).
        instances_key: key of the reference's numbered objects (1, *spatial), in the cases that have them
            (`add_instances`).
        regions: name to class indices, of unions of classes that are scored too, such as the whole tumour.
        members: how to score the members of an ensemble, if wanted (`MemberScores`).
        expected: whether to add the expected Dice, which means nothing where predictions are no probabilities.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        label_names: Mapping[Any, Any] | None = None,
        pred_key: str = "pred",
        label_key: str = "label",
        distance_unit: str | None = None,
        region_margin: float = 5.0,
        num_bins: int = 20,
        overwrite: bool = False,
        iou: bool = False,
        instances: InstanceScores | None = None,
        instances_key: str = "instances",
        regions: Mapping[str, Sequence[int]] | None = None,
        members: MemberScores | None = None,
        expected: bool = True,
    ) -> None:
        if distance_unit not in (None, *UNITS):
            raise InputError(f"distance_unit '{distance_unit}': expected one of {', '.join(UNITS)}, or none")
        self.output_dir = Path(output_dir)
        self.label_names = label_names
        self.pred_key, self.label_key, self.instances_key = pred_key, label_key, instances_key
        self.unit, self.margin, self.num_bins = distance_unit, region_margin, num_bins
        self.overwrite, self.iou, self.regions = overwrite, iou, regions
        self.instances, self.members, self.expected = instances, members, expected
        self._records: dict[CaseKey, CaseRecord] = {}
        self._timer = Timer()

    def attach(self, engine: Engine) -> None:
        """Add the handler to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, self._timer.reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        claim(self, ["metrics_per_case.csv", "metrics_summary.csv"])
        self._records = {}
        if self.members:
            self.members.start(engine)

    def __call__(self, engine: Engine) -> None:
        """Score the cases of one iteration."""
        cases, loaded = engine.state.output, engine.state.batch
        if not cases:  # it failed
            return
        predictions = [case[self.pred_key].cpu() for case in cases]
        seconds = self._timer.value() / len(cases)
        # MONAI's engines leave in the batch what they were not asked to pass on
        loaded = loaded if isinstance(loaded, list) and len(loaded) == len(cases) else [{}] * len(cases)
        for index, (case, also, prediction) in enumerate(zip(cases, loaded, predictions)):
            instances = case.get(self.instances_key, also.get(self.instances_key))
            ensemble = self.members.taken(engine, case, index) if self.members else None
            self._score(case, prediction, instances, ensemble, seconds)

    def _score(
        self, case: Mapping, prediction: Tensor, instances: Tensor | None, ensemble: Tensor | None, seconds: float
    ) -> None:
        label = case[self.label_key]
        key = next_key(case_file(label, *case.values()), self._records)
        names = foreground_names(self.label_names, prediction.shape[0])
        in_pixels = self.unit is None and is_picture(label)
        unit = self.unit or ("px" if in_pixels else "mm")
        spacing = [1.0] * (label.ndim - 1) if in_pixels else None
        try:
            options = {"margin": self.margin, "num_bins": self.num_bins, "iou": self.iou, "expected": self.expected}
            more = {"regions": self.regions, "ignored": case.get("ignored")}
            scores, bins = score_case(prediction, label, names, spacing, unit, **options, **more)
            if self.instances is not None:
                found = prediction if instances is None else case.get(f"{self.pred_key}_whole", prediction)
                scores.update(self.instances(found, label, instances, case.get("ignored")))
            if ensemble is not None:
                scores.update(self.members(ensemble, case, label))
        except InputError as error:
            raise InputError(f"{file_of(label) or key[0]}: {error}") from error
        self._records[key] = CaseRecord({**scores, "seconds": seconds}, bins, unit)

    def _finish(self, engine: Engine) -> None:
        # a distributed sampler repeats cases to fill up; they count once
        records = {key: record for part in idist.all_gather(self._records) for key, record in part.items()}
        rows, engine.state.case_keys = {}, {}
        for key, record in sorted(records.items(), key=lambda item: item[0]):
            name = unique_name(case_name(key[0]), rows)
            rows[name] = {"case": name, **record.scores}
            engine.state.case_keys[name] = key
        engine.state.case_metrics = list(rows.values())
        engine.state.case_summary = summarise(engine.state.case_metrics)
        engine.state.case_summary += expected_dice_order(engine.state.case_metrics)
        zeros = torch.zeros(3, self.num_bins, dtype=torch.float64)
        engine.state.calibration = sum((record.bins for record in records.values()), zeros)
        units = " or ".join(sorted({record.unit for record in records.values()}))
        region = f"Within {self.margin:g} {units} of what the prediction or the reference marks."
        engine.state.near_foreground = region
        if idist.get_rank() == 0 and rows:
            write_table(self.output_dir / "metrics_per_case.csv", engine.state.case_metrics)
            write_table(self.output_dir / "metrics_summary.csv", engine.state.case_summary)
            means = {row["metric"]: row["mean"] for row in engine.state.case_summary}
            logger.info("mean Dice of %d cases: %.4f, tables in %s", len(rows), means["dice_mean"], self.output_dir)
