"""One figure in three places: a bundle's metadata, its model card and the first page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
METRICS = {
    path.parent.parent.name: metrics
    for path in sorted(REPOSITORY.glob("bundles/*/configs/metadata.json"))
    if (metrics := json.loads(path.read_text(encoding="utf-8")).get("eval_metrics"))
}


def row(text: str, start: str) -> str:
    """The first line of a table that starts like this."""
    return next((line for line in text.splitlines() if re.match(start, line)), "")


@pytest.mark.parametrize("bundle", METRICS)
def test_the_metadatas_figures_are_those_of_the_shipped_weights(bundle: str) -> None:
    card = (REPOSITORY / "bundles" / bundle / "docs" / "README.md").read_text(encoding="utf-8")
    shipped = row(card.split("## Performance", 1)[1], r"\| \*\*.*shipped weights\*\*")
    page = row((REPOSITORY / "README.md").read_text(encoding="utf-8"), rf"\| `.*{bundle}`.*\| .*\d\.\d{{3}}")
    for name, value in METRICS[bundle].items():
        assert f"{value:.3f}" in shipped, f"{name} {value}: not in the card's row '{shipped}'"
        assert f"{value:.3f}" in page, f"{name} {value}: not in README.md's row '{page}'"


def test_most_bundles_that_segment_state_a_figure() -> None:
    assert len(METRICS) >= 6
