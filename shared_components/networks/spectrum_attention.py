"""Cross-attention between two feature maps whose affinities pass a learned filter in Fourier space.

The spectrum-space transformer (SS-Former) and the neural band-pass filter (NBP-Filter) of MedSegDiff-V2. Wu, Ji, Fu,
Xu, Jin, Xu: "MedSegDiff-V2: Diffusion-Based Medical Image Segmentation with Transformer", AAAI 2024. The published
code holds neither; sizes the paper leaves open are arguments here, and what was chosen is said at each class.
"""

import math
from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_components.errors import InputError, check_choice

NORMALISERS = ("softmax", "none")
ORDERS = ("noise_first", "condition_first")
MAX_BLOCKS = 6

OPEN_FILTER = 4.0
"""Bias of a new filter's last layer: a pass band of about 0.98 everywhere."""


def filtered_affinity(query: Tensor, key: Tensor, band: Tensor) -> Tensor:
    """Affinity of every query position to every key position, each pair of their frequencies weighted.

    ``F_Q^-1 [band * (F_Q query) (F_K key)^H]``, the transforms orthonormal and over the grids of queries and of keys.
    With a band of ones this is ``query key^T``. Of another band's result the real part is kept: it is what the mean
    of band(w, v) and band(-w, -v) would give.

    Args:
        query: (B, heads, H, W, D), real; half precision is computed in float32, for there are no such transforms.
        key: like query.
        band: (B, N, N) or broadcastable, N = H * W: rows are frequencies of queries, columns of keys, both in the
            order of `torch.fft.fft2`, flattened.

    Returns:
        (B, heads, N, N), float32 or float64.
    """
    height, width = query.shape[2], query.shape[3]
    precision = torch.promote_types(query.dtype, torch.float32)
    query_spectrum = torch.fft.fft2(query.to(precision), dim=(2, 3), norm="ortho").flatten(2, 3)
    key_spectrum = torch.fft.fft2(key.to(precision), dim=(2, 3), norm="ortho").flatten(2, 3)
    product = torch.matmul(query_spectrum, key_spectrum.transpose(2, 3).conj()) * band.to(precision).unsqueeze(1)
    # The keys' spectrum is conjugated, so its way back is the forward transform.
    product = product.unflatten(3, (height, width)).unflatten(2, (height, width))
    product = torch.fft.fft2(torch.fft.ifft2(product, dim=(2, 3), norm="ortho"), dim=(4, 5), norm="ortho")
    return torch.real(product).flatten(4, 5).flatten(2, 3)


def centred_frequencies(height: int, width: int, device: torch.device) -> Tuple[Tensor, Tensor]:
    """Coordinates of a grid's frequencies, zero frequency in the middle, and the way back to `fft2`'s order.

    Returns:
        (N,) float32 in [-1, 1], N = height * width: position in row-major order of the centred spectrum, 0 at the
        zero frequency and of opposite sign for opposite frequencies; and (N,) int64, where in this order each
        frequency of `torch.fft.fft2` stands.
    """
    positions = torch.arange(height * width, device=device)
    middle = (height // 2) * width + width // 2
    back = torch.fft.ifftshift(positions.reshape(height, width)).flatten()
    return (positions - middle) / max(middle, 1), back


class NeuralBandPassFilter(nn.Module):
    """Pass band over pairs of frequencies, a function of their coordinates and of the diffusion step.

    Each layer is a 3x3 convolution over the plane of pairs, layer normalisation over its channels, scale and shift
    from the time embedding and a ReLU; a 1x1 convolution and a sigmoid end it. The plane is laid out with the zero
    frequencies in its middle, so that neighbours in it are neighbouring frequencies. Nothing depends on the size of
    the grid.

    Args:
        time_channels: width E of the (activated) time embedding.
        hidden_channels: width of the layers.
        num_layers: how many.
    """

    def __init__(self, time_channels: int, hidden_channels: int = 64, num_layers: int = 6) -> None:
        super().__init__()
        widths = [2] + [hidden_channels] * num_layers
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in zip(widths[:-1], widths[1:]))
        self.modulations = nn.ModuleList(nn.Linear(time_channels, 2 * hidden_channels) for _ in range(num_layers))
        self.output = nn.Conv2d(hidden_channels, 1, 1)
        nn.init.constant_(self.output.bias, OPEN_FILTER)

    def forward(self, time: Tensor, height: int, width: int) -> Tensor:
        """Return the band of a grid of height x width positions: (B, E) to (B, N, N) in (0, 1), N = height * width."""
        line, back = centred_frequencies(height, width, time.device)
        grid = torch.stack(torch.meshgrid(line, line, indexing="ij")).unsqueeze(0)
        hidden = grid.to(time.dtype)
        # Until the first modulation the plane is the same for every step: a batch of one.
        for conv, modulation in zip(self.convs, self.modulations):
            hidden = conv(hidden).permute(0, 2, 3, 1)
            scale, shift = modulation(time)[:, None, None, :].chunk(2, dim=3)
            hidden = F.layer_norm(hidden, [hidden.shape[3]]) * (1.0 + scale) + shift
            hidden = F.relu(hidden).permute(0, 3, 1, 2)
        logits = self.output(hidden).squeeze(1)
        band = torch.sigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        return band.index_select(1, back).index_select(2, back)


class SpectrumAttention(nn.Module):
    """One module of the SS-Former: filtered cross-attention and a perceptron, each with pre-norm and a residual.

    The maps to queries and keys have no bias, so that they commute with the transform; the residual is the query's.
    A new module's attention adds nothing.

    Args:
        channels: width of both inputs; a multiple of ``num_heads``.
        time_channels: width E of the (activated) time embedding.
        num_heads: attention heads; they share the band.
        normaliser: of the affinities over the keys: "softmax" or "none" (the paper's is not known).
        filter_channels: hidden width of the filter.
        filter_layers: layers of the filter.
    """

    def __init__(
        self,
        channels: int,
        time_channels: int,
        num_heads: int = 8,
        normaliser: str = "softmax",
        filter_channels: int = 64,
        filter_layers: int = 6,
    ) -> None:
        super().__init__()
        check_choice("normaliser", normaliser, NORMALISERS)
        if num_heads < 1 or channels % num_heads:
            raise InputError(f"channels is {channels}: it must be a multiple of num_heads ({num_heads})")
        self.num_heads = num_heads
        self.normaliser = normaliser
        self.query_norm = nn.LayerNorm(channels)
        self.context_norm = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.band = NeuralBandPassFilter(time_channels, filter_channels, filter_layers)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )

    def forward(self, x: Tensor, context: Tensor, time: Tensor, rows: Tensor) -> Tensor:
        """Let the positions of one map gather from those of another.

        Args:
            x: (B, H, W, channels), the queries.
            context: (B, H, W, channels), keys and values.
            time: (T, E) time embeddings.
            rows: (B,) int64, which of them each sample has.

        Returns:
            (B, H, W, channels).
        """
        batch, height, width, channels = x.shape
        attended = self.context_norm(context)
        query, key = self._heads(self.query(self.query_norm(x))), self._heads(self.key(attended))
        value = self._heads(self.value(attended)).flatten(2, 3)
        band = self.band(time, height, width).index_select(0, rows)
        weights = filtered_affinity(query, key, band) / math.sqrt(channels // self.num_heads)
        if self.normaliser == "softmax":
            weights = torch.softmax(weights, dim=3)
        gathered = torch.matmul(weights.to(value.dtype), value)
        x = x + self.output(gathered.transpose(1, 2).reshape(batch, height, width, channels))
        return x + self.perceptron(x)

    def _heads(self, tokens: Tensor) -> Tensor:
        """(B, H, W, channels) to (B, heads, H, W, channels / heads)."""
        return tokens.unflatten(3, (self.num_heads, -1)).permute(0, 3, 1, 2, 4)


class SpectrumTransformerBlock(nn.Module):
    """Two modules: one blends the noise embedding and the condition, the other the blend and the noise embedding.

    Args:
        noise_first: the queries of the first module are the noise embedding's and those of the second the blend's;
            otherwise the condition's and the noise embedding's.
        first: module of the first blend.
        second: module of the second one.
    """

    def __init__(self, noise_first: bool, first: SpectrumAttention, second: SpectrumAttention) -> None:
        super().__init__()
        self.noise_first = noise_first
        self.first = first
        self.second = second

    def forward(self, noise: Tensor, condition: Tensor, time: Tensor, rows: Tensor) -> Tensor:
        """Return the condition of the next block, shaped like the inputs: (B, H, W, channels)."""
        if self.noise_first:
            return self.second(self.first(noise, condition, time, rows), noise, time, rows)
        return self.second(noise, self.first(condition, noise, time, rows), time, rows)


class SpectrumTransformer(nn.Module):
    """Add to a denoiser's deepest feature map what it finds in the image's (semantic condition of MedSegDiff-V2).

    Both maps are projected to ``channels`` and given the same learned position embedding; each block's result is the
    condition of the next, and the last one's is added to the denoiser's map through a 1x1 convolution that starts at
    zero: a new network is the unconditioned one.

    Args:
        channels: width of the denoiser's map and of the transformer.
        condition_channels: width of the image's map.
        time_channels: width E of the (activated) time embedding.
        num_blocks: 1 to 6; the paper's number is not known.
        num_heads: attention heads; must divide ``channels``.
        grid_size: height and width of the maps that the position embedding is learned for; it is interpolated
            bilinearly to others.
        ss_order: whose queries come first, "noise_first" or "condition_first"; the sources differ.
        normaliser: "softmax" or "none", see `SpectrumAttention`.
        filter_channels: hidden width of the filters.
        filter_layers: layers of the filters.

    Raises:
        InputError: an argument outside the values above.
    """

    def __init__(
        self,
        channels: int,
        condition_channels: int,
        time_channels: int,
        num_blocks: int = 2,
        num_heads: int = 8,
        grid_size: int = 8,
        ss_order: str = "noise_first",
        normaliser: str = "softmax",
        filter_channels: int = 64,
        filter_layers: int = 6,
    ) -> None:
        super().__init__()
        if not 1 <= num_blocks <= MAX_BLOCKS:
            raise InputError(f"num_blocks is {num_blocks}: choose 1 to {MAX_BLOCKS}")
        check_choice("ss_order", ss_order, ORDERS)
        options = (channels, time_channels, num_heads, normaliser, filter_channels, filter_layers)
        self.noise_projection = nn.Conv2d(channels, channels, 1)
        self.condition_projection = nn.Conv2d(condition_channels, channels, 1)
        self.position = nn.Parameter(torch.empty(1, channels, grid_size, grid_size))
        self.blocks = nn.ModuleList(
            SpectrumTransformerBlock(
                ss_order == "noise_first", SpectrumAttention(*options), SpectrumAttention(*options)
            )
            for _ in range(num_blocks)
        )
        self.output = nn.Conv2d(channels, channels, 1)
        nn.init.trunc_normal_(self.position, std=0.02)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, noise: Tensor, condition: Tensor, time: Tensor, rows: Tensor) -> Tensor:
        """Condition the denoiser's deepest map.

        The filters, the costly part, depend on the step alone: give the distinct steps once each.

        Args:
            noise: (B, channels, H, W), the denoiser's map.
            condition: (B, condition_channels, H, W), the image's map.
            time: (T, E) time embeddings.
            rows: (B,) int64, which of them each sample has.

        Returns:
            (B, channels, H, W).
        """
        position = self.position
        if noise.shape[2] != position.shape[2] or noise.shape[3] != position.shape[3]:
            size = [noise.shape[2], noise.shape[3]]
            position = F.interpolate(position, size, mode="bilinear", align_corners=False)
        tokens = (self.noise_projection(noise) + position).permute(0, 2, 3, 1)
        blended = (self.condition_projection(condition) + position).permute(0, 2, 3, 1)
        for block in self.blocks:
            blended = block(tokens, blended, time, rows)
        return noise + self.output(blended.permute(0, 3, 1, 2))
