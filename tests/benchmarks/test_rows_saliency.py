"""Row g with tiny networks: the naive maps equal the project's, and rows say what was compared."""

from __future__ import annotations

import torch

from benchmarks import rows_saliency
from benchmarks.rows_saliency import NaiveMaps, saliency_maps, slices_of
from benchmarks.subject import Subject
from tests.runs.cdm import TINY_NETWORK


def subject_of(folder) -> Subject:
    overrides = {name: value for name, value in TINY_NETWORK.items() if name not in ("device", "num_samples")}
    return Subject(folder, "cdm_brats", pairs=1, num_phantoms=8, overrides=overrides)


@torch.no_grad()
def test_one_condition_at_a_time_equals_both_at_once(tmp_path):
    subject = subject_of(tmp_path)
    image = slices_of(subject)
    for settings in rows_saliency.SETTINGS.values():
        segmenter = subject.segmenter(gated=False, **settings)
        project, naive = segmenter.describe(image)["saliency"], NaiveMaps(segmenter)(image)
        assert (project - naive).abs().max() < rows_saliency.BOUND
        assert project.std() > 0.01
        other = subject.segmenter(gated=False, **settings, tau=0.5).describe(image)["saliency"]
        assert (project - other).abs().max() > 0.005


def test_rows_pass_their_gates(tmp_path):
    rows = list(saliency_maps(subject_of(tmp_path)))
    assert [row.name for row in rows] == ["g", "gg"]
    for row in rows:
        assert row.gate.passed and row.ratio()["ratio"] > 0 and row.content.startswith("cdm_brats: saliency maps")
    assert rows[0].details["members"] == 8 and rows[1].details["steps"] == 10
