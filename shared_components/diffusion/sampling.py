"""What networks that sample images have in common: their schedule, their reverse process, their noise."""

from typing import Any, Optional, Tuple

import torch
from monai.networks.schedulers.scheduler import Scheduler
from torch import Tensor, nn

from shared_components.diffusion.noise import addressed_noise
from shared_components.diffusion.reverse import PREDICTION_TYPES, ReverseProcess
from shared_components.diffusion.segmenter import schedule_difference
from shared_components.errors import InputError


class SamplingNetwork(nn.Module):
    """A denoiser with its training schedule, which is part of the state dict, and a reverse process, which is not.

    What the denoiser predicts is part of the state dict too, as a place in `PREDICTION_TYPES`: weights that were
    trained to predict something else are refused, where sampling with them would make noise. Weights without it are
    taken as the network's.

    Args:
        denoiser: with a denoiser's interface.
        scheduler: MONAI scheduler that holds the training schedule (``alphas_cumprod``).
        num_inference_steps: reverse steps, 1..T; T when ``None``.
        **process_options: of `ReverseProcess`.

    Raises:
        InputError: see `ReverseProcess`.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        scheduler: Scheduler,
        num_inference_steps: Optional[int] = None,
        **process_options: Any,
    ) -> None:
        super().__init__()
        process_options["learned_variance"] = getattr(denoiser, "learned_variance", False)
        self._process_options = process_options
        self._alphas_cumprod = scheduler.alphas_cumprod.detach().cpu().double()
        self.register_buffer("schedule", self._alphas_cumprod.float())
        self.process = self._process(num_inference_steps)
        self.register_buffer("predicts", torch.tensor(PREDICTION_TYPES.index(self.process.prediction_type)))
        self.denoiser = denoiser

    def _process(self, num_inference_steps: Optional[int]) -> ReverseProcess:
        process = ReverseProcess(self._alphas_cumprod, num_inference_steps, **self._process_options)
        return process.to(self.schedule.device)

    @property
    def num_inference_steps(self) -> int:
        """Reverse steps."""
        return self.process.num_inference_steps

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        difference = schedule_difference(state_dict.get(prefix + "schedule"), self.schedule) or self._other_prediction(
            state_dict.get(prefix + "predicts")
        )
        if difference:
            errors.append(difference)
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)
        if prefix + "predicts" in missing:
            missing.remove(prefix + "predicts")

    def _other_prediction(self, found: Optional[Tensor]) -> str:
        if found is None or int(found) == int(self.predicts):
            return ""
        trained, own = PREDICTION_TYPES[int(found)], self.process.prediction_type
        return f"the weights predict '{trained}', this network '{own}': give --prediction_type {trained}"


class SliceNoise:
    """Standard normal noise for the slices of volumes, correlated from slice to slice so that they fit together.

    A number is a function of (seed, draw, slice, channel, row, column) (`addressed_noise`) and of nothing else.

    Args:
        correlation_length: slices after which the noise is another one; in between it turns from the one into the
            other, of variance 1 everywhere. 0: a noise of its own for every slice. ``None``: one for all slices.

    Raises:
        InputError: a negative length.
    """

    def __init__(self, correlation_length: Optional[float] = None) -> None:
        if correlation_length is not None and correlation_length < 0:
            raise InputError(f"noise_length must be at least 0 slices, or none for one noise, not {correlation_length}")
        self.correlation_length = correlation_length

    def __call__(self, draw: int, seeds: Tensor, position: Tensor, channels: int, size: Tuple[int, int]) -> Tensor:
        """Return the noise (N, channels, *size) float32.

        Args:
            draw: counts the uses of noise of one image.
            seeds: (N,) int64, of the image that the slice belongs to.
            position: (N,) int64, of the slice in its volume.
            channels, size: of the noise.
        """
        if self.correlation_length is None:
            return addressed_noise(0, draw, seeds, torch.zeros_like(position), channels, size[0], size[1])
        if self.correlation_length == 0:
            return addressed_noise(0, draw, seeds, position, channels, size[0], size[1])
        place = position.double() / self.correlation_length
        before = place.floor()
        angle = ((place - before) * (torch.pi / 2)).float().reshape(-1, 1, 1, 1)
        low, high = (
            addressed_noise(0, draw, seeds, before.long() + step, channels, size[0], size[1]) for step in (0, 1)
        )
        return torch.cos(angle) * low + torch.sin(angle) * high


def spherical_interpolation(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Go the way from ``first`` (weight 0) to ``second`` (weight 1) on the sphere, sample by sample (Shoemake 1985).

    Args:
        first, second: (N, C, *spatial), such as two noises, whose norms the points between keep.
        weight: 0..1.
    """
    flat = [item.double().flatten(1) for item in (first, second)]
    cosine = nn.functional.cosine_similarity(flat[0], flat[1], dim=1).clamp(-1 + 1e-7, 1 - 1e-7)
    angle = torch.acos(cosine)
    shares = [torch.sin((1 - weight) * angle) / torch.sin(angle), torch.sin(weight * angle) / torch.sin(angle)]
    shape = [-1] + [1] * (first.dim() - 1)
    return (shares[0].reshape(shape) * first + shares[1].reshape(shape) * second).to(first.dtype)
