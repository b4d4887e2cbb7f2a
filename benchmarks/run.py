"""Measure rows of the table: ``python benchmarks/run.py --rows a4,d --output benchmarks/results/NAME``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402  (after the number of threads is set)

from benchmarks import rows_inference, rows_medsegdiff, rows_saliency, rows_tiles, rows_training  # noqa: E402
from benchmarks.harness import Row  # noqa: E402
from benchmarks.report import CDAL_PICTURES, CDM, HIPPOCAMPUS, MANY_CALLS, MEDSEGDIFF, Results, environment  # noqa: E402
from benchmarks.rows_guided import guided_rows  # noqa: E402
from benchmarks.rows_staple import staple_rows  # noqa: E402
from benchmarks.rows_synthesis import synthesis_rows  # noqa: E402
from benchmarks.subject import PHANTOMS, Subject  # noqa: E402
from benchmarks.sweeps import size_sweep, sweeps  # noqa: E402
from shared_components.errors import InputError, install_one_line_errors  # noqa: E402

logger = logging.getLogger(__name__)


def _one(function: Callable[[Subject], Row]) -> Callable[[Subject], Iterator[Row]]:
    return lambda subject: iter([function(subject)])


ROWS: dict[str, Callable[[Subject], Iterator[Row]]] = {
    "a1": rows_training.training_step,
    "a2": rows_inference.exact_volumes,
    "a3": rows_inference.true_slices,
    "a4": rows_inference.whole_slices,
    "a4b": rows_inference.configured_slices,
    "c": lambda subject: guided_rows(subject.pairs, subject.seed),
    "d": lambda subject: staple_rows(subject.pairs, subject.seed),
    "e": _one(rows_training.loading),
    "f": lambda subject: synthesis_rows(subject.pairs, subject.seed, steps=subject.image_steps),
    "h": _one(rows_training.optimiser_step),
    "options": rows_inference.options,
    "t1": rows_tiles.exact_tiles,
    "t2": rows_tiles.blended_tiles,
    "b1": rows_training.training_step,
    "b2": rows_medsegdiff.exact_members,
    "b3": rows_medsegdiff.fewer_calls,
    "g": rows_saliency.saliency_maps,
}
SWEEPS: dict[str, Callable[[Subject], list[dict[str, Any]]]] = {
    "sweeps": sweeps,
    "sizes": lambda subject: [size_sweep(subject)],
}
ROWS_OF = {
    HIPPOCAMPUS: ("a1", "a2", "a3", "a4", "a4b", "c", "d", "e", "f", "h", "options", "sweeps"),
    **dict.fromkeys(CDAL_PICTURES, ("a1", "t1", "t2", "sizes")),
    **dict.fromkeys(MEDSEGDIFF, ("b1", "b2", "b3")),
    CDM: ("g",),
}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--bundle", choices=list(PHANTOMS), default=HIPPOCAMPUS)
    parser.add_argument("--rows", help="which of the bundle's rows, separated by commas; all without")
    parser.add_argument("--weights", type=Path, help="trained weights; random ones without, and no Dice gate passes")
    parser.add_argument("--dataset_dir", type=Path, help="data set of the bundle; phantoms without")
    parser.add_argument("--output", type=Path, required=True, help="folder of results.json and results.md")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--pairs", type=int, default=3, help="interleaved pairs of timings")
    parser.add_argument("--volumes", type=int, default=2, help="test volumes in a timing of inference")
    parser.add_argument("--steps", type=int, default=4, help="training steps in a timing of training")
    parser.add_argument("--image_steps", type=int, default=25, help="of the image in row f; 300 as published")
    parser.add_argument("--many_calls", type=int, default=MANY_CALLS, help="of the opponent in rows b3 and b3b")
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="measure torch.compile as well, which takes minutes")
    chosen = parser.parse_args(argv)
    known = ROWS_OF[chosen.bundle]
    chosen.rows = list(known) if chosen.rows is None else [name for name in chosen.rows.split(",") if name]
    unknown = [name for name in chosen.rows if name not in known]
    if unknown:
        raise InputError(f"--rows {','.join(unknown)}: no such row of {chosen.bundle}; its rows are {', '.join(known)}")
    for name in ("weights", "dataset_dir"):
        if getattr(chosen, name) is not None and not getattr(chosen, name).exists():
            raise InputError(f"--{name} {getattr(chosen, name)}: not there; leave the option out to do without")
    if chosen.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine has no CUDA device; its rows stay 'not run'")
    counts = ("pairs", "volumes", "steps", "image_steps", "many_calls", "threads")
    small = [f"--{name} {getattr(chosen, name)}" for name in counts if getattr(chosen, name) < 1]
    if small:
        raise InputError(f"{', '.join(small)}: expected whole numbers of at least 1")
    return chosen


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the rows asked for; every finished one is on disk before the next begins."""
    install_one_line_errors()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    chosen = arguments(argv)
    torch.set_num_threads(chosen.threads)
    results = Results(chosen.output)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        shared = (
            "bundle", "weights", "dataset_dir", "device", "pairs", "volumes", "steps", "image_steps", "many_calls",
            "seed", "compile",
        )  # fmt: skip
        subject = Subject(Path(folder), **{name: getattr(chosen, name) for name in shared})
        found_on = environment(chosen.device, chosen.seed)
        for name in chosen.rows:
            if name in SWEEPS:
                for sweep in SWEEPS[name](subject):
                    results.add("sweeps", sweep, found_on)
                continue
            for row in ROWS[name](subject):
                results.add("rows", row.record(), found_on)
                ratio = row.ratio()
                logger.info("%s: %s (%s)", row.name, ratio and f"{ratio['ratio']:.2f}", row.gate.text)


if __name__ == "__main__":
    main()
