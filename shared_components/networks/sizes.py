"""What sizes of images a network takes."""

import torch
from torch import Tensor


def check_size(x: Tensor, multiple: int) -> None:
    """Raise ValueError unless the sizes of (B, C, *spatial) are multiples of ``multiple``; a trace is not asked."""
    if torch.jit.is_tracing():
        return
    sizes = x.shape[2:]
    for size in sizes:
        if size % multiple != 0:
            found = " x ".join([str(side) for side in sizes])
            raise ValueError(f"sizes {found}: pad them to multiples of {multiple}")
