"""The two losses of a cDAL training step, as functions of networks, data and injected random draws."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_components.diffusion.schedules import FewStepProcess
from shared_components.spatial_attention.attention import attention_map


@dataclass
class Draws:
    """Everything random in half a training step, in the published order of drawing.

    Attributes:
        timesteps: t in 0..T-1, (B,).
        next_noise, noise: standard normal, as the label map: of x_{t+1} given x_t, and of x_t.
        latent: standard normal (B, Z).
        last_noise: of the posterior in the discriminator's half; of the attended x_{t+1} in the denoiser's.
        attended_noise: of the attended x_t; only in the denoiser's half.
    """

    timesteps: Tensor
    next_noise: Tensor
    noise: Tensor
    latent: Tensor
    last_noise: Tensor
    attended_noise: Tensor | None = None

    @classmethod
    def sample(cls, clean: Tensor, num_timesteps: int, latent_dim: int, attended: bool) -> Draws:
        """Draw from the global generator of the label map's device."""
        count, device = len(clean), clean.device
        return cls(
            timesteps=torch.randint(0, num_timesteps, (count,), device=device),
            next_noise=torch.randn_like(clean),
            noise=torch.randn_like(clean),
            latent=torch.randn(count, latent_dim, device=device),
            last_noise=torch.randn_like(clean),
            attended_noise=torch.randn_like(clean) if attended else None,
        )


def discriminator_losses(
    denoiser: nn.Module,
    discriminator: nn.Module,
    process: FewStepProcess,
    clean: Tensor,
    condition: Tensor,
    draws: Draws,
    r1_weight: float = 0.0,
) -> dict[str, Tensor]:
    """Real, fake and R1 terms of the discriminator's loss; their sum is to be minimised.

    ``real`` is E softplus(-D(x_t, t, x_{t+1})), ``fake`` E softplus(D(x'_t, t, x_{t+1})) with x'_t from the posterior
    of the denoiser's estimate, ``r1`` the gradient penalty (weight / 2) E |dD/dx_t|^2 on real pairs, taken with
    respect to x_t alone and not multiplied by the interval of lazy regularisation. The denoiser runs without
    gradient: the published code back-propagates into it and discards the result.
    """
    label_t, noisy = process.pair(clean, draws.timesteps, draws.noise, draws.next_noise)
    label_t = label_t.detach().requires_grad_(r1_weight > 0)
    real = discriminator(label_t, draws.timesteps, noisy, condition)
    losses = {"real": F.softplus(-real).mean()}
    if r1_weight > 0:
        (gradient,) = torch.autograd.grad(real.sum(), label_t, create_graph=True)
        losses["r1"] = r1_weight / 2 * gradient.float().pow(2).flatten(1).sum(dim=1).mean()
    with torch.no_grad():
        estimate = denoiser(noisy, draws.timesteps, condition, draws.latent).float()
        fake_t = process.posterior(estimate, noisy, draws.timesteps, draws.last_noise)
    losses["fake"] = F.softplus(discriminator(fake_t, draws.timesteps, noisy, condition)).mean()
    return losses


@torch.no_grad()
def attend_and_noise(
    discriminator: nn.Module,
    process: FewStepProcess,
    clean: Tensor,
    condition: Tensor,
    draws: Draws,
    level: int,
    attention: str,
) -> tuple[Tensor, Tensor]:
    """The denoiser's training input: the label map re-weighted by attention, then noised afresh.

    Returns:
        The attended x_{t+1} (B, C, H, W) and the attention map (B, 1, H, W).
    """
    label_t, noisy = process.pair(clean, draws.timesteps, draws.noise, draws.next_noise)
    weights = attention_map(discriminator, label_t, draws.timesteps, noisy, condition, level, attention)
    _, attended = process.pair(weights * clean, draws.timesteps, draws.attended_noise, draws.last_noise)
    return attended, weights


@torch.no_grad()
def roll_out(
    denoiser: nn.Module, process: FewStepProcess, noisy: Tensor, condition: Tensor, features: list[Tensor], draws: Draws
) -> Tensor:
    """The input that sampling would show at ``draws.timesteps``: reverse steps from pure noise with the denoiser.

    Noising the true label map shows the denoiser a signal at training that it does not have at sampling; a denoiser
    trained on its own estimates learns to refine them instead (Fu et al. 2023, "recycling"). Not part of the published
    cDAL.

    Args:
        noisy: standard normal start x_T, (B, C, H, W).
        features: what the denoiser computed from the condition.
    """
    current, result = noisy, noisy.clone()
    for step in range(process.num_timesteps - 1, 0, -1):
        going = draws.timesteps < step
        if not going.any():
            break
        timesteps = torch.full_like(draws.timesteps[going], step)
        latent = torch.randn_like(draws.latent[going])
        start = current[going]
        chosen = [part[going] for part in features]
        estimate = denoiser(start, timesteps, condition[going], latent, chosen).float()
        current = current.clone()
        current[going] = process.posterior(estimate, start, timesteps, torch.randn_like(start))
        arrived = draws.timesteps == step - 1
        result[arrived] = current[arrived]
    return result


def adversarial_loss(
    discriminator: nn.Module,
    process: FewStepProcess,
    estimate: Tensor,
    noisy: Tensor,
    condition: Tensor,
    draws: Draws,
) -> Tensor:
    """Non-saturating loss E softplus(-D(x'_t, t, x_{t+1})) of the denoiser's estimate.

    The published code never shows the discriminator's verdict to the denoiser; this is the option that does, as in
    denoising diffusion GANs (Xiao et al. 2022).
    """
    fake_t = process.posterior(estimate.float(), noisy, draws.timesteps, draws.noise)
    return F.softplus(-discriminator(fake_t, draws.timesteps, noisy, condition)).mean()
