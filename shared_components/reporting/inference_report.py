"""The page about an inference: what was found in each image, how sure that is, and pictures."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Timer
from monai.engines import IterationEvents
from torch import Tensor

from shared_components.reporting.case_keys import claim
from shared_components.reporting.charts import strip_chart
from shared_components.reporting.files import (
    case_file,
    case_name,
    foreground_names,
    is_picture,
    unique_name,
    write_atomically,
)
from shared_components.reporting.inference_ledger import InferenceLedger, image_key, item_of
from shared_components.reporting.metrics import spacing_of, summarise, write_table
from shared_components.reporting.page import page, section
from shared_components.reporting.report import (
    RADIOLOGICAL,
    Picture,
    counted,
    environment,
    failed_cases,
    failures_of,
    figures,
    subtitle,
    weights_and_sampling,
)
from shared_components.reporting.tables import case_table, heading_of, settings_table, summary_table, tiles

logger = logging.getLogger(__name__)

PER_CASE = "inference_per_case.csv"
_UNCERTAIN = 0.5
_DEFINITIONS = f"""<dl>
<dt>Expected Dice</dt><dd>The overlap with the truth that the probabilities themselves let one expect, 0 to 1, the mean
of what is found: look at the cases with the lowest first. No value where nothing is found. How well it orders cases,
the evaluation of the weights says (order by expected Dice).</dd>
<dt>Uncertainty</dt><dd>Entropy of the class probabilities that the members of the ensemble agree on, relative to the
largest possible: 0 where they leave no doubt, 1 where every class is as likely.</dd>
<dt>In the foreground</dt><dd>Its mean over what the prediction marks; no value where nothing is marked.</dd>
<dt>Share that is uncertain</dt><dd>Voxels or pixels with an uncertainty above {_UNCERTAIN}, of all.</dd>
<dt>Volume, area</dt><dd>Of what the prediction marks; from the voxel size in the file's header, pictures in
pixels.</dd>
<dt>Instances</dt><dd>Single objects, where they were told apart: by a watershed of the mask's distances to its
border.</dd></dl>"""


class InferenceReportHandler:
    """Write ``report.html`` and ``inference_per_case.csv`` when an inference is complete.

    For every case: size, volume of each class, how many objects were numbered where they were (``instances``), expected
    Dice, uncertainty, seconds. The pictures that `SaveOverlays` drew, which must stand before it, of the cases of the
    lowest and the highest expected Dice; where that is not known, of the most and the least uncertain pixels. A class
    that is found in no voxel has volume 0.

    Args:
        output_dir: where both go; made when the run starts.
        title: heading of the page.
        label_names: as in `shared_components.reporting.CaseMetrics`.
        settings: what to state about the run. Weights, sampling, versions and timing are added.
        left_out: a line for each case that was left out before the run, or a function that tells when it is over.
        pred_key, uncertainty_key: keys of the (1, *spatial) label map and the (1, *spatial) uncertainty in [0, 1].
        pictures_per_end: how many of the most and of the least certain cases are shown.
        overwrite: whether a page of an earlier run may be replaced.
        resume: go on with the `InferenceLedger` of an earlier run, whose cases the page shows too.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        title: str = "Inference",
        label_names: Mapping[Any, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        left_out: Sequence[str] | Callable[[], Sequence[str]] = (),
        pred_key: str = "pred",
        uncertainty_key: str = "uncertainty",
        pictures_per_end: int = 3,
        overwrite: bool = False,
        resume: bool = False,
    ) -> None:
        self.output_dir, self.title = Path(output_dir), title
        self.label_names, self.settings = label_names, dict(settings or {})
        self.left_out = left_out
        self.pred_key, self.uncertainty_key = pred_key, uncertainty_key
        self.pictures_per_end, self.overwrite, self.resume = pictures_per_end, overwrite, resume
        self._ledger = InferenceLedger(output_dir)
        self._rows: dict[tuple[str, int], dict[str, Any]] = {}
        self._earlier: dict[str, tuple[str, int]] = {}
        self._whole, self._case = Timer(), Timer()

    def attach(self, engine: Engine) -> None:
        """Add the handler to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED(once=1), self._open_ledger)
        engine.add_event_handler(Events.ITERATION_STARTED, self._case.reset)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self._case.pause)  # without the time of drawing
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        claim(self, ["report.html", PER_CASE])
        self._rows = {}
        self._whole.reset()

    def _open_ledger(self, engine: Engine) -> None:
        self._ledger.open(engine, self.resume, self.settings)  # now that the weights are loaded
        for record in self._ledger.records() if self.resume else ():
            self._earlier[record["image"]] = (record["file"], record["number"])
            self._rows[record["file"], record["number"]] = record["row"]

    def __call__(self, engine: Engine) -> None:
        """Take note of the cases of one iteration."""
        seconds = self._case.value() / max(len(engine.state.output), 1)
        for case in engine.state.output:
            item = item_of(engine)
            self._rows.pop(self._earlier.get(image_key(item)) if item else None, None)  # done once more
            file = case_file(case.get("label"), *case.values())
            number = sum(other == file for other, _ in self._rows)
            row = describe_case(case[self.pred_key], case.get(self.uncertainty_key), self.label_names)
            expected = {"expected_dice": case["expected_dice"]} if "expected_dice" in case else {}
            objects = {"instances": int(case["instances"].max())} if "instances" in case else {}
            self._rows[file, number] = {**row, **objects, **expected, "seconds": seconds}
            if item:
                self._ledger.add(item, {"file": file, "number": number, "row": self._rows[file, number]})

    def _finish(self, engine: Engine) -> None:
        rows: dict[str, dict[str, Any]] = {}
        keys: dict[str, tuple[str, int]] = {}
        for key in sorted(self._rows):
            name = unique_name(case_name(key[0]), rows)
            rows[name], keys[name] = {"case": name, **self._rows[key]}, key
        if idist.get_rank() != 0:
            return
        seconds = {"seconds in all": round(self._whole.value(), 1)}
        settings = {**self.settings, **weights_and_sampling(engine), **seconds, "environment": environment()}
        failures = failures_of(engine, self.left_out)
        overlays = {**self._earlier_overlays(keys.values()), **getattr(engine.state, "overlays", {})}
        pictures = self._pictures(list(rows.values()), keys, overlays)
        write_table(self.output_dir / PER_CASE, list(rows.values()))
        text = inference_page(self.title, list(rows.values()), pictures, settings, failures)
        path = write_atomically(self.output_dir / "report.html", text)
        if not failures:
            self._ledger.close()
        logger.info("report: %s", path)

    def _earlier_overlays(self, keys: Iterable[tuple[str, int]]) -> dict[tuple[str, int], Path]:
        drawn = {(file, 0): self.output_dir / f"{case_name(file)}_overlay.png" for file, number in keys if number == 0}
        return {key: path for key, path in drawn.items() if self.resume and path.is_file()}

    def _pictures(self, rows: list[dict], keys: Mapping[str, Any], overlays: Mapping[Any, Path]) -> list[Picture]:
        drawn = [row for row in rows if keys[row["case"]] in overlays]
        ranked = sorted(drawn, key=lambda row: (_certainty(row), row["case"]))
        ends = self.pictures_per_end
        first, last = ranked[:ends], ranked[max(len(ranked) - ends, ends) :]
        chosen = [("Least certain", row) for row in first] + [("Most certain", row) for row in last]
        return [
            Picture(kind, row["case"], overlays[keys[row["case"]]].read_bytes(), _in_words(row)) for kind, row in chosen
        ]


def describe_case(
    prediction: Tensor, uncertainty: Tensor | None, label_names: Mapping[Any, Any] | None
) -> dict[str, Any]:
    """Return what an inference says of one case: ``size``, ``volume_ml_<label>`` or ``area_px_<label>``,
    ``uncertainty_in_foreground``, ``uncertain_share``.

    Args:
        prediction: (1, *spatial) class indices.
        uncertainty: (1, *spatial) in [0, 1].
        label_names: as in `shared_components.reporting.CaseMetrics`.
    """
    labels = torch.as_tensor(prediction).detach().cpu().numpy()[0].round().astype(np.int64)
    in_pixels = is_picture(prediction) or labels.ndim == 2
    unit = 1.0 if in_pixels else float(np.prod(spacing_of(prediction))) / 1000
    row: dict[str, Any] = {"size": "x".join(map(str, labels.shape))}
    for index, name in foreground_names(label_names, 1).items():
        amount = float(np.count_nonzero(labels == index)) * unit
        row[f"{'area_px' if in_pixels else 'volume_ml'}_{name}"] = amount
    if uncertainty is not None:
        values = torch.as_tensor(uncertainty).detach().cpu().numpy()[0]
        marked = values[labels > 0]
        row["uncertainty_in_foreground"] = float(marked.mean()) if marked.size else float("nan")
        row["uncertain_share"] = float((values > _UNCERTAIN).mean())
    return row


def inference_page(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    pictures: Sequence[Picture],
    settings: Mapping[str, Any],
    failures: Sequence[str] = (),
) -> str:
    """Return the page; ``rows`` are those of `describe_case` with ``case`` first and ``seconds`` last."""
    summary = summarise(rows)
    volumes = any("volume_ml" in column for row in rows for column in row)
    empty = [row["case"] for row in rows if not any(row[c] for c in row if c.startswith(("volume_ml_", "area_px_")))]
    note = f"Nothing was found in {', '.join(empty)}." if empty else ""
    body = [
        failed_cases(failures),
        tiles(summary) if summary else "",
        section("Summary", summary_table(summary), note),
        section("Distribution over the cases", _charts(rows), "Hover over a point for its case."),
        section("All cases", case_table(rows, {picture.case for picture in pictures}), "Click a heading to sort."),
        section("Cases in pictures", figures(pictures), RADIOLOGICAL if volumes else ""),
        section("How to read the numbers", _DEFINITIONS),
        section("How it was made", settings_table(settings)),
    ]
    return page(title, subtitle(counted(len(rows), "case")), body)


def _charts(rows: Sequence[Mapping[str, Any]]) -> str:
    charts = []
    for prefix, label in (("volume_ml_", "volume (ml)"), ("area_px_", "area (px)"), ("uncertainty_in_", "uncertainty")):
        columns = dict.fromkeys(column for row in rows for column in row if column.startswith(prefix))
        groups = {
            column.removeprefix(prefix).replace("_", " "): {row["case"]: row[column] for row in rows if column in row}
            for column in columns
        }
        charts += [strip_chart(groups, label)] if groups else []
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _certainty(row: Mapping[str, Any]) -> float:
    """What orders the pictures; a case without a finding comes first, since what is missed shows in no number."""
    if "expected_dice" in row:
        return row["expected_dice"] if math.isfinite(row["expected_dice"]) else 0.0
    return -row.get("uncertain_share", 0.0)


def _in_words(row: Mapping[str, Any]) -> str:
    amounts = [column for column in row if column.startswith(("volume_ml_", "area_px_"))]
    return ", ".join(f"{heading_of(column)}: {row[column]:.4g}" for column in amounts)
