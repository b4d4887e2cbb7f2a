"""A denoiser for images larger than what it was trained on: tile by tile in every reverse step, without seams."""

import math
from typing import List, Optional, Tuple

import torch
from torch import Tensor, nn

from shared_components.diffusion.slices import images_per_call
from shared_components.errors import InputError

FEATURE_BYTES = 2**29  # what 16 channels take in single precision for a picture of 2048 x 2048, in tiles of 256


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
        feature_bytes: most that the condition's features of all tiles may take to be kept for all reverse steps; those
            of larger images are computed anew in every step.

    Raises:
        InputError: a tile size or an overlap that does not fit.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        tile_size: int,
        overlap: float = 0.25,
        max_batch_size: int = 16,
        feature_bytes: int = FEATURE_BYTES,
    ) -> None:
        super().__init__()
        if tile_size < 1 or tile_size % denoiser.downsampling:
            raise InputError(f"tile_size must be a multiple of {denoiser.downsampling}, not {tile_size}")
        if not 0 <= overlap < 1:
            raise InputError(f"overlap must be at least 0 and below 1, not {overlap}")
        self.denoiser = denoiser
        self.tile_size = tile_size
        self.overlap = overlap
        self.max_batch_size = max_batch_size
        self.feature_bytes = feature_bytes
        self.in_channels: int = denoiser.in_channels
        self.latent_dim: int = denoiser.latent_dim
        self.downsampling: int = denoiser.downsampling
        self.learned_variance: bool = getattr(denoiser, "learned_variance", False)
        self.calibrated: bool = getattr(denoiser, "calibrated", False)

    @torch.jit.export
    def encode_condition(self, condition: Tensor) -> List[Tensor]:
        """Return the denoiser's features of the condition (B, K, H, W); (B, tiles, ...) if it is large.

        Nothing where they would be more than ``feature_bytes`` together: `forward` then computes those of each tile
        when it comes to it, in every step anew.
        """
        if not self._is_large(condition):
            return self.denoiser.encode_condition(condition)
        count, per_call = self._calls(condition)
        features: List[Tensor] = []
        for first in range(0, count, per_call):
            last = min(first + per_call, count)
            part = self.denoiser.encode_condition(self._cut(condition, first, last))
            if first == 0:
                needed = 0
                for item in part:
                    needed += item.element_size() * (item.numel() // item.shape[0]) * count
                if needed > self.feature_bytes:
                    return features
                for item in part:
                    features.append(item.new_empty([count] + list(item.shape[1:])))
            for index, item in enumerate(part):
                features[index][first:last] = item
        return [joined.unflatten(0, [-1, condition.shape[0]]).transpose(0, 1) for joined in features]

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        condition: Tensor,
        latent: Optional[Tensor] = None,
        condition_features: Optional[List[Tensor]] = None,
    ) -> Tensor:
        """Return what the denoiser returns, (B, N, H, W), for ``noisy`` (B, C, H, W) and ``condition`` (B, K, H, W).

        All tiles of an image share its latent code (B, Z). Tiles are cut out and blended call by call, so that the
        memory beside the result and the features is that of one call.
        """
        if not self._is_large(noisy):
            return self.denoiser(noisy, timesteps, condition, latent, condition_features)
        count, per_call = self._calls(noisy)
        total, weights = torch.zeros(0), torch.zeros(0)
        for first in range(0, count, per_call):
            last = min(first + per_call, count)
            index = torch.arange(first, last, device=noisy.device)
            image, tile = index % noisy.shape[0], index // noisy.shape[0]
            features: Optional[List[Tensor]] = None
            if condition_features is not None and len(condition_features) > 0:
                features = [part[image, tile] for part in condition_features]
            output = self.denoiser(
                self._cut(noisy, first, last),
                timesteps[image],
                self._cut(condition, first, last),
                latent[image] if latent is not None else latent,
                features,
            ).float()
            if first == 0:
                total = output.new_zeros([noisy.shape[0], output.shape[1], noisy.shape[2], noisy.shape[3]])
                weights = output.new_zeros([noisy.shape[0], 1, noisy.shape[2], noisy.shape[3]])
            self._blend(total, weights, output, first)
        return total / weights

    def _is_large(self, image: Tensor) -> bool:
        return image.shape[2] > self.tile_size or image.shape[3] > self.tile_size

    def _starts(self, size: int) -> List[int]:
        """First row (or column) of every tile along an axis: evenly spaced, the last tile ends with the image."""
        if size <= self.tile_size:
            return [0]
        rest = size - self.tile_size
        count = int(math.ceil(rest / (self.tile_size * (1 - self.overlap))))
        return [int(round(rest * index / count)) for index in range(count + 1)]

    def _calls(self, image: Tensor) -> Tuple[int, int]:
        """The number of tiles of (B, C, H, W), all images' first tile first, and how many go into one call."""
        count = image.shape[0] * len(self._starts(image.shape[2])) * len(self._starts(image.shape[3]))
        return count, images_per_call(self.max_batch_size, image[:, :, : self.tile_size, : self.tile_size])

    def _place(self, image: Tensor, number: int) -> Tuple[int, int, int]:
        """Image, first row and first column of a tile of (B, C, H, W)."""
        rows, columns = self._starts(image.shape[2]), self._starts(image.shape[3])
        tile = number // image.shape[0]
        return number % image.shape[0], rows[tile // len(columns)], columns[tile % len(columns)]

    def _cut(self, image: Tensor, first: int, last: int) -> Tensor:
        """Tiles ``first`` to ``last`` - 1 of (B, C, H, W), as (tiles, C, h, w)."""
        size = self.tile_size
        tiles: List[Tensor] = []
        for number in range(first, last):
            which, row, column = self._place(image, number)
            tiles.append(image[which : which + 1, :, row : row + size, column : column + size])
        return torch.cat(tiles)

    def _blend(self, total: Tensor, weights: Tensor, tiles: Tensor, first: int) -> None:
        """Add tiles (tiles, N, h, w), the first of which is number ``first``, to (B, N, H, W), and their weights."""
        height, width = tiles.shape[2], tiles.shape[3]
        weight = _falling(height, tiles.device).unsqueeze(1) * _falling(width, tiles.device)
        for index in range(tiles.shape[0]):
            which, row, column = self._place(total, first + index)
            total[which, :, row : row + height, column : column + width] += weight * tiles[index]
            weights[which, :, row : row + height, column : column + width] += weight


def _falling(size: int, device: torch.device) -> Tensor:
    """Weights of a tile's rows: 1 in the middle, falling linearly to the border, never 0."""
    position = torch.arange(size, device=device, dtype=torch.float32) + 0.5
    return torch.minimum(position, size - position) * (2.0 / size)
