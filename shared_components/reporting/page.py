"""The frame of a report: one HTML page that needs nothing but itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

STYLE = """
:root { --ink: #1f2a33; --soft: #5b6b78; --line: #dfe5ea; --paper: #fff; --wash: #f4f7f9; --accent: #0b5a8a; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--wash); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header { background: var(--paper); border-bottom: 3px solid var(--accent); padding: 26px 0 20px; }
header > *, main { max-width: 1180px; margin: 0 auto; padding: 0 24px; }
h1 { font-size: 26px; line-height: 1.25; } h2 { font-size: 19px; margin: 0 0 12px; }
header p { color: var(--soft); margin-top: 6px; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 6px; padding: 20px 22px;
  margin: 20px 0; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0; }
.tile { background: var(--paper); border: 1px solid var(--line); border-radius: 6px; padding: 12px 16px;
  flex: 1 1 125px; }
.tile b { display: block; font-size: 25px; font-weight: 600; color: var(--accent);
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
.charts { display: flex; flex-wrap: wrap; gap: 24px; align-items: flex-start; }
.scroll { overflow: auto; max-height: 78vh; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { background: var(--wash); border-bottom: 2px solid var(--line); font-weight: 600; font-size: 13px;
  white-space: normal; vertical-align: bottom; }
thead th { position: sticky; top: 0; z-index: 1; }
tbody tr:hover { background: var(--wash); }
td.bar { background: linear-gradient(to right, #d8e9f4 calc(var(--share) * 100%), transparent 0) no-repeat;
  background-size: 100% 76%; background-position: 0 50%; }
a { color: var(--accent); }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 14px; margin-top: 12px; }
input.filter { font: inherit; padding: 4px 10px; margin: 0 0 10px; border: 1px solid var(--line); border-radius: 4px;
  width: 260px; max-width: 100%; }
ul.failures { margin: 0; padding-left: 20px; color: #9d2b1d; overflow-wrap: anywhere; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
table.settings td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.settings td:first-child { color: var(--soft); white-space: nowrap; }
figure { margin: 0 0 22px; } figcaption b { color: var(--accent); }
figure img { max-width: 100%; border-radius: 4px; display: block; background: #000; }
figcaption { margin: 0 0 6px; }
svg { max-width: 100%; height: auto; } svg text { font-size: 12px; fill: #33414e; }
.note { color: var(--soft); font-size: 13px; margin: 10px 0 0; }
dl { margin: 0; display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; }
dt { font-weight: 600; } dd { margin: 0; }
@media print { body { background: #fff; } section, .tile { break-inside: avoid; border-color: #bbb; } }
"""

SORTING = """
const buttons = document.querySelectorAll("table.sortable thead button");
buttons.forEach(button => button.addEventListener("click", () => {
  const head = button.parentElement, body = head.closest("table").tBodies[0];
  const down = head.getAttribute("aria-sort") === "ascending", column = head.cellIndex;
  const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const order = (a, b) => {
    const x = value(a), y = value(b), blank = (x === "") - (y === "");
    const less = x !== "" && !isNaN(x) && !isNaN(y) ? x - y : x.localeCompare(y, undefined, {numeric: true});
    return blank || (down ? -less : less);
  };
  head.parentElement.querySelectorAll("th").forEach(cell => cell.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  body.append(...[...body.rows].sort(order));
}));
document.querySelectorAll("input.filter").forEach(box => box.addEventListener("input", () => {
  const words = box.value.toLowerCase();
  for (const row of box.parentElement.querySelector("tbody").rows)
    row.hidden = !row.textContent.toLowerCase().includes(words);
}));
"""


def page(title: str, subtitle: str, body: Sequence[str]) -> str:
    """Return the page: a header that leads to the sections, the parts of the body, style and script, in one file."""
    headings = re.findall(r'<section id="([^"]*)"><h2>(.*?)</h2>', "".join(body))
    links = "".join(f'<a href="#{place}">{heading}</a>' for place, heading in headings)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p><nav>{links}</nav></header>\n<main>\n"
        + "\n".join(part for part in body if part)
        + f"\n</main>\n<script>{SORTING}</script>\n</body>\n</html>\n"
    )


def section(heading: str, content: str, note: str = "") -> str:
    """Return a section, or nothing when there is no content."""
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    place = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")
    return f'<section id="{place}"><h2>{escape(heading)}</h2>{content}{note}</section>' if content else ""
