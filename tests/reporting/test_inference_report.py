"""What an inference says of its cases."""

from __future__ import annotations

import math

import pytest
import torch
from monai.data import MetaTensor

from shared_components.reporting.inference_report import describe_case, inference_page


def test_volume_and_uncertainty_by_hand():
    affine = torch.diag(torch.tensor([2.0, 2.5, 4.0, 1.0]))
    labels, uncertainty = torch.zeros(1, 10, 10, 10), torch.zeros(1, 10, 10, 10)
    labels[0, :5, :5, :2], labels[0, 5:, 5:, 8:] = 1, 2
    uncertainty[0, :5, :5, :2], uncertainty[0, 0, 0, 9] = 0.25, 0.9
    row = describe_case(MetaTensor(labels, affine=affine), uncertainty, {"core": 1, "shell": 2, "rim": 3})
    assert row["size"] == "10x10x10"
    assert (row["volume_ml_core"], row["volume_ml_shell"], row["volume_ml_rim"]) == (1, 1, 0)  # 50 voxels of 20 mm3
    assert row["uncertainty_in_foreground"] == pytest.approx(0.125)
    assert row["uncertain_share"] == pytest.approx(0.001)


def test_a_picture_is_counted_in_pixels_and_an_empty_one_has_no_uncertainty_inside():
    image = MetaTensor(torch.zeros(1, 8, 6), meta={"filename_or_obj": "a.png"})
    row = describe_case(image, torch.ones(1, 8, 6), {"lesion": 1})
    assert row["area_px_lesion"] == 0 and math.isnan(row["uncertainty_in_foreground"]) and row["uncertain_share"] == 1
    page = inference_page("Inference", [{"case": "a", **row, "seconds": 1.0}], [], {"seed": 0}, ["b.png: truncated"])
    assert "Nothing was found in a." in page and "<li>b.png: truncated</li>" in page and "1 case " in page
