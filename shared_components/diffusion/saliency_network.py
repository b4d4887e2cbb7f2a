"""What all networks that segment by a saliency map have in common: slices, the gate, the ensemble, the mask."""

from typing import Dict, Optional, Tuple

import torch
from torch import Tensor, nn

from shared_components.diffusion.metadata import plain, with_metadata
from shared_components.diffusion.saliency_masks import SaliencyMask
from shared_components.diffusion.slices import images_per_call, pad_to_multiple, slices_to_volume, volume_to_slices
from shared_components.ensembling.combine import COMBINE_CHOICES, combine_members
from shared_components.errors import InputError, check_choice, check_count

_SLICES_AT_ONCE = 32  # that the gate is asked about and whose maps are held, all draws', so that no volume is too deep


class SaliencyNetwork(nn.Module):
    """Image in, probabilities of background and object out, by a saliency map of every slice that shows the object.

    A gate tells which slices do: the others get an empty mask. To MONAI it is an ordinary network. A volume is a batch
    of its slices along the last axis. Subclasses implement `member_maps`.

    Args:
        gate: ``gate(slices)`` returns logits (N, K) of clean slices.
        gated: whether the gate is asked; without it every slice counts as positive, which is for slices that are known
            to be so, as the published evaluation has them.
        mask: from maps to probabilities; `SaliencyMask` with its defaults when ``None``.
        gate_threshold: probability from which on a slice is positive, of positive and negative class alone.
        positive_class, negative_class: their indices among the gate's outputs.
        num_samples: maps of a slice.
        combine: ``mean``: of the maps, which are then scaled and thresholded once; ``majority`` or ``staple``: of the
            masks that the maps make alone (`shared_components.ensembling.combine_members`).
        downsampling: input sizes are padded to multiples of it.
        amp: run in bfloat16, on CUDA and on the CPU.

    Raises:
        InputError: a number or a name outside the valid ones; the message lists them.
    """

    def __init__(
        self,
        gate: Optional[nn.Module],
        gated: bool = True,
        mask: Optional[SaliencyMask] = None,
        gate_threshold: float = 0.5,
        positive_class: int = 1,
        negative_class: int = 0,
        num_samples: int = 1,
        combine: str = "mean",
        downsampling: int = 1,
        amp: bool = False,
    ) -> None:
        super().__init__()
        check_count("num_samples", num_samples)
        check_choice("combine", combine, COMBINE_CHOICES)
        if not 0 < gate_threshold < 1:
            raise InputError(f"gate_threshold must lie between 0 and 1, not {gate_threshold}")
        self.gate = gate
        self.gated = gated
        self.mask = SaliencyMask() if mask is None else mask
        self.gate_threshold = gate_threshold
        self.positive_class = positive_class
        self.negative_class = negative_class
        self.num_samples = num_samples
        self.combine = combine
        self.downsampling = downsampling
        self.amp = amp

    def member_maps(self, slices: Tensor, position: Tensor) -> Tensor:
        """Return signed maps (M, N, 1, H, W) of slices (N, K, H, W); ``position`` (N,) is their index in the case."""
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor:
        """Return probabilities of background and object, which exceed 0.5 where the mask is.

        Args:
            image: (B, K, H, W) images or (B, K, H, W, D) volumes, any H and W, normalised as in training.

        Returns:
            (B, 2, *spatial) float32 that sum to 1: [1, 0] in slices that the gate takes for negative; else the object's
            channel is the scaled saliency, stretched so that the threshold is 0.5 (`SaliencyMask`), or what
            ``majority`` or ``staple`` make of the members' masks.
        """
        return self.describe(image)["pred"]

    def describe(self, image: Tensor, draws: bool = False) -> Dict[str, Tensor]:
        """Return ``pred`` as `forward` does, and with it what it was made of.

        Beside it are ``saliency`` (B, 1, *spatial), the mean map scaled to [0, 1] in each slice, whatever the gate says
        of the slice, where a map was made; ``positive`` (B,) or (B, D), the gate's probability; and, if asked for,
        ``draws`` (B, M, *spatial), the probabilities that each of the ``num_samples`` maps makes alone.
        """
        values = plain(image)
        flat = values.ndim == 4
        slices = (values if flat else volume_to_slices(values)).float()
        depth = 1 if flat else values.shape[4]
        with torch.autocast(slices.device.type, torch.bfloat16, enabled=self.amp):
            positive = self.positive_probability(slices)
            probability, saliency, members = self._segment(slices, depth, positive, draws)
        found = {"pred": torch.cat([1 - probability, probability], dim=1), "saliency": saliency}
        if draws:
            found["draws"] = members
        if not flat:
            found = {name: slices_to_volume(result, depth) for name, result in found.items()}
            positive = positive.reshape(-1, depth)
        return {**{name: with_metadata(result, image) for name, result in found.items()}, "positive": positive}

    def positive_probability(self, slices: Tensor) -> Tensor:
        """Return the gate's probability (N,) that slices (N, K, H, W) show the object; 1 without a gate."""
        if not self.gated:
            return torch.ones(slices.shape[0], device=slices.device)
        # a trace would keep the number of the parts
        parts = [slices] if torch.jit.is_tracing() else slices.split(images_per_call(_SLICES_AT_ONCE, slices))
        with torch.no_grad():
            said = [self.gate_logits(pad_to_multiple(part, self.downsampling)[0]) for part in parts]
        logits = torch.cat(said).float()
        return torch.sigmoid(logits[:, self.positive_class] - logits[:, self.negative_class])

    def gate_logits(self, slices: Tensor) -> Tensor:
        """Return the gate's logits (N, K) of slices whose sizes are multiples of ``downsampling``."""
        return self.gate(slices)

    def _segment(
        self, slices: Tensor, depth: int, positive: Tensor, draws: bool
    ) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
        """Return the object's probability and the scaled mean map, both (N, 1, H, W), and the draws' (N, M, H, W)."""
        open_ = positive >= self.gate_threshold
        position = torch.arange(slices.shape[0], device=slices.device) % depth
        if torch.jit.is_tracing():  # which slices are positive must not be written into the graph
            probability, saliency, _ = self._masked(slices, position, draws)
            return probability * open_.reshape(-1, 1, 1, 1), saliency, None
        probability, saliency = torch.zeros_like(slices[:, :1]), torch.zeros_like(slices[:, :1])
        members = torch.zeros_like(slices[:, :1]).repeat(1, self.num_samples, 1, 1) if draws else None
        for chosen in open_.nonzero()[:, 0].split(_SLICES_AT_ONCE):
            if len(chosen) == 0:
                break
            probability[chosen], saliency[chosen], of_draws = self._masked(slices[chosen], position[chosen], draws)
            if members is not None:
                members[chosen] = of_draws.to(members.dtype)
        return probability, saliency, members

    def _masked(self, slices: Tensor, position: Tensor, draws: bool) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
        padded, (top, left) = pad_to_multiple(slices, self.downsampling)
        maps = self.member_maps(padded, position).float()
        maps = maps[..., top : top + slices.shape[2], left : left + slices.shape[3]]
        mean = maps.mean(dim=0)
        saliency = self.mask.scaled(mean, slices)[0]
        averaged = self.combine == "mean"
        members = None if averaged and not draws else torch.stack([self.mask(member, slices) for member in maps])
        alone = members[:, :, 0].transpose(0, 1) if draws else None
        if averaged:
            return self.mask(mean, slices), saliency, alone
        both = torch.cat([1 - members, members], dim=2)
        return combine_members(both, self.combine)[:, 1:], saliency, alone
