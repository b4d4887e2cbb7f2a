"""Segmentation by comparing an image with its healthy counterpart, which a guided diffusion model makes: CG-Diff."""

from typing import Any, Optional

import torch
from monai.networks.schedulers.scheduler import Scheduler
from torch import Tensor, nn

from shared_components.diffusion.class_guidance import guided_prediction
from shared_components.diffusion.diffusion_saliency import DiffusionSaliency
from shared_components.diffusion.slices import images_per_call
from shared_components.errors import InputError, check_choice

PATHS = ("classifier", "classifier_free")


class CounterfactualSegmenter(DiffusionSaliency):
    """Anomaly map by DDIM inversion and guided denoising towards the healthy class (Wolleb et al. 2022; "CG-Diff").

    The slice is inverted: DDIM's steps taken upwards from the clean image to the start level, noise-free, told the
    positive class. From there the same number of DDIM steps leads back, towards the negative class: pushed there by the
    classifier, or by classifier-free guidance (Sanchez et al. 2022, "What is healthy?"). The map is the sum over the
    channels of the absolute difference between slice and result. It is never negative, so its polarity is ``bright``.

    Inverting and denoising are deterministic, so all ``num_samples`` maps are the same: one is made.

    Args:
        denoiser, scheduler, classifier: see `DiffusionSaliency`. The published settings are a linear schedule of 1000
            steps, 500 of them, and a guidance scale of 100.
        num_inference_steps: steps up and steps down; all of the start level's when ``None``. Fewer ones are strides.
        path: what leads to the negative class, one of `PATHS`.
        classifier_free_scale: of the second path.
        **options: of `DiffusionSaliency` and `SaliencyNetwork`.

    Raises:
        InputError: an unknown path, no guidance for it, or a number out of range.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        scheduler: Scheduler,
        classifier: Optional[nn.Module] = None,
        num_inference_steps: Optional[int] = None,
        path: str = "classifier",
        guidance_scale: float = 100.0,
        classifier_free_scale: float = 3.0,
        **options: Any,
    ) -> None:
        check_choice("path", path, PATHS)
        if path == "classifier_free" and not denoiser.null_class:
            raise InputError("the denoiser has no null class: train one with null_class=True and label dropout")
        scale = float(guidance_scale) if path == "classifier" else 0.0
        super().__init__(
            denoiser, scheduler, classifier, num_inference_steps=num_inference_steps, guidance_scale=scale, **options
        )
        self.classifier_free_scale = classifier_free_scale if path == "classifier_free" else None

    def set_sampling(self, num_samples: int, num_inference_steps: Optional[int]) -> None:
        """Change the steps; see the class for the values and the errors."""
        super().set_sampling(num_samples, num_inference_steps)
        options = {**self._process_options, "spacing": "trailing"}
        levels = self._alphas_cumprod[: self.start + 1]
        self.process = type(self.process)(levels, self.num_inference_steps, **options).to(self.schedule.device)

    def member_maps(self, slices: Tensor, position: Tensor) -> Tensor:
        """Return the maps (1, N, 1, H, W) of N slices."""
        parts = [self.counterfactual(part) for part in slices.split(images_per_call(self.max_batch_size, slices))]
        return (slices - torch.cat(parts)).abs().sum(dim=1, keepdim=True).unsqueeze(0)

    def counterfactual(self, slices: Tensor) -> Tensor:
        """Return the healthy counterparts of slices (N, C, H, W), the same shape."""
        count = slices.shape[0]
        classes = torch.full((count,), self.negative_class, device=slices.device)
        weights = self.class_weights(count, self.negative_class)
        state = self.inverted(slices)
        for step in range(self.num_inference_steps):
            timesteps = self.process.timestep(step, count)
            output = guided_prediction(self.denoiser, state, timesteps, weights, self.classifier_free_scale)
            state = self.guided_step(step, output.to(state.dtype), state, classes)[0]
        return state

    def inverted(self, slices: Tensor) -> Tensor:
        """Return slices (N, C, H, W) at the start level, by DDIM's steps taken upwards.

        From one visited level to the next the estimate of the clean image is kept, with the noise predicted at the
        lower level; on the first step, from the clean image, that at the lowest visited timestep.
        """
        count, weights = slices.shape[0], self.class_weights(slices.shape[0], self.positive_class)
        upwards = self.process.timesteps.flip(0)
        levels = self._alphas_cumprod[upwards.cpu()]
        state, level = slices, torch.ones((), dtype=torch.float64)
        shown = upwards[0]
        for index in range(self.num_inference_steps):
            timesteps = shown.expand(count)
            noise = self.denoiser(state, timesteps, class_weights=weights)[:, : slices.shape[1]].to(slices.dtype)
            kept = float((levels[index] / level).sqrt())
            added = float((1 - levels[index]).sqrt() - (levels[index] * (1 - level) / level).sqrt())
            state, level, shown = kept * state + added * noise, levels[index], upwards[index]
        return state
