"""A denoiser made into a generator of images: label map in, image out."""

from functools import partial
from typing import Any, Callable, List, Optional, Tuple

import torch
from monai.networks.schedulers.scheduler import Scheduler
from torch import Tensor, nn

from shared_components.diffusion.inversion import InversionProcess
from shared_components.diffusion.mask_encoding import MaskEncoding
from shared_components.diffusion.metadata import plain, with_metadata
from shared_components.diffusion.sampling import SamplingNetwork, SliceNoise, spherical_interpolation
from shared_components.diffusion.slices import images_per_call, pad_to_multiple, slices_to_volume, volume_to_slices
from shared_components.diffusion.timesteps import noise_levels
from shared_components.errors import InputError, check_count


class DiffusionSynthesizer(SamplingNetwork):
    """Generate images from label maps by a reverse process: segmentation-guided diffusion (Konz et al. 2024).

    To MONAI it is an ordinary network: one tensor in, one tensor out; it exports by tracing. The encoded label map is
    the condition of every step. A volume is a batch of its slices along the last axis, whose noise is one and the same
    or turns slowly from slice to slice, so that neighbouring slices fit together; the published code generates single
    slices.

    In eval mode the noise is a function of (seed, slice, pixel): an image depends on its label map and its seed, not on
    the batch size, the order or the device count. In train mode every call draws other seeds.

    Classes are never deleted here. The published code deletes them anew at every sampling step when its ablation switch
    is on; here a label map without a class is given to a network trained with ablation.

    Args:
        denoiser: ``denoiser(noisy, timesteps, condition)`` with the attributes that `DiffusionSegmenter` asks for; its
            condition is the encoded label map, with ``num_adjacent_slices`` neighbours on each side.
        scheduler: MONAI scheduler that holds the training schedule (``alphas_cumprod``).
        mask_encoding: how label maps are shown to the denoiser; ``None`` for one without a condition, for which the
            label map only says the size.
        num_inference_steps: reverse steps, 1..T.
        num_adjacent_slices: neighbours on each side whose label maps a slice's condition holds; volumes only.
        noise_length: slices after which the noise of a volume is another one (`SliceNoise`); one noise for all slices
            when ``None``, independent ones for 0.
        guidance_scale: w of eps_blank + w (eps - eps_blank), with the prediction for a blank label map (classifier-free
            guidance; Ho and Salimans 2022), for networks trained with ablation; 1 is none and needs no second call. The
            weight w' of (1 + w') eps - w' eps_blank is this one less 1.
        max_batch_size: most slices in one call of the denoiser (`images_per_call`); bounds the memory.
        amp: run the denoiser in bfloat16, on CUDA and on the CPU.
        seed: of the images for which none is given.
        sampler, spacing, prediction_type, clip: of `ReverseProcess`. The defaults are the published ones, DDIM over
            timesteps in whole strides from 0 up.
        **process_options: others of `ReverseProcess`. As published, ``ddim`` does not recompute the noise after
            clipping, unless ``recompute_noise`` says so.

    Raises:
        InputError: a number outside its range or an unknown name; the message lists the valid ones.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        scheduler: Scheduler,
        mask_encoding: Optional[MaskEncoding] = None,
        num_inference_steps: Optional[int] = 50,
        num_adjacent_slices: int = 0,
        noise_length: Optional[float] = None,
        guidance_scale: float = 1.0,
        max_batch_size: int = 64,
        amp: bool = False,
        seed: int = 0,
        sampler: str = "ddim",
        spacing: str = "leading",
        prediction_type: str = "epsilon",
        clip: Optional[Tuple[float, float]] = (-1.0, 1.0),
        **process_options: Any,
    ) -> None:
        process_options.setdefault("recompute_noise", sampler != "ddim")
        options = {"sampler": sampler, "spacing": spacing, "prediction_type": prediction_type, "clip": clip}
        super().__init__(denoiser, scheduler, num_inference_steps, **options, **process_options)
        check_count("max_batch_size", max_batch_size)
        self.mask_encoding = mask_encoding
        self.num_adjacent_slices = num_adjacent_slices
        self.noise = SliceNoise(noise_length)
        self.guidance_scale = guidance_scale
        self.max_batch_size = max_batch_size
        self.amp = amp
        self.seed = seed
        self.channels: int = denoiser.in_channels
        self.downsampling: int = denoiser.downsampling

    def forward(self, label: Tensor, seeds: Optional[Tensor] = None) -> Tensor:
        """Generate images.

        Args:
            label: (B, A, H, W) or (B, A, H, W, D) label values, A maps an image (one as a rule), any H and W.
            seeds: (B,) whole numbers; ``seed`` for all when ``None``.

        Returns:
            (B, C, *spatial) float32 in [0, 1].
        """
        return self._images(self._from_noise, label, None, seeds)

    def translate(self, label: Tensor, image: Tensor, strength: float = 0.5, seeds: Optional[Tensor] = None) -> Tensor:
        """Noise real images part of the way and denoise them under a label map (SDEdit, Meng et al. 2022).

        The steps are those of timesteps below floor(``strength`` T); the image is noised to the first of them. The
        published code, in a branch that no command reaches, noises to that bound itself and then tells the network the
        lower timestep.

        Args:
            label: as for `forward`.
            image: (B, C, *spatial) in [0, 1].
            strength: 0 (excluded) to 1, how much of the image is noise at the start.
            seeds: as for `forward`.

        Returns:
            As `forward`.

        Raises:
            InputError: the strength is out of its range or below all timesteps.
        """
        return self._images(partial(self._from_noised, self.first_step(strength)), label, image, seeds)

    def interpolate(
        self, label: Tensor, image: Tensor, similarity: float = 0.5, seeds: Optional[Tensor] = None
    ) -> Tensor:
        """Generate images whose anatomy is similar to that of real ones, as far as ``similarity`` says.

        The real image is inverted to its noise under the label map (`InversionProcess`), a spherical interpolation goes
        from the drawn noise to that one, and the result is sampled: 0 is what `forward` generates, 1 nearly the image.
        The paper promises such an interpolation without the code; its exact form may differ from this one. Classes
        missing in the label map leave more room between the two ends.

        Args:
            label, image, seeds: as for `translate`.
            similarity: 0..1.

        Returns:
            As `forward`.

        Raises:
            InputError: the similarity is out of its range, or the sampler draws noise.
        """
        if not 0 <= similarity <= 1:
            raise InputError(f"similarity must be in 0..1, not {similarity}")
        if self.process.stochastic:
            raise InputError("interpolation needs a sampler that draws no noise; choose --sampler ddim")
        return self._images(partial(self._from_mixture, similarity), label, image, seeds)

    def first_step(self, strength: float) -> int:
        """Return the first reverse step whose timestep is below floor(strength T).

        Raises:
            InputError: see `translate`.
        """
        if not 0 < strength <= 1:
            raise InputError(f"strength must be above 0 and at most 1, not {strength}")
        bound = int(strength * len(self.schedule))
        below = (self.process.timesteps < bound).nonzero()
        if len(below) == 0:
            raise InputError(
                f"strength {strength}: none of the {self.num_inference_steps} timesteps is below {bound}; raise it"
            )
        return int(below[0])

    def _images(
        self, make: Callable[..., Tensor], label: Tensor, image: Optional[Tensor], seeds: Optional[Tensor]
    ) -> Tensor:
        """Cut the maps into padded slices, let ``make(condition, real, seeds, position)`` make images of a few."""
        source, label = label, plain(label).float()
        is_volume, depth = label.dim() == 5, label.shape[4] if label.dim() == 5 else 1
        real = None if image is None else 2 * plain(image).float() - 1
        if is_volume:
            label = volume_to_slices(label, self.num_adjacent_slices)
            real = None if real is None else volume_to_slices(real)
        height, width = label.shape[2], label.shape[3]
        label, (top, left) = pad_to_multiple(label, self.downsampling)
        real = None if real is None else pad_to_multiple(real, self.downsampling)[0]
        seeds = self._seeds(len(source), seeds, label.device).repeat_interleave(depth)
        position = torch.arange(len(label), device=label.device) % depth
        parts: List[Tensor] = []
        per_call = images_per_call(self.max_batch_size, label)
        for low in range(0, len(label), per_call):
            few = slice(low, low + per_call)
            with torch.autocast(label.device.type, torch.bfloat16, enabled=self.amp):
                condition = self._condition(label[few])
                parts.append(make(condition, None if real is None else real[few], seeds[few], position[few]))
        images = torch.cat(parts)[:, :, top : top + height, left : left + width].float()
        images = (images / 2 + 0.5).clamp(0, 1)
        return with_metadata(slices_to_volume(images, depth) if is_volume else images, source)

    def _condition(self, label: Tensor) -> Tensor:
        # a denoiser without a condition still learns the size from it
        return label[:, :0] if self.mask_encoding is None else self.mask_encoding(label)

    def _seeds(self, count: int, seeds: Optional[Tensor], device: torch.device) -> Tensor:
        if self.training:
            return torch.randint(2**31 - 1, (count,)).to(device)
        if seeds is None:
            return torch.full((count,), self.seed, dtype=torch.int64, device=device)
        return seeds.to(device, torch.int64)

    def _draw(self, draw: int, condition: Tensor, seeds: Tensor, position: Tensor) -> Tensor:
        return self.noise(draw, seeds, position, self.channels, (condition.shape[2], condition.shape[3]))

    def _from_noise(self, condition: Tensor, real: Optional[Tensor], seeds: Tensor, position: Tensor) -> Tensor:
        return self._sample(self._draw(0, condition, seeds, position), 0, condition, seeds, position)

    def _from_noised(self, first: int, condition: Tensor, real: Tensor, seeds: Tensor, position: Tensor) -> Tensor:
        spacing = self._process_options["spacing"]
        signal = noise_levels(self._alphas_cumprod, self.num_inference_steps, spacing)[1][first].float()
        noisy = signal.sqrt() * real + (1 - signal).sqrt() * self._draw(0, condition, seeds, position)
        return self._sample(noisy, first, condition, seeds, position)

    def _from_mixture(
        self, similarity: float, condition: Tensor, real: Tensor, seeds: Tensor, position: Tensor
    ) -> Tensor:
        inversion = InversionProcess(
            self._alphas_cumprod,
            self.num_inference_steps,
            self._process_options["spacing"],
            self._process_options["prediction_type"],
        ).to(real.device)
        encoded = self._encoded(condition)
        for step in range(inversion.num_steps):
            output = self._predict(real, inversion.timestep(step, len(real)), condition, encoded)
            real = inversion(step, output, real)
        noisy = spherical_interpolation(self._draw(0, condition, seeds, position), real, similarity)
        return self._sample(noisy, 0, condition, seeds, position)

    def _sample(self, noisy: Tensor, first: int, condition: Tensor, seeds: Tensor, position: Tensor) -> Tensor:
        """Run the reverse process from step ``first`` on."""
        clean: Optional[Tensor] = None
        encoded = self._encoded(condition)
        for step in range(first, self.num_inference_steps):
            output = self._predict(noisy, self.process.timestep(step, len(noisy)), condition, encoded)
            if clean is None and step > 0:  # a multistep solver takes its first step, wherever it begins, alone
                clean = self.process.clean_estimate(step, output, noisy)
            noise: Optional[Tensor] = None
            if self.process.stochastic and step + 1 < self.num_inference_steps:
                noise = self._draw(step + 1, condition, seeds, position)
            noisy, clean = self.process(step, output, noisy, clean, noise)
        return noisy

    def _encoded(self, condition: Tensor) -> List[Tuple[Tensor, List[Tensor]]]:
        """The condition, and the blank one where it guides, each with what the denoiser computes of it alone, once."""
        seen = [condition] if self.guidance_scale == 1 else [condition, torch.zeros_like(condition)]
        encode = getattr(self.denoiser, "encode_condition", lambda _: [])
        return [(view, encode(view)) for view in seen]

    def _predict(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        condition: Tensor,
        encoded: Optional[List[Tuple[Tensor, List[Tensor]]]] = None,
    ) -> Tensor:
        outputs = [
            self.denoiser(noisy, timesteps, view, None, features) if features else self.denoiser(noisy, timesteps, view)
            for view, features in (self._encoded(condition) if encoded is None else encoded)
        ]
        if len(outputs) == 1:
            return outputs[0]
        return outputs[1] + self.guidance_scale * (outputs[0] - outputs[1])
