"""MONAI's ResNet, that a trace follows through its shortcuts."""

import torch
from monai.networks.nets import ResNet
from torch import Tensor


class TraceableResNet(ResNet):
    """`monai.networks.nets.ResNet` whose shortcuts of type ``A`` can be traced; everything else is MONAI's.

    MONAI takes the shortcut's ``.data``, which a trace writes down as a constant: the traced network would tell every
    image the shortcuts of the one it was traced with. While it is traced, the shortcut is an ordinary tensor here.
    Outside of a trace it is MONAI's, through which no gradient passes.
    """

    def _downsample_basic_block(self, x: Tensor, planes: int, stride: int, spatial_dims: int = 3) -> Tensor:
        if not torch.jit.is_tracing():
            return super()._downsample_basic_block(x, planes, stride, spatial_dims)
        kept = x
        for axis in range(2, 2 + spatial_dims):
            kept = kept.index_select(axis, torch.arange(0, x.shape[axis], stride, device=x.device))
        empty = torch.zeros_like(kept[:, :1]).repeat(1, planes - x.shape[1], *[1] * spatial_dims)
        return torch.cat([kept, empty], dim=1)
