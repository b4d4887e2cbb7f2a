"""The tables of a page, and what their columns are called."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

_BARRED = ("dice_", "iou_", "aji", "pq", "f1_iou50")
_OF_CLASSES = (("dice_", "Dice"), ("iou_", "IoU"), ("volume_ml_", "volume (ml)"), ("area_px_", "area (px)"))
_FILTERED_FROM = 15


class Table(NamedTuple):
    """A table of its own section: heading, rows of equal columns, and a remark."""

    heading: str
    rows: Sequence[Mapping[str, Any]]
    note: str = ""


def heading_of(column: str) -> str:
    """Return a column's name for people: ``hd95_mm_anterior`` is ``HD95 (mm), anterior``."""
    if column.startswith(("hd95_", "assd_")):
        metric, unit, label = column.split("_", 2)
        return f"{metric.upper()} ({unit}), {label.replace('_', ' ')}"
    for prefix, metric in _OF_CLASSES:
        if column.startswith(prefix):
            return f"{metric}, {column[len(prefix) :].replace('_', ' ')}"
    return {
        "aji": "AJI",
        "pq": "PQ",
        "f1_iou50": "F1 of objects (IoU > 0.5)",
        "instances_reference": "objects in the reference",
        "instances_predicted": "objects found",
        "ece_near_foreground": "ECE near foreground",
        "error_auroc_near_foreground": "Error AUROC near foreground",
        "expected_dice": "expected Dice",
        "expected_dice_order": "order by expected Dice",
        "ged": "GED² of members",
        "member_dice": "Dice between members",
        "volume_cv": "CV of members' volumes",
        "seconds": "seconds per case",
        "uncertainty_in_foreground": "uncertainty in the foreground",
        "uncertain_share": "share that is uncertain",
    }.get(column, column.replace("_", " "))


def number(value: Any) -> str:
    """Return a number for a table, with three places, a dash where there is none."""
    if isinstance(value, (int, np.integer)) or not isinstance(value, (float, np.floating)):
        return str(value)
    return f"{value:.3f}" if math.isfinite(value) else "–"


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
    return html_table(head, "".join(rows))


def case_table(rows: Sequence[Mapping[str, Any]], pictured: Collection[str] = ()) -> str:
    """Return the case table, its headings buttons that sort, shares of 1 as bars.

    Args:
        rows: one mapping a case.
        pictured: the cases that have a picture on the page (`anchor`), to which their names lead.
    """
    if not rows:
        return ""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f'<th><button type="button">{escape(heading_of(column))}</button></th>' for column in columns)
    body = ""
    for row in rows:
        cells = [_cell(row.get(column, ""), column.startswith(_BARRED)) for column in columns]
        if row.get("case") in pictured:
            name = escape(str(row["case"]))
            cells[columns.index("case")] = f'<td><a href="#{anchor(row["case"])}">{name}</a></td>'
        body += f"<tr>{''.join(cells)}</tr>"
    box = '<input type="search" class="filter" placeholder="show only rows with ..." aria-label="show only rows with">'
    return (box if len(rows) > _FILTERED_FROM else "") + html_table(head, body, ' class="sortable"')


def anchor(case: str) -> str:
    """Return the name of the place on a page where a case's picture is."""
    return "case-" + re.sub(r"[^A-Za-z0-9_.-]", "-", str(case))


def html_table(head: str, body: str, attributes: str = "") -> str:
    """Return a table that scrolls where it is wider than the page, of its rows of headings and of cells."""
    table = f"<table{attributes}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _cell(value: Any, barred: bool = False) -> str:
    if not isinstance(value, float):
        return f"<td>{escape(str(value))}</td>"
    bar = f' class="bar" style="--share:{value:.3f}"' if barred and math.isfinite(value) else ""
    return f'<td data-value="{value if math.isfinite(value) else ""}"{bar}>{number(value)}</td>'


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
