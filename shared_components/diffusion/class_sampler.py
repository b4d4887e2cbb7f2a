"""Images of a class from noise."""

from pathlib import Path
from typing import Any, List, Optional, Sequence

import numpy as np
import torch
from monai.networks.schedulers.scheduler import Scheduler
from PIL import Image
from torch import Tensor, nn

from shared_components.diffusion.class_guidance import guidance_weight, guided_prediction, log_probability_gradient
from shared_components.diffusion.noise import addressed_noise
from shared_components.diffusion.reverse import ReverseProcess
from shared_components.errors import InputError, check_count
from shared_components.whole_files import whole_file


class ClassSampler(nn.Module):
    """Sample images, conditioned on a class or not, steered by a classifier or without one.

    An image is a function of (seed, its index), in eval mode, whatever the batch.

    Args:
        denoiser: predicts the noise; without classes the images are unconditional.
        scheduler: MONAI scheduler with the training schedule.
        num_inference_steps: reverse steps; all of the training schedule when ``None``.
        sampler: ``ddpm``, ``ddim`` or ``dpm_solver++``; the last without guidance by a classifier.
        classifier: of noisy images, for guidance.
        guidance_scale: of the classifier's gradient; 0 for none.
        classifier_free_scale: `guided_prediction`; ``None`` for none.
        clip: (low, high) of the clean estimates.
        seed: of the noise.
        **process_options: of `ReverseProcess`, such as ``variance_type`` and ``spacing``.

    Raises:
        InputError: guidance without what it needs; see also `ReverseProcess`.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        scheduler: Scheduler,
        num_inference_steps: Optional[int] = 50,
        sampler: str = "ddim",
        classifier: Optional[nn.Module] = None,
        guidance_scale: float = 0.0,
        classifier_free_scale: Optional[float] = None,
        clip: Any = (-1.0, 1.0),
        seed: int = 0,
        **process_options: Any,
    ) -> None:
        super().__init__()
        if guidance_scale and (classifier is None or sampler == "dpm_solver++"):
            raise InputError(f"guidance_scale is {guidance_scale}: it needs a classifier, and sampler ddpm or ddim")
        if classifier_free_scale is not None and not denoiser.null_class:
            raise InputError("the denoiser has no null class: train one with null_class=True and label dropout")
        self.denoiser = denoiser
        self.classifier = classifier
        self.guidance_scale = guidance_scale
        self.classifier_free_scale = classifier_free_scale
        self.seed = seed
        self.process = ReverseProcess(
            scheduler.alphas_cumprod,
            num_inference_steps,
            sampler=sampler,
            prediction_type="epsilon",
            learned_variance=denoiser.learned_variance,
            clip=clip,
            **process_options,
        )

    @torch.no_grad()
    def forward(self, classes: Optional[Tensor], indices: Tensor, height: int, width: int) -> Tensor:
        """Return images (N, C, height, width), within ``clip``.

        Args:
            classes: (N,) int64; ``None`` for a denoiser without classes.
            indices: (N,) int64, numbers of the images, which their noise depends on.
            height, width: multiples of the denoiser's ``downsampling``.
        """
        told = None
        if classes is not None and self.denoiser.num_class_weights:
            told = nn.functional.one_hot(classes, self.denoiser.num_class_weights).float()
        state, clean = self._noise(0, indices, height, width), None
        for step in range(self.process.num_inference_steps):
            timesteps = self.process.timestep(step, len(state))
            output = guided_prediction(self.denoiser, state, timesteps, told, self.classifier_free_scale)
            noise = self._noise(step + 1, indices, height, width) if self.process.stochastic else None
            moved, clean = self.process(step, output, state, clean, noise)
            if self.guidance_scale and classes is not None:
                gradient = log_probability_gradient(self.classifier, state, timesteps, classes)
                moved = moved + self.guidance_scale * guidance_weight(self.process, step, output, state) * gradient
            state = moved
        return state

    def _noise(self, draw: int, indices: Tensor, height: int, width: int) -> Tensor:
        return addressed_noise(
            self.seed, draw, indices, torch.zeros_like(indices), self.denoiser.in_channels, height, width
        )


def write_samples(
    sampler: ClassSampler,
    output_dir: str,
    num_images: int,
    class_index: Optional[int],
    image_size: Sequence[int],
    batch_size: int = 16,
    value_range: Sequence[float] = (-1.0, 1.0),
    archive: bool = True,
    overwrite: bool = False,
) -> List[str]:
    """Sample images and write them as 8-bit pictures ``class_<label>_<number>.png``; one file a channel if several.

    Those of a denoiser without classes are called ``image_<number>.png``.

    Args:
        sampler: the sampler; in eval mode from here on.
        output_dir: folder to make.
        num_images: how many.
        class_index: of all images; the classes 0 and 1 by turns when ``None``.
        image_size: height and width.
        batch_size: images at a time.
        value_range: what is black and what white.
        archive: also write ``samples_<N>x<H>x<W>x<C>.npz``: ``arr_0`` the images (N, H, W, C) uint8, ``arr_1`` the
            labels (N,) int64, as the published code does.
        overwrite: whether files of an earlier run may be replaced.

    Returns:
        The names of the pictures.

    Raises:
        InputError: the folder holds pictures already, or a number is out of range.
    """
    folder = Path(output_dir)
    check_count("num_images", num_images)
    if not overwrite and any(folder.glob("*.png")):
        raise InputError(f"{folder}: holds pictures already; choose another output_dir or set overwrite to true")
    folder.mkdir(parents=True, exist_ok=True)
    indices = torch.arange(num_images)
    classes = indices % 2 if class_index is None else torch.full_like(indices, class_index)
    device, parts = next(sampler.parameters()).device, []
    sampler.eval()
    for chosen in indices.split(batch_size):
        images = sampler(classes[chosen].to(device), chosen.to(device), *image_size).cpu()
        share = (images - value_range[0]) / (value_range[1] - value_range[0])
        parts.append((share.clamp(0, 1) * 255).round().to(torch.uint8))
    pixels = torch.cat(parts).permute(0, 2, 3, 1).numpy()
    names = []
    for index, (label, image) in enumerate(zip(classes.tolist(), pixels)):
        layers = [image] if image.shape[2] == 3 else np.split(image, image.shape[2], axis=2)
        for number, layer in enumerate(layers):
            channel = f"_{number:04d}" if len(layers) > 1 else ""
            kind = f"class_{label}" if sampler.denoiser.num_class_weights else "image"
            names.append(f"{kind}_{index:04d}{channel}.png")
            with whole_file(folder / names[-1]) as temporary:
                Image.fromarray(layer.squeeze()).save(temporary)
    if archive:
        size = "x".join(str(length) for length in pixels.shape)
        with whole_file(folder / f"samples_{size}.npz") as temporary:
            np.savez(temporary, pixels, classes.numpy())
    return names
