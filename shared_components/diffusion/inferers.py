"""Inferers that set how a segmenter samples, and what a denoiser is shown in training."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.inferers import SimpleInferer
from monai.networks.schedulers.scheduler import Scheduler
from monai.transforms import MapTransform
from monai.utils import unsqueeze_right
from torch import Tensor, nn

from shared_components.diffusion.metadata import with_metadata
from shared_components.diffusion.reverse import ReverseProcess
from shared_components.errors import InputError, check_choice


class SamplingInferer(SimpleInferer):
    """MONAI's `SimpleInferer` that sets the members and steps of the network it is given, `DiffusionSegmenter`.

    MONAI Label builds a bundle's network once and its inferer for each request, with the options that the user chose.

    Args:
        num_samples: ensemble members.
        num_inference_steps: reverse steps; all of the training schedule when ``None``.
    """

    def __init__(self, num_samples: int, num_inference_steps: int | None = None) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.num_inference_steps = num_inference_steps

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Return ``network(inputs)``.

        Raises:
            InputError: the members or steps are not among the valid ones.
        """
        network.set_sampling(self.num_samples, self.num_inference_steps)
        return super().__call__(inputs, network, *args, **kwargs)


class DrawsInferer(SimpleInferer):
    """Return what a `SaliencyNetwork` predicts, and behind it what each of its noise draws predicts alone.

    One tensor, so that one transform brings all of it back to the image's grid; `SplitDrawsd` parts it after that.
    """

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Return (B, 2 + M, *spatial): the channels of ``network(inputs)``, then the object's of the M draws."""
        found = network.describe(inputs, draws=True)
        both = torch.cat([torch.as_tensor(found[name]) for name in ("pred", "draws")], dim=1)
        return with_metadata(both, inputs)


class SplitDrawsd(MapTransform):
    """Part what `DrawsInferer` returned of a case: (2 + M, *spatial) into the prediction and the M draws.

    Args:
        keys: entries to part; what is left of each are the first two channels.
        draws_key: entry for the draws.
    """

    def __init__(self, keys: KeysCollection = "pred", draws_key: str = "draws") -> None:
        super().__init__(keys)
        self.draws_key = draws_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Part the entries of ``data``."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key], result[self.draws_key] = result[key][:2], result[key][2:]
        return result


class RecyclingInferer(SimpleInferer):
    """Train a denoiser on its own estimates: what it is shown is noised from those instead of the true label map.

    Noising the true label map tells a denoiser in training what no one tells it at sampling. Here a first call, without
    gradients, turns pure noise into a clean estimate; that estimate is noised to the drawn timesteps and shown in the
    call that is trained (Fu et al. 2023, "recycling"). Not part of the published MedSegDiff.

    Args:
        scheduler: MONAI scheduler with the training schedule.
        prediction_type: what the denoiser predicts: ``sample``, ``epsilon`` or ``v_prediction``.
        clip: (low, high) that the estimate is clipped to.
        share: of the samples, drawn for each, that are treated so; 0 is the ordinary training on noised label maps.
        amp: run the denoiser in bfloat16, on CUDA and on the CPU (MONAI's trainer does it on CUDA only).

    Raises:
        InputError: a share outside 0 to 1, or what `ReverseProcess` raises.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        prediction_type: str = "sample",
        clip: tuple[float, float] | None = (-1.0, 1.0),
        share: float = 1.0,
        amp: bool = False,
    ) -> None:
        super().__init__()
        if type(share) not in (int, float) or not 0 <= share <= 1:
            raise InputError(f"the share of recycled samples is {share!r}: it must be a number from 0 to 1")
        # a copy, because add_noise rounds the scheduler's table to the precision of the images
        self.scheduler = copy.deepcopy(scheduler)
        self.process = ReverseProcess(scheduler.alphas_cumprod, 1, prediction_type=prediction_type, clip=clip)
        self.share = share
        self.amp = amp

    def __call__(
        self, inputs: Tensor, network: nn.Module, timesteps: Tensor, condition: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return the output for noised estimates.

        Args:
            inputs: (B, C, H, W) noised label maps, kept for the samples that are not recycled.
            network: the denoiser.
            timesteps: (B,) int64.
            condition: (B, K, H, W).
        """
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.amp):
            noisy = self._recycled(inputs, network, timesteps, condition) if self.share > 0 else inputs
            return super().__call__(noisy, network, timesteps, condition, *args, **kwargs)

    @torch.no_grad()
    def _recycled(self, inputs: Tensor, network: nn.Module, timesteps: Tensor, condition: Tensor) -> Tensor:
        start, process = torch.randn_like(inputs), self.process.to(inputs.device)
        output = network(start, process.timestep(0, len(start)), condition)
        clean = process.clean_estimate(0, output, start)
        recycled = self.scheduler.add_noise(clean, torch.randn_like(clean), timesteps)
        chosen = torch.rand(len(inputs), device=inputs.device) < self.share
        return torch.where(unsqueeze_right(chosen, inputs.ndim), recycled, inputs)


class SynthesisInferer(SimpleInferer):
    """Generate images by a `DiffusionSynthesizer`, from noise or, where there are real images, from those.

    Args:
        mode: ``generate`` and ``remove_classes`` generate from noise, ``translate`` and ``interpolate`` from real
            images (`DiffusionSynthesizer.translate`, `DiffusionSynthesizer.interpolate`).
        strength: of ``translate``.
        similarity: of ``interpolate``.

    Raises:
        InputError: an unknown mode.
    """

    MODES = ("generate", "remove_classes", "translate", "interpolate")

    def __init__(self, mode: str = "generate", strength: float = 0.5, similarity: float = 0.5) -> None:
        super().__init__()
        check_choice("mode", mode, self.MODES)
        self.mode = mode
        self.strength = strength
        self.similarity = similarity

    def __call__(
        self, inputs: Tensor, network: nn.Module, seeds: Tensor | None = None, source: Tensor | None = None
    ) -> Tensor:
        """Return the images (B, C, *spatial) in [0, 1].

        Args:
            inputs: label maps (B, A, *spatial).
            network: `DiffusionSynthesizer`.
            seeds: (B,).
            source: real images (B, C, *spatial) in [0, 1].

        Raises:
            InputError: the mode needs real images and there are none; others are `DiffusionSynthesizer`'s.
        """
        if self.mode in ("generate", "remove_classes"):
            return network(inputs, seeds)
        if source is None:
            raise InputError(f"mode {self.mode} needs the real images of the label maps; give a dataset_dir with both")
        if self.mode == "translate":
            return network.translate(inputs, source, self.strength, seeds)
        return network.interpolate(inputs, source, self.similarity, seeds)
