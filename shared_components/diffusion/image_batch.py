"""From a batch of images and label maps to what an image denoiser trains on."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.engines import PrepareBatch
from monai.networks.schedulers.scheduler import Scheduler
from monai.utils import ImageMetaKey
from torch import Tensor

from shared_components.diffusion.mask_encoding import MaskEncoding, delete_classes, draw_ablation
from shared_components.diffusion.noise import addressed_noise
from shared_components.diffusion.noising import TrainingNoise
from shared_components.diffusion.prepare_batch import Device, condition_and_label
from shared_components.diffusion.slices import pad_to_multiple
from shared_components.diffusion.timestep_samplers import UniformTimestepSampler

_GOLDEN = 0.6180339887498949
_LEAST_FIXED = 8  # images of a validation batch, for their timesteps to span the schedule


class ImageDenoisingPrepareBatch(PrepareBatch):
    """Noise images and encode their label maps: training of segmentation-guided diffusion (Konz et al. 2024).

    With MONAI's ``SupervisedTrainer`` and ``SimpleInferer`` the network is called as ``denoiser(noisy, timesteps,
    condition)``, and `DenoisingLoss` compares. Volumes are cut into slices. Every image, a volume's every slice, loses
    classes of its own (`draw_ablation`), drawn once, never noised; the published code draws once for a batch.

    Timesteps, noise and ablation come from torch's global generators, so that they are drawn afresh at every call and
    `EpochSeeder` makes them repeatable; or, for a validation, are ``fixed``: always the same for the same batch, with
    timesteps spread evenly over the schedule and without ablation. A batch of fewer than 8 images is repeated for it,
    so that each is seen at several timesteps.

    Args:
        scheduler: MONAI scheduler with the training schedule.
        mask_encoding: as in `DiffusionSynthesizer`; ``None`` trains without a condition.
        ablation: probability that an image loses a class; 0.5 in the paper, 0 for none.
        num_adjacent_slices: as in `DiffusionSynthesizer`.
        prediction_type: what the denoiser predicts: ``epsilon``, ``sample`` or ``v_prediction``.
        timestep_sampler: draws the timesteps; all equally often when ``None``.
        multiple: sizes of the slices are padded to multiples of it by repeating the border, as the synthesizer does it
            by itself; the denoiser's ``downsampling``, where images are not crops of a fitting size.
        fixed: see above.
        seed: of the fixed noise.

    Raises:
        InputError: of `TrainingNoise`, or a probability outside 0..1.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        mask_encoding: MaskEncoding | None = None,
        ablation: float = 0.0,
        num_adjacent_slices: int = 0,
        prediction_type: str = "epsilon",
        timestep_sampler: UniformTimestepSampler | None = None,
        multiple: int = 1,
        fixed: bool = False,
        seed: int = 0,
    ) -> None:
        draw_ablation(0, 1, ablation)
        self.noise = TrainingNoise(scheduler, timestep_sampler, prediction_type)
        self.mask_encoding = mask_encoding
        self.ablation = ablation
        self.num_adjacent_slices = num_adjacent_slices
        self.multiple = multiple
        self.fixed = fixed
        self.seed = seed

    def __call__(
        self, batchdata: Mapping[str, Tensor], device: Device = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, Tensor], dict[str, Any]]:
        """Draw timesteps and noise for images (B, C, H, W[, D]) in [0, 1] and label maps (B, A, H, W[, D]).

        Returns:
            noisy (N, C, H, W); targets ``target`` and ``clean`` (N, C, H, W) in [-1, 1], ``timesteps`` (N,) int64 and
            ``weights`` (N,); arguments (timesteps, condition (N, K, H, W)); no keyword arguments.
        """
        # the roles of a segmenter's batch exchanged: the label map is the condition, the image what is diffused
        exchanged = {"image": batchdata["label"], "label": batchdata["image"]}
        label, image = condition_and_label(exchanged, self.num_adjacent_slices, device, non_blocking)
        label, image = (pad_to_multiple(item, self.multiple)[0] for item in (label, image.float()))
        if self.fixed:
            times = -(-_LEAST_FIXED // len(image))
            label, image = (item.repeat(times, 1, 1, 1) for item in (label, image))
        clean = (2 * image - 1).contiguous()
        timesteps, weights, noise = self._fixed(clean) if self.fixed else self.noise.draw(clean)
        noisy, target = self.noise.apply(clean, timesteps, noise)
        targets = {"target": target, "clean": clean, "timesteps": timesteps, "weights": weights}
        return noisy, targets, (timesteps, self._condition(label)), {}

    def _fixed(self, clean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        index = torch.arange(len(clean), device=clean.device)
        share = (index.double() * _GOLDEN + 0.5) % 1  # evenly spread, however many there are
        timesteps = (share * self.noise.num_train_timesteps).long()
        noise = addressed_noise(self.seed, 0, torch.zeros_like(index), index, *clean.shape[1:])
        return timesteps, torch.ones(len(clean), device=clean.device), noise

    def _condition(self, label: Tensor) -> Tensor:
        if self.mask_encoding is None:
            return label[:, :0]
        if self.ablation > 0 and not self.fixed:
            values = self.mask_encoding.label_values
            label = delete_classes(label, draw_ablation(len(label), len(values), self.ablation), values)
        return self.mask_encoding(label)


def explained_share(output: Mapping[str, Any]) -> float:
    """Return which share of a target's mean square a prediction explains, for an evaluator's key metric.

    1 - mean (prediction - target)^2 / mean target^2: 1 for a perfect denoiser, 0 for one that predicts 0.

    Args:
        output: of an evaluator: ``pred`` (N, C or more, *spatial) and the targets of `ImageDenoisingPrepareBatch` as
            ``label``.
    """
    target = output["label"]["target"].float()
    error = output["pred"][:, : target.shape[1]].float() - target
    return float(1 - error.square().mean() / target.square().mean())


class SynthesisPrepareBatch(PrepareBatch):
    """Give a `DiffusionSynthesizer` its label maps and seeds, and what the images are to be compared with.

    MONAI's evaluators call the first ``image`` and the second ``label``, whatever they are called in the batch.

    A case without an own ``seed`` gets one that follows from ``seed`` and its name, which is that of the files of its
    label map and its target: cases that shared a noise would look more alike than what is generated for use. It
    depends on neither the folder, the order, the batch nor which other cases there are.

    Args:
        map_key: of the label maps.
        target_key: of the real images, or of whatever else is to be kept as ``label``; it may be missing.
        source_key: of the real images to start from, if there are some.
        seed: of the run; of an item itself that has neither an own ``seed`` nor the name of a file.
    """

    def __init__(
        self, map_key: str = "image", target_key: str = "label", source_key: str = "source", seed: int = 0
    ) -> None:
        self.map_key, self.target_key, self.source_key = map_key, target_key, source_key
        self.seed = seed

    def __call__(
        self, batchdata: Mapping[str, Any], device: Device = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...], dict[str, Any]]:
        """Return label maps (B, A, *spatial), targets, arguments (seeds (B,)[, sources (B, C, *spatial)])."""
        label = batchdata[self.map_key].to(device, non_blocking=non_blocking)
        given = batchdata.get("seed")
        seeds = torch.as_tensor(self._seeds(batchdata, len(label)) if given is None else given).to(device)
        others = [batchdata.get(key) for key in (self.target_key, self.source_key)]
        target, source = (None if item is None else item.to(device, non_blocking=non_blocking) for item in others)
        return label, target, (seeds,) if source is None else (seeds, source), {}

    def _seeds(self, batchdata: Mapping[str, Any], count: int) -> list[int]:
        files = [_file_names(batchdata.get(key), count) for key in (self.map_key, self.target_key)]
        names = ["/".join(filter(None, pair)) for pair in zip(*files)]
        return [zlib.crc32(f"{self.seed}/{name}".encode()) % 2**31 if name else self.seed for name in names]


def _file_names(item: Any, count: int) -> Sequence[str]:
    """Return the names, without folders, of the files that a batch was read from; '' of those without."""
    names = getattr(item, "meta", {}).get(ImageMetaKey.FILENAME_OR_OBJ, "")
    names = [names] * count if isinstance(names, (str, os.PathLike)) else names
    return [os.path.basename(os.fspath(name)) for name in names]
