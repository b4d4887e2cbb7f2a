"""From the members of an ensemble to one prediction, its uncertainty, and how well that is calibrated."""

from shared_components.ensembling.combine import COMBINE_CHOICES, combine_members
from shared_components.ensembling.decision import (
    DECISIONS,
    weigh_by_decision,
    weigh_by_expected_dice,
    weigh_by_threshold,
)
from shared_components.ensembling.diversity import score_members
from shared_components.ensembling.holes import FillSmallHolesd, fill_small_holes
from shared_components.ensembling.instances import FindInstancesd, find_instances
from shared_components.ensembling.objects import KeepCentralObjectsd, keep_central_objects
from shared_components.ensembling.staple import RaterRates, rater_rates, staple
from shared_components.ensembling.uncertainty import (
    ExpectedDiced,
    PredictiveEntropyd,
    calibration_bins,
    calibration_error,
    entropy,
    error_detection_auroc,
    expected_dice,
)

__all__ = [
    "COMBINE_CHOICES",
    "DECISIONS",
    "ExpectedDiced",
    "FillSmallHolesd",
    "FindInstancesd",
    "KeepCentralObjectsd",
    "PredictiveEntropyd",
    "RaterRates",
    "calibration_bins",
    "calibration_error",
    "combine_members",
    "entropy",
    "error_detection_auroc",
    "expected_dice",
    "fill_small_holes",
    "find_instances",
    "rater_rates",
    "score_members",
    "staple",
    "weigh_by_decision",
    "weigh_by_expected_dice",
    "weigh_by_threshold",
    "keep_central_objects",
]
