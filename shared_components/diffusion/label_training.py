"""Training on image-level labels: the class-conditioned denoiser, and with it the classifiers, in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.engines import PrepareBatch
from monai.networks.schedulers.scheduler import Scheduler
from torch import Tensor, nn

from shared_components.diffusion.diffusion_saliency import start_timestep
from shared_components.diffusion.hybrid_loss import DenoisingLoss
from shared_components.diffusion.noise import addressed_noise
from shared_components.diffusion.noising import TrainingNoise
from shared_components.diffusion.prepare_batch import Device, _plain
from shared_components.diffusion.slices import pad_to_multiple
from shared_components.diffusion.timestep_samplers import UniformTimestepSampler
from shared_components.errors import InputError


class ImageLabelPrepareBatch(PrepareBatch):
    """Turn images with a label each into what `ImageLabelTraining` is called with and what its loss compares.

    The images are diffused; timesteps, noise and the dropping of labels come from torch's global generators, so
    `EpochSeeder` makes them repeatable. Masks in the batch are not looked at.

    Args:
        scheduler: MONAI scheduler with the training schedule.
        num_classes: classes K.
        label_dropout: share of the images whose label is replaced by the null class, for classifier-free guidance; 0
            for a denoiser without one. 0.1 to 0.2 is usual.
        timestep_sampler: draws the timesteps; all equally often when ``None``.
        class_key: key of the label, (B,) whole numbers.

    Raises:
        InputError: a share outside 0..1, or a timestep sampler of another number of timesteps.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        num_classes: int = 2,
        label_dropout: float = 0.0,
        timestep_sampler: UniformTimestepSampler | None = None,
        class_key: str = "class",
    ) -> None:
        if not 0 <= label_dropout < 1:
            raise InputError(f"label_dropout must be at least 0 and below 1, not {label_dropout}")
        self.noise = TrainingNoise(scheduler, timestep_sampler)
        self.num_classes = num_classes
        self.label_dropout = label_dropout
        self.class_key = class_key

    def __call__(
        self, batchdata: Mapping[str, Any], device: Device = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor], dict[str, Tensor]]:
        """Draw timesteps, noise and dropped labels for images (B, C, H, W).

        Returns:
            noisy (B, C, H, W); targets ``target`` (the noise), ``clean``, ``timesteps``, ``weights`` and ``classes``;
            arguments (timesteps,); keyword arguments ``clean`` and ``class_weights`` (B, K), or (B, K + 1) where labels
            are dropped.
        """
        clean = _plain(batchdata["image"]).to(device, non_blocking=non_blocking, dtype=torch.float32).contiguous()
        classes = torch.as_tensor(batchdata[self.class_key]).to(device).long().flatten()
        timesteps, weights, noise = self.noise.draw(clean)
        noisy, target = self.noise.apply(clean, timesteps, noise)
        told = F.one_hot(classes, self.num_classes).float()
        if self.label_dropout > 0:
            dropped = (torch.rand(len(clean), device=clean.device) < self.label_dropout).float().unsqueeze(1)
            told = torch.cat([told * (1 - dropped), dropped], dim=1)
        targets = {"target": target, "clean": clean, "timesteps": timesteps, "weights": weights, "classes": classes}
        return noisy, targets, (timesteps,), {"clean": clean, "class_weights": told}


class ImageClassPrepareBatch(PrepareBatch):
    """Give an evaluator the images and, as what they are compared with, their image-level labels.

    Args:
        class_key: key of the label, (B,) whole numbers.
    """

    def __init__(self, class_key: str = "class") -> None:
        self.class_key = class_key

    def __call__(
        self, batchdata: Mapping[str, Any], device: Device = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return images (B, C, H, W) and classes (B,)."""
        image = batchdata["image"].to(device, non_blocking=non_blocking)
        return image, torch.as_tensor(batchdata[self.class_key]).to(device)


class ImageLabelTraining(nn.Module):
    """The networks that are trained on image-level labels, as one for MONAI's ``SupervisedTrainer``.

    They share nothing but the batch, so one run trains them as runs of their own would.

    Args:
        denoiser: class-conditioned; ``None`` leaves it out.
        classifier: of noisy images, ``classifier(noisy, timesteps)``; ``None`` leaves it out.
        gate: of clean images; ``None`` leaves it out.
    """

    def __init__(
        self, denoiser: nn.Module | None = None, classifier: nn.Module | None = None, gate: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.denoiser, self.classifier, self.gate = denoiser, classifier, gate

    def forward(self, noisy: Tensor, timesteps: Tensor, clean: Tensor, class_weights: Tensor) -> dict[str, Tensor]:
        """Return what each network says: ``denoised`` (B, N, H, W), ``noisy_logits`` and ``clean_logits`` (B, K).

        Args:
            noisy: (B, C, H, W).
            timesteps: (B,) int64.
            clean: (B, C, H, W).
            class_weights: (B, K), for the denoiser.
        """
        said = {}
        if self.denoiser is not None:
            told = class_weights if self.denoiser.num_class_weights else None
            said["denoised"] = self.denoiser(noisy, timesteps, class_weights=told)
        if self.classifier is not None:
            said["noisy_logits"] = self.classifier(noisy, timesteps)
        if self.gate is not None:
            said["clean_logits"] = self.gate(clean)
        return said


class ImageLabelLoss(nn.Module):
    """Loss of `ImageLabelTraining`: the denoiser's, and the cross-entropy of both classifiers.

    Args:
        denoising: of the denoiser.
        label_smoothing: of the cross-entropies.
    """

    def __init__(self, denoising: DenoisingLoss, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.denoising = denoising
        self.label_smoothing = label_smoothing

    def forward(self, said: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of the losses, a scalar."""
        losses = [self.denoising(said["denoised"], targets)] if "denoised" in said else []
        for name in ("noisy_logits", "clean_logits"):
            if name in said:
                logits, classes = said[name].float(), targets["classes"]
                losses.append(F.cross_entropy(logits, classes, label_smoothing=self.label_smoothing))
        return torch.stack(losses).sum()


class LabelGain(nn.Module):
    """How much better the right label explains the noise of an image than the wrong one; needs no masks.

    The noise prediction's mean squared error under each class, at given noise levels with noise of fixed addresses. Its
    relative difference between the classes is what CDM's maps are made of, so training can be followed and its best
    epoch chosen by image-level labels alone.

    Args:
        denoiser: class-conditioned, predicts the noise.
        scheduler: MONAI scheduler with the training schedule.
        gate: of clean images, ``None`` for none.
        signal_levels: shares of signal at which the error is taken.
        num_classes: classes K.
        num_draws: noise draws at each level.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        scheduler: Scheduler,
        gate: nn.Module | None = None,
        signal_levels: Sequence[float] = (0.9, 0.656, 0.3),
        num_classes: int = 2,
        num_draws: int = 2,
    ) -> None:
        super().__init__()
        self.denoiser, self.gate, self.num_classes = denoiser, gate, num_classes
        levels = scheduler.alphas_cumprod.detach().cpu().double()
        starts = [start_timestep(levels, level) for level in signal_levels]
        self.shown = [(start, float(levels[start])) for start in starts for _ in range(num_draws)]

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, K + 1): the mean squared error under each class, and the gate's probability of class 1.

        Args:
            image: (B, C, H, W), of any size.
        """
        clean, _ = pad_to_multiple(_plain(image).float(), self.denoiser.downsampling)
        count, position = len(clean), torch.zeros(len(clean), dtype=torch.int64, device=clean.device)
        errors = torch.zeros(count, self.num_classes, device=clean.device)
        for draw, (timestep, level) in enumerate(self.shown):
            noise = addressed_noise(0, draw, position, position, *clean.shape[1:])
            noisy = level**0.5 * clean + (1 - level) ** 0.5 * noise
            for index in range(self.num_classes):
                told = None
                if self.denoiser.num_class_weights:
                    told = torch.zeros(count, self.denoiser.num_class_weights, device=clean.device)
                    told[:, index] = 1
                output = self.denoiser(noisy, torch.full_like(position, timestep), class_weights=told)
                error = (output[:, : clean.shape[1]].float() - noise) ** 2
                errors[:, index] += error.flatten(1).mean(dim=1) / len(self.shown)
        positive = torch.full((count, 1), 0.5, device=clean.device)
        if self.gate is not None:
            positive = self.gate(clean).float().softmax(dim=1)[:, 1:2]
        return torch.cat([errors, positive], dim=1)


def label_gain(cases: Sequence[Mapping[str, Any]]) -> float:
    """Return the mean relative gain of the right label over the mean of the wrong ones, in per cent.

    Args:
        cases: of an evaluator with `LabelGain` and `ImageClassPrepareBatch`: ``pred`` (K + 1,) and ``label``.
    """
    gains = []
    for case in cases:
        errors, right = torch.as_tensor(case["pred"])[:-1].double(), int(case["label"])
        wrong = (errors.sum() - errors[right]) / (len(errors) - 1)
        gains.append(float(100 * (wrong - errors[right]) / errors.mean()))
    return sum(gains) / len(gains)


def denoising_score(cases: Sequence[Mapping[str, Any]]) -> float:
    """Return minus the mean squared error of `LabelGain`'s cases: for a denoiser without classes, larger is better."""
    return -float(torch.stack([torch.as_tensor(case["pred"])[:-1].double().mean() for case in cases]).mean())


def gate_accuracy(cases: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of cases, with classes 0 and 1, that the gate of `LabelGain` tells right."""
    right = [(float(case["pred"][-1]) >= 0.5) == (int(case["label"]) == 1) for case in cases]
    return sum(right) / len(right)
