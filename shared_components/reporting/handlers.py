"""Ignite handlers for a bundle's JSON: score each case, draw it, and write the report at the end.

In an evaluator they belong in this order: `CaseMetrics`, `SaveOverlays`, `ReportHandler`.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.transforms import ResampleToMatch
from torch import Tensor

from shared_components.ensembling.uncertainty import entropy
from shared_components.errors import InputError
from shared_components.reporting.files import (
    case_file,
    case_name,
    claim_outputs,
    file_of,
    foreground_names,
    is_picture,
    unique_name,
    write_atomically,
)
from shared_components.reporting.instances import InstanceScores
from shared_components.reporting.member_scores import MemberScores
from shared_components.reporting.metrics import UNITS, expected_dice_order, score_case, summarise, write_table
from shared_components.reporting.overlays import encode_png, overlay_figure
from shared_components.reporting.report import Picture, failures_of, weights_and_sampling, write_report

CaseKey = tuple[str, int]
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
        self._since = 0.0

    def attach(self, engine: Engine) -> None:
        """Add the handler to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, self._start_clock)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        _claim(self, ["metrics_per_case.csv", "metrics_summary.csv"])
        self._records = {}
        if self.members:
            self.members.start(engine)

    def _start_clock(self, engine: Engine) -> None:
        self._since = time.perf_counter()

    def __call__(self, engine: Engine) -> None:
        """Score the cases of one iteration."""
        cases, loaded = engine.state.output, engine.state.batch
        if not cases:  # it failed
            return
        predictions = [case[self.pred_key].cpu() for case in cases]
        seconds = (time.perf_counter() - self._since) / len(cases)
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
        key = _next_key(case_file(label, *case.values()), self._records)
        names = foreground_names(self.label_names, prediction.shape[0])
        in_pixels = self.unit is None and is_picture(label)
        unit = self.unit or ("px" if in_pixels else "mm")
        spacing = [1.0] * (label.ndim - 1) if in_pixels else None
        try:
            options = {"margin": self.margin, "num_bins": self.num_bins, "iou": self.iou, "expected": self.expected}
            scores, bins = score_case(prediction, label, names, spacing, unit, regions=self.regions, **options)
            if self.instances is not None:
                scores.update(self.instances(prediction, label, instances))
            if ensemble is not None:
                scores.update(self.members(ensemble, case, label))
        except InputError as error:
            raise InputError(f"{file_of(label) or key[0]}: {error}") from error
        self._records[key] = CaseRecord({**scores, "seconds": seconds}, bins, unit)

    def _finish(self, engine: Engine) -> None:
        # a distributed sampler repeats cases to fill up; they count once
        records = {key: record for part in _gather(self._records) for key, record in part.items()}
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


class SaveOverlays:
    """Write a picture ``<case>_overlay.png`` of every case that an evaluator has finished (`overlay_figure`).

    The image is brought to the prediction's grid where preprocessing has changed it. Without an uncertainty
    map the entropy of the prediction's probabilities is drawn; without a label there are neither reference
    nor errors, so the same handler serves inference and evaluation. ``engine.state.overlays`` holds their
    paths.

    Args:
        output_dir: where the pictures go; made when the run starts.
        label_names: as in `CaseMetrics`.
        image_key: key of the (K, *spatial) image: three channels in 2-D are colours, of other images one
            channel is drawn.
        pred_key: key of the (C, *spatial) probabilities or (1, *spatial) label map.
        label_key: key of the reference, if there is one.
        uncertainty_key: key of the (1, *spatial) uncertainty in [0, 1], if there is one.
        overwrite: whether pictures of an earlier run may be replaced.
        also_claims: names, with wildcards, of what else the run writes to ``output_dir``, such as label maps
            by `SaveImaged`, which replaces files without asking; where one is there the run is refused alike.
        channel: the image's channel to draw, in grey; by default colours or the first (`overlay_figure`).
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        label_names: Mapping[Any, Any] | None = None,
        image_key: str = "image",
        pred_key: str = "pred",
        label_key: str = "label",
        uncertainty_key: str = "uncertainty",
        overwrite: bool = False,
        also_claims: Sequence[str] = (),
        channel: int | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.label_names = label_names
        self.image_key, self.pred_key = image_key, pred_key
        self.label_key, self.uncertainty_key = label_key, uncertainty_key
        self.overwrite, self.channel = overwrite, channel
        self.claims = ["*_overlay.png", *also_claims]
        self._written: dict[CaseKey, Path] = {}

    def attach(self, engine: Engine) -> None:
        """Add the handler to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        _claim(self, self.claims)
        self._written = {}

    def __call__(self, engine: Engine) -> None:
        """Draw the cases of one iteration."""
        for case in engine.state.output:
            label, image, prediction = case.get(self.label_key), case[self.image_key], case[self.pred_key]
            key = _next_key(case_file(label, *case.values()), self._written)
            name = unique_name(
                case_name(key[0]), {path.name[: -len("_overlay.png")] for path in self._written.values()}
            )
            figure = self._draw(name, image, prediction, label, case.get(self.uncertainty_key))
            self._written[key] = write_atomically(self.output_dir / f"{name}_overlay.png", encode_png(figure))

    def _draw(
        self, name: str, image: Tensor, prediction: Tensor, label: Tensor | None, uncertainty: Tensor | None
    ) -> np.ndarray:
        if uncertainty is None and prediction.shape[0] > 1:
            uncertainty = entropy(prediction[None].float())[0]
        labels = [None if item is None else _array(_label_map(item)) for item in (prediction, label)]
        names = foreground_names(self.label_names, prediction.shape[0])
        return overlay_figure(
            image=_array(on_grid_of(image, prediction)),
            prediction=labels[0],
            affine=_array(prediction.affine) if isinstance(prediction, MetaTensor) else None,
            reference=labels[1],
            uncertainty=None if uncertainty is None else _array(uncertainty)[0],
            label_names=names,
            title=name,
            channel=self.channel,
        )

    def _finish(self, engine: Engine) -> None:
        engine.state.overlays = {key: path for part in _gather(self._written) for key, path in part.items()}


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
        self._since = 0.0

    def attach(self, engine: Engine) -> None:
        """Add the handler to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self)

    def _start(self, engine: Engine) -> None:
        _claim(self, ["report.html"])
        self._since = time.perf_counter()

    def __call__(self, engine: Engine) -> None:
        """Write the page."""
        state = engine.state
        rows, tables = getattr(state, "case_metrics", None), getattr(state, "report_tables", ())
        if rows is None and not tables:
            raise InputError("ReportHandler: found no case metrics; put CaseMetrics before it in the handlers")
        if idist.get_rank() != 0 or not (rows or tables):
            return
        seconds = {"seconds in all": round(time.perf_counter() - self._since, 1)}
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


def on_grid_of(image: Tensor, prediction: Tensor) -> Tensor:
    """Return the image on the prediction's grid: as it is where the grids agree, else resampled linearly.

    A slice that the network saw as a volume of one slice loses that axis.
    """
    if image.ndim == prediction.ndim + 1 and image.shape[-1] == 1:
        image = image.squeeze(-1)
    both = isinstance(image, MetaTensor) and isinstance(prediction, MetaTensor)
    same_place = not both or torch.allclose(image.affine.double(), prediction.affine.double(), atol=1e-4)
    if image.shape[1:] == prediction.shape[1:] and same_place:
        return image
    if not both:
        raise InputError(
            f"image of shape {tuple(image.shape[1:])} and prediction of shape {tuple(prediction.shape[1:])}: "
            "without their affines they cannot be drawn on one grid"
        )
    return ResampleToMatch(mode="bilinear", padding_mode="zeros")(img=image.float(), img_dst=prediction)


def _label_map(item: Tensor) -> Tensor:
    """(C, *spatial) scores or a (1, *spatial) label map as (*spatial) int64."""
    return item.argmax(dim=0) if item.shape[0] > 1 else item[0].round().long()


def _array(item: Tensor) -> np.ndarray:
    item = item.as_tensor() if isinstance(item, MetaTensor) else item
    return item.detach().cpu().numpy()


def _claim(handler: CaseMetrics | SaveOverlays | ReportHandler, patterns: Sequence[str]) -> None:
    """Claim a handler's outputs once; what is there at its next start is its own."""
    if idist.get_rank() == 0:
        claim_outputs(handler.output_dir, patterns, handler.overwrite)
    idist.barrier()
    handler.overwrite = True


def _next_key(file: str, taken: Mapping[CaseKey, Any]) -> CaseKey:
    """Return the file and how often it came before: several slices or patches may come from one file."""
    file = file or f"case_{len(taken) + 1:03d}"
    return next((file, number) for number in itertools.count() if (file, number) not in taken)


def _gather(part: Any) -> list[Any]:
    """Collect one object of every process, in the order of their ranks."""
    if idist.get_world_size() == 1:
        return [part]
    parts: list[Any] = [None] * idist.get_world_size()
    torch.distributed.all_gather_object(parts, part)
    return parts
