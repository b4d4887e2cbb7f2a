"""Scores of an ensemble's single members, for `CaseMetrics`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from ignite.engine import Engine
from monai.networks import one_hot
from torch import Tensor

from shared_components.diffusion.metadata import plain, with_metadata
from shared_components.ensembling.diversity import score_members
from shared_components.reporting.metrics import class_indices


class MemberScores:
    """Compare the members of a `DiffusionSegmenter` with one another and with the reference, for `CaseMetrics`.

    The network keeps the hard masks of its last call, a byte a voxel and member (`DiffusionSegmenter.keep_members`).
    Each is brought to the label's grid by the evaluator's own postprocessing, one at a time, so a member's mask is what
    the prediction would be if it were the only one. There are no scores where there are no members: for a network of
    another kind, one with a single member, or one that saw the case in several windows.

    Args:
        postprocessing: of the evaluator: what is done to ``pred_key`` of a case. Nothing by default.
        image_key: key of the image as the network saw it.
        pred_key: key of the prediction.
    """

    def __init__(
        self,
        postprocessing: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
        image_key: str = "image",
        pred_key: str = "pred",
    ) -> None:
        self.postprocessing = postprocessing
        self.image_key, self.pred_key = image_key, pred_key

    def start(self, engine: Engine) -> None:
        """Make the evaluator's network keep its members."""
        if hasattr(engine.network, "keep_members"):
            engine.network.keep_members = engine.network.num_samples > 1

    def taken(self, engine: Engine, case: Mapping[str, Any], index: int) -> Tensor | None:
        """Return the hard masks (M, *spatial) of a case as the network saw it; ``None`` without members.

        Args:
            engine: the evaluator, after an iteration.
            case: what it made of the case.
            index: of the case in the iteration's batch.
        """
        kept = getattr(engine.network, "member_labels", None)
        if kept is None or kept.shape[0] < 2 or kept.shape[2:] != case[self.image_key].shape[1:]:
            return None
        return kept[:, index]

    def __call__(self, members: Tensor, case: Mapping[str, Any], label: Tensor) -> dict[str, float]:
        """Score a case.

        Args:
            members: what `taken` returned.
            case: what the evaluator made of the case.
            label: (1, *spatial) label map or (C, *spatial) one-hot, on the grid of the prediction.

        Returns:
            As `score_members`.
        """
        classes = case[self.pred_key].shape[0]
        masks = torch.stack([self._on_grid(mask, case, classes) for mask in members])
        return score_members(masks, class_indices(label, classes)[0], classes)

    def _on_grid(self, mask: Tensor, case: Mapping[str, Any], classes: int) -> Tensor:
        """A member's (*spatial) mask on the grid of the prediction, uint8."""
        prediction = with_metadata(one_hot(mask[None], num_classes=classes, dim=0), case[self.image_key])
        done = {**case, self.pred_key: prediction}
        if self.postprocessing is not None:
            done = self.postprocessing(done)
        return plain(done[self.pred_key]).argmax(dim=0).to(torch.uint8).cpu()
