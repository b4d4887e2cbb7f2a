"""Evaluation on the test section, as typed."""

from __future__ import annotations

import csv

import pytest

from tests.runs.commands import NETWORK, check_refused, config, files_below, run_bundle


@pytest.fixture(scope="module")
def evaluated(phantoms, lively_weights, tmp_path_factory):
    """The options of an evaluation that has been run, and its folder."""
    output_dir = tmp_path_factory.mktemp("evaluated")
    options = {**NETWORK, "dataset_dir": phantoms, "output_dir": output_dir, "ckpt_path": lively_weights}
    run_bundle(config("train"), config("evaluate"), **options).check_done()
    return options, output_dir / "evaluation"


def test_tables_report_and_overlays_are_of_the_test_cases(evaluated):
    _, folder = evaluated
    assert set(files_below(folder)) == {
        "metrics_per_case.csv",
        "metrics_summary.csv",
        "overlays/phantom_003_overlay.png",
        "overlays/phantom_007_overlay.png",
        "report.html",
    }
    assert set(files_below(folder.parent)) == {f"evaluation/{name}" for name in files_below(folder)}
    with open(folder / "metrics_per_case.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["phantom_003", "phantom_007"]
    for row in rows:
        assert all(0 <= float(row[name]) <= 1 for name in ("dice_anterior", "dice_posterior", "dice_mean"))
        assert 0 <= float(row["ged"]) <= 2 and 0 <= float(row["member_dice"]) < 1  # two members
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "test cases" in page and "phantom_003" in page and "phantom_007" in page


def test_a_second_evaluation_is_refused_unless_asked_for(evaluated):
    options, folder = evaluated
    before = files_below(folder)
    refused = run_bundle(config("train"), config("evaluate"), **options)
    check_refused(refused, str(folder), "metrics_per_case.csv", "overwrite")
    assert files_below(folder) == before
    run_bundle(config("train"), config("evaluate"), **options, overwrite=True).check_done()
    after = files_below(folder)
    assert set(after) == set(before)
    assert after["metrics_per_case.csv"][1] > before["metrics_per_case.csv"][1]
