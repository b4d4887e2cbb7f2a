"""Full float32 on GPUs, for what is a small difference of large results."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Have convolutions and matrix products computed in float32 proper, and what was set before restored at the end.

    From Ampere on, NVIDIA GPUs round the factors of float32 convolutions to one part in a thousand unless told not to
    (TF32). On other devices nothing changes; mixed precision stays what it is.
    """
    try:
        before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:  # the user has set single backends (PyTorch 2.9), where these two mean nothing
        with _single_backends():
            yield
        return
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


@contextmanager
def _single_backends() -> Iterator[None]:
    backends = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
