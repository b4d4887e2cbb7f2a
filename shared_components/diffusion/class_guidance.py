"""Steering a reverse process towards a class: by a classifier's gradient, or by the denoiser itself."""

from typing import Optional

import torch
from torch import Tensor, nn

from shared_components.diffusion.reverse import ReverseProcess


def log_probability_gradient(classifier: nn.Module, noisy: Tensor, timesteps: Tensor, classes: Tensor) -> Tensor:
    """Return the gradient of a class's log-probability with respect to the noisy image, as ``noisy``.

    Dhariwal and Nichol 2021, algorithms 1 and 2. The gradients of two classes differ by that of their logits' margin.

    Args:
        classifier: ``classifier(noisy, timesteps)`` returns logits (B, K).
        noisy: (B, C, H, W).
        timesteps: (B,).
        classes: (B,) int64, the class of each image.
    """
    with torch.enable_grad(), torch.autocast(noisy.device.type, enabled=False):
        shown = noisy.detach().float().requires_grad_(True)
        chosen = classifier(shown, timesteps).log_softmax(dim=1).gather(1, classes.unsqueeze(1))
        return torch.autograd.grad(chosen.sum(), shown)[0].to(noisy.dtype)


def guidance_weight(process: ReverseProcess, step: int, output: Tensor, noisy: Tensor) -> Tensor:
    """Return by how much a step moves for a log-probability gradient of 1: a number, or as ``noisy``.

    An ancestral step moves its mean by the variance (Dhariwal and Nichol 2021, algorithm 1). One of DDIM (algorithm 2),
    with an eta of its own or without, subtracts sqrt(1 - abar) times the gradient from the noise, which belongs to the
    clipped clean estimate; the clean estimate that follows is not clipped again. Both move the next state by this
    weight times scale times gradient, so the step itself need not know of it.

    Args:
        process: of noise prediction.
        step, output, noisy: as in `ReverseProcess.forward`.
    """
    if process.sampler == "ddpm":
        return process.deviation(step, output, noisy) ** 2
    of_noisy, of_noise = process.estimate_weights[step]  # 1 / sqrt(abar), -sqrt(1 - abar) / sqrt(abar)
    return process.coefficients[step, 0] * of_noise**2 / of_noisy


def guided_prediction(
    denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, class_weights: Optional[Tensor], scale: Optional[float]
) -> Tensor:
    """Return the denoiser's output with classifier-free guidance (Ho and Salimans 2022).

    The prediction is that for no class plus ``scale`` times the difference that the class makes, in one batch; the
    variance head, if there is one, is that for the class.

    Args:
        denoiser: with the attributes ``in_channels``, ``null_class`` and ``num_class_weights``.
        noisy: (B, C, H, W).
        timesteps: (B,).
        class_weights: (B, K + 1), the last for the null class.
        scale: 1 and ``None`` leave the prediction as it is, which is one call less.
    """
    if scale is None or scale == 1 or class_weights is None:
        return denoiser(noisy, timesteps, class_weights=class_weights)
    null = torch.zeros_like(class_weights)
    null[:, -1] = 1
    both = denoiser(
        torch.cat([noisy, noisy]), torch.cat([timesteps, timesteps]), class_weights=torch.cat([class_weights, null])
    )
    told, untold = both.chunk(2)
    channels = noisy.shape[1]
    prediction = untold[:, :channels] + scale * (told[:, :channels] - untold[:, :channels])
    return torch.cat([prediction, told[:, channels:]], dim=1)
