"""What makes generated images a data set: their list, how each was made, and pictures to look at."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Timer
from monai.networks.utils import eval_mode
from monai.utils import convert_to_numpy, convert_to_tensor
from torch import Tensor

from shared_components.reporting.files import claim_outputs, file_of, is_picture, write_atomically
from shared_components.reporting.grids import Tile, contact_sheet
from shared_components.reporting.metrics import write_table
from shared_components.reporting.overlays import encode_png
from shared_components.reporting.page import page, section
from shared_components.reporting.report import (
    Picture,
    counted,
    environment,
    failed_cases,
    failures_of,
    figures,
    subtitle,
    weights_and_sampling,
)
from shared_components.reporting.tables import case_table, settings_table

logger = logging.getLogger(__name__)

_PER_SHEET = 40
_SHEETS_ON_PAGE = 5


class SyntheticSet:
    """Complete the generated images and label maps to a data set in MSD layout, when an evaluator has made them.

    The postprocessing writes ``imagesTr/<name>`` and ``labelsTr/<name>``. This handler adds ``dataset.json``, which
    lists the pairs, so that the folder is a ``dataset_dir`` for any segmentation bundle; ``synthesis.csv``, which
    says for each image the label map, the seed, the classes deleted and the options of the run; and
    ``previews/grid_01.png``, ... with every image beside its label map, or for a series of deleted classes
    ``previews/<case>.png``; and ``report.html`` with the sheets, the table and how the run was made.

    Args:
        output_dir: where everything goes; made when the run starts.
        label_names: name to value of the classes.
        modality: of the images, for ``dataset.json``.
        description: of the set, likewise.
        options: what else to state of every image: mode, strength, weights.
        as_series: one sheet for each label map.
        previews: how many images are drawn, at most; 0 for none.
        overwrite: whether an earlier set may be replaced; what it lists and this one does not is removed at the end.
        left_out: a line for each label map that was left out before the run, or a function that tells.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        label_names: Mapping[str, int],
        modality: str = "MRI",
        description: str = "Generated images; no patient data",
        options: Mapping[str, Any] | None = None,
        as_series: bool = False,
        previews: int = 400,
        overwrite: bool = False,
        left_out: Sequence[str] | Callable[[], Sequence[str]] = (),
    ) -> None:
        self.left_out = left_out
        self.output_dir = Path(output_dir)
        self.label_names = dict(label_names)
        self.modality, self.description = modality, description
        self.options = dict(options or {})
        self.as_series, self.previews, self.overwrite = as_series, previews, overwrite
        self._rows: list[dict[str, Any]] = []
        self._tiles: dict[str, list[Tile]] = {}
        self._timer = Timer()

    def attach(self, engine: Engine) -> None:
        """Add the handler to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        claims = ["dataset.json", "synthesis.csv", "imagesTr/*", "labelsTr/*", "previews/*", "report.html"]
        claim_outputs(self.output_dir, claims, self.overwrite)
        self.overwrite = True
        self._earlier = _files_of_set(self.output_dir)
        self._rows, self._tiles = [], {}
        self._timer.reset()

    def __call__(self, engine: Engine) -> None:
        """Take note of the images of one iteration."""
        for request, case in zip(engine.state.batch, engine.state.output):
            pred, given = case["pred"], case["label"]
            file = f"{request['name']}{'.png' if is_picture(pred) else '.nii.gz'}"
            self._rows.append(
                {
                    "image": f"imagesTr/{file}",
                    "label": f"labelsTr/{file}",
                    "label_map": file_of(case["image"]),
                    "source": file_of(case.get("source", request.get("source"))),
                    "seed": int(request["seed"]),
                    "dropped": request["dropped"],
                    **self.options,
                }
            )
            if len(self._rows) <= self.previews:
                title = (request["dropped"] and f"without {request['dropped']}") or "complete"
                title = title if self.as_series else request["name"]
                sheet = request["series"] if self.as_series else f"grid_{(len(self._rows) - 1) // _PER_SHEET + 1:02d}"
                tile = Tile(title, convert_to_numpy(pred), convert_to_numpy(given)[0].round().astype(np.int32))
                self._tiles.setdefault(sheet, []).append(tile)

    def _finish(self, engine: Engine) -> None:
        (self.output_dir / "previews").mkdir(exist_ok=True)
        sheets = []
        for name, tiles in self._tiles.items():
            sheet = encode_png(contact_sheet(tiles, columns=len(tiles) if self.as_series else 4))
            write_atomically(self.output_dir / "previews" / f"{name}.png", sheet)
            sheets.append(Picture("Each image beside its label map", name, sheet))
        self._remove_earlier(set(self._tiles))
        write_table(self.output_dir / "synthesis.csv", self._rows)
        content = json.dumps(self._content(), indent=1, ensure_ascii=False) + "\n"
        write_atomically(self.output_dir / "dataset.json", content)
        write_atomically(self.output_dir / "report.html", self._page(engine, sheets[:_SHEETS_ON_PAGE]))
        logger.info("%s: %d images with their label maps", self.output_dir, len(self._rows))

    def _remove_earlier(self, sheets: set[str]) -> None:
        """Remove what only an earlier set in this folder had: its images would look like this one's."""
        made = {row[part] for row in self._rows for part in ("image", "label")}
        for name in self._earlier - made:
            (self.output_dir / name).unlink(missing_ok=True)
        for file in (self.output_dir / "previews").glob("*.png"):
            if file.stem not in sheets:
                file.unlink()

    def _page(self, engine: Engine, sheets: Sequence[Picture]) -> str:
        seconds = round(self._timer.value(), 1)
        timing = {"seconds in all": seconds, "seconds per image": round(seconds / max(len(self._rows), 1), 2)}
        stated = {"labels": self.label_names, **self.options, **weights_and_sampling(engine), **timing}
        rows = [{"case": Path(row["image"]).name, **row} for row in self._rows]
        body = [
            failed_cases(failures_of(engine, self.left_out)),
            section("Generated images", figures(sheets), "Further sheets are in the folder previews."),
            section("All images", case_table(rows), "Click a heading to sort."),
            section("How it was made", settings_table({**stated, "environment": environment()})),
        ]
        return page(self.description, subtitle(counted(len(rows), "image")), body)

    def _content(self) -> dict[str, Any]:
        flat = bool(self._rows) and self._rows[0]["image"].endswith(".png")
        labels = {"0": "background", **{str(value): name for name, value in self.label_names.items()}}
        return {
            "name": self.output_dir.name,
            "description": self.description,
            "tensorImageSize": "2D" if flat else "3D",
            "modality": {"0": self.modality},
            "labels": labels,
            "numTraining": len(self._rows),
            "numTest": 0,
            "training": [{"image": f"./{row['image']}", "label": f"./{row['label']}"} for row in self._rows],
            "test": [],
        }


def _files_of_set(folder: Path) -> set[str]:
    """Return the images and label maps that ``synthesis.csv`` of a folder lists, relative to it, if it is there."""
    table = folder / "synthesis.csv"
    if not table.is_file():
        return set()
    with open(table, newline="", encoding="utf-8") as file:
        listed = {row.get(part) or "" for row in csv.DictReader(file) for part in ("image", "label")}
    return {name for name in listed if Path(name).parent.name in ("imagesTr", "labelsTr") and ".." not in name}


class SynthesisPreview:
    """Generate a few images of fixed label maps while a training goes on, as a sheet and in TensorBoard.

    Always the same label maps and seeds, so that one sees the images become better; any number of label maps will do.
    Attach it to the validation's evaluator: after a validation it writes ``previews/epoch_<number>.png``.

    Args:
        output_dir: of the run.
        network: `DiffusionSynthesizer` in evaluation's weights.
        dataset: gives items with ``label`` (A, *spatial).
        num_images: label maps to use, the first of the data set.
        max_slices: of a volume, the slices to generate: those with the most foreground, next to each other.
        log_dir: TensorBoard's folder, or ``None``.
        device: where the network is.
        epoch: returns the number of the epoch of an engine; its own when ``None``.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        network: torch.nn.Module,
        dataset: Sequence[Mapping[str, Any]],
        num_images: int = 8,
        max_slices: int = 1,
        log_dir: str | os.PathLike | None = None,
        device: str | torch.device = "cpu",
        epoch: Callable[[Engine], int] | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.network, self.dataset = network, dataset
        self.num_images, self.max_slices = num_images, max_slices
        self.log_dir, self.device = log_dir, device
        self.epoch = epoch or (lambda engine: engine.state.epoch)

    def attach(self, engine: Engine) -> None:
        """Add the handler to an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Generate, draw and write."""
        with eval_mode(self.network):
            tiles = [self._tile(index) for index in range(min(self.num_images, len(self.dataset)))]
        sheet, epoch = contact_sheet(tiles), self.epoch(engine)
        folder = self.output_dir / "previews"
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"epoch_{epoch:04d}.png", encode_png(sheet))
        if self.log_dir is not None:
            self._tensorboard.add_image("generated", sheet, epoch, dataformats="HWC")

    @cached_property
    def _tensorboard(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(log_dir=str(self.log_dir))

    def _tile(self, index: int) -> Tile:
        label = convert_to_tensor(self.dataset[index]["label"])
        if label.ndim == 4:
            label = _middle(label, self.max_slices)
        seeds = torch.tensor([index], device=self.device)
        image = self.network(label[None].float().to(self.device), seeds)[0]
        return Tile(
            f"label map {index + 1}", convert_to_numpy(image), convert_to_numpy(label)[0].round().astype(np.int32)
        )


def _middle(label: Tensor, count: int) -> Tensor:
    """Cut ``count`` slices of (A, H, W, D) out, around the one with the most foreground."""
    amount = (label > 0).sum(dim=(0, 1, 2))
    first = int((amount.argmax() - count // 2).clamp(0, max(label.shape[3] - count, 0)))
    return label[..., first : first + count]
