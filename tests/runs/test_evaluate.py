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


def test_weights_of_several_trainings_are_one_ensemble(evaluated, trained, tmp_path):
    options, folder = evaluated
    files = [str(options["ckpt_path"]), str(trained.output_dir / "model.pt")]
    options = {**options, "output_dir": tmp_path / "both", "ckpt_path": files}
    run_bundle(config("train"), config("evaluate"), **options).check_done()
    page = (tmp_path / "both" / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert all(file in page for file in files) and "num_networks" in page
    with open(tmp_path / "both" / "evaluation" / "metrics_per_case.csv", newline="", encoding="utf-8") as file:
        both = [float(row["member_dice"]) for row in csv.DictReader(file)]
    with open(folder / "metrics_per_case.csv", newline="", encoding="utf-8") as file:
        one = [float(row["member_dice"]) for row in csv.DictReader(file)]
    assert both != one and len(both) == len(one)  # members of both networks
    check_refused(
        run_bundle(config("train"), **{**options, "output_dir": tmp_path / "run"}), "2 files", "starts from one"
    )


def test_inference_by_several_trainings(evaluated, trained, tmp_path):
    options, _ = evaluated
    files = [str(options["ckpt_path"]), str(trained.output_dir / "model.pt")]
    options = {**options, "output_dir": tmp_path / "out", "ckpt_path": files}
    run_bundle(config("inference"), **options).check_done()
    assert len(list((tmp_path / "out").glob("*_seg.nii.gz"))) > 0
    missing = run_bundle(config("inference"), **{**options, "ckpt_path": [files[0], "gone.pt"]}, overwrite=True)
    check_refused(missing, "ckpt_path gone.pt", "no such file")
