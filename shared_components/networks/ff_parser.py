"""The FF-Parser of MedSegDiff, a learned filter in Fourier space, and the gate it is part of."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_components.errors import InputError, check_choice

FF_INITS = ("reference", "identity")
GATES = ("reference", "bounded")


class FFParser(nn.Module):
    """Multiply a map's spectrum by learned complex weights: (B, C, H, W) to the same, float32.

    ``y = irfft2(A * rfft2(x))``, orthonormal, computed in float32 in any precision. The weights belong to a base grid.
    A map of another size gets them interpolated bilinearly at its own frequencies in cycles per pixel: the mean stays
    the mean, and a filter is the same filter on a larger image. H and W must be even. (Published: square maps of the
    base size only.)

    Args:
        channels: channels C.
        grid: height and width of the base grid; even.
        init: ``reference``: real and imaginary parts from N(0, 0.02^2), which shrinks the input about 37-fold and
            randomises its phase; ``identity``: ones, so that a new filter changes nothing.

    Raises:
        InputError: an odd grid, or an unknown ``init``.
    """

    def __init__(self, channels: int, grid: int, init: str = "reference") -> None:
        super().__init__()
        if grid < 2 or grid % 2:
            raise InputError(f"the FF-Parser's grid is {grid}: it must be even; choose another image_size")
        check_choice("ff_init", init, FF_INITS)
        weight = 0.02 * torch.randn(channels, grid, grid // 2 + 1, 2)
        if init == "identity":
            weight = torch.tensor([1.0, 0.0]).expand(weight.shape).clone()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2], x.shape[-1]
        spectrum = torch.fft.rfft2(x.float(), norm="ortho") * self._filter(height, width)
        return torch.fft.irfft2(spectrum, s=[height, width], norm="ortho")

    def _filter(self, height: int, width: int) -> Tensor:
        """Complex weights (C, height, width // 2 + 1)."""
        weight = self.weight.float()
        if height != weight.shape[1] or width // 2 + 1 != weight.shape[2]:
            # the spectrum is periodic along its rows: the first one follows the last
            wrapped = torch.cat([weight, weight[:, :1]], dim=1).permute(0, 3, 1, 2)
            size = [height + 1, width // 2 + 1]
            resized = F.interpolate(wrapped, size=size, mode="bilinear", align_corners=True)
            weight = resized[:, :, :height].permute(0, 2, 3, 1)
        return torch.view_as_complex(weight.contiguous())


class SpectralGate(nn.Module):
    """Gate for features of the highway, made of the denoiser's features of the same size.

    The features are projected, filtered by an `FFParser` and reduced to a spatial gate a (B, 1, H, W) and, by the mean
    over the positions, to a channel gate b (B, C, 1, 1). With the ``reference`` initialisation of the filter the
    product is of the order of 1e-5 at first.

    Args:
        tap_channels: width of the denoiser's features.
        channels: width C of the highway's features.
        grid: base grid of the filter.
        ff_init: initialisation of the filter.
        gate: ``reference``: the factor a * b, as published; ``bounded``: 1 + tanh(a * b), which lets a new network's
            features pass.

    Raises:
        InputError: an unknown ``gate``, or what `FFParser` raises.
    """

    def __init__(
        self, tap_channels: int, channels: int, grid: int, ff_init: str = "reference", gate: str = "reference"
    ) -> None:
        super().__init__()
        check_choice("gate", gate, GATES)
        self.bounded = gate == "bounded"
        self.projection = nn.Conv2d(tap_channels, channels, 1)
        self.parser = FFParser(channels, grid, ff_init)
        self.spatial = nn.Conv2d(channels, 1, 1)

    def forward(self, tap: Tensor) -> Tensor:
        """Return the factor (B, C, H, W) for features (B, tap_channels, H, W) of the denoiser."""
        filtered = self.parser(self.projection(tap))
        factor = self.spatial(filtered) * filtered.mean(dim=(2, 3), keepdim=True)
        return 1 + torch.tanh(factor) if self.bounded else factor
