"""Pages opened in a browser without a window: a click sorts, a word filters, pictures are there, nothing is loaded."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from shared_components.reporting.inference_report import inference_page
from shared_components.reporting.metrics import summarise
from shared_components.reporting.overlays import encode_png
from shared_components.reporting.report import Picture, write_report
from shared_components.reporting.tables import Table

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SCRIPT = """
<script>
window.addEventListener("load", () => {
  const table = [...document.querySelectorAll("table.sortable")].at(-1);
  const column = index => [...table.tBodies[0].rows].map(row => row.cells[index].textContent);
  const visible = () => [...table.tBodies[0].rows].filter(row => !row.hidden).length;
  const buttons = [...table.querySelectorAll("thead button")];
  const result = {orders: {}, images: [...document.images].map(image => image.complete && image.naturalWidth)};
  for (const [index, button] of buttons.entries()) {
    button.click(); const up = column(index), first = table.rows[0].cells[index].getAttribute("aria-sort");
    button.click(); const down = column(index);
    result.orders[button.textContent] = {up, down, first};
  }
  const box = document.querySelector("input.filter");
  box.value = "case_1"; box.dispatchEvent(new Event("input")); result.filtered = visible();
  box.value = ""; box.dispatchEvent(new Event("input")); result.all = visible();
  const links = [...document.querySelectorAll("a[href^='#']")].map(link => link.getAttribute("href").slice(1));
  result.broken = links.filter(place => !document.getElementById(place));
  result.requests = performance.getEntriesByType("resource").map(entry => entry.name);
  document.body.dataset.result = JSON.stringify(result);
});
</script>
"""


def opened(page: Path) -> dict:
    """What the script found when the page was opened."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)}; apt-get install chromium brings one")
    with_script = page.with_name("opened.html")
    with_script.write_text(page.read_text(encoding="utf-8").replace("</body>", SCRIPT + "</body>"), encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}"]
    command = [browser, *options, "--dump-dom", with_script.as_uri()]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)
    found = re.search(r'data-result="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found.group(1)))


def picture(number: int) -> Picture:
    pixels = np.random.default_rng(number).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    return Picture("Worst case", f"case_{number}", encode_png(pixels), "Dice: 0.5")


def check_page(result: dict, num_images: int, num_rows: int, columns: dict[str, list[str]]) -> None:
    assert len(result["images"]) == num_images and all(width > 0 for width in result["images"])
    assert result["requests"] == [] and result["broken"] == []
    assert (result["filtered"], result["all"]) == (11, num_rows)
    for heading, expected in columns.items():
        order = result["orders"][heading]
        assert order["first"] == "ascending" and order["up"] == expected
        known = [value for value in expected if value != "–"]
        assert order["down"] == known[::-1] + ["–"] * (len(expected) - len(known))


def test_the_page_of_an_evaluation(tmp_path):
    random = np.random.default_rng(0)
    rows = [
        {
            "case": f"case_{number}",
            "dice_lesion": float(random.uniform()),
            "dice_mean": 0.5,
            "hd95_mm_lesion": float("nan") if number == 4 else float(random.uniform(0, 20)),
            "seconds": 0.1,
        }
        for number in range(20)
    ]
    pictures = [picture(number) for number in (3, 7)]
    tables = [Table("Gate", [{"metric": "gate_accuracy", "value": 0.5}])]
    options = {"settings": {"seed": 0}, "tables": tables, "failures": ["case_99: truncated"]}
    page = write_report(tmp_path, "Évaluation <1>", rows, summarise(rows), pictures, **options)
    dice = sorted(f"{row['dice_lesion']:.3f}" for row in rows)
    distances = sorted(row["hd95_mm_lesion"] for row in rows if row["hd95_mm_lesion"] > 0)
    columns = {"Dice, lesion": dice, "HD95 (mm), lesion": [f"{value:.3f}" for value in distances] + ["–"]}
    columns["case"] = [f"case_{number}" for number in range(20)]  # 10 after 9, not after 1
    check_page(opened(page), 2, 20, columns)


def test_the_page_of_an_inference(tmp_path):
    rows = [
        {
            "case": f"case_{number}",
            "size": "4x4x4",
            "volume_ml_lesion": float(number * 7 % 20) * 100,
            "uncertainty_in_foreground": 0.1,
            "uncertain_share": number / 40,
            "seconds": 0.1,
        }
        for number in range(20)
    ]
    text = inference_page("Inference", rows, [picture(number) for number in range(3)], {"seed": 0})
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    volumes = [f"{100 * number:.3f}" for number in range(20)]  # by size, not by spelling
    check_page(opened(tmp_path / "report.html"), 3, 20, {"volume (ml), lesion": volumes})
