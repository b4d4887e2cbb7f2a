"""A denoiser that sees the stains of H&E histology in place of its colours."""

from typing import Final, List, Optional

import torch
from skimage.color import hed_from_rgb
from torch import Tensor, nn

from shared_components.errors import InputError

STAINS = 2  # haematoxylin, eosin
# range of each in a picture, in natural logarithms of light, below which it is no stain but noise: tissue has at least
# 0.7 and 0.09, clean glass with the noise of a camera at most 0.15 and 0.05
LEAST_RANGE = (0.4, 0.08)


class StainConditioned(nn.Module):
    """Show a denoiser how much haematoxylin and eosin there is in every pixel of a picture, and not its colours.

    The stains are separated by colour deconvolution (Ruifrok and Johnston 2001, the matrix of
    `skimage.color.rgb2hed`), and each is scaled so that its 1st and 99th percentile over the picture become -1 and 1.
    So they do not depend on how strongly a slide was stained or how thick it is, which differs most between
    laboratories: a picture with k times the optical density has the same stains. A stain that is hardly there at all
    (`LEAST_RANGE`) is faded out by the square of what is missing, or the noise of empty glass would look like tissue.

    Computed here and not in a transform, so that colour changes in training reach them, tiles have those of the whole
    picture, and export and servers need not know of them.

    Args:
        denoiser: with a condition of two channels, and the interface that `DiffusionSegmenter` asks for.

    Raises:
        InputError: in use, pictures outside [-1, 1]: scaled otherwise their colours are no light.
    """

    num_stains: Final[int] = STAINS
    least_light: Final[float] = 1e-6
    low_share: Final[float] = 0.01
    high_share: Final[float] = 0.99

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.in_channels: int = denoiser.in_channels
        self.latent_dim: int = denoiser.latent_dim
        self.downsampling: int = denoiser.downsampling
        matrix = torch.as_tensor(hed_from_rgb[:, :STAINS].copy(), dtype=torch.float32)
        self.register_buffer("stain_of_density", matrix, persistent=False)
        self.least_range: List[float] = list(LEAST_RANGE)

    @torch.jit.export
    def encode_condition(self, condition: Tensor) -> List[Tensor]:
        """Return the denoiser's features of pictures (B, 3, H, W), red, green and blue in [-1, 1]."""
        if not torch.jit.is_scripting():
            self._check(condition)
        return self.denoiser.encode_condition(self.stains(condition))

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        condition: Tensor,
        latent: Optional[Tensor] = None,
        condition_features: Optional[List[Tensor]] = None,
    ) -> Tensor:
        """Return the denoiser's output for pictures (B, 3, H, W) in [-1, 1]; the rest is as in the denoiser."""
        return self.denoiser(noisy, timesteps, self.stains(condition), latent, condition_features)

    @torch.jit.export
    def stains(self, condition: Tensor) -> Tensor:
        """Return haematoxylin and eosin (B, 2, H, W), in [-1, 1], of pictures (B, 3, H, W) in [-1, 1].

        Where a stain is the same everywhere it is -1.
        """
        density = -torch.log(((condition.float() + 1.0) / 2.0).clamp(self.least_light, 1.0))
        found: List[Tensor] = []
        for stain in range(self.num_stains):
            # not a matrix product, which autocast would round
            amount = (density * self.stain_of_density[:, stain].reshape(1, 3, 1, 1)).sum(1).clamp(min=0.0)
            pixels = amount.flatten(1)
            last = pixels.shape[1] - 1
            low = pixels.kthvalue(int(round(last * self.low_share)) + 1, dim=1)[0].reshape(-1, 1, 1)
            high = pixels.kthvalue(int(round(last * self.high_share)) + 1, dim=1)[0].reshape(-1, 1, 1)
            extent = (high - low).clamp(min=self.least_light)
            presence = (extent / self.least_range[stain]).clamp(max=1.0) ** 2
            found.append(((amount - low) / extent).clamp(0.0, 1.0) * presence)
        return torch.stack(found, dim=1) * 2.0 - 1.0

    @torch.jit.unused
    def _check(self, condition: Tensor) -> None:
        if torch.jit.is_tracing():
            return
        low, high = float(condition.min()), float(condition.max())
        if low < -1.01 or high > 1.01:
            raise InputError(
                f"normalisation: the pictures hold values of {low:.3g} to {high:.3g}, and stains need light from -1 to "
                "1; give a normalisation to that range, or --stains False"
            )


def stain_conditioned(denoiser: nn.Module, stains: bool) -> nn.Module:
    """Return the denoiser, or with ``stains`` one that sees them in place of the colours."""
    return StainConditioned(denoiser) if stains else denoiser
