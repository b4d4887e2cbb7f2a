"""Segmentation by how a denoiser's estimate depends on the image's label: CDM, trained on image-level labels alone."""

from typing import Any, Optional

import torch
from monai.networks.schedulers.scheduler import Scheduler
from torch import Tensor, nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from shared_components.diffusion.class_guidance import guided_prediction
from shared_components.diffusion.diffusion_saliency import DiffusionSaliency
from shared_components.diffusion.full_float32 import full_float32
from shared_components.diffusion.slices import images_per_call
from shared_components.errors import InputError, check_choice

MODES = ("finite_difference", "jvp")
CONTRASTS = ("negative", "null")


class WeakSegmenter(DiffusionSaliency):
    """Conditional diffusion model for weakly supervised segmentation (Hu et al. 2023, algorithm 1).

    A positive slice is noised part of the way and denoised a few deterministic steps twice: told the positive class,
    and told a mixture of ``tau`` of it and 1 - ``tau`` of the contrast. The two states evolve apart; their difference,
    divided by 1 - ``tau`` and summed over the steps and the channels, is the map: positive where the object makes the
    image brighter. ``jvp`` takes the limit of tau towards 1 instead, exactly, by forward-mode differentiation of all
    the steps. With a ``guidance_scale`` a classifier of noisy images pushes either state towards its own class
    (CG-CDM); that part of the difference does not shrink with 1 - tau.

    Departures from the published code: several noise draws of a slice are averaged, which is worth more than several
    steps; the first step denoises from the level that was noised to; the difference is divided by 1 - tau; a gate in
    place of the true label; nothing depends on the other slices of a batch; class weights in place of a second network.

    On a GPU the two states are denoised in full float32, never in TF32, whose rounding the division by 1 - tau would
    multiply; what is traced keeps no such setting. Its ``amp`` is another matter.

    It differentiates in ``forward``, so it cannot be scripted; without guidance and ``jvp`` it can be traced.

    Args:
        denoiser, scheduler, classifier: see `DiffusionSaliency`.
        num_samples: noise draws of a slice, averaged in one batch.
        mode: one of `MODES`.
        tau: share of the positive class that the second state is told, 0 <= tau < 1; 0 is the plain change of label.
        contrast: what the rest is: ``negative`` class, or the ``null`` class of a denoiser that has one.
        classifier_free_scale: guidance of both predictions by the null class (`guided_prediction`); ``None`` for none.
        **options: of `DiffusionSaliency` and `SaliencyNetwork`.

    Raises:
        InputError: an unknown name, a number out of range, ``jvp`` with a guidance scale, or a null class is asked for
            of a denoiser that has none.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        scheduler: Scheduler,
        classifier: Optional[nn.Module] = None,
        num_samples: int = 8,
        mode: str = "finite_difference",
        tau: float = 0.95,
        contrast: str = "negative",
        classifier_free_scale: Optional[float] = None,
        **options: Any,
    ) -> None:
        super().__init__(denoiser, scheduler, classifier, num_samples=num_samples, **options)
        check_choice("mode", mode, MODES)
        check_choice("contrast", contrast, CONTRASTS)
        if not 0 <= tau < 1:
            raise InputError(f"tau must be at least 0 and below 1, not {tau}")
        if mode == "jvp" and self.guidance_scale > 0:
            raise InputError("guidance_scale goes with mode 'finite_difference': the limit of tau has no place for it")
        if (contrast == "null" or classifier_free_scale is not None) and not denoiser.null_class:
            raise InputError("the denoiser has no null class: train one with null_class=True and label dropout")
        # a denoiser without classes is held, to be trained and sampled from, but cannot segment
        if 0 < denoiser.num_class_weights <= max(self.positive_class, self.negative_class):
            raise InputError(
                f"the denoiser takes {denoiser.num_class_weights} class weights; expected the classes "
                f"{self.negative_class} and {self.positive_class} among them"
            )
        self.mode = mode
        self.tau = float(tau)
        self.contrast_class: int = denoiser.num_class_weights - 1 if contrast == "null" else self.negative_class
        self.classifier_free_scale = classifier_free_scale

    def member_maps(self, slices: Tensor, position: Tensor) -> Tensor:
        """Return the maps (M, N, 1, H, W) of the noise draws of N slices.

        Raises:
            InputError: the denoiser knows no classes.
        """
        if self.denoiser.num_class_weights == 0:
            raise InputError(
                "the denoiser has num_classes 0: it can be sampled from, but not segment; train one with 2"
            )
        count = slices.shape[0]
        member = torch.arange(self.num_samples, device=slices.device).repeat_interleave(count)
        which = torch.arange(count, device=slices.device).repeat(self.num_samples)
        calls = 1 if self.mode == "jvp" else 2
        calls = calls if self.classifier_free_scale is None else 2 * calls
        per_call = max(1, images_per_call(self.max_batch_size, slices) // calls)
        parts = []
        for start in range(0, member.shape[0], per_call):
            of_slice = which[start : start + per_call]
            noisy = self.noised(slices[of_slice], member[start : start + per_call], position[of_slice])
            with full_float32():
                parts.append(self.saliency(noisy).sum(dim=1, keepdim=True))
        return torch.cat(parts).unflatten(0, (self.num_samples, count))

    def saliency(self, noisy: Tensor) -> Tensor:
        """Return the signed map (N, C, H, W) of states (N, C, H, W) at the start level, summed over the steps."""
        return self._derivative(noisy) if self.mode == "jvp" else self._finite_difference(noisy)

    def _finite_difference(self, noisy: Tensor) -> Tensor:
        count = noisy.shape[0]
        told = self.class_weights(count, self.positive_class)
        contrast = self.tau * told + (1 - self.tau) * self.class_weights(count, self.contrast_class)
        weights = torch.cat([told, contrast])
        classes = torch.tensor([self.positive_class, self.negative_class], device=noisy.device).repeat_interleave(count)
        both, total, apart = torch.cat([noisy, noisy]), torch.zeros_like(noisy), torch.zeros_like(noisy)
        for step in range(self.num_inference_steps):
            moved, clean, push = self.guided_step(step, self._predict(step, both, weights), both, classes)
            # the states differ little: their difference is followed by itself, not taken of them after rounding
            of_clean, of_noisy = self.process.coefficients[step, :2]
            apart = of_clean * (clean[:count] - clean[count:]) + of_noisy * apart
            if push is not None:
                apart = apart + push[:count] - push[count:]
            total = total + apart
            both = moved
        return total / (1 - self.tau)

    def _derivative(self, noisy: Tensor) -> Tensor:
        told = self.class_weights(noisy.shape[0], self.positive_class)
        direction = told - self.class_weights(noisy.shape[0], self.contrast_class)

        def path(weights: Tensor) -> Tensor:
            state, total = noisy, torch.zeros_like(noisy)
            for step in range(self.num_inference_steps):
                state, _ = self.process(step, self._predict(step, state, weights), state)
                total = total + state
            return total

        # the fused attention kernels have no forward-mode derivative, nor has mixed precision
        with sdpa_kernel(SDPBackend.MATH), torch.autocast(noisy.device.type, enabled=False):
            return jvp(path, (told,), (direction,))[1]

    def _predict(self, step: int, noisy: Tensor, weights: Tensor) -> Tensor:
        timesteps = self.process.timestep(step, noisy.shape[0])
        return guided_prediction(self.denoiser, noisy, timesteps, weights, self.classifier_free_scale).to(noisy.dtype)
