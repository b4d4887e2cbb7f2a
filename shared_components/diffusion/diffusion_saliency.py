"""A saliency network around a denoiser of images: the schedule of its weights, its gate, its noise."""

from typing import Any, Optional, Sequence, Tuple

import torch
from monai.networks.schedulers.scheduler import Scheduler
from torch import Tensor, nn

from shared_components.diffusion.class_guidance import guidance_weight, log_probability_gradient
from shared_components.diffusion.noise import addressed_noise
from shared_components.diffusion.reverse import PREDICTION_TYPES, ReverseProcess
from shared_components.diffusion.saliency_network import SaliencyNetwork
from shared_components.diffusion.segmenter import schedule_difference
from shared_components.errors import InputError, check_count


def start_timestep(alphas_cumprod: Tensor, signal_level: float) -> int:
    """Return the timestep whose share of signal, abar, is nearest to ``signal_level``.

    Args:
        alphas_cumprod: (T,) of a training schedule.
        signal_level: in (0, 1). The published Q = 400 is 0.896 on its linear schedule of 4000 steps and 0.194 on one of
            1000 steps; a share means the same on every schedule.

    Raises:
        InputError: it is not between 0 and 1.
    """
    if isinstance(signal_level, bool) or not isinstance(signal_level, (int, float)) or not 0 < signal_level < 1:
        raise InputError(f"signal_level must lie between 0 and 1, not {signal_level!r}")
    return int((alphas_cumprod.detach().cpu().double() - signal_level).abs().argmin())


class DiffusionSaliency(SaliencyNetwork):
    """What CDM and its diffusion competitor share. Subclasses implement `member_maps`.

    A slice is noised to a level of the training schedule and goes back from there in DDIM steps of one timestep each.
    The training schedule, the factor of the timesteps, the type of the prediction and the range of the images are part
    of the state dict, so weights trained with others are refused (the published halves disagree on the first three).

    Args:
        denoiser: ``denoiser(noisy, timesteps, class_weights=...)``, as `ClassConditionedDenoiser`.
        scheduler: MONAI scheduler that holds the training schedule (``alphas_cumprod``).
        classifier: ``classifier(noisy, timesteps)`` returns logits (B, K) at any noise level; for guidance and, at
            timestep 0, for the gate where ``gate`` is ``None``.
        gate: see `SaliencyNetwork`.
        gated: see `SaliencyNetwork`.
        signal_level: share of signal, abar, that the slice is noised to; the nearest timestep Q has it.
        num_inference_steps: steps back, 1..Q + 1; as many when ``None``.
        guidance_scale: of the classifier's gradient; 0 for none.
        prediction_type: what the denoiser predicts; guidance needs ``epsilon``.
        clip: (low, high) that clean estimates are clipped to; the noise then is that of the clipped estimate.
        max_batch_size: most noisy images in one call of the denoiser (`images_per_call`); bounds the memory.
        seed: of the noise in eval mode.
        image_range: (low, high) that slices are scaled to. Weights without one load whatever it is; with ``None`` none
            is kept and nothing compared.
        **options: of `SaliencyNetwork`.

    Raises:
        InputError: guidance or a gate is asked for and there is no classifier; a number or a name out of range.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        scheduler: Scheduler,
        classifier: Optional[nn.Module] = None,
        gate: Optional[nn.Module] = None,
        gated: bool = True,
        signal_level: float = 0.656,
        num_inference_steps: Optional[int] = 1,
        guidance_scale: float = 0.0,
        prediction_type: str = "epsilon",
        clip: Optional[Tuple[float, float]] = (-1.0, 1.0),
        max_batch_size: int = 64,
        seed: int = 0,
        image_range: Optional[Sequence[float]] = None,
        **options: Any,
    ) -> None:
        if gated and gate is None and classifier is None:
            raise InputError("gated, but there is neither gate nor classifier; give one, or gated=False")
        if guidance_scale < 0 or (guidance_scale > 0 and (classifier is None or prediction_type != "epsilon")):
            raise InputError(
                f"guidance_scale is {guidance_scale}; expected 0, or above 0 with a classifier and prediction_type "
                "'epsilon'"
            )
        check_count("max_batch_size", max_batch_size)
        super().__init__(gate, gated, downsampling=denoiser.downsampling, **options)
        self.denoiser = denoiser
        self.classifier = classifier
        self.guidance_scale = float(guidance_scale)
        self.max_batch_size = max_batch_size
        self.seed = seed
        self._alphas_cumprod = scheduler.alphas_cumprod.detach().cpu().double()
        self._process_options = {"sampler": "ddim", "prediction_type": prediction_type, "clip": clip}
        self.start = start_timestep(self._alphas_cumprod, signal_level)
        self.register_buffer("schedule", self._alphas_cumprod.float())
        conventions = [float(denoiser.timestep_scale), float(PREDICTION_TYPES.index(prediction_type))]
        conventions += [] if image_range is None else [float(limit) for limit in image_range]
        self.register_buffer("conventions", torch.tensor(conventions))
        self.set_sampling(self.num_samples, num_inference_steps)

    def set_sampling(self, num_samples: int, num_inference_steps: Optional[int]) -> None:
        """Change the noise draws and the steps; see the class for the values and the errors."""
        check_count("num_samples", num_samples)
        most = self.start + 1
        steps = most if num_inference_steps is None else num_inference_steps
        if type(steps) is not int or not 1 <= steps <= most:
            raise InputError(
                f"num_inference_steps must be a whole number in 1..{most} (the steps from the signal level "
                f"{self._alphas_cumprod[self.start]:.3g} to the clean image), not {steps!r}"
            )
        # the schedule up to the start: its process visits Q, Q - 1, ..., 0, of which the first ones are made
        self.process = ReverseProcess(self._alphas_cumprod[:most], **self._process_options).to(self.schedule.device)
        self.num_samples = num_samples
        self.num_inference_steps = steps

    def gate_logits(self, slices: Tensor) -> Tensor:
        """Return the logits (N, K) of the gate, or those of the classifier at timestep 0."""
        if self.gate is not None:
            return self.gate(slices)
        return self.classifier(slices, torch.zeros(slices.shape[0], dtype=torch.int64, device=slices.device))

    def noised(self, slices: Tensor, member: Tensor, position: Tensor) -> Tensor:
        """Return slices (N, K, H, W) at the start level; noise by its address in eval mode, fresh in train mode."""
        if self.training:
            noise = torch.randn_like(slices)
        else:
            noise = addressed_noise(self.seed, 0, member, position, *slices.shape[1:])
        level = self._alphas_cumprod[self.start]
        return float(level.sqrt()) * slices + float((1 - level).sqrt()) * noise

    def guided_step(
        self, step: int, output: Tensor, noisy: Tensor, classes: Tensor
    ) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
        """Make a step with the classifier's push towards ``classes`` (N,).

        Returns:
            The next state, the clean estimate before the push, and the push that the next state contains (``None``
            without guidance); all as ``noisy``.
        """
        moved, clean = self.process(step, output, noisy)
        if self.guidance_scale == 0:
            return moved, clean, None
        timesteps = self.process.timestep(step, noisy.shape[0])
        gradient = log_probability_gradient(self.classifier, noisy, timesteps, classes)
        push = self.guidance_scale * guidance_weight(self.process, step, output, noisy) * gradient
        return moved + push, clean, push

    def class_weights(self, count: int, index: int) -> Tensor:
        """Return one-hot weights (count, K) of the class ``index``, for the denoiser."""
        weights = torch.zeros(count, self.denoiser.num_class_weights, device=self.schedule.device)
        weights[:, index] = 1
        return weights

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        difference = schedule_difference(state_dict.get(prefix + "schedule"), self.schedule)
        found = state_dict.get(prefix + "conventions")
        if found is not None:
            difference = difference or _conventions_difference(found.tolist(), self.conventions.tolist())
            state_dict[prefix + "conventions"] = self.conventions  # older weights say nothing of the images' range
        if difference:
            errors.append(difference)
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)


def _conventions_difference(found: Sequence[float], ours: Sequence[float]) -> str:
    """Tell how the conventions of weights differ from a network's; empty where they do not or one says no range."""
    if found[:2] != ours[:2]:
        named = "(timestep_scale, prediction_type)"
        theirs, here = (f"({scale:g}, {PREDICTION_TYPES[int(kind)]})" for scale, kind in (found[:2], ours[:2]))
    elif len(found) == len(ours) and found[2:] != ours[2:]:
        named = "image_range"
        theirs, here = (f"[{low:g}, {high:g}]" for low, high in (found[2:], ours[2:]))
    else:
        return ""
    return (
        f"the weights were trained with {named} {theirs}, this network has {here}: choose the configuration that the "
        "weights were trained with"
    )
