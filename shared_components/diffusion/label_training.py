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
from shared_components.diffusion.metadata import plain
from shared_components.diffusion.noise import addressed_noise
from shared_components.diffusion.noising import TrainingNoise
from shared_components.diffusion.prepare_batch import Device
from shared_components.diffusion.slices import pad_to_multiple
from shared_components.diffusion.timestep_samplers import UniformTimestepSampler
from shared_components.errors import InputError

QUARTERS = 4


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
        clean = plain(batchdata["image"]).to(device, non_blocking=non_blocking, dtype=torch.float32).contiguous()
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
    epoch chosen by image-level labels alone. Beside it is what the classifiers say: the gate of the clean image, and
    the classifier of noisy ones in every quarter of the timesteps. (The published code validates its classifier on
    clean images alone; guidance asks it about noisy ones.)

    Args:
        denoiser: class-conditioned, predicts the noise.
        scheduler: MONAI scheduler with the training schedule.
        gate: of clean images, ``None`` for none.
        signal_levels: shares of signal at which the error is taken.
        num_classes: classes K.
        num_draws: noise draws at each level.
        classifier: of noisy images, ``None`` for none.
        num_looks: timesteps of every quarter at which it is asked, evenly spread, each with a noise of its own.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        scheduler: Scheduler,
        gate: nn.Module | None = None,
        signal_levels: Sequence[float] = (0.9, 0.656, 0.3),
        num_classes: int = 2,
        num_draws: int = 2,
        classifier: nn.Module | None = None,
        num_looks: int = 4,
    ) -> None:
        super().__init__()
        self.denoiser, self.gate, self.classifier, self.num_classes = denoiser, gate, classifier, num_classes
        levels = scheduler.alphas_cumprod.detach().cpu().double()
        starts = [start_timestep(levels, level) for level in signal_levels]
        self.shown = [(start, float(levels[start])) for start in starts for _ in range(num_draws)]
        count = QUARTERS * num_looks
        self.looks = [(t, float(levels[t])) for t in (int((i + 0.5) * len(levels) / count) for i in range(count))]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return what the networks say of the images, each with the batch first.

        Args:
            image: (B, C, H, W), of any size.

        Returns:
            ``errors`` (B, K), the mean squared error under each class; ``positive`` (B,), the gate's probability of
            class 1, 0.5 without a gate; with a classifier ``noisy_positive`` (B, 4, num_looks), its probability of
            class 1 against class 0 in the quarters of the timesteps, the least noise first.
        """
        clean, _ = pad_to_multiple(plain(image).float(), self.denoiser.downsampling)
        said = {"errors": self._errors(clean), "positive": torch.full((len(clean),), 0.5, device=clean.device)}
        if self.gate is not None:
            said["positive"] = self.gate(clean).float().softmax(dim=1)[:, 1]
        if self.classifier is not None:
            said["noisy_positive"] = self._noisy_positive(clean)
        return said

    def _noisy_positive(self, clean: Tensor) -> Tensor:
        answers = []
        for look, (timestep, level) in enumerate(self.looks, len(self.shown)):
            shown = torch.full((len(clean),), timestep, dtype=torch.int64, device=clean.device)
            logits = self.classifier(self._noised(clean, look, level)[0], shown).float()
            answers.append(torch.sigmoid(logits[:, 1] - logits[:, 0]))
        return torch.stack(answers, dim=1).unflatten(1, (QUARTERS, -1))

    @staticmethod
    def _noised(clean: Tensor, draw: int, level: float) -> tuple[Tensor, Tensor]:
        """Return the images with noise of a fixed address, the same for each of them, and the noise."""
        address = torch.zeros(len(clean), dtype=torch.int64, device=clean.device)
        noise = addressed_noise(0, draw, address, address, *clean.shape[1:])
        return level**0.5 * clean + (1 - level) ** 0.5 * noise, noise

    def _errors(self, clean: Tensor) -> Tensor:
        count = len(clean)
        errors = torch.zeros(count, self.num_classes, device=clean.device)
        for draw, (timestep, level) in enumerate(self.shown):
            noisy, noise = self._noised(clean, draw, level)
            shown = torch.full((count,), timestep, dtype=torch.int64, device=clean.device)
            for index in range(self.num_classes):
                told = None
                if self.denoiser.num_class_weights:
                    told = torch.zeros(count, self.denoiser.num_class_weights, device=clean.device)
                    told[:, index] = 1
                output = self.denoiser(noisy, shown, class_weights=told)
                error = (output[:, : clean.shape[1]].float() - noise) ** 2
                errors[:, index] += error.flatten(1).mean(dim=1) / len(self.shown)
        return errors


def label_gain(cases: Sequence[Mapping[str, Any]]) -> float:
    """Return the mean relative gain of the right label over the mean of the wrong ones, in per cent.

    Args:
        cases: of an evaluator with `LabelGain` and `ImageClassPrepareBatch`: ``pred``, what it said of one,
            and ``label``.
    """
    gains = []
    for case in cases:
        errors, right = torch.as_tensor(case["pred"]["errors"]).double(), int(case["label"])
        wrong = (errors.sum() - errors[right]) / (len(errors) - 1)
        gains.append(float(100 * (wrong - errors[right]) / errors.mean()))
    return sum(gains) / len(gains)


def denoising_score(cases: Sequence[Mapping[str, Any]]) -> float:
    """Return minus the mean squared error of `LabelGain`'s cases: for a denoiser without classes, larger is better."""
    return -float(torch.stack([torch.as_tensor(case["pred"]["errors"]).double().mean() for case in cases]).mean())


def gate_accuracy(cases: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of cases, with classes 0 and 1, that the gate of `LabelGain` tells right."""
    right = [(float(case["pred"]["positive"]) >= 0.5) == (int(case["label"]) == 1) for case in cases]
    return sum(right) / len(right)


class NoisyLooks:
    """What `LabelGain`'s classifier says of slices in a quarter of the timesteps, for MONAI's ``ROCAUC``.

    Every look counts by itself, as guidance asks the classifier once at a timestep. An area under the ROC curve of 0.5
    says that at such noise the classifier knows nothing, so that its gradient is none of the label.

    Args:
        quarter: 1, the least noise, to 4, the most.

    Raises:
        InputError: another quarter.
    """

    def __init__(self, quarter: int) -> None:
        if quarter not in range(1, QUARTERS + 1):
            raise InputError(f"quarter must be a whole number in 1..{QUARTERS}, not {quarter!r}")
        self.quarter = quarter

    def __call__(self, cases: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
        """Return the probabilities of class 1 and the classes, both (cases * looks,), of an evaluator's cases."""
        looks = torch.stack([torch.as_tensor(case["pred"]["noisy_positive"])[self.quarter - 1] for case in cases])
        classes = torch.tensor([int(case["label"]) for case in cases], device=looks.device)
        return looks.flatten(), classes.repeat_interleave(looks.shape[1])
