"""Several trainings as one segmentation network."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shared_components.diffusion.metadata import plain, with_metadata
from shared_components.diffusion.segmenter import DiffusionSegmenter
from shared_components.ensembling.combine import staple_classes
from shared_components.ensembling.decision import weigh_by_decision
from shared_components.errors import InputError

_MOST_RATERS = 62  # of STAPLE


class DeepEnsemble(nn.Module):
    """Segment by networks of the same kind that were trained apart: other folds of the data, other seeds.

    Members of one network differ by their noise alone and are often all but the same mask; networks that were trained
    apart also differ where the data did not tell them what to do, so that their disagreement is part of the uncertainty
    (Lakshminarayanan et al. 2017, "Simple and scalable predictive uncertainty estimation using deep ensembles"). Each
    network contributes ``num_samples`` members, its seed one above that of the network before it, and all members are
    combined at once as the segmenter says: votes, mean or STAPLE, then its ``decision`` and ``threshold``.

    Args:
        segmenter: how each network is made and samples; it is copied and not changed.
        count: networks, at least 2; `shared_components.training.LoadWeights` gives each its weights.

    Attributes:
        networks: the segmenters.
        keep_members, member_labels: as of `DiffusionSegmenter`, for the members of all networks.

    Raises:
        InputError: fewer than two networks, or STAPLE with more than 62 members.
    """

    member_labels: Tensor | None

    def __init__(self, segmenter: DiffusionSegmenter, count: int) -> None:
        super().__init__()
        if count < 2:
            raise InputError(f"an ensemble of {count} network(s); expected at least 2")
        self.combine, self.decision, self.threshold = segmenter.combine, segmenter.decision, segmenter.threshold
        self.seed, self.amp = segmenter.seed, segmenter.amp
        self.num_classes = segmenter.num_classes
        self.networks = nn.ModuleList(copy.deepcopy(segmenter) for _ in range(count))
        for index, network in enumerate(self.networks):
            network.seed = segmenter.seed + index
            network.combine = "majority" if self.combine == "staple" else self.combine
            network.decision, network.threshold = "argmax", 0.5
        self.keep_members = False
        self.member_labels = None
        self._check_raters()

    @property
    def num_networks(self) -> int:
        """Networks."""
        return len(self.networks)

    @property
    def num_samples(self) -> int:
        """Members of all networks together."""
        return sum(network.num_samples for network in self.networks)

    @property
    def num_inference_steps(self) -> int:
        """Reverse steps of each member."""
        return self.networks[0].num_inference_steps

    def set_sampling(self, num_samples: int, num_inference_steps: int | None) -> None:
        """Change the members of each network and their reverse steps; see `DiffusionSegmenter`."""
        for network in self.networks:
            network.set_sampling(num_samples, num_inference_steps)
        self._check_raters()

    def _check_raters(self) -> None:
        if self.combine == "staple" and self.num_samples > _MOST_RATERS:
            raise InputError(
                f"combine is staple, which takes {_MOST_RATERS} members at most, and {self.num_networks} networks make "
                f"{self.num_samples}; give a smaller --num_samples, or --combine mean"
            )

    def forward(self, image: Tensor) -> Tensor:
        """Return class probabilities (B, classes, *spatial) float32; see `DiffusionSegmenter.forward`."""
        kept = []
        total: Tensor | None = None
        for network in self.networks:
            network.keep_members = self.keep_members or self.combine == "staple"
            found = plain(network(image))
            total = found if total is None else total + found
            if network.keep_members:
                kept.append(network.member_labels)
                network.member_labels = None
        members = torch.cat(kept) if kept else None
        self.member_labels = members if self.keep_members else None
        if self.combine == "staple":
            fused = staple_classes(members.to(image.device), self.num_classes)
        else:
            fused = total / self.num_networks
        return with_metadata(weigh_by_decision(fused, self.decision, self.threshold), image)


def of_trainings(
    segmenter: DiffusionSegmenter, weights: str | Sequence[str], device: str | torch.device = "cpu"
) -> nn.Module:
    """Return the network for a configuration's ``ckpt_path``: the segmenter, or for several files a `DeepEnsemble`.

    Args:
        segmenter: of the configuration.
        weights: a file, or a list of files; read later, by `shared_components.training.LoadWeights`.
        device: where the network shall be.
    """
    several = not isinstance(weights, str) and isinstance(weights, Sequence) and len(weights) > 1
    return (DeepEnsemble(segmenter, len(weights)) if several else segmenter).to(device)
