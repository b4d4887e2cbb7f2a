"""How many outlined slices a plain network needs to reach what a method learns from image-level labels."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader
from monai.engines import SupervisedTrainer
from monai.losses import DiceCELoss
from monai.utils import set_determinism
from torch import Tensor, nn
from torch.utils.data import WeightedRandomSampler

from shared_components.errors import InputError
from shared_components.reporting.compare_methods import markdown_table, score_method
from shared_components.reporting.files import claim_outputs, write_atomically
from shared_components.reporting.metrics import write_table
from shared_components.reporting.weak_metrics import summarise_slices

logger = logging.getLogger(__name__)

TABLE, PER_TRAINING = "outlined_slices.csv", "outlined_slices_per_training.csv"


class OutlineNetwork(nn.Module):
    """A network with one map of logits, for `score_method`: a slice is positive where its largest probability is.

    Args:
        network: images (B, K, H, W) to logits (B, 1, H, W).
    """

    gate_threshold = 0.5

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def describe(self, image: Tensor) -> dict[str, Tensor]:
        """Return ``pred`` (B, 2, H, W), ``saliency`` (B, 1, H, W) and ``positive`` (B,), all probabilities."""
        probability = torch.sigmoid(self.network(image))
        pred = torch.cat([1 - probability, probability], dim=1)
        return {"pred": pred, "saliency": probability, "positive": probability.flatten(1).amax(dim=1)}


def outlined_slices(
    items: Sequence[Mapping[str, Any]],
    transform: Callable[[Any], Any],
    make_network: Callable[[], nn.Module],
    dataloader: Iterable[Mapping[str, Any]],
    postprocessing: Callable[[dict[str, Any]], dict[str, Any]],
    output_dir: str | os.PathLike,
    counts: Sequence[int] = (1, 2, 4, 8, 16),
    repeats: int = 3,
    steps: int = 300,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    device: str | torch.device = "cpu",
    seed: int = 0,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Train a plain network on few outlined slices, score it, and write a table with a row a number of outlines.

    Every training draws its outlined slices anew. The negative slices, whose masks are empty and so cost no outline,
    take part in all of them and make half of every batch.

    Args:
        items: training slices with ``image``, ``class`` and, where it is 1, ``label`` (`slice_list` with masks).
        transform: loads and augments one; ``image`` and ``label`` come out on the network's grid.
        make_network: returns a new network, images to one map of logits.
        dataloader, postprocessing: slices to score, as in `compare_methods`.
        output_dir: where the tables go.
        counts: numbers of outlined slices; more than there are is all of them.
        repeats: trainings of each number, with slices and weights of their own.
        steps, batch_size, learning_rate: of a training, with AdamW.
        device: to run on.
        seed: of the drawing of slices, the weights and the augmentation.
        overwrite: whether tables of an earlier run may be replaced.

    Returns:
        The rows of ``outlined_slices.csv``: ``outlined``, and of Dice of the positive slices over the repeats ``dice``
        (mean), ``dice_low`` and ``dice_high``, ``dice_3d`` (mean).

    Raises:
        InputError: no positive slice with a mask, or no negative one; none to score; the tables are there already.
    """
    positive = [item for item in items if item["class"] == 1 and "label" in item]
    negative = [item for item in items if item["class"] == 0]
    if not positive or not negative:
        raise InputError(
            f"{len(positive)} positive training slices with masks and {len(negative)} negative ones; expected some of "
            "either: add masks of the positive ones"
        )
    scored = getattr(getattr(dataloader, "dataset", None), "data", None)
    if scored is not None and not any(item["class"] == 1 and "label" in item for item in scored):
        raise InputError(f"none of the {len(scored)} test slices is a positive one with a mask: nothing to score")
    folder = claim_outputs(output_dir, [TABLE, PER_TRAINING], overwrite)
    table, per_training = [], []
    for count in sorted({min(count, len(positive)) for count in counts}):
        found = []
        for repeat in range(repeats):
            set_determinism(seed=seed + 1000 * count + repeat, use_deterministic_algorithms=None)
            drawn = np.random.default_rng((seed, count, repeat)).permutation(len(positive))[:count]
            chosen = [positive[index] for index in sorted(drawn)]
            network = make_network().to(device)
            _train([*chosen, *negative], transform, network, steps, batch_size, learning_rate, device)
            found.append(summarise_slices(score_method(OutlineNetwork(network), dataloader, postprocessing, device)))
            per_training.append({"outlined": count, "repeat": repeat, **found[-1]})
            logger.info("%d outlined slices, training %d: Dice %.3f", count, repeat + 1, found[-1]["dice"])
        dice = [summary["dice"] for summary in found]
        row = {"outlined": count, "dice": sum(dice) / repeats, "dice_low": min(dice), "dice_high": max(dice)}
        table.append({**row, "dice_3d": sum(summary["dice_3d"] for summary in found) / repeats})
    write_table(folder / PER_TRAINING, per_training)
    write_atomically(folder / "outlined_slices.md", markdown_table(table))
    write_table(folder / TABLE, table)
    return table


def _train(
    items: Sequence[Mapping[str, Any]],
    transform: Callable[[Any], Any],
    network: nn.Module,
    steps: int,
    batch_size: int,
    learning_rate: float,
    device: str | torch.device,
) -> None:
    """Train for one epoch of ``steps`` batches, half of whose slices are positive."""
    kinds = [item["class"] for item in items]
    weights = [0.5 / kinds.count(kind) for kind in kinds]
    dataset = CacheDataset(list(items), transform, progress=False)
    sampler = WeightedRandomSampler(weights, steps * batch_size)
    SupervisedTrainer(
        device=torch.device(device),
        max_epochs=1,
        train_data_loader=DataLoader(dataset, batch_size=batch_size, sampler=sampler),
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), learning_rate),
        loss_function=DiceCELoss(sigmoid=True, batch=True),  # by batch: an empty mask alone has no Dice to speak of
        decollate=False,
    ).run()
