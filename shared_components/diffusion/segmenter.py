"""A denoiser made into a segmentation network: image in, class probabilities out."""

from typing import List, Optional, Tuple

import torch
from monai.data import MetaTensor
from monai.networks.schedulers.scheduler import Scheduler
from torch import Tensor, nn

from shared_components.diffusion.noise import addressed_noise
from shared_components.diffusion.slices import pad_to_multiple, slices_to_volume, volume_to_slices
from shared_components.diffusion.tables import ReverseTable, reverse_table
from shared_components.ensembling.combine import COMBINE_CHOICES, combine_members
from shared_components.errors import InputError


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
        denoiser: estimates the clean label map: ``denoiser(noisy, timesteps, condition, latent, condition_features)``
            with ``encode_condition(condition)`` and the attributes ``in_channels``, ``latent_dim`` and
            ``downsampling`` (the factor that input sizes must be multiples of).
        scheduler: MONAI scheduler that holds the training schedule (``alphas_cumprod``).
        num_inference_steps: reverse steps, 1..T; all T steps of the training schedule when ``None``.
        num_samples: ensemble members.
        combine: ``majority``, ``mean`` or ``staple`` (`shared_components.ensembling.combine_members`).
        sampler: ``ddpm`` (the posterior; cDAL's) or ``ddim``.
        num_adjacent_slices: neighbours on each side of a slice that the denoiser's condition holds; volumes only.
        mirror_members: every second member sees the slices mirrored along their first axis and is mirrored back, for
            structures of either side of the body and a denoiser trained with such flips.
        max_batch_size: most (slice, member) pairs in one call of the denoiser; bounds the memory.
        amp: run the denoiser in bfloat16, on CUDA and on the CPU; a scripted network ignores it.
        seed: of the noise in eval mode.

    Raises:
        InputError: a number of steps, members or a name outside the valid ones; the message lists them.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        scheduler: Scheduler,
        num_inference_steps: Optional[int] = None,
        num_samples: int = 5,
        combine: str = "majority",
        sampler: str = "ddpm",
        num_adjacent_slices: int = 0,
        mirror_members: bool = False,
        max_batch_size: int = 64,
        amp: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_count("num_samples", num_samples)
        _check_count("max_batch_size", max_batch_size)
        if combine not in COMBINE_CHOICES:
            raise InputError(f"combine must be one of {', '.join(COMBINE_CHOICES)}, not {combine!r}")
        alphas_cumprod = scheduler.alphas_cumprod.detach()
        table = self._table(alphas_cumprod, num_inference_steps, sampler)
        self.sampler = sampler
        self.denoiser = denoiser
        self.num_samples = num_samples
        self.combine = combine
        self.num_adjacent_slices = num_adjacent_slices
        self.mirror_members = mirror_members
        self.max_batch_size = max_batch_size
        self.amp = amp
        self.seed = seed
        self.num_classes: int = denoiser.in_channels
        self.latent_dim: int = denoiser.latent_dim
        self.downsampling: int = denoiser.downsampling
        self.num_inference_steps: int = len(table.timesteps)
        self.register_buffer("schedule", alphas_cumprod.float())
        self.register_buffer("timesteps", table.timesteps, persistent=False)
        self.register_buffer("coefficients", table.coefficients.float(), persistent=False)

    @staticmethod
    def _table(alphas_cumprod: Tensor, num_inference_steps: Optional[int], sampler: str) -> ReverseTable:
        steps = len(alphas_cumprod) if num_inference_steps is None else num_inference_steps
        try:
            return reverse_table(alphas_cumprod, steps, sampler)
        except ValueError as error:
            raise InputError(str(error)) from error

    @torch.jit.unused
    def set_sampling(self, num_samples: int, num_inference_steps: Optional[int]) -> None:
        """Change the ensemble members and the reverse steps; see the class for the values and the errors."""
        _check_count("num_samples", num_samples)
        table = self._table(self.schedule, num_inference_steps, self.sampler)
        self.num_samples, self.num_inference_steps = num_samples, len(table.timesteps)
        self.timesteps = table.timesteps.to(self.timesteps)
        self.coefficients = table.coefficients.to(self.coefficients)

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
            if not isinstance(image, MetaTensor):
                return self._segment(image)
            # what was done to the image is to be undone to the prediction
            return MetaTensor(self._segment(image.as_tensor())).copy_meta_from(image)

    def _segment(self, image: Tensor) -> Tensor:
        condition = volume_to_slices(image, self.num_adjacent_slices) if image.dim() == 5 else image
        condition, (top, left) = pad_to_multiple(condition.float(), self.downsampling)
        depth = image.shape[4] if image.dim() == 5 else 1
        position = torch.arange(condition.shape[0], device=image.device) % depth
        per_call = max(1, self.max_batch_size // self.num_samples)
        parts: List[Tensor] = []
        for first in range(0, condition.shape[0], per_call):
            members = self._members(condition[first : first + per_call], position[first : first + per_call])
            members = members[:, :, :, top : top + image.shape[2], left : left + image.shape[3]]
            if self.combine != "staple":  # which looks at the whole image
                members = combine_members(members, self.combine).unsqueeze(0)
            parts.append(members)
        members = torch.cat(parts, dim=1)
        if image.dim() == 5:
            count, slices = members.shape[0], members.shape[1]
            stacked = slices_to_volume(members.flatten(0, 1), depth)
            members = stacked.reshape([count, slices // depth, self.num_classes, image.shape[2], image.shape[3], depth])
        return combine_members(members, "staple") if self.combine == "staple" else members[0]

    def _members(self, condition: Tensor, position: Tensor) -> Tensor:
        """Class probabilities (M, N, C, H, W) of all members for N slices (N, K, H, W)."""
        count = condition.shape[0]
        seen = torch.stack([condition, condition.flip(2)]) if self.mirror_members else condition.unsqueeze(0)
        features = torch.stack([self.denoiser.encode_condition(view) for view in seen])
        at_once = max(1, self.max_batch_size // count)
        parts: List[Tensor] = []
        for first in range(0, self.num_samples, at_once):
            member = torch.arange(first, min(first + at_once, self.num_samples), device=condition.device)
            view = member % seen.shape[0]
            clean = self._reverse_process(
                seen[view].flatten(0, 1),
                features[view].flatten(0, 1),
                member.repeat_interleave(count),
                position.repeat(member.shape[0]),
            ).unflatten(0, [member.shape[0], count])
            clean = torch.where((view == 1).reshape(-1, 1, 1, 1, 1), clean.flip(3), clean)
            positive = ((clean.float() + 1) / 2).clamp(min=1e-6)
            parts.append(positive / positive.sum(dim=2, keepdim=True))
        return torch.cat(parts)

    def _reverse_process(self, condition: Tensor, features: Tensor, member: Tensor, position: Tensor) -> Tensor:
        """Run the table's rows from pure noise to the clean estimate (N, C, H, W) in [-1, 1]."""
        size: Tuple[int, int] = (condition.shape[2], condition.shape[3])
        noisy = self._noise(0, member, position, self.num_classes, size)
        for step in range(self.num_inference_steps):
            latent: Optional[Tensor] = None
            if self.latent_dim > 0:
                latent = self._noise(2 * step + 1, member, position, self.latent_dim, (1, 1)).flatten(1)
            timesteps = self.timesteps[step].expand(condition.shape[0])
            clean = self.denoiser(noisy, timesteps, condition, latent, features)
            weights = self.coefficients[step]
            noisy = weights[0] * clean + weights[1] * noisy
            if step + 1 < self.num_inference_steps:
                noisy = noisy + weights[2] * self._noise(2 * step + 2, member, position, self.num_classes, size)
        return noisy

    def _noise(self, draw: int, member: Tensor, position: Tensor, channels: int, size: Tuple[int, int]) -> Tensor:
        if self.training:
            return torch.randn([member.shape[0], channels, size[0], size[1]], device=member.device)
        return addressed_noise(self.seed, draw, member, position, channels, size[0], size[1])

    @torch.jit.unused
    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        found = state_dict.get(prefix + "schedule")
        if found is not None and not _same_schedule(found, self.schedule):
            errors.append(
                f"the weights were trained with a noise schedule of {len(found)} steps (signal levels "
                f"{_levels(found)}), this network has {len(self.schedule)} ({_levels(self.schedule)}): "
                "choose the configuration that the weights were trained with"
            )
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)


def _check_count(name: str, value: int) -> None:
    if type(value) is not int or value < 1:
        raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")


def _same_schedule(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(found.to(expected), expected, atol=1e-6)


def _levels(schedule: Tensor) -> str:
    return ", ".join(f"{level:.4g}" for level in schedule[:4].tolist()) + (", ..." if len(schedule) > 4 else "")
