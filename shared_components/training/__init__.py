"""Running a training so that it can be trusted: seeds, checkpoints, guards, progress."""

from shared_components.training.accumulation import OptimizerStepLrSchedule
from shared_components.training.checkpoints import BestWeights, LoadWeights, TrainingState
from shared_components.training.ema import WarmedEMAHandler, shared_handler
from shared_components.training.evaluator import CaseEvaluator
from shared_components.training.gradients import ClipGradientNorm
from shared_components.training.guards import StopOnNonFinite
from shared_components.training.joint_schedule import JointSchedule
from shared_components.training.one_cycle import OneCycle
from shared_components.training.progress import RunProgress
from shared_components.training.seeding import EpochSeeder

__all__ = [
    "BestWeights",
    "CaseEvaluator",
    "ClipGradientNorm",
    "EpochSeeder",
    "JointSchedule",
    "LoadWeights",
    "OneCycle",
    "OptimizerStepLrSchedule",
    "RunProgress",
    "StopOnNonFinite",
    "TrainingState",
    "WarmedEMAHandler",
    "shared_handler",
]
