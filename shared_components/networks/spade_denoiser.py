"""The denoiser of AdaptDiff: a U-Net that a mask conditions through the normalisations of its decoder."""

from typing import List, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_components.errors import InputError
from shared_components.networks.embeddings import sinusoidal_timestep_embedding
from shared_components.networks.sizes import check_size
from shared_components.networks.spade import SpadeResidualBlock


class ImageBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that takes each image's own statistics in evaluation, as a batch of one in training does.

    The published sampler never leaves the training mode and samples one image at a time, so this is what the released
    weights were sampled with. Unlike there, nothing depends on the rest of the batch and no statistics change.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        if self.training:
            return F.batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return F.instance_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)


class PointwiseResidualBlock(nn.Module):
    """Residual block of 1x1 convolutions, each followed by ReLU and then batch normalisation: (B, a, H, W) to b.

    Args:
        in_channels: a.
        out_channels: b; between the convolutions there are min(a, b).
        norm: class of the normalisation.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: type = nn.BatchNorm2d) -> None:
        super().__init__()
        middle = min(in_channels, out_channels)
        self.main = nn.Sequential(
            nn.Conv2d(in_channels, middle, 1), nn.ReLU(inplace=True), norm(middle),
            nn.Conv2d(middle, out_channels, 1), nn.ReLU(inplace=True), norm(out_channels),
        )  # fmt: skip
        self.shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1), nn.ReLU(inplace=True), norm(out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.shortcut(x)


class SpadeDenoiser(nn.Module):
    """Predict noise, or a clean image, from a noisy image; a mask says where structures are.

    With the default arguments it is AdaptDiff's published denoiser, 8,118,433 parameters (Hu et al. 2024). The mask
    enters nowhere but through SPADE in the decoder; 93 % of the arithmetic is the maps that depend on the mask alone,
    which `encode_condition` computes once for all reverse steps, exactly. The time is added after each block:
    ``x + SiLU(linear(embedding))``.

    Departures from the published code, by option: the mask can be averaged or max-pooled to the decoder's sizes, where
    the nearest pixel loses thin vessels; the widths can be changed; normalisations use their running statistics in
    evaluation unless ``image_statistics``.

    Args:
        in_channels: channels C of the image.
        condition_channels: channels K of the mask.
        channels: widths, that of the stem first; the network halves the image once for each of the others.
        spade_channels: width between the mask and the maps it gives.
        time_channels: width of the time embedding; even.
        mask_resize: ``nearest`` (published), ``area`` or ``max``, see `resize_mask`.
        image_statistics: take each image's own statistics in evaluation, see `ImageBatchNorm2d`; to sample from the
            released weights as their authors did.
        timestep_scale: factor of the timesteps before they are embedded.

    Raises:
        InputError: fewer than two widths, an odd time width, or an unknown way to resize.
    """

    def __init__(
        self,
        in_channels: int = 1,
        condition_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        spade_channels: int = 128,
        time_channels: int = 32,
        mask_resize: str = "nearest",
        image_statistics: bool = False,
        timestep_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if len(channels) < 2 or time_channels % 2:
            raise InputError(
                f"channels {list(channels)}, time_channels {time_channels}: expected two or more widths and an even one"
            )
        self.in_channels = in_channels
        self.latent_dim = 0
        self.downsampling = 2 ** (len(channels) - 1)
        self.learned_variance = False
        self.calibrated = False
        self.time_channels = time_channels
        self.timestep_scale = timestep_scale
        norm = ImageBatchNorm2d if image_statistics else nn.BatchNorm2d
        down, up = list(zip(channels[:-1], channels[1:])), list(zip(channels[:0:-1], channels[-2::-1]))

        self.time = nn.Linear(time_channels, time_channels)
        self.stem = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.encoder = nn.ModuleList(PointwiseResidualBlock(a, b, norm) for a, b in down)
        self.encoder_time = nn.ModuleList(nn.Linear(time_channels, b) for _, b in down)
        self.downsample = nn.ModuleList(_resample(nn.Conv2d, b, norm) for _, b in down)
        self.upsample = nn.ModuleList(_resample(nn.ConvTranspose2d, a, norm) for a, _ in up)
        self.decoder = nn.ModuleList(
            SpadeResidualBlock(2 * a, b, condition_channels, spade_channels, mask_resize) for a, b in up
        )
        self.decoder_time = nn.ModuleList(nn.Linear(time_channels, b) for _, b in up)
        self.head = nn.Conv2d(channels[0], in_channels, 1)

    @torch.jit.export
    def encode_condition(self, condition: Tensor) -> List[Tensor]:
        """Return the maps of all SPADE layers, coarsest block first, for images of the mask's own size.

        Args:
            condition: mask (B, K, H, W) in [0, 1].

        Returns:
            Six tensors a block, each (B, width, H / 2^k, W / 2^k); about 140 MB for a published network at 256 x 256.
        """
        return self._maps(condition, condition.shape[2], condition.shape[3])

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        condition: Tensor,
        latent: Optional[Tensor] = None,
        condition_features: Optional[List[Tensor]] = None,
    ) -> Tensor:
        """Return the prediction (B, C, H, W).

        Args:
            noisy: (B, C, H, W), H and W multiples of ``downsampling``.
            timesteps: (B,) int64 or float32.
            condition: mask (B, K, h, w) in [0, 1], of any size; not looked at where the features are given.
            latent: not used.
            condition_features: what `encode_condition` returned for a mask of the size of ``noisy``.

        Raises:
            ValueError: H or W does not fit.
        """
        check_size(noisy, self.downsampling)
        maps = condition_features
        if maps is None:
            maps = self._maps(condition, noisy.shape[2], noisy.shape[3])
        time = self._embed(timesteps)
        x = self.stem(noisy)
        skips: List[Tensor] = []
        for block, to_channels, down in zip(self.encoder, self.encoder_time, self.downsample):
            x = _add_time(block(x), to_channels(time))
            skips.append(x)
            x = down(x)
        for i, (up, block, to_channels) in enumerate(zip(self.upsample, self.decoder, self.decoder_time)):
            x = block(torch.cat([up(x), skips.pop()], dim=1), maps[6 * i : 6 * (i + 1)])
            x = _add_time(x, to_channels(time))
        return self.head(x).float()

    def _embed(self, timesteps: Tensor) -> Tensor:
        embedding = sinusoidal_timestep_embedding(timesteps.float() * self.timestep_scale, self.time_channels)
        return F.relu(self.time(embedding.to(self.time.weight.dtype)))

    def _maps(self, condition: Tensor, height: int, width: int) -> List[Tensor]:
        maps: List[Tensor] = []
        factor = self.downsampling
        for block in self.decoder:
            factor = factor // 2
            maps += block.encode_condition(condition, (height // factor, width // factor))
        return maps


def _add_time(x: Tensor, time: Tensor) -> Tensor:
    return x + F.silu(time).unsqueeze(2).unsqueeze(3)


def _resample(convolution: type, channels: int, norm: type) -> nn.Sequential:
    return nn.Sequential(convolution(channels, channels, 4, stride=2, padding=1), norm(channels), nn.ReLU(inplace=True))
