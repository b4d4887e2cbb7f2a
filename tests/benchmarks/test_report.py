"""What the table says of rows that were measured, that failed and that were never run; the command line."""

from __future__ import annotations

import json

import pytest

from benchmarks.harness import Gate, Row, Sample
from benchmarks.report import CONTENTS, CPU_ONLY, HIPPOCAMPUS, MEASURED_FOR, Results, content_of, environment
from benchmarks.run import arguments
from shared_components.errors import InputError


def measured(name: str, opponent: float, project: float, passed: bool = True) -> Row:
    row = Row(name, CONTENTS[name], "plain code", "cpu", Gate(passed, "equal to 1e-4"))
    row.opponent_samples, row.project_samples = [Sample(opponent, 1.0)], [Sample(project, 1.0)]
    row.first, row.peak_mb = (1.0, 1.0), (100.0, None)
    return row


def table_of(folder) -> dict[tuple[str, str], str]:
    lines = (folder / "results.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|") and line.split("|")[1].strip() in CONTENTS]
    return {(line.split("|")[1].strip(), line.split("|")[2].strip()): line for line in rows}


def test_rows_never_run_say_so(tmp_path):
    Results(tmp_path).add("rows", measured("a4", 6.0, 2.0).record(), environment("cpu", 0))
    table = table_of(tmp_path)
    assert len(table) == 2 * len(CONTENTS) - len(CPU_ONLY)
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    for name, bundles in MEASURED_FOR.items():
        assert all(f"| {name} | cpu | {content_of(name, bundle)} |" in text for bundle in bundles)
    assert "**3.00** (3.00 to 3.00)" in table["a4", "cpu"]
    assert all("not run" in line for key, line in table.items() if key != ("a4", "cpu"))


def test_a_row_of_one_bundle_leaves_the_others_not_run(tmp_path):
    Results(tmp_path).add("rows", measured("a1", 6.0, 2.0).record(), environment("cpu", 0))
    lines = [
        line
        for line in (tmp_path / "results.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| a1 | cpu")
    ]
    assert len(lines) == len(MEASURED_FOR["a1"]) and content_of("a1", HIPPOCAMPUS) == CONTENTS["a1"]
    assert sum("not run" in line for line in lines) == len(lines) - 1


def test_a_failed_gate_prints_no_ratio(tmp_path):
    Results(tmp_path).add("rows", measured("a3", 6.0, 2.0, passed=False).record(), environment("cpu", 0))
    line = table_of(tmp_path)["a3", "cpu"]
    assert "FAILED: equal to 1e-4" in line and "3.0" not in line


def test_a_row_measured_again_replaces_itself_and_no_other(tmp_path):
    found_on = environment("cpu", 0)
    Results(tmp_path).add("rows", measured("a4", 6.0, 2.0).record(), found_on)
    Results(tmp_path).add("rows", measured("h", 4.0, 2.0).record(), found_on)
    Results(tmp_path).add("rows", measured("a4", 10.0, 2.0).record(), found_on)
    content = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert {row["name"]: row["ratio"]["ratio"] for row in content["rows"]} == {"a4": 5.0, "h": 2.0}
    assert content["rows"][0]["environment"]["packages"]["torch"]


@pytest.mark.parametrize(
    ("options", "word"),
    [(["--rows", "a4,b7"], "b7"), (["--weights", "no_such.pt"], "no_such.pt"), (["--pairs", "0"], "--pairs")],
)
def test_mistakes_on_the_command_line_are_named(tmp_path, options, word):
    with pytest.raises(InputError, match=word):
        arguments(["--output", str(tmp_path), *options])
