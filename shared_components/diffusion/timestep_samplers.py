"""Which timesteps a training step draws, and what each loss weighs then."""

from __future__ import annotations

from typing import Any

import torch
from monai.utils import evenly_divisible_all_gather
from torch import Tensor


class UniformTimestepSampler:
    """Draw every timestep equally often.

    Args:
        num_train_timesteps: T of the training schedule.
    """

    def __init__(self, num_train_timesteps: int) -> None:
        self.num_train_timesteps = num_train_timesteps

    def sample(self, batch_size: int, device: str | torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Draw timesteps (B,) int64 from torch's global generator; their importance weights (B,) float32 are 1."""
        timesteps = torch.randint(self.num_train_timesteps, (batch_size,), device=device)
        return timesteps, torch.ones(batch_size, device=device)

    def update(self, timesteps: Tensor, losses: Tensor) -> None:
        """Take note of the losses of a training step; nothing to do here."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state for resuming, which is empty."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Bring a state back."""


class LossSecondMomentTimestepSampler(UniformTimestepSampler):
    """Draw timesteps in proportion to the root mean square of their recent losses (Nichol and Dhariwal 2021).

    Until every timestep has ``history`` losses, all are drawn equally often. Weights 1 / (T p_t) keep the expected loss
    that of uniform draws. All processes of a distributed run see all losses, so their probabilities are the same.

    Args:
        num_train_timesteps: T of the training schedule.
        history: losses kept for every timestep.
        uniform_share: share of draws that stays uniform.
    """

    def __init__(self, num_train_timesteps: int, history: int = 10, uniform_share: float = 0.001) -> None:
        super().__init__(num_train_timesteps)
        self.uniform_share = uniform_share
        self._losses = torch.zeros(num_train_timesteps, history, dtype=torch.float64)
        self._counts = torch.zeros(num_train_timesteps, dtype=torch.int64)

    def probabilities(self) -> Tensor:
        """Return the probability of every timestep, (T,) float64 on the CPU."""
        count = self.num_train_timesteps
        if self._counts.min() < self._losses.shape[1]:
            return torch.full((count,), 1 / count, dtype=torch.float64)
        moments = self._losses.square().mean(dim=1).sqrt().clamp(min=1e-12)
        return (1 - self.uniform_share) * moments / moments.sum() + self.uniform_share / count

    def sample(self, batch_size: int, device: str | torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Draw timesteps (B,) int64 from torch's global CPU generator, and their importance weights (B,) float32."""
        probabilities = self.probabilities()
        timesteps = torch.multinomial(probabilities, batch_size, replacement=True)
        weights = 1 / (self.num_train_timesteps * probabilities[timesteps])
        return timesteps.to(device), weights.float().to(device)

    def update(self, timesteps: Tensor, losses: Tensor) -> None:
        """Take note of the losses of a training step, of all processes in the order of their ranks.

        Args:
            timesteps: (B,) int64.
            losses: (B,) per sample, without the importance weights.
        """
        pairs = torch.stack([timesteps.float(), losses.detach().float()], dim=1)
        history = self._losses.shape[1]
        for timestep, loss in evenly_divisible_all_gather(pairs).tolist():
            index = int(timestep)
            self._losses[index, self._counts[index] % history] = loss
            self._counts[index] += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the losses kept and how many there were, for resuming."""
        return {"losses": self._losses.clone(), "counts": self._counts.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Bring a state back.

        Raises:
            ValueError: the state is of another number of timesteps or another history.
        """
        if state["losses"].shape != self._losses.shape:
            raise ValueError(
                f"the state has losses {tuple(state['losses'].shape)} (timesteps, history), "
                f"this sampler {tuple(self._losses.shape)}"
            )
        self._losses.copy_(state["losses"])
        self._counts.copy_(state["counts"])
