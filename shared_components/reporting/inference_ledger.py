"""What an inference has finished, case by case, so that one that was interrupted goes on where it was."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine

from shared_components.errors import InputError
from shared_components.reporting.report import weights_and_sampling

LEDGER = ".inference.jsonl"
_MAY_DIFFER = ("dataset_dir", "device", "max_batch_size", "training")  # no result depends on them

logger = logging.getLogger(__name__)

Item = Mapping[str, Any]


def unfinished_cases(
    cases: tuple[Sequence[Item], Sequence[str]], output_dir: str | os.PathLike, resume: bool
) -> tuple[list[Item], list[str]]:
    """Return the cases of an inference without those that an earlier run in the same folder has finished.

    Cases that failed are tried again, and those whose files are gone. Where all are finished and only the report is
    missing, the last is done once more.

    Args:
        cases: the items, and a line for each case that was left out (`shared_components.data.inference_cases`), or
            requests for images (`shared_components.data.synthesis.synthesis_requests`).
        output_dir: of both runs.
        resume: whether to go on; all cases are returned if not.

    Raises:
        InputError: nothing in the folder was interrupted or left with failures.
    """
    items, left_out = list(cases[0]), list(cases[1])
    if not resume:
        return items, left_out
    if not (Path(output_dir) / LEDGER).is_file():
        raise InputError(
            f"output_dir {output_dir}: no inference was interrupted here, nothing to resume; leave --resume out, "
            "or name the folder of the interrupted one"
        )
    finished = {record["image"] for record in InferenceLedger(output_dir).finished()}
    left = [item for item in items if image_key(item) not in finished]
    logger.info("going on: %d of %d cases are finished", len(items) - len(left), len(items))
    return left or items[-1:], left_out


def image_key(item: Item) -> str:
    """Return what names a case in the ledger: the paths of its image; of an image to generate, what it is made of."""
    image = item["image"]
    requested = [item[name] for name in ("name", "seed", "dropped") if name in item]
    return json.dumps([str(path) for path in (image if isinstance(image, (list, tuple)) else [image])] + requested)


def item_of(engine: Engine) -> Item | None:
    """Return the entry of an evaluator's data set that it is at; ``None`` where it has none."""
    data = getattr(getattr(getattr(engine, "data_loader", None), "dataset", None), "data", None)
    return data[engine.state.iteration - 1] if data else None


class InferenceLedger:
    """The file of a folder: its first line says with what weights and sampling, each other line what a case gave.

    Lines are written one at a time and to the disk; a last line that a killed run has torn is left out.

    Args:
        output_dir: of the inference.
    """

    def __init__(self, output_dir: str | os.PathLike) -> None:
        self.path = Path(output_dir) / LEDGER

    def records(self) -> list[dict[str, Any]]:
        """Return what is kept of the finished cases, the last of each image."""
        records = {line["image"]: line for line in self._lines() if "image" in line}
        return list(records.values())

    def finished(self) -> list[dict[str, Any]]:
        """Return the `records` but those that name ``files``, relative to the folder, of which one is gone."""
        folder = self.path.parent
        return [kept for kept in self.records() if all((folder / name).is_file() for name in kept.get("files", ()))]

    def open(self, engine: Engine, resume: bool, settings: Mapping[str, Any]) -> None:
        """Begin a ledger, or go on with the one that is there; ``engine.finished_earlier`` says how many it has.

        Args:
            engine: the evaluator, after its weights have been loaded.
            resume: whether to go on.
            settings: what else its results depend on; where the data and the device are is not compared.

        Raises:
            InputError: the earlier run had other weights or settings, or sampled otherwise.
        """
        kept = {name: value for name, value in settings.items() if name not in _MAY_DIFFER}
        told = weights_and_sampling(engine)
        network = {**told.get("model", {}), **_plain_attributes(getattr(engine, "network", None))}
        made_with = {**kept, **network, "weights": told.get("weights", {}).get("sha256")}
        if not resume:
            self.path.unlink(missing_ok=True)
            self._append({"made_with": made_with})
            return
        before = next((line["made_with"] for line in self._lines() if "made_with" in line), None)
        if difference := _difference(before or {}, json.loads(json.dumps(made_with))):
            raise InputError(
                f"{self.path.parent}: its cases were made with other weights or settings ({difference}); resume with "
                "those, or choose another output_dir"
            )
        engine.finished_earlier = len(self.finished())

    def add(self, item: Item, record: Mapping[str, Any]) -> None:
        """Keep what a finished case gave."""
        self._append({"image": image_key(item), **record})

    def close(self) -> None:
        """Remove the file: everything is finished."""
        self.path.unlink(missing_ok=True)

    def _lines(self) -> list[dict[str, Any]]:
        lines = []
        for text in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else ():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                logger.debug("%s: a torn line is left out", self.path)
        return lines

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}); choose another output_dir") from error


def _plain_attributes(network: Any) -> dict[str, Any]:
    """Return the numbers, names and lists that a network was made with, such as its members and ``slice_axes``."""
    return {
        name: value
        for name, value in getattr(network, "__dict__", {}).items()
        if isinstance(value, (int, float, str, list, tuple)) and not name.startswith("_") and name not in _MAY_DIFFER
    }


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name what differs, with both values; '' where nothing does."""
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    return ", ".join(f"{key} {str(before.get(key))[:12]}, now {str(now.get(key))[:12]}" for key in keys)
