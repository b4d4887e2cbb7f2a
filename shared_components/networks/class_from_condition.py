"""A denoiser that reads the class of an image from the last channel of its condition."""

from typing import List, Optional

import torch
from torch import Tensor, nn

from shared_components.errors import InputError


class ClassFromCondition(nn.Module):
    """Tell a class-conditional denoiser the class that the condition's last channel holds (`ClassLabelChanneld`).

    So the class travels with the image: training, ensembles, export and servers need not know of it. An image whose
    class is not known holds -1, to which the denoiser adds no label embedding.

    Args:
        denoiser: takes ``class_labels`` behind its condition features, as `MedSegDiffV1` does with ``num_classes``.

    Raises:
        InputError: the denoiser takes no classes.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        if not any(isinstance(module, nn.Embedding) for module in denoiser.modules()):
            raise InputError(
                f"num_classes is given, but {type(denoiser).__name__} takes no class: leave num_classes out with this "
                "configuration"
            )
        self.denoiser = denoiser
        self.in_channels: int = denoiser.in_channels
        self.latent_dim: int = denoiser.latent_dim
        self.downsampling: int = denoiser.downsampling
        self.learned_variance: bool = denoiser.learned_variance
        self.calibrated: bool = denoiser.calibrated

    @torch.jit.export
    def encode_condition(self, condition: Tensor) -> List[Tensor]:
        """Return the denoiser's features of an image with its class (B, K + 1, H, W)."""
        return self.denoiser.encode_condition(condition[:, :-1])

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        condition: Tensor,
        latent: Optional[Tensor] = None,
        condition_features: Optional[List[Tensor]] = None,
    ) -> Tensor:
        """Return the denoiser's output for an image with its class (B, K + 1, H, W); the rest is as in the denoiser."""
        labels = condition[:, -1, 0, 0].round().long()
        return self.denoiser(noisy, timesteps, condition[:, :-1], latent, condition_features, labels)


def class_conditioned(denoiser: nn.Module, num_classes: Optional[int]) -> nn.Module:
    """Return the denoiser, or with a number of classes one that reads them from the condition."""
    return denoiser if num_classes is None else ClassFromCondition(denoiser)
