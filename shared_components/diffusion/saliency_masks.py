"""From a saliency map to a probability of the object, slice by slice, and with it to a mask."""

from typing import Optional, Tuple

import torch
from monai.networks.layers import gaussian_1d, separable_filtering
from torch import Tensor, nn

from shared_components.errors import InputError, check_choice

POLARITIES = ("bright", "dark", "both")
THRESHOLDS = ("otsu", "fixed", "quantile")
_NUM_BINS = 256


class SaliencyMask(nn.Module):
    """Turn saliency maps into probabilities that exceed 0.5 exactly where the map exceeds its threshold.

    Everything is done for each slice alone, so a slice's result does not depend on its neighbours (the published CDM
    normalises over the batch). A map is given its polarity, smoothed, scaled to [0, 1] by its smallest and largest
    value, and thresholded; values of the threshold itself are background. Then [0, threshold] and [threshold, 1] are
    stretched to [0, 0.5] and [0.5, 1], which keeps the map's order and puts the mask where a class probability has it.

    Args:
        polarity: ``bright``: objects have positive values, ``dark``: negative ones, ``both``: the magnitude counts. A
            property of the target, not of a slice: with CDM's difference, positive is where the object makes the image
            brighter.
        threshold: ``otsu``: by Otsu's method on a histogram of 256 bins, as `skimage.filters.threshold_otsu`;
            ``fixed``: ``level`` of the scaled map; ``quantile``: the scaled map's quantile ``level``.
        level: in (0, 1), for the last two.
        smoothing: standard deviation in pixels of a Gaussian filter; 0 for none.
        body_level: grey values above it, in any channel, are body; what lies outside gets the lowest value and does not
            take part in the threshold. ``None``: all of the slice.

    Raises:
        InputError: an unknown name, or a level or smoothing out of range.
    """

    def __init__(
        self,
        polarity: str = "bright",
        threshold: str = "otsu",
        level: float = 0.5,
        smoothing: float = 0.0,
        body_level: Optional[float] = None,
    ) -> None:
        super().__init__()
        check_choice("polarity", polarity, POLARITIES)
        check_choice("threshold", threshold, THRESHOLDS)
        if not 0 < level < 1:
            raise InputError(f"level must lie between 0 and 1, not {level}")
        if smoothing < 0:
            raise InputError(f"smoothing must be at least 0 pixels, not {smoothing}")
        self.polarity = polarity
        self.threshold = threshold
        self.level = level
        self.body_level = body_level
        # not MONAI's GaussianFilter, whose width is a parameter: weights would fit networks of the same smoothing only
        kernel = gaussian_1d(torch.tensor(float(smoothing)), truncated=4.0) if smoothing > 0 else None
        self.register_buffer("kernel", kernel, persistent=False)

    def scaled(self, saliency: Tensor, image: Tensor) -> Tuple[Tensor, Tensor]:
        """Return the maps scaled to [0, 1], (N, 1, H, W), and where the body is, the same shape, bool.

        Args:
            saliency: (N, 1, H, W), signed.
            image: (N, K, H, W), for the body.
        """
        if self.polarity == "both":
            saliency = saliency.abs()
        elif self.polarity == "dark":
            saliency = -saliency
        saliency = saliency.float()
        if self.kernel is not None:
            with torch.autocast(saliency.device.type, enabled=False):  # it would smooth in the networks' precision
                saliency = separable_filtering(saliency, [self.kernel, self.kernel])
        body = torch.ones_like(saliency, dtype=torch.bool)
        if self.body_level is not None:
            body = (image > self.body_level).any(dim=1, keepdim=True)
        infinity = torch.tensor(float("inf"), device=saliency.device)
        low = torch.where(body, saliency, infinity).amin(dim=(2, 3), keepdim=True)
        high = torch.where(body, saliency, -infinity).amax(dim=(2, 3), keepdim=True)
        flat = ~(high > low)
        scaled = (saliency - low) / torch.where(flat, torch.ones_like(high), high - low)
        return torch.where(body & ~flat, scaled.clamp(0, 1), torch.zeros_like(scaled)), body

    def forward(self, saliency: Tensor, image: Tensor) -> Tensor:
        """Return probabilities (N, 1, H, W) float32 in [0, 1].

        Args:
            saliency: (N, 1, H, W), signed.
            image: (N, K, H, W) that the maps belong to.
        """
        scaled, body = self.scaled(saliency, image)
        if self.threshold == "otsu":
            threshold = otsu_threshold(scaled, body)
        elif self.threshold == "quantile":
            threshold = _quantile(scaled, body, self.level)
        else:
            threshold = torch.full_like(scaled[:, :, :1, :1], self.level)
        threshold = threshold.clamp(1e-4, 1 - 1e-4)
        below = 0.5 * scaled / threshold
        above = (0.5 + 0.5 * (scaled - threshold) / (1 - threshold)).clamp(min=0.500001)
        return torch.where(scaled > threshold, above, below.clamp(max=0.5))


def otsu_threshold(values: Tensor, counted: Optional[Tensor] = None) -> Tensor:
    """Return Otsu's threshold of each map, (N, 1, 1, 1): the middle of a bin, as scikit-image defines it.

    The histogram has 256 bins between the smallest and the largest value that counts. A constant map is its own
    threshold.

    Args:
        values: (N, 1, H, W).
        counted: (N, 1, H, W) bool, the pixels that count; all when ``None``.
    """
    flat = values.flatten(1).double()
    weights = torch.ones_like(flat) if counted is None else counted.flatten(1).double()
    infinity = torch.tensor(float("inf"), dtype=torch.float64, device=values.device)
    low = torch.where(weights > 0, flat, infinity).amin(dim=1, keepdim=True)
    high = torch.where(weights > 0, flat, -infinity).amax(dim=1, keepdim=True)
    width = torch.where(high > low, high - low, torch.ones_like(high)) / _NUM_BINS
    bins = ((flat - low) / width).floor().clamp(0, _NUM_BINS - 1).long()
    counts = torch.zeros(flat.shape[0], _NUM_BINS, dtype=torch.float64, device=values.device)
    counts = counts.scatter_add(1, bins, weights)
    centres = low + width * (torch.arange(_NUM_BINS, dtype=torch.float64, device=values.device) + 0.5)
    below, mass = counts.cumsum(1), (counts * centres).cumsum(1)
    above, mass_above = below[:, -1:] - below, mass[:, -1:] - mass
    between = below * above * (mass / below.clamp(min=1) - mass_above / above.clamp(min=1)) ** 2
    threshold = centres.gather(1, between[:, :-1].argmax(dim=1, keepdim=True))
    threshold = torch.where(high > low, threshold, high)
    return threshold.to(values.dtype).reshape(-1, 1, 1, 1)


def _quantile(values: Tensor, counted: Tensor, level: float) -> Tensor:
    """Return the quantile of each map's pixels that count, (N, 1, 1, 1); the nearest one above, not interpolated."""
    infinity = torch.tensor(float("inf"), device=values.device)
    ordered = torch.where(counted, values, infinity).flatten(1).sort(dim=1)[0]
    count = counted.flatten(1).sum(dim=1, keepdim=True)
    place = (level * (count - 1)).ceil().long().clamp(min=0)
    return ordered.gather(1, place).clamp(max=1.0).reshape(-1, 1, 1, 1)
