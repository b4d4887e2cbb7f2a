"""Row d: STAPLE on vote patterns against ITK's filter and against the formulas over all voxels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.gates import exact_gate
from benchmarks.harness import Row, measure
from benchmarks.naive import voxel_staple
from shared_components.ensembling.staple import staple

RATERS = (5, 25)
SHAPES = ((256, 256), (128, 128, 64))
BOUND = 1e-5
ERROR_RATES = (0.02, 0.15)


def votes_of(raters: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Votes (M, *shape) of raters who err at random, each at a rate of his own, about one box."""
    random = np.random.default_rng(seed)
    truth = np.zeros(shape, dtype=bool)
    truth[tuple(slice(size // 4, size // 4 * 3) for size in shape)] = True
    rates = random.uniform(*ERROR_RATES, raters)
    return torch.from_numpy(np.stack([truth ^ (random.random(shape) < rate) for rate in rates]))


def itk_staple(votes: Tensor) -> Callable[[], Tensor]:
    """ITK's filter on one thread, its inputs made beforehand; it takes floating-point images only."""
    import itk

    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(1)
    kind = itk.Image[itk.D, votes.ndim - 1]
    images = [itk.image_from_array(vote.numpy().astype(np.float64)) for vote in votes]

    def run() -> Tensor:
        staple_filter = itk.STAPLEImageFilter[kind, kind].New()
        staple_filter.SetForegroundValue(1.0)
        staple_filter.SetMaximumIterations(100)
        for index, image in enumerate(images):
            staple_filter.SetInput(index, image)
        staple_filter.Update()
        return torch.from_numpy(itk.array_from_image(staple_filter.GetOutput()))

    return run


def staple_rows(pairs: int, seed: int, raters=RATERS, shapes=SHAPES) -> Iterator[Row]:
    """One row for every size, number of raters and opponent."""
    for shape in shapes:
        for count in raters:
            votes = votes_of(count, shape, seed)
            opponents = {
                "itk.STAPLEImageFilter": itk_staple(votes),
                "EM over voxels in torch": lambda v=votes: voxel_staple(v),
            }
            for opponent, run in opponents.items():
                gate = exact_gate([run()], [staple(votes)], BOUND, "posterior probability")
                row = Row("d", f"STAPLE, {count} raters, {'x'.join(map(str, shape))}", opponent, "cpu", gate)
                row.details = {
                    "kind": "same work",
                    "raters": count,
                    "shape": shape,
                    "error_rates": ERROR_RATES,
                }
                yield measure(row, run, lambda v=votes: staple(v), pairs)
