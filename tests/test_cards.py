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


CARDS = sorted(REPOSITORY.glob("bundles/*/docs/README.md"))


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.parent.parent.name)
def test_evaluations_that_follow_each_other_do_not_write_one_over_the_other(card: Path) -> None:
    """An evaluation refuses a folder that holds another; loops name their folders by what varies."""
    for block in re.findall(r"```bash\n(.*?)```", card.read_text(encoding="utf-8"), re.S):
        targets = []
        for line in block.splitlines():
            if line.startswith("python -m monai.bundle run") and "evaluate.json" in line:
                given = re.search(r"--output_dir (\S+)", line)
                data = re.search(r"--dataset_dir (\S+)", line)
                targets.append(given.group(1) if given else f"default of {data.group(1) if data else 'phantoms'}")
            elif line.startswith(("cd ", "git worktree")):
                targets = []  # another tree has folders of its own
        assert len(set(targets)) == len(targets), f"{card}: {targets}"
