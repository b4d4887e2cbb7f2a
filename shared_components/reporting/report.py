"""One self-contained HTML page about a run: what came out, case by case, and how it was made."""

from __future__ import annotations

import base64
import math
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import monai
import numpy as np
import torch

import shared_components
from shared_components.reporting.charts import reliability_chart, strip_chart
from shared_components.reporting.files import write_atomically
from shared_components.reporting.metrics import UNITS
from shared_components.reporting.page import page, section

RESEARCH_ONLY = "For research only. Not a medical device; not for diagnosis or treatment."
_RADIOLOGICAL = "Volumes are shown in the radiological convention: the patient's right is on the picture's left."
# name of the columns that it explains, term, explanation
_MEANINGS = (
    ("dice_", "Dice", "Overlap of prediction and reference, 0 to 1. Both empty: 1. One of them empty: 0."),
    (
        "iou_",
        "IoU",
        "Intersection over union: what prediction and reference share of what either marks, with Dice's conventions.",
    ),
    (
        "hd95_",
        "HD95",
        "Hausdorff distance: the larger of the two directed 95th percentiles of the distances between the "
        "surfaces. No value where prediction or reference is empty.",
    ),
    ("assd_", "ASSD", "Average symmetric surface distance. No value where prediction or reference is empty."),
    (
        "aji",
        "AJI",
        "Aggregated Jaccard index of single objects: each object of the reference with the found one that fits it "
        "best; found objects that fit none count as wrong. 0 to 1.",
    ),
    (
        "pq",
        "PQ",
        "Panoptic quality of single objects: the intersection over union of the matched ones, spread over all. "
        "Objects match where it exceeds 0.5. 0 to 1.",
    ),
    ("f1_iou50", "F1 of objects", "How many objects are matched so, of those found and those to be found. 0 to 1."),
    (
        "ece_near_foreground",
        "ECE near foreground",
        "Expected calibration error: how far the stated probability of the predicted class is from the share "
        "of voxels that are correct. 0 is best.",
    ),
    (
        "error_auroc_near_foreground",
        "Error AUROC near foreground",
        "Whether the uncertainty map marks the wrong voxels: the probability that a wrong voxel is more "
        "uncertain than a correct one. 0.5 is chance, 1 is best. No value where nothing is wrong.",
    ),
)


class Picture(NamedTuple):
    """A picture of the report: why it is there, whose it is, the PNG file's bytes, a remark."""

    caption: str
    case: str
    png: bytes
    note: str = ""


def environment() -> dict[str, str]:
    """Return the versions and the processor that a result depends on."""
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "shared_components": shared_components.__version__,
        "monai": monai.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "CUDA device": cuda,
    }


def write_report(
    output_dir: str | os.PathLike,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    summary: Sequence[Mapping[str, Any]],
    pictures: Sequence[Picture] = (),
    settings: Mapping[str, Any] | None = None,
    calibration: Sequence[Sequence[float]] | None = None,
    region: str = "",
    file_name: str = "report.html",
) -> Path:
    """Write the report of an evaluation.

    Args:
        output_dir: where, an existing folder.
        title: heading of the page.
        rows: one mapping per case, ``case`` first, as `CaseMetrics` collects them.
        summary: as `shared_components.reporting.metrics.summarise` returns it.
        pictures: overlays to show, in their order.
        settings: what the run was told, nested at will; the environment is added.
        calibration: (3, num_bins) from `shared_components.ensembling.calibration_bins`.
        region: what "near the foreground" meant, for the page's definitions.
        file_name: name of the page.

    Returns:
        Path of the page, whole or not written at all.
    """
    elements = "pixels" if any("_px_" in column for row in rows for column in row) else "voxels"
    note = "Hover over a point for its case. The box spans the quartiles, the line is the median."
    body = [
        tiles(summary),
        section("Distribution over the cases", _charts(rows, calibration, elements), note),
        section(
            "Summary",
            summary_table(summary),
            "std is the sample's (n - 1). Missing values are left out and counted.",
        ),
        section("Cases in pictures", _figures(pictures), _RADIOLOGICAL if elements == "voxels" else ""),
        section("All cases", case_table(rows), "Click a heading to sort."),
        section("How to read the numbers", _definitions(summary, region, elements)),
        section("How it was made", settings_table({**(settings or {}), "environment": environment()})),
    ]
    return write_atomically(Path(output_dir) / file_name, page(title, subtitle(f"{len(rows)} cases"), body))


def subtitle(what: str) -> str:
    """Return what the page is about, when it was written and what it is not for."""
    return f"{what} · {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC · {RESEARCH_ONLY}"


def heading_of(column: str) -> str:
    """Return a column's name for people: ``hd95_mm_anterior`` is ``HD95 (mm), anterior``."""
    if column.startswith(("hd95_", "assd_")):
        metric, unit, label = column.split("_", 2)
        return f"{metric.upper()} ({unit}), {label}"
    for prefix, metric in (("dice_", "Dice"), ("iou_", "IoU")):
        if column.startswith(prefix):
            return f"{metric}, {column[len(prefix) :]}"
    return {
        "aji": "AJI",
        "pq": "PQ",
        "f1_iou50": "F1 of objects (IoU > 0.5)",
        "instances_reference": "objects in the reference",
        "instances_predicted": "objects found",
        "ece_near_foreground": "ECE near foreground",
        "error_auroc_near_foreground": "Error AUROC near foreground",
        "seconds": "seconds per case",
    }.get(column, column.replace("_", " "))


def number(value: Any, digits: int = 3) -> str:
    """Return a number for a table, a dash where there is none."""
    if isinstance(value, (int, np.integer)) or not isinstance(value, (float, np.floating)):
        return str(value)
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def tiles(summary: Sequence[Mapping[str, Any]]) -> str:
    """Return the mean of every metric that has one as a row of large numbers."""
    shown = [row for row in summary if not row["metric"].startswith(("assd_", "instances_"))]
    parts = [
        f'<div class="tile"><b>{number(row["mean"])}</b><span>{escape(heading_of(row["metric"]))}<br>'
        f"± {number(row['std'])}</span></div>"
        for row in shown
    ]
    return f'<div class="tiles">{"".join(parts)}</div>'


def summary_table(summary: Sequence[Mapping[str, Any]]) -> str:
    """Return the summary as an HTML table."""
    if not summary:
        return ""
    fields = [field for field in summary[0] if field != "metric"]
    names = {"nan": "no value"}
    head = "".join(f"<th>{names.get(field, field)}</th>" for field in ("metric", *fields))
    rows = [
        f"<tr><td>{escape(heading_of(row['metric']))}</td>"
        + "".join(f"<td>{number(row[f])}</td>" for f in fields)
        + "</tr>"
        for row in summary
    ]
    return _table(head, "".join(rows))


def case_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the case table, its headings buttons that sort."""
    if not rows:
        return ""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f'<th><button type="button">{escape(heading_of(column))}</button></th>' for column in columns)
    body = "".join("<tr>" + "".join(_cell(row.get(column, "")) for column in columns) + "</tr>" for row in rows)
    return _table(head, body, ' class="sortable"')


def _table(head: str, body: str, attributes: str = "") -> str:
    table = f"<table{attributes}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return f"<td>{escape(str(value))}</td>"
    return f'<td data-value="{value if math.isfinite(value) else ""}">{number(value)}</td>'


def _charts(rows: Sequence[Mapping[str, Any]], calibration: Sequence[Sequence[float]] | None, elements: str) -> str:
    """Strip charts of every structure's Dice and HD95, and the reliability diagram."""
    charts = []
    columns = [c for c in dict.fromkeys(c for row in rows for c in row) if c != "dice_mean"]
    for prefix, label, top in (("dice_", "Dice", 1.0), *((f"hd95_{u}_", f"HD95 ({u})", None) for u in UNITS)):
        groups = {
            c.removeprefix(prefix): {row["case"]: row[c] for row in rows if c in row}
            for c in columns
            if c.startswith(prefix)
        }
        charts += [strip_chart(groups, label, top)] if groups else []
    if calibration is not None and float(np.asarray(calibration)[0].sum()) > 0:
        charts.append(reliability_chart(calibration, elements))
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _figures(pictures: Sequence[Picture]) -> str:
    return "".join(
        f"<figure><figcaption><b>{escape(picture.caption)}</b> {escape(picture.case)} "
        f'<span class="note">{escape(picture.note)}</span></figcaption>'
        f'<img alt="{escape(picture.caption)}: {escape(picture.case)}" '
        f'src="data:image/png;base64,{base64.b64encode(picture.png).decode("ascii")}"></figure>'
        for picture in pictures
    )


def _definitions(summary: Sequence[Mapping[str, Any]], region: str, elements: str) -> str:
    """Explain the metrics that the summary has."""
    metrics = [row["metric"] for row in summary]
    terms = "".join(
        f"<dt>{escape(term)}</dt><dd>{escape(meaning.replace('voxel', elements[:-1]))}</dd>"
        for name, term, meaning in _MEANINGS
        if any(metric.startswith(name) for metric in metrics)
    )
    region = f"<dt>Near foreground</dt><dd>{escape(region)}</dd>" if region else ""
    return f"<dl>{terms}{region}</dl>"


def settings_table(settings: Mapping[str, Any]) -> str:
    """Return nested settings as a table of dotted names and values."""
    rows = [f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>" for name, value in flatten(settings)]
    return f'<table class="settings"><tbody>{"".join(rows)}</tbody></table>'


def flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested settings as (dotted name, value)."""
    flat = []
    for key, value in settings.items():
        flat += flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return flat
