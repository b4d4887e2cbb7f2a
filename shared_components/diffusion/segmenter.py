"""A denoiser made into a segmentation network: image in, class probabilities out."""

import logging
from typing import Any, List, Optional, Sequence, Tuple

import torch
from monai.networks.schedulers.scheduler import Scheduler
from torch import Tensor, nn

from shared_components.diffusion.label_coding import LabelCoding
from shared_components.diffusion.metadata import plain, with_metadata
from shared_components.diffusion.noise import addressed_noise
from shared_components.diffusion.reverse import ReverseProcess
from shared_components.diffusion.slices import images_per_call, pad_to_multiple, slices_to_volume, volume_to_slices
from shared_components.diffusion.tiles import TiledDenoiser
from shared_components.ensembling.combine import COMBINE_CHOICES, combine_members, staple_classes
from shared_components.ensembling.decision import DECISIONS, weigh_by_decision
from shared_components.errors import InputError, check_choice, check_count, check_share, out_of_memory

logger = logging.getLogger(__name__)


class DiffusionSegmenter(nn.Module):
    """Segment images by running a few-step reverse process several times and combining the results.

    To MONAI it is an ordinary network: one tensor in, one tensor out, scriptable. A volume is a batch of its padded
    slices along the last axis; all members of a slice run together, and what depends on the image alone is computed
    once for all of them.

    In eval mode the noise of a member is a function of (seed, member, slice index, pixel): the result does not depend
    on batch size, chunking, order or device count. In train mode every call draws fresh noise from the global
    generator, which is what sampling-based uncertainty scores (MONAI Label's epistemic scoring) need.

    The training schedule is part of the state dict, so weights trained with another schedule are refused.

    Args:
        denoiser: ``denoiser(noisy, timesteps, condition, latent, condition_features)`` returns its prediction and, if
            its attribute ``learned_variance`` is set, the variance head, and, if ``calibrated`` is, the condition
            branch's own map in [0, 1]. It has ``encode_condition(condition)``, a list of tensors, and the attributes
            ``in_channels`` (of the prediction), ``latent_dim`` (0 for none) and ``downsampling`` (the factor that input
            sizes must be multiples of).
        scheduler: MONAI scheduler that holds the training schedule (``alphas_cumprod``).
        num_inference_steps: reverse steps, 1..T; all T steps of the training schedule when ``None``.
        num_samples: ensemble members.
        combine: ``majority``, ``mean`` or ``staple`` (`shared_components.ensembling.combine_members`).
        label_coding: how label maps are coded; one channel a class in [-1, 1] when ``None``.
        fusion: blends what was sampled with the map of a ``calibrated`` denoiser; the map is ignored when ``None``.
        num_adjacent_slices: neighbours on each side of a slice that the denoiser's condition holds; volumes only.
        mirror_members: members see the slices straight and mirrored in turn, and are mirrored back; for structures of
            either side of the body, or of no orientation, and a denoiser trained with such flips.
        mirror_axes: axes of a slice, of 0 and 1, that ``mirror_members`` mirrors along: with both, four members see the
            slice straight, mirrored along the first, along the second, and along both.
        slice_axes: axes of a volume that the members slice it along in turn. Along another axis than the last, that
            axis changes places with the last one, so the denoiser must know slices of either kind and the spacing
            should be the same along both. Members of several axes see what a slice's neighbours cannot show.
        max_batch_size: most (slice, member) pairs in one call of the denoiser (`images_per_call`); bounds the memory,
            and is halved, which changes no result, where the memory does not do.
        decision: ``argmax``, or ``expected_dice`` (`shared_components.ensembling.weigh_by_expected_dice`).
        threshold: of ``argmax``: probability that a foreground class must exceed, above 0 and below 1; the odds are
            weighed so that 0.5 is there (`shared_components.ensembling.weigh_by_threshold`).
        amp: run the denoiser in bfloat16, on CUDA and on the CPU; a scripted network ignores it.
        seed: of the noise in eval mode.
        **process_options: of `ReverseProcess`: ``sampler``, ``prediction_type``, ``spacing``, ``clip`` and others.

    Attributes:
        keep_members: whether ``member_labels`` is kept; ``False`` at first. A scripted network keeps nothing.
        member_labels: the class that each member gave each voxel in the last call, (M, B, *spatial) uint8 on the CPU,
            before ``combine`` and ``decision``, the members of each of ``slice_axes`` together.

    Raises:
        InputError: a number of steps, members or a name outside the valid ones; the message lists them.
    """

    member_labels: Optional[Tensor]
    _labels_of_slices: List[Tensor]

    def __init__(
        self,
        denoiser: nn.Module,
        scheduler: Scheduler,
        num_inference_steps: Optional[int] = None,
        num_samples: int = 5,
        combine: str = "majority",
        label_coding: Optional[LabelCoding] = None,
        fusion: Optional[nn.Module] = None,
        num_adjacent_slices: int = 0,
        mirror_members: bool = False,
        mirror_axes: Sequence[int] = (0,),
        slice_axes: Sequence[int] = (2,),
        max_batch_size: int = 64,
        decision: str = "argmax",
        threshold: float = 0.5,
        amp: bool = False,
        seed: int = 0,
        **process_options: Any,
    ) -> None:
        super().__init__()
        check_count("num_samples", num_samples)
        check_count("max_batch_size", max_batch_size)
        check_choice("combine", combine, COMBINE_CHOICES)
        check_choice("decision", decision, DECISIONS)
        check_share("threshold", threshold)
        if not slice_axes or any(axis not in (0, 1, 2) for axis in slice_axes):
            raise InputError(f"slice_axes must be one or several of 0, 1, 2, not {list(slice_axes)}")
        if not mirror_axes or not set(mirror_axes) <= {0, 1} or len(set(mirror_axes)) < len(mirror_axes):
            raise InputError(f"mirror_axes must be 0, 1 or both, not {list(mirror_axes)}")
        if label_coding is None:
            label_coding = LabelCoding(list(range(1, denoiser.in_channels)), coding="classes")
        if label_coding.num_channels != denoiser.in_channels:
            raise InputError(
                f"the denoiser predicts {denoiser.in_channels} channels, the label coding has "
                f"{label_coding.num_channels}: give both the same labels"
            )
        process_options["learned_variance"] = getattr(denoiser, "learned_variance", False)
        self._process_options = process_options
        self._alphas_cumprod = scheduler.alphas_cumprod.detach()
        self.register_buffer("schedule", self._alphas_cumprod.float())
        self.process = self._process(num_inference_steps)
        self.denoiser = denoiser
        self.label_coding = label_coding
        self.fusion = fusion if getattr(denoiser, "calibrated", False) else None
        self.num_samples = num_samples
        self.combine = combine
        self.num_adjacent_slices = num_adjacent_slices
        self.mirror_members = mirror_members
        self.mirror_axes: List[int] = list(mirror_axes)
        self.slice_axes: List[int] = list(slice_axes)
        self.max_batch_size = max_batch_size
        self.decision = decision
        self.threshold = float(threshold)
        self.amp = amp
        self.seed = seed
        self.keep_members = False
        self.member_labels = None
        self._labels_of_slices = []
        self.num_classes: int = label_coding.num_classes
        self.channels: int = denoiser.in_channels
        self.latent_dim: int = denoiser.latent_dim
        self.downsampling: int = denoiser.downsampling

    @torch.jit.unused
    def _process(self, num_inference_steps: Optional[int]) -> ReverseProcess:
        return ReverseProcess(self._alphas_cumprod, num_inference_steps, **self._process_options).to(
            self.schedule.device
        )

    @torch.jit.unused
    def set_sampling(self, num_samples: int, num_inference_steps: Optional[int]) -> None:
        """Change the ensemble members and the reverse steps; see the class for the values and the errors."""
        check_count("num_samples", num_samples)
        self.process = self._process(num_inference_steps)
        self.num_samples = num_samples

    @property
    def num_inference_steps(self) -> int:
        """Reverse steps."""
        return self.process.num_inference_steps

    def forward(self, image: Tensor) -> Tensor:
        """Return class probabilities.

        Args:
            image: (B, K, H, W) images or (B, K, H, W, D) volumes, any H and W, normalised as in training.

        Returns:
            (B, classes, *spatial) float32 that sum to 1 over the classes: the share of members voting for a class, the
            members' mean probability or STAPLE's posterior, as ``combine`` says.
        """
        if torch.jit.is_scripting():
            return self._segment(image)
        return self._segment_eager(image)

    @torch.jit.unused
    def _segment_eager(self, image: Tensor) -> Tensor:
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.amp):
            return with_metadata(self._segment_in_memory(plain(image)), image)

    @torch.jit.unused
    def _segment_in_memory(self, image: Tensor) -> Tensor:
        """Segment; where the memory does not do, again with half as many slices, members and tiles in one call."""
        tiled = [part for part in self.denoiser.modules() if isinstance(part, TiledDenoiser)]
        limited = [self, *tiled]
        while True:
            self.member_labels, self._labels_of_slices = None, []
            try:
                return self._segment(image)
            except (RuntimeError, MemoryError) as error:
                if all(part.max_batch_size == 1 for part in limited) or not out_of_memory(error):
                    raise
            for part in limited:
                part.max_batch_size = max(1, part.max_batch_size // 2)
            tiles = "".join(f", {part.max_batch_size} tiles" for part in tiled)
            logger.warning("out of memory: going on with %d slices and members%s at once", self.max_batch_size, tiles)
            if image.is_cuda:
                torch.cuda.empty_cache()

    def _segment(self, image: Tensor) -> Tensor:
        if image.dim() == 4:
            members = self._segment_slices(image, 1, 0, 1)
            if not torch.jit.is_scripting():
                self._keep_view(0)
            return self._fuse([members])
        views: List[Tensor] = []
        for index, axis in enumerate(self.slice_axes[: self.num_samples]):
            seen = image.transpose(axis + 2, 4)
            slices = volume_to_slices(seen, self.num_adjacent_slices)
            members = self._segment_slices(slices, seen.shape[4], index, len(self.slice_axes))
            count = members.shape[0]
            members = slices_to_volume(members.flatten(0, 1), seen.shape[4]).unflatten(0, [count, image.shape[0]])
            views.append(members.transpose(axis + 3, 5))
            if not torch.jit.is_scripting():
                self._keep_view(seen.shape[4], axis)
        return self._fuse(views)

    @torch.jit.unused
    def _keep_slices(self, members: Tensor) -> None:
        """Keep the classes of members (M, N, C, H, W) of some slices."""
        if self.keep_members:
            self._labels_of_slices.append(members.argmax(dim=2).to(torch.uint8).cpu())

    @torch.jit.unused
    def _keep_view(self, depth: int, axis: int = 2) -> None:
        """Make what `_keep_slices` kept of a view part of ``member_labels``; ``depth`` 0 for images."""
        if not self.keep_members:
            return
        labels = torch.cat(self._labels_of_slices, dim=1)
        self._labels_of_slices = []
        if depth > 0:
            volumes = slices_to_volume(labels.flatten(0, 1).unsqueeze(1), depth).squeeze(1)
            labels = volumes.unflatten(0, [labels.shape[0], -1]).transpose(axis + 2, 4)
        self.member_labels = labels if self.member_labels is None else torch.cat([self.member_labels, labels])

    def _fuse(self, views: List[Tensor]) -> Tensor:
        """One prediction (B, C, *spatial) of what `_segment_slices` returned for each view."""
        if self.combine == "staple":
            fused = staple_classes(torch.cat(views)[:, :, 0], self.num_classes)
        else:
            fused = torch.zeros_like(views[0][0])
            for index, view in enumerate(views):
                fused += view[0] * self._member_indices(index, len(views)).shape[0]
            fused = fused / self.num_samples
        return weigh_by_decision(fused, self.decision, self.threshold)

    def _member_indices(self, first: int, stride: int) -> Tensor:
        return torch.arange(first, self.num_samples, stride, device=self.schedule.device)

    def _segment_slices(self, slices: Tensor, depth: int, first: int, stride: int) -> Tensor:
        """Segment slices (N, K, H, W), ``depth`` of them a case, by the members ``first``, ``first + stride``, ...

        Returns:
            For STAPLE, which looks at whole images, the members' classes (M, N, 1, H, W) uint8; else their combined
            probabilities (1, N, C, H, W).
        """
        condition, (top, left) = pad_to_multiple(slices.float(), self.downsampling)
        window = (top, left, slices.shape[2], slices.shape[3])
        member = self._member_indices(first, stride)
        position = torch.arange(condition.shape[0], device=slices.device) % depth
        per_call = max(1, images_per_call(self.max_batch_size, condition) // member.shape[0])
        parts: List[Tensor] = []
        for start in range(0, condition.shape[0], per_call):
            chunk, where = condition[start : start + per_call], position[start : start + per_call]
            members = self._members(chunk, where, member, stride, window)
            if not torch.jit.is_scripting():
                self._keep_slices(members)
            if self.combine == "staple":
                parts.append(members.argmax(dim=2, keepdim=True).to(torch.uint8))
            else:
                parts.append(combine_members(members, self.combine).unsqueeze(0))
        return torch.cat(parts, dim=1)

    def _members(
        self, condition: Tensor, position: Tensor, members: Tensor, stride: int, window: Tuple[int, int, int, int]
    ) -> Tensor:
        """Class probabilities (M, N, C, H, W) of the members in the window (top, left, H, W) of N padded slices."""
        count = condition.shape[0]
        num_views = min(members.shape[0], (1 << len(self.mirror_axes)) if self.mirror_members else 1)
        at_once = max(1, images_per_call(self.max_batch_size, condition) // count)
        # of members that go one by one, those of a view follow each other: only its features are in memory then
        views_at_once, step = (num_views, at_once) if at_once > 1 else (1, num_views)
        top, left, height, width = window
        parts = [condition] * -(-members.shape[0] // at_once)
        for view in range(0, num_views, views_at_once):
            seen = [self._mirrored(condition, number) for number in range(view, view + views_at_once)]
            features = [self.denoiser.encode_condition(item) for item in seen]
            for first in range(view, members.shape[0], step):
                member = members[first : first + at_once]
                mirrored = (member // stride) % num_views
                sampled = self._reverse_process(
                    _chosen([[item] for item in seen], 0, mirrored - view),
                    [_chosen(features, part, mirrored - view) for part in range(len(features[0]))],
                    member.repeat_interleave(count),
                    position.repeat(member.shape[0]),
                )
                for index, axis in enumerate(self.mirror_axes):
                    is_mirrored = (mirrored // 2**index % 2 == 1).repeat_interleave(count).reshape(-1, 1, 1, 1)
                    sampled = torch.where(is_mirrored, sampled.flip(axis + 2), sampled)
                sampled = sampled[:, :, top : top + height, left : left + width]
                parts[first // at_once] = self._decode(sampled).unflatten(0, [member.shape[0], count])
            features.clear()  # before those of the next view are there
        return torch.cat(parts)

    def _mirrored(self, condition: Tensor, view: int) -> Tensor:
        """View ``view`` of slices: mirrored along the i-th axis where bit i is set."""
        for index, axis in enumerate(self.mirror_axes):
            if (view >> index) % 2 == 1:
                condition = condition.flip(axis + 2)
        return condition

    def _decode(self, sampled: Tensor) -> Tensor:
        if self.fusion is None:
            return self.label_coding.decode(sampled[:, : self.channels])
        presence = self.fusion(sampled[:, : self.channels], sampled[:, self.channels :])
        return self.label_coding.probabilities(presence)

    def _reverse_process(self, condition: Tensor, features: List[Tensor], member: Tensor, position: Tensor) -> Tensor:
        """Sample label maps (N, C, H, W) from pure noise; behind them, for the fusion, the denoiser's own maps."""
        size: Tuple[int, int] = (condition.shape[2], condition.shape[3])
        noisy = self._noise(0, member, position, self.channels, size)
        output, clean = noisy, noisy
        for step in range(self.process.num_inference_steps):
            latent: Optional[Tensor] = None
            if self.latent_dim > 0:
                latent = self._noise(2 * step + 1, member, position, self.latent_dim, (1, 1)).flatten(1)
            timesteps = self.process.timestep(step, condition.shape[0])
            output = self.denoiser(noisy, timesteps, condition, latent, features)
            noise: Optional[Tensor] = None
            if self.process.stochastic and step + 1 < self.process.num_inference_steps:
                noise = self._noise(2 * step + 2, member, position, self.channels, size)
            noisy, clean = self.process(step, output, noisy, clean, noise)
        if self.fusion is not None:
            return torch.cat([noisy, output[:, -self.channels :].to(noisy.dtype)], dim=1)
        return noisy

    def _noise(self, draw: int, member: Tensor, position: Tensor, channels: int, size: Tuple[int, int]) -> Tensor:
        if self.training:
            return torch.randn([member.shape[0], channels, size[0], size[1]], device=member.device)
        return addressed_noise(self.seed, draw, member, position, channels, size[0], size[1])

    @torch.jit.unused
    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        difference = schedule_difference(state_dict.get(prefix + "schedule"), self.schedule)
        if difference:
            errors.append(difference)
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)


def _chosen(features: List[List[Tensor]], part: int, view: Tensor) -> Tensor:
    """One part of the features of several views (each (N, ...)), for a view per member: (M * N, ...)."""
    if view.shape[0] == 1:  # large pictures go member by member, and their features are not to be copied
        return features[int(view[0])][part]
    return torch.stack([of_view[part] for of_view in features])[view].flatten(0, 1)


def schedule_difference(found: Optional[Tensor], expected: Tensor) -> str:
    """Say how the noise schedule that weights were trained with differs from a network's; '' where it does not.

    Args:
        found: (T,) abar of the weights' schedule; nothing to compare with when ``None``.
        expected: (T,) of the network's.
    """
    if found is None or (found.shape == expected.shape and torch.allclose(found.to(expected), expected, atol=1e-6)):
        return ""
    return (
        f"the weights were trained with a noise schedule of {len(found)} steps (signal levels "
        f"{_levels(found)}), this network has {len(expected)} ({_levels(expected)}): "
        "choose the configuration that the weights were trained with"
    )


def _levels(schedule: Tensor) -> str:
    return ", ".join(f"{level:.4g}" for level in schedule[:4].tolist()) + (", ..." if len(schedule) > 4 else "")
