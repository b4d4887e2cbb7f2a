"""One self-contained HTML page about a run: what came out, case by case, and how it was made."""

from __future__ import annotations

import base64
import hashlib
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
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
from shared_components.reporting.tables import Table, anchor, case_table, settings_table, summary_table, tiles

RESEARCH_ONLY = "For research only. Not a medical device; not for diagnosis or treatment."
RADIOLOGICAL = "Volumes are shown in the radiological convention: the patient's right is on the picture's left."
_STD = "std is the sample's (n - 1). Missing values are left out and counted."
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
    (
        "expected_dice",
        "Expected Dice",
        "The Dice that the probabilities themselves let one expect, without the reference. No value where nothing is "
        "found.",
    ),
    (
        "expected_dice_order",
        "Order by expected Dice",
        "Whether the expected Dice puts the cases into the order of the Dice that they reached, so that it says which "
        "ones to look at first: Spearman's rank correlation over the cases. 1 is best, 0 is chance.",
    ),
    (
        "ged",
        "GED² of members",
        "Squared generalised energy distance of the ensemble's members to the reference, of 1 - IoU: twice their mean "
        "distance to it, less the mean distance of all ordered pairs of members. 0 is best; it depends on the number "
        "of members.",
    ),
    (
        "member_dice",
        "Dice between members",
        "Mean Dice of the pairs of members, without the reference: 1 where all agree, less the more diverse they are.",
    ),
    (
        "volume_cv",
        "CV of members' volumes",
        "Standard deviation of the segmented area or volume over the members, divided by its mean. No value where no "
        "member marks anything.",
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


def weights_and_sampling(engine: Any) -> dict[str, Any]:
    """Return what a finished run tells by itself: its command, its weights, how its network samples.

    Args:
        engine: a MONAI evaluator; ``engine.state.weights`` is the file that `shared_components.training.LoadWeights`
            read, or the list of files.
    """
    network = getattr(engine, "network", None)
    names = ("num_networks", "num_samples", "num_inference_steps", "combine", "decision", "threshold", "seed", "amp")
    found = {name: getattr(network, name, None) for name in names}
    sampling = {name: value for name, value in found.items() if isinstance(value, (int, float, str))}
    told: dict[str, Any] = {"command": " ".join(sys.argv)}
    if weights := getattr(engine.state, "weights", None):
        files = weights if isinstance(weights, list) else [weights]
        digests = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files]
        told["weights"] = {"file": ", ".join(map(str, files)), "sha256": ", ".join(digests)}
    if network is not None:
        count = sum(parameter.numel() for parameter in network.parameters())
        told["model"] = {"class": type(network).__name__, "parameters": count, **sampling}
    return told


def write_report(
    output_dir: str | os.PathLike,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    summary: Sequence[Mapping[str, Any]],
    pictures: Sequence[Picture] = (),
    settings: Mapping[str, Any] | None = None,
    calibration: Sequence[Sequence[float]] | None = None,
    region: str = "",
    tables: Sequence[Table] = (),
    failures: Sequence[str] = (),
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
        tables: further ones, each in a section of its own.
        failures: a line for each case that could not be evaluated.

    Returns:
        Path of the page, whole or not written at all.
    """
    elements = "pixels" if any("_px_" in column for row in rows for column in row) else "voxels"
    note = "Hover over a point for its case. The box spans the quartiles, the line is the median."
    body = [
        failed_cases(failures),
        tiles(summary) if summary else "",
        section("Summary", summary_table(summary), _STD),
        *[section(table.heading, case_table(table.rows), table.note) for table in tables],
        section("Distribution over the cases", _charts(rows, calibration, elements), note),
        section("All cases", case_table(rows, {picture.case for picture in pictures}), "Click a heading to sort."),
        section("Cases in pictures", figures(pictures), RADIOLOGICAL if elements == "voxels" else ""),
        section("How to read the numbers", _definitions(summary, region, elements)),
        section("How it was made", settings_table({**(settings or {}), "environment": environment()})),
    ]
    return write_atomically(Path(output_dir) / "report.html", page(title, subtitle(counted(len(rows), "case")), body))


def failed_cases(failures: Sequence[str]) -> str:
    """Return the list of the cases that could not be processed, nothing where there are none."""
    lines = "".join(f"<li>{escape(line)}</li>" for line in failures)
    heading = f"{counted(len(failures), 'case')} could not be processed"
    return section(heading, f'<ul class="failures">{lines}</ul>' if failures else "")


def failures_of(engine: Any, left_out: Sequence[str] | Callable[[], Sequence[str]] = ()) -> list[str]:
    """Return a line for each case that was left out of a run or failed in it (`CaseEvaluator`)."""
    return [*(left_out() if callable(left_out) else left_out), *getattr(engine, "failures", ())]


def counted(number: int, what: str) -> str:
    """Return "1 case" or "2 cases"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def subtitle(what: str) -> str:
    """Return what the page is about, when it was written and what it is not for."""
    return f"{what} · {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC · {RESEARCH_ONLY}"


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


def figures(pictures: Sequence[Picture]) -> str:
    """Return pictures, each with its caption, inside the page."""
    return "".join(
        f'<figure id="{anchor(picture.case)}"><figcaption><b>{escape(picture.caption)}</b> {escape(picture.case)} '
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
