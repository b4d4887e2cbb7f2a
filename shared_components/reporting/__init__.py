"""What came out, for people to look at: scores of every case, pictures, and a report of the run."""

from shared_components.reporting.blind_guess import BlindGuess
from shared_components.reporting.case_metrics import CaseMetrics
from shared_components.reporting.denoising import DenoisingPreview
from shared_components.reporting.inference_ledger import unfinished_cases
from shared_components.reporting.inference_report import InferenceReportHandler
from shared_components.reporting.instances import InstanceScores, add_instances
from shared_components.reporting.member_scores import MemberScores
from shared_components.reporting.metrics import score_case, summarise, write_table
from shared_components.reporting.overlays import encode_png, overlay_figure
from shared_components.reporting.report import Picture, write_report
from shared_components.reporting.report_handler import ReportHandler
from shared_components.reporting.save_overlays import SaveOverlays
from shared_components.reporting.synthesis_metrics import SynthesisMetrics
from shared_components.reporting.synthetic_set import SynthesisPreview, SyntheticSet
from shared_components.reporting.training_report import TrainingReportHandler

__all__ = [
    "BlindGuess",
    "CaseMetrics",
    "DenoisingPreview",
    "InferenceReportHandler",
    "InstanceScores",
    "MemberScores",
    "Picture",
    "ReportHandler",
    "SaveOverlays",
    "SynthesisMetrics",
    "SynthesisPreview",
    "SyntheticSet",
    "TrainingReportHandler",
    "add_instances",
    "encode_png",
    "overlay_figure",
    "score_case",
    "summarise",
    "unfinished_cases",
    "write_report",
    "write_table",
]
