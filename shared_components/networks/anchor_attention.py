"""Anchor condition of MedSegDiff-V2: a rough segmentation's features gate the denoiser's first feature map.

Wu, Ji, Fu, Xu, Jin, Xu: "MedSegDiff-V2: Diffusion-Based Medical Image Segmentation with Transformer", AAAI 2024.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_components.errors import InputError


class AnchorAttention(nn.Module):
    """Uncertain spatial attention (U-SA): ``x * gate + x`` with a gate in (0, 1) made from the anchor.

    The anchor is smoothed by a Gaussian whose centre and variances are learned, one for all channels; of smoothed and
    original the larger is kept, weighted over the channels and put through a sigmoid. The gate depends on the anchor
    alone, that is on the image: `gate` makes it once, `modulate` uses it at every step.

    The size of the Gaussian's window is not in the paper; 5 x 5 is this project's choice.

    Args:
        anchor_channels: width A of the anchor.
        kernel_size: height and width of the Gaussian's window; odd.

    Raises:
        InputError: an even window.
    """

    def __init__(self, anchor_channels: int, kernel_size: int = 5) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError(f"kernel_size is {kernel_size}: it must be odd")
        self.radius = kernel_size // 2
        self.offset = nn.Parameter(torch.zeros(2))
        self.log_variance = nn.Parameter(torch.zeros(2))
        self.weight = nn.Conv2d(anchor_channels, 1, 1)

    def kernel(self) -> Tensor:
        """Weights of the Gaussian, (kernel_size, kernel_size), sum 1; its centre is ``offset`` (row, column) pixels
        from the middle."""
        steps = torch.arange(-self.radius, self.radius + 1, device=self.offset.device, dtype=self.offset.dtype)
        squares = (steps - self.offset[:, None]).square()
        rows, columns = torch.softmax(-0.5 * squares * torch.exp(-self.log_variance)[:, None], dim=1).unbind(0)
        return rows[:, None] * columns[None, :]

    @torch.jit.export
    def gate(self, anchor: Tensor) -> Tensor:
        """Gate of an anchor: (B, A, H, W), H and W above ``kernel_size // 2``, to (B, 1, H, W) in (0, 1)."""
        padded = F.pad(anchor, [self.radius] * 4, mode="reflect")
        # Channels laid out as samples: the same Gaussian for all.
        kernel = self.kernel().to(padded.dtype)[None, None]
        smoothed = F.conv2d(padded.flatten(0, 1).unsqueeze(1), kernel).reshape(anchor.shape)
        return torch.sigmoid(self.weight(torch.maximum(smoothed, anchor)))

    @torch.jit.export
    def modulate(self, x: Tensor, gate: Tensor) -> Tensor:
        """Weight a feature map (B, C, H, W) by one plus the gate (B, 1, H, W)."""
        return x * gate + x

    def forward(self, x: Tensor, anchor: Tensor) -> Tensor:
        """Weight a feature map (B, C, H, W) by one plus the gate of an anchor (B, A, H, W)."""
        return self.modulate(x, self.gate(anchor))
