"""A denoiser for images larger than what it was trained on: tile by tile in every reverse step, without seams."""

import math
from typing import List, Optional

import torch
from torch import Tensor, nn

from shared_components.diffusion.slices import images_per_call
from shared_components.errors import InputError


class TiledDenoiser(nn.Module):
    """Run a denoiser on overlapping tiles of its inputs and blend what it returns.

    Tiling whole sampling runs gives every tile its own noise and, where two meet, two answers. Here the reverse process
    runs on the whole image: there is one noise field, and in every step the predictions of overlapping tiles are
    averaged, with weights that fall towards a tile's border (Bar-Tal et al. 2023, "MultiDiffusion"). Group norms see
    images of the size they were trained on. An image no larger than a tile passes through unchanged, so training on
    crops of that size goes through the same module.

    Args:
        denoiser: with the interface that `DiffusionSegmenter` asks for.
        tile_size: height and width of a tile, a multiple of the denoiser's ``downsampling``.
        overlap: least share of a tile that it has in common with the next, 0 to below 1.
        max_batch_size: most tiles in one call of the denoiser; bounds the memory (`images_per_call`).

    Raises:
        InputError: a tile size or an overlap that does not fit.
    """

    def __init__(self, denoiser: nn.Module, tile_size: int, overlap: float = 0.25, max_batch_size: int = 16) -> None:
        super().__init__()
        if tile_size < 1 or tile_size % denoiser.downsampling:
            raise InputError(f"tile_size must be a multiple of {denoiser.downsampling}, not {tile_size}")
        if not 0 <= overlap < 1:
            raise InputError(f"overlap must be at least 0 and below 1, not {overlap}")
        self.denoiser = denoiser
        self.tile_size = tile_size
        self.overlap = overlap
        self.max_batch_size = max_batch_size
        self.in_channels: int = denoiser.in_channels
        self.latent_dim: int = denoiser.latent_dim
        self.downsampling: int = denoiser.downsampling
        self.learned_variance: bool = getattr(denoiser, "learned_variance", False)
        self.calibrated: bool = getattr(denoiser, "calibrated", False)

    @torch.jit.export
    def encode_condition(self, condition: Tensor) -> List[Tensor]:
        """Return the denoiser's features of the condition (B, K, H, W); (B, tiles, ...) if it is large."""
        if not self._is_large(condition):
            return self.denoiser.encode_condition(condition)
        tiles = self._split(condition)
        per_call = images_per_call(self.max_batch_size, tiles)
        parts: List[List[Tensor]] = []
        for first in range(0, tiles.shape[0], per_call):
            parts.append(self.denoiser.encode_condition(tiles[first : first + per_call]))
        features: List[Tensor] = []
        for index in range(len(parts[0])):
            joined = torch.cat([part[index] for part in parts])
            features.append(joined.unflatten(0, [-1, condition.shape[0]]).transpose(0, 1))
        return features

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        condition: Tensor,
        latent: Optional[Tensor] = None,
        condition_features: Optional[List[Tensor]] = None,
    ) -> Tensor:
        """Return what the denoiser returns, (B, N, H, W), for ``noisy`` (B, C, H, W) and ``condition`` (B, K, H, W).

        All tiles of an image share its latent code (B, Z).
        """
        if not self._is_large(noisy):
            return self.denoiser(noisy, timesteps, condition, latent, condition_features)
        if condition_features is None:
            condition_features = self.encode_condition(condition)
        features = [part.transpose(0, 1).flatten(0, 1) for part in condition_features]
        inputs, conditions = self._split(noisy), self._split(condition)
        count = inputs.shape[0] // noisy.shape[0]
        timesteps = timesteps.repeat(count)
        latents = latent.repeat(count, 1) if latent is not None else latent
        per_call = images_per_call(self.max_batch_size, inputs)
        outputs: List[Tensor] = []
        for first in range(0, inputs.shape[0], per_call):
            last = first + per_call
            outputs.append(
                self.denoiser(
                    inputs[first:last],
                    timesteps[first:last],
                    conditions[first:last],
                    latents[first:last] if latents is not None else latents,
                    [part[first:last] for part in features],
                ).float()
            )
        return self._blend(torch.cat(outputs), noisy.shape[2], noisy.shape[3])

    def _is_large(self, image: Tensor) -> bool:
        return image.shape[2] > self.tile_size or image.shape[3] > self.tile_size

    def _starts(self, size: int) -> List[int]:
        """First row (or column) of every tile along an axis: evenly spaced, the last tile ends with the image."""
        if size <= self.tile_size:
            return [0]
        rest = size - self.tile_size
        count = int(math.ceil(rest / (self.tile_size * (1 - self.overlap))))
        return [int(round(rest * index / count)) for index in range(count + 1)]

    def _split(self, image: Tensor) -> Tensor:
        """Tiles (tiles * B, C, h, w) of (B, C, H, W), all images' first tile first."""
        size = self.tile_size
        tiles: List[Tensor] = []
        for row in self._starts(image.shape[2]):
            for column in self._starts(image.shape[3]):
                tiles.append(image[:, :, row : row + size, column : column + size])
        return torch.cat(tiles)

    def _blend(self, tiles: Tensor, height: int, width: int) -> Tensor:
        rows, columns = self._starts(height), self._starts(width)
        tiles = tiles.unflatten(0, [len(rows) * len(columns), -1])
        weight = _falling(tiles.shape[3], tiles.device).unsqueeze(1) * _falling(tiles.shape[4], tiles.device)
        total = torch.zeros([tiles.shape[1], tiles.shape[2], height, width], device=tiles.device)
        weights = torch.zeros([height, width], device=tiles.device)
        index = 0
        for row in rows:
            for column in columns:
                bottom, right = row + tiles.shape[3], column + tiles.shape[4]
                total[:, :, row:bottom, column:right] += weight * tiles[index]
                weights[row:bottom, column:right] += weight
                index += 1
        return total / weights


def _falling(size: int, device: torch.device) -> Tensor:
    """Weights of a tile's rows: 1 in the middle, falling linearly to the border, never 0."""
    position = torch.arange(size, device=device, dtype=torch.float32) + 0.5
    return torch.minimum(position, size - position) * (2.0 / size)
