"""Several ways to segment from image-level labels on the same slices, in one table."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import decollate_batch
from torch import Tensor, nn
from tqdm import tqdm

from shared_components.diffusion.metadata import with_metadata
from shared_components.reporting.files import case_file, case_name, claim_outputs, write_atomically
from shared_components.reporting.metrics import write_table
from shared_components.reporting.weak_metrics import LISTS, MEANINGS, score_slice, summarise_slices

logger = logging.getLogger(__name__)

TABLE, PER_SLICE, MEANING = "methods.csv", "methods_per_slice.csv", "methods_columns.csv"


def compare_methods(
    methods: Mapping[str, nn.Module],
    dataloader: Iterable[Mapping[str, Any]],
    postprocessing: Callable[[dict[str, Any]], dict[str, Any]],
    output_dir: str | os.PathLike,
    device: str | torch.device = "cpu",
    overwrite: bool = False,
    left_out: Mapping[str, bool] | None = None,
) -> list[dict[str, Any]]:
    """Score every method on every slice and write the tables.

    ``methods.csv`` has a row a method, with the columns that ``methods_columns.csv`` explains, `MEANINGS`;
    ``methods_per_slice.csv`` has a row a method and slice. All methods see the same slices, gate and threshold rule, as
    far as their networks are given the same.

    Args:
        methods: name to network, each with ``describe(image)`` (`SaliencyNetwork`).
        dataloader: batches with ``image``, ``class``, ``patient`` and, where there is a mask, ``label``.
        postprocessing: brings ``pred`` and ``saliency`` to the grid of the mask.
        output_dir: where the tables go.
        device: to run on.
        overwrite: whether tables of an earlier run may be replaced.
        left_out: what is not among the methods and why, and whether that is so here; one warning each.

    Returns:
        The rows of ``methods.csv``.

    Raises:
        InputError: the tables are there already, or the folder cannot be written to.
    """
    folder = claim_outputs(output_dir, [TABLE, PER_SLICE, MEANING], overwrite)
    for reason in [reason for reason, holds in (left_out or {}).items() if holds]:
        logger.warning("left out of the comparison: %s", reason)
    table, per_slice = [], []
    for name, network in methods.items():
        rows = score_method(network, tqdm(dataloader, desc=name), postprocessing, device)
        table.append({"method": name, **summarise_slices(rows)})
        kept = [{key: value for key, value in row.items() if key not in LISTS} for row in rows]
        per_slice += [{"method": name, **row} for row in kept]
        told = {key: value for key, value in table[-1].items() if key != "method"}
        logger.info("%s: %s", name, ", ".join(f"{key} {value:.3g}" for key, value in told.items()))
    write_table(folder / PER_SLICE, per_slice)
    write_table(folder / MEANING, [{"column": key, "meaning": text} for key, text in MEANINGS.items()])
    write_atomically(Path(folder) / "methods.md", markdown_table(table))
    write_table(folder / TABLE, table)
    return table


def score_method(
    network: nn.Module,
    dataloader: Iterable[Mapping[str, Any]],
    postprocessing: Callable[[dict[str, Any]], dict[str, Any]],
    device: str | torch.device = "cpu",
) -> list[dict[str, Any]]:
    """Return the rows of one method, as `summarise_slices` takes them; arguments as in `compare_methods`.

    Of a network with several noise draws (``num_samples``) they tell how far these agree.
    """
    network.to(device).eval()
    options = {"draws": True} if getattr(network, "num_samples", 1) > 1 else {}
    rows: list[dict[str, Any]] = []
    for batch in dataloader:
        since = time.perf_counter()
        with torch.no_grad():
            found = network.describe(batch["image"].to(device), **options)
        seconds = (time.perf_counter() - since) / len(found["positive"])
        if options:  # behind the prediction, so that one transform brings all of it to the grid of the mask
            both = torch.cat([torch.as_tensor(found[key]) for key in ("pred", "draws")], dim=1)
            found["pred"] = with_metadata(both, found["pred"])
        filled = {**batch, **{key: found[key].cpu() for key in ("pred", "saliency")}}
        for case, positive in zip(decollate_batch(filled), found["positive"].flatten().tolist()):
            rows.append(_row(postprocessing(case), positive, network.gate_threshold, seconds))
    return rows


def _row(case: Mapping[str, Any], positive: float, threshold: float, seconds: float) -> dict[str, Any]:
    label: Tensor | None = case.get("label")
    draws = case["pred"][2:] if len(case["pred"]) > 2 else None
    return {
        "case": case_name(case_file(label, *case.values())),
        "patient": str(case["patient"]),
        "class": int(case["class"]),
        "positive": positive,
        "open": positive >= threshold,
        "seconds": seconds,
        **score_slice(case["pred"][:2], label, case["saliency"], draws),
    }


def markdown_table(table: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a table, with every column that one of them has; three digits of what is no whole number."""
    columns = list(dict.fromkeys(key for row in table for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in table:
        cells = [f"{row[key]:.3g}" if isinstance(row.get(key), float) else str(row.get(key, "")) for key in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
