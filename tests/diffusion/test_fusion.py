from __future__ import annotations

import pytest
import torch

from shared_components.diffusion.fusion import CalibrationFusion, soft_dice, standardised
from shared_components.errors import InputError


def constant(value: float) -> torch.Tensor:
    return torch.full((1, 1, 4, 4), value)


@pytest.mark.parametrize("calibration, expected", [(0.9, 0.95), (0.05, 0.30)])
def test_rule_on_constant_maps(calibration, expected):
    fused = CalibrationFusion()(constant(1.0), constant(calibration))
    torch.testing.assert_close(fused, constant(expected))


def test_soft_dice():
    sample, calibration = torch.tensor([0.2, -1, 3, 0]), torch.tensor([0.5, 0.5, 1, 0])
    dice = soft_dice((sample > 0).reshape(1, 1, 2, 2), calibration.reshape(1, 1, 2, 2))
    assert dice.shape == (1, 1, 1, 1) and dice.item() == pytest.approx(0.75)


def test_standardised_sample():
    values = torch.arange(4.0).reshape(1, 1, 2, 2)
    expected = [-1.161895, -0.387298, 0.387298, 1.161895]
    assert standardised(values).flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(standardised(constant(3.0)), constant(0.0))
    fused = CalibrationFusion("z_score")(values, torch.full((1, 1, 2, 2), 0.2))
    assert fused.flatten().tolist() == pytest.approx(
        [0, 0.2 - 0.25 * 0.387298, 0.2 + 0.25 * 0.387298, 0.490474], abs=1e-6
    )


def test_every_sample_and_channel_is_judged_by_itself():
    sample = torch.cat([constant(1.0), constant(1.0)], dim=1).repeat(2, 1, 1, 1)
    calibration = torch.tensor([[0.9, 0.05], [0.05, 0.9]]).reshape(2, 2, 1, 1).expand(2, 2, 4, 4)
    fused = CalibrationFusion()(sample, calibration)
    expected = torch.tensor([[0.95, 0.30], [0.30, 0.95]]).reshape(2, 2, 1, 1).expand(2, 2, 4, 4)
    torch.testing.assert_close(fused, expected)


def test_empty_maps_stay_empty():
    for absent in (0.0, -1.0):
        assert torch.equal(CalibrationFusion()(constant(absent), constant(0.0)), constant(0.0))
    assert torch.equal(CalibrationFusion("z_score")(constant(0.0), constant(0.0)), constant(0.0))


def test_constants_are_tunable():
    fused = CalibrationFusion(min_agreement=0.99, correction=0.05)(constant(1.0), constant(0.9))
    torch.testing.assert_close(fused, constant(0.95))
    fused = CalibrationFusion(share=0.9)(constant(1.0), constant(0.9))
    torch.testing.assert_close(fused, constant(0.91))


@pytest.mark.parametrize("rule", ["agreement", "z_score"])
def test_scripts(rule):
    fusion, sample, calibration = CalibrationFusion(rule), torch.randn(3, 2, 4, 4), torch.rand(3, 2, 4, 4)
    fused = torch.jit.script(fusion)(sample, calibration)
    assert torch.equal(fused, fusion(sample, calibration))
    assert fused.min() >= 0 and fused.max() <= 1


def test_unknown_rule_is_refused():
    with pytest.raises(InputError, match="agreement, z_score, not 'sum'"):
        CalibrationFusion("sum")
