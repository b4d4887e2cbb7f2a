"""Scores of single objects against values counted by hand and MONAI's, and cutting objects apart."""

import logging

import numpy as np
import pytest
import torch
from monai.metrics.panoptic_quality import compute_panoptic_quality
from scipy.ndimage import gaussian_filter
from skimage.measure import label as connected_components

from shared_components.data.phantoms import phantom_case
from shared_components.errors import InputError
from shared_components.reporting.instances import InstanceScores, add_instances, score_instances


def objects(*boxes, shape=(20, 20)):
    """Number boxes (first row, last row, first column, last column), ends excluded, in their order."""
    numbers = np.zeros(shape, dtype=np.int64)
    for number, (top, bottom, left, right) in enumerate(boxes, start=1):
        numbers[top:bottom, left:right] = number
    return numbers


def discs(*centres, radius=6, shape=(40, 40)):
    y, x = np.ogrid[: shape[0], : shape[1]]
    return np.any([(y - row) ** 2 + (x - column) ** 2 <= radius**2 for row, column in centres], axis=0)


def test_one_moved_one_missed_one_invented():
    """12 of 20 pixels shared, 16 missed, 9 invented."""
    reference = objects((0, 4, 0, 4), (10, 14, 10, 14))
    prediction = objects((0, 4, 1, 5), (17, 20, 0, 3))
    assert score_instances(prediction, reference) == {
        "aji": pytest.approx(12 / (20 + 16 + 9)),
        "pq": pytest.approx(0.6 / 2),
        "f1_iou50": 0.5,
        "instances_reference": 2,
        "instances_predicted": 2,
    }


def test_two_taken_for_one_share_it():
    """Each half has an IoU of exactly 0.5 with the whole, which is no match; both draw on it in the AJI."""
    scores = score_instances(objects((0, 4, 0, 8)), objects((0, 4, 0, 4), (0, 4, 4, 8)))
    assert scores["aji"] == 32 / 64 and scores["pq"] == scores["f1_iou50"] == 0


def test_one_taken_for_two():
    """The larger part, 24 of 32 pixels, matches; the smaller is left over."""
    scores = score_instances(objects((0, 4, 0, 6), (0, 4, 6, 8)), objects((0, 4, 0, 8)))
    assert scores["aji"] == 24 / (32 + 8)
    assert scores["pq"] == 0.75 / 1.5 and scores["f1_iou50"] == 1 / 1.5


def test_empty_maps():
    empty, one = objects(), objects((0, 4, 0, 4))
    for prediction, reference, score in ((empty, empty, 1), (one, empty, 0), (empty, one, 0), (one, one, 1)):
        scores = score_instances(prediction, reference)
        assert [scores[name] for name in ("aji", "pq", "f1_iou50")] == [score] * 3
    assert score_instances(empty, one)["instances_predicted"] == 0


def test_equals_monai_whatever_the_numbers():
    random = np.random.default_rng(0)
    for _ in range(5):
        reference = connected_components(gaussian_filter(random.standard_normal((40, 40)), 2) > 0.08, connectivity=1)
        moved = np.roll(reference, 1, axis=1) * (random.random((40, 40)) > 0.1)
        pair = [torch.from_numpy(item) for item in (moved, reference)]
        scores = score_instances(moved, reference)
        for name, theirs in (("pq", "pq"), ("f1_iou50", "rq")):
            expected = compute_panoptic_quality(*pair, metric_name=theirs, smooth_numerator=0.0)
            assert scores[name] == pytest.approx(float(expected), abs=1e-5) and scores[name] > 0
        assert score_instances(np.where(moved > 0, 7 * moved + 1000, 0), reference * 3) == scores


def test_cutting_pays_on_crowded_nuclei():
    """The reference mask itself as the prediction: all that can be wrong is what touches."""
    better = []
    for index in range(4):
        _, mask, instances = phantom_case(0, index, "nuclei")
        prediction = torch.from_numpy(mask > 0).float()[None]
        label, numbers = prediction, torch.from_numpy(instances.astype(np.float32))[None]
        parts = InstanceScores("components")(prediction, label, numbers)
        cut = InstanceScores("distance")(prediction, label, numbers)
        assert cut["instances_reference"] == parts["instances_reference"] == instances.max()
        better.append([cut[name] - parts[name] for name in ("aji", "pq", "f1_iou50")])
    assert (np.mean(better, axis=0) > (0.15, 0.15, 0.15)).all()


def test_the_handlers_view_of_a_case():
    label = torch.from_numpy(objects((2, 8, 2, 8), (2, 8, 8, 14)) > 0).float()[None]
    numbers = torch.from_numpy(objects((2, 8, 2, 8), (2, 8, 8, 14))).float()[None]
    probabilities = torch.cat([1 - 0.9 * label, 0.9 * label])
    scores = InstanceScores("components")
    assert scores(probabilities, label)["aji"] == 1
    assert scores(probabilities, label, numbers)["aji"] == 0.5
    assert scores(probabilities, label, numbers) == scores(label, label, numbers)
    with pytest.raises(InputError, match="must be on one grid"):
        scores(probabilities, label, numbers[:, :-1])
    with pytest.raises(InputError, match="the prediction is a label map"):
        InstanceScores("probability")(label, label)
    for wrong in ({"split": "magic"}, {"min_distance": 0}, {"min_size": -1}):
        with pytest.raises(InputError, match="must be one of components|expected at least"):
            InstanceScores(**wrong)


def test_numbered_maps_are_found_beside_the_masks(tmp_path, caplog):
    for folder, names in (("masks", ("a.png", "b.png")), ("instances", ("a.tif", ".b.png"))):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    cases = [{"image": f"{n}.jpg", "label": str(tmp_path / "masks" / f"{n}.png")} for n in "ab"]
    with caplog.at_level(logging.WARNING):
        found = add_instances(cases)
    assert found == [{**cases[0], "instances": str(tmp_path / "instances" / "a.tif")}, cases[1]]
    assert "1 of 2 cases have no numbered objects" in caplog.text and "instances" not in cases[0]


def test_an_annotation_is_its_own_numbered_map(tmp_path, caplog):
    """Unless a map lies in instances/, where polygons may lie too."""
    (tmp_path / "instances").mkdir()
    for name in ("b.png", "b.xml", "c.xml"):
        (tmp_path / "instances" / name).touch()
    labels = [tmp_path / "Annotations" / "a.xml", tmp_path / "Annotations" / "b.XML", tmp_path / "masks" / "c.png"]
    found = add_instances([{"image": "x.tif", "label": label} for label in labels])
    maps = tmp_path / "instances"
    assert [case["instances"] for case in found] == [str(labels[0]), str(maps / "b.png"), str(maps / "c.xml")]
    assert not caplog.text
