"""Entropy, calibration error and error detection against closed forms, MONAI, scipy and counting pairs."""

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.metrics import CalibrationErrorMetric
from scipy.stats import entropy as scipy_entropy
from scipy.stats import mannwhitneyu

from shared_components.ensembling import (
    ExpectedDiced,
    PredictiveEntropyd,
    calibration_bins,
    calibration_error,
    entropy,
    error_detection_auroc,
    expected_dice,
)


def random_case(seed=0, shape=(9, 7, 5), classes=3):
    generator = torch.Generator().manual_seed(seed)
    probabilities = (3 * torch.rand(1, classes, *shape, generator=generator)).softmax(1)
    return probabilities, torch.randint(classes, (1, 1, *shape), generator=generator)


def test_entropy_of_known_distributions():
    rows = torch.tensor([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0]])
    found = entropy(rows.t()[None])
    assert found.shape == (1, 1, 3)
    assert found.flatten().tolist() == pytest.approx([0, 1, 0.5])


def test_entropy_equals_scipy_and_scripts():
    probabilities, _ = random_case()
    expected = scipy_entropy(probabilities.numpy(), axis=1) / math.log(3)
    assert np.allclose(entropy(probabilities)[:, 0], expected, atol=1e-6)
    assert torch.equal(torch.jit.script(entropy)(probabilities), entropy(probabilities))


def test_transform_keeps_the_metadata():
    probabilities, _ = random_case()
    affine = torch.diag(torch.tensor([1.0, 2, 3, 1]))
    image = MetaTensor(probabilities[0], affine=affine, meta={"filename_or_obj": "case_1.nii.gz"})
    found = PredictiveEntropyd("pred", "uncertainty")({"pred": image, "other": 1})
    assert torch.equal(found["uncertainty"].as_tensor(), entropy(probabilities)[0])
    assert torch.equal(found["uncertainty"].affine, image.affine)
    assert found["uncertainty"].meta["filename_or_obj"] == "case_1.nii.gz"
    assert torch.equal(found["pred"].as_tensor(), probabilities[0])


def test_transform_wants_as_many_outputs_as_inputs():
    with pytest.raises(ValueError, match="one for each"):
        PredictiveEntropyd(["a", "b"], "uncertainty")


def test_expected_dice_by_hand():
    """The mask holds 0.9 and 0.7, outside are 0.4 and 0: 2 * 1.6 / (2.0 + 2); class 2 is nowhere the most probable."""
    one = torch.tensor([0.9, 0.7, 0.4, 0.0])
    two = torch.tensor([0.0, 0.1, 0.1, 0.0])
    probabilities = torch.stack([1 - one - two, one, two])[None]
    found = expected_dice(probabilities.reshape(1, 3, 2, 2))
    assert found.shape == (1, 2)
    assert float(found[0, 0]) == pytest.approx(0.8) and math.isnan(found[0, 1])
    assert ExpectedDiced("pred")({"pred": MetaTensor(probabilities[0])})["expected_dice"] == pytest.approx(0.8)
    assert math.isnan(ExpectedDiced("pred")({"pred": torch.tensor([[0.9, 0.8], [0.1, 0.2]])})["expected_dice"])


def test_expected_dice_is_the_dice_that_calibrated_probabilities_reach():
    generator = torch.Generator().manual_seed(5)
    foreground = torch.rand(1, 200_000, generator=generator)
    truth = torch.rand(1, 200_000, generator=generator) < foreground
    mask = foreground > 0.5
    reached = 2 * (truth & mask).sum() / (truth.sum() + mask.sum())
    found = expected_dice(torch.stack([1 - foreground, foreground], dim=1))
    assert float(found) == pytest.approx(float(reached), abs=0.003)


def test_calibration_error_by_hand():
    """Two voxels at 0.9, one of them right: |1 - 1.8|; two at 0.6, both right: |2 - 1.2|; over 4 voxels."""
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]]).t()[None]
    labels = torch.tensor([[[0, 1, 1, 1]]])
    assert calibration_error(calibration_bins(probabilities, labels)) == pytest.approx(0.4)
    bins = calibration_bins(probabilities, labels, num_bins=10)
    assert bins[0].tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 2, 0]
    assert bins[2].tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 1, 0]
    assert calibration_error(
        calibration_bins(probabilities, labels, mask=torch.tensor([[[1, 1, 0, 0]]]))
    ) == pytest.approx(0.4)
    assert math.isnan(calibration_error(calibration_bins(probabilities, labels, mask=torch.zeros(1, 1, 4))))


@pytest.mark.parametrize("num_bins", [10, 20])
def test_calibration_error_equals_monai(num_bins):
    probabilities, labels = random_case()
    confidence, predicted = probabilities.max(1, keepdim=True)
    metric = CalibrationErrorMetric(num_bins=num_bins, calibration_reduction="expected")
    metric(y_pred=confidence, y=(predicted == labels).float())
    assert calibration_error(calibration_bins(probabilities, labels, num_bins)) == pytest.approx(
        float(metric.aggregate()), abs=1e-6
    )


def count_pairs(uncertainty, wrong):
    errors, right = uncertainty[wrong], uncertainty[~wrong]
    wins = (errors[:, None] > right[None]).sum() + 0.5 * (errors[:, None] == right[None]).sum()
    return wins / (len(errors) * len(right))


@pytest.mark.parametrize("levels", [2, 6, 10_000])
def test_error_detection_counts_pairs(levels):
    random = np.random.default_rng(levels)
    wrong = random.random(300) < 0.2
    uncertainty = np.round((random.random(300) + 0.3 * wrong) * levels) / levels
    found = error_detection_auroc(torch.from_numpy(uncertainty), torch.from_numpy(wrong))
    assert found == pytest.approx(count_pairs(uncertainty, wrong), abs=1e-12)
    statistic = mannwhitneyu(uncertainty[wrong], uncertainty[~wrong]).statistic
    assert found == pytest.approx(statistic / (wrong.sum() * (~wrong).sum()), abs=1e-12)


def test_error_detection_extremes():
    uncertainty = torch.tensor([0.1, 0.2, 0.8, 0.9])
    wrong = torch.tensor([0, 0, 1, 1])
    assert error_detection_auroc(uncertainty, wrong) == 1
    assert error_detection_auroc(-uncertainty, wrong) == 0
    assert error_detection_auroc(torch.zeros(4), wrong) == 0.5
    assert math.isnan(error_detection_auroc(uncertainty, torch.zeros(4)))
    assert math.isnan(error_detection_auroc(uncertainty, torch.ones(4)))


def test_error_detection_within_a_mask():
    random = np.random.default_rng(0)
    uncertainty, wrong, mask = random.random((6, 5)), random.random((6, 5)) < 0.4, random.random((6, 5)) < 0.6
    found = error_detection_auroc(*(torch.from_numpy(x) for x in (uncertainty, wrong, mask)))
    assert found == pytest.approx(count_pairs(uncertainty[mask], wrong[mask]), abs=1e-12)
