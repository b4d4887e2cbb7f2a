"""Rows t1 and t2: a picture, from preprocessed pixels to class probabilities, with the bundles of cDAL for pictures."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from monai.inferers import SimpleInferer
from torch import Tensor

from benchmarks.gates import exact_gate
from benchmarks.harness import Row, measure
from benchmarks.naive import FILTERS, NaiveSegmenter, tile_inferer
from benchmarks.report import content_of
from benchmarks.rows_inference import (
    BOUND,
    Predict,
    details_of,
    dice_of,
    inference_of,
    over_volumes,
    quality_gate,
    timed_volumes,
)
from benchmarks.subject import Subject
from shared_components.bundle_tools.settings import bfloat16_pays
from shared_components.diffusion.segmenter import DiffusionSegmenter
from shared_components.diffusion.tiles import TiledDenoiser

SIZES = {"cdal_monuseg": (500, 500), "cdal_lung_cxr": (128, 128)}
NAIVE = "one member and one tile at a time, nothing cached, FIR by zero insertion"
BY_ITSELF = "every tile sampled by itself, one member at a time, nothing cached, FIR by zero insertion"


def picture(subject: Subject, size: tuple[int, int] | None = None) -> Tensor:
    """A random picture (1, K, H, W), in [-1, 1], of the size that the bundle's data have after preprocessing."""
    generator = torch.Generator().manual_seed(subject.seed)
    channels = int(subject.config()["num_channels"])
    size = SIZES[subject.bundle] if size is None else size
    return (2 * torch.rand(1, channels, *size, generator=generator) - 1).to(subject.device)


def exact_tiles(subject: Subject, size: tuple[int, int] | None = None) -> Iterator[Row]:
    """Row t1: the same tiles in every reverse step, the same votes and noise; fp32."""
    image, mean = picture(subject, size), {"combine": "mean"}
    ours = inference_of(SimpleInferer(), subject.segmenter(**mean))
    expected = ours(image)
    for filters in FILTERS:
        naive = inference_of(SimpleInferer(), NaiveSegmenter(subject.segmenter(**mean), filters))
        gate = exact_gate([naive(image)], [expected], BOUND, "probabilities (mean of the members) of one picture")
        opponent = f"{NAIVE} ({filters})"
        row = Row("t1", content_of("t1", subject.bundle), opponent, subject.device, gate)
        row.details = details_of(subject, "same work") | {"size": tuple(image.shape[2:]), "volumes": 1}
        yield measure(row, over_volumes(naive, [image]), over_volumes(ours, [image]), subject.pairs)


def blended_tiles(subject: Subject) -> Iterator[Row]:
    """Row t2: as configured, against tiles that are sampled by themselves; needs the Dice gate."""
    amp = bfloat16_pays()
    ours = inference_of(SimpleInferer(), subject.segmenter(amp=amp))
    gate = quality_gate(subject, tiles_dice, ours, BY_ITSELF)
    for filters in FILTERS if gate.passed else FILTERS[:1]:
        opponent = f"{BY_ITSELF} ({filters})"
        row = Row("t2", content_of("t2", subject.bundle), opponent, subject.device, gate)
        row.details = details_of(subject, "same network, steps and number of members; other noise")
        row.details["precision"] = "bfloat16 autocast" if amp else "fp32"
        pictures = timed_volumes(subject) if gate.passed else []
        work = over_volumes(by_itself(subject, filters), pictures), over_volumes(ours, pictures)
        yield measure(row, *work, subject.pairs)


def by_itself(subject: Subject, filters: str) -> Predict:
    """MONAI's sliding window around the naive network."""
    network: DiffusionSegmenter = subject.segmenter()
    naive, tiles = NaiveSegmenter(network, filters), network.denoiser
    if not isinstance(tiles, TiledDenoiser):
        return inference_of(SimpleInferer(), naive)
    return inference_of(tile_inferer(tiles.tile_size, tiles.overlap), naive)


def tiles_dice(subject: Subject) -> list[float]:
    """Dice of tiles that are sampled by themselves, depthwise for speed."""
    return dice_of(subject, by_itself(subject, FILTERS[1]))
