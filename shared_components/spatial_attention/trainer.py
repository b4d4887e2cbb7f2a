"""The trainer of cDAL: a denoiser, and a discriminator whose features attend the label map."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine
from monai.engines import PrepareBatch, Trainer
from monai.networks.schedulers.scheduler import Scheduler
from torch import Tensor, nn

from shared_components.diffusion.label_coding import unknown_voxels
from shared_components.diffusion.schedules import FewStepProcess
from shared_components.errors import InputError, check_choice
from shared_components.spatial_attention.attention import ATTENTION_CHOICES
from shared_components.spatial_attention.objectives import (
    Draws,
    adversarial_loss,
    attend_and_noise,
    discriminator_losses,
    roll_out,
)


def average_gradients(module: nn.Module) -> None:
    """Average the gradients of all processes; nothing to do in a single one.

    DistributedDataParallel reduces during a single backward pass; here the discriminator runs several times a step,
    once under a second derivative, so the gradients are reduced once they are complete.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    if not gradients:
        return
    flat = torch._utils._flatten_dense_tensors(gradients)
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, averaged in zip(gradients, torch._utils._unflatten_dense_tensors(flat, gradients)):
        gradient.copy_(averaged)


class SpatialAttentionTrainer(Trainer):
    """Train a denoiser with discriminator-driven spatial attention (cDAL), one discriminator and one denoiser step.

    ``engine.state.output`` is a dictionary of floats: ``loss`` (of the denoiser), ``real``, ``fake``, ``r1`` and
    ``adversarial`` where they were computed, and the attention map's ``attention_mean``, ``attention_std``,
    ``attention_max``.

    The arguments' defaults are the published training. Everything else is an option of ours:
    ``attention`` other than ``raw``, ``adversarial_weight``, ``attend_loss``, ``roll_out_share``,
    ``discriminator_interval``, a discriminator that sees the image, and any loss but the mean squared error.

    Args:
        device, max_epochs, train_data_loader, epoch_length, prepare_batch, train_handlers, key_train_metric,
            additional_metrics: as in `monai.engines.SupervisedTrainer`; ``prepare_batch`` returns (condition, clean).
        network: `DiffusionSegmenter`; its ``denoiser`` is trained.
        scheduler: MONAI scheduler with the training schedule.
        optimizer: of the denoiser.
        loss_function: of (estimate, clean); also of ``weight`` when ``attend_loss`` is set.
        discriminator: time-dependent discriminator with ``features``; ``None`` trains without one.
        discriminator_optimizer: of the discriminator.
        attention: what becomes of the discriminator's mean feature, one of `ATTENTION_CHOICES`.
        attention_level: which of the discriminator's feature maps is used.
        attend_loss: weigh the loss by the map instead of the label map that is noised.
        adversarial_weight: factor of the adversarial term of the denoiser; 0 leaves it out.
        roll_out_share: share of batches whose noisy input comes from the denoiser's own reverse steps.
        discriminator_interval: train the discriminator at every n-th iteration.
        r1_weight, r1_interval: gradient penalty, and at every how many discriminator steps it is due.
        amp: run the networks in bfloat16, on CUDA and on the CPU.

    Raises:
        InputError: an unknown attention, or options that need a discriminator without one. In training with a
            discriminator: a label map with voxels that nobody judged.
    """

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: Iterable,
        network: nn.Module,
        scheduler: Scheduler,
        optimizer: torch.optim.Optimizer,
        loss_function: Callable[..., Tensor],
        prepare_batch: PrepareBatch,
        discriminator: nn.Module | None = None,
        discriminator_optimizer: torch.optim.Optimizer | None = None,
        attention: str = "raw",
        attention_level: int = 2,
        attend_loss: bool = False,
        adversarial_weight: float = 0.0,
        roll_out_share: float = 0.0,
        discriminator_interval: int = 1,
        r1_weight: float = 1.0,
        r1_interval: int = 10,
        epoch_length: int | None = None,
        key_train_metric: dict | None = None,
        additional_metrics: dict | None = None,
        train_handlers: Sequence | None = None,
        amp: bool = False,
    ) -> None:
        check_choice("attention", attention, ATTENTION_CHOICES)
        if discriminator is None and (attention != "none" or adversarial_weight > 0):
            raise InputError(
                f"attention={attention!r} with adversarial_weight={adversarial_weight} needs a discriminator: "
                "give one, or set attention to 'none' and adversarial_weight to 0"
            )
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            epoch_length=epoch_length,
            prepare_batch=prepare_batch,
            key_metric=key_train_metric,
            additional_metrics=additional_metrics,
            handlers=train_handlers,
            amp=amp,
            decollate=False,
        )
        self.network = network
        self.denoiser = network.denoiser
        self.process = FewStepProcess(scheduler)
        self.optimizer = optimizer
        self.loss_function = loss_function
        self.discriminator = discriminator
        self.discriminator_optimizer = discriminator_optimizer
        self.attention = attention
        self.attention_level = attention_level
        self.attend_loss = attend_loss
        self.adversarial_weight = adversarial_weight
        self.roll_out_share = roll_out_share
        self.discriminator_interval = discriminator_interval
        self.r1_weight = r1_weight
        self.r1_interval = r1_interval

    def _iteration(self, engine: Engine, batchdata: dict[str, Tensor]) -> dict[str, float]:
        condition, clean = self.prepare_batch(batchdata, engine.state.device, engine.non_blocking)
        self.network.train()
        if self.discriminator is not None and bool(self._unknown(clean).any()):
            raise InputError(
                "a label map has voxels to be ignored, but the discriminator compares whole label maps: label these "
                "voxels, or train without discriminator: train.json without attention.json or paper.json"
            )
        iteration = engine.state.iteration - 1
        terms: dict[str, Any] = {}
        if self.discriminator is not None and iteration % self.discriminator_interval == 0:
            due = (iteration // self.discriminator_interval) % self.r1_interval == 0
            draws = self._draw(clean, attended=False)
            terms.update(self.discriminator_step(clean, condition, draws, self.r1_weight if due else 0.0))
        terms.update(self.denoiser_step(clean, condition, self._draw(clean, attended=True)))
        return {name: float(value) for name, value in terms.items()}

    def _draw(self, clean: Tensor, attended: bool) -> Draws:
        return Draws.sample(clean, self.process.num_timesteps, self.denoiser.latent_dim, attended)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(torch.device(self.state.device).type, torch.bfloat16, enabled=self.amp)

    def discriminator_step(self, clean: Tensor, condition: Tensor, draws: Draws, r1_weight: float) -> dict[str, Tensor]:
        """Update the discriminator; the denoiser is left alone. Returns the detached terms of its loss."""
        self.discriminator.requires_grad_(True)
        self.discriminator_optimizer.zero_grad()
        with self._autocast():
            losses = discriminator_losses(
                self.denoiser, self.discriminator, self.process, clean, condition, draws, r1_weight
            )
        sum(losses.values()).backward()
        average_gradients(self.discriminator)
        self.discriminator_optimizer.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def denoiser_step(self, clean: Tensor, condition: Tensor, draws: Draws) -> dict[str, Tensor]:
        """Update the denoiser; the discriminator is left alone. Returns its detached loss and the map's size."""
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
            self.discriminator_optimizer.zero_grad()
        self.optimizer.zero_grad()
        with self._autocast():
            features = self.denoiser.encode_condition(condition)
            noisy, weights = self._denoiser_input(clean, condition, [part.detach() for part in features], draws)
            estimate = self.denoiser(noisy, draws.timesteps, condition, draws.latent, features)
            loss = self._denoiser_loss(estimate, clean, weights)
            terms = {"loss": loss.detach()}
            if self.adversarial_weight > 0:
                adversarial = adversarial_loss(self.discriminator, self.process, estimate, noisy, condition, draws)
                terms["adversarial"] = adversarial.detach()
                loss = loss + self.adversarial_weight * adversarial
        loss.backward()
        average_gradients(self.denoiser)
        self.optimizer.step()
        if self.attention != "none":
            size = {"mean": weights.mean(), "std": weights.std(), "max": weights.abs().max()}
            terms.update({f"attention_{name}": value for name, value in size.items()})
        return terms

    def _denoiser_input(
        self, clean: Tensor, condition: Tensor, features: list[Tensor], draws: Draws
    ) -> tuple[Tensor, Tensor]:
        attended, weights = attend_and_noise(
            self.discriminator, self.process, clean, condition, draws, self.attention_level, self.attention
        )
        if self.attend_loss:
            _, attended = self.process.pair(clean, draws.timesteps, draws.attended_noise, draws.last_noise)
        if self.roll_out_share > 0 and torch.rand(()) < self.roll_out_share:
            attended = roll_out(self.denoiser, self.process, draws.next_noise, condition, features, draws)
        return attended, weights

    def _unknown(self, clean: Tensor) -> Tensor:
        return unknown_voxels(self.network.label_coding.presence(clean))

    def _denoiser_loss(self, estimate: Tensor, clean: Tensor, weights: Tensor) -> Tensor:
        estimate = torch.where(self._unknown(clean), clean, estimate.float())  # no error where nobody judged
        if not self.attend_loss:
            return self.loss_function(estimate, clean)
        return self.loss_function(estimate, clean, weights / weights.mean(dim=(1, 2, 3), keepdim=True))
