"""How near a row comes to what the machine can calculate at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import timed

SIZE = 1024
REPEATS = 5


def matrix_product_speed(device: str, dtype: torch.dtype = torch.float32) -> float:
    """Measure the floating-point operations per second of a large matrix product, the best of a few."""
    a, b = (torch.randn(SIZE, SIZE, device=device, dtype=dtype) for _ in range(2))
    return 2 * SIZE**3 / min(timed(lambda: a @ b, device).seconds for _ in range(REPEATS))


def share_of_limit(work: Callable[[], Any], seconds: float, device: str) -> dict[str, float]:
    """Count the operations of ``work`` (convolutions, products); compare its speed with a matrix product's.

    Args:
        work: is called once.
        seconds: that it took when it was timed.
    """
    with FlopCounterMode(display=False) as counter:
        work()
    speed, limit = counter.get_total_flops() / seconds, matrix_product_speed(device)
    return {"gflop": counter.get_total_flops() / 1e9, "gflop_per_s": speed / 1e9, "share": speed / limit}
