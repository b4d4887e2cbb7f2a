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
from monai.transforms import LoadImage
from monai.utils import convert_to_numpy, convert_to_tensor
from PIL import Image
from torch import Tensor

from shared_components.errors import InputError
from shared_components.reporting.files import claim_outputs, file_of, is_picture, write_atomically
from shared_components.reporting.grids import Tile, contact_sheet, draw_tile, sheet_of
from shared_components.reporting.inference_ledger import InferenceLedger, image_key, item_of
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

    Of an evaluator's handlers it stands after the one that loads the weights, which a run that goes on compares.

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
        requests: all that the set consists of, in its order, where a run may make only some (``resume``).
        settings: what else the images depend on; stated, and compared where a run goes on.
        resume: go on with the `InferenceLedger` of an earlier run, whose images stay in the set.
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
        requests: Sequence[Mapping[str, Any]] = (),
        settings: Mapping[str, Any] | None = None,
        resume: bool = False,
    ) -> None:
        self.left_out = left_out
        self.output_dir = Path(output_dir)
        self.settings, self.resume = dict(settings or {}), resume
        self._order = {image_key(request): place for place, request in enumerate(requests)}
        self._ledger = InferenceLedger(output_dir)
        self.label_names = dict(label_names)
        self.modality, self.description = modality, description
        self.options = dict(options or {})
        self.as_series, self.previews, self.overwrite = as_series, previews, overwrite
        self._made: dict[str, dict[str, Any]] = {}
        self._drawn: dict[str, Image.Image] = {}
        self._count = 0
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
        self._made, self._drawn, self._count = {}, {}, 0
        self._timer.reset()
        settings = {"labels": self.label_names, **self.settings, **self.options}
        self._ledger.open(engine, self.resume, settings)
        if self.resume:
            self._earlier |= {name for record in self._ledger.records() for name in record["files"]}
            kept = {record["image"]: record for record in self._ledger.finished()}
            self._made = {key: record for key, record in kept.items() if key in self._order}

    def __call__(self, engine: Engine) -> None:
        """Take note of the images of one iteration."""
        for request, case in zip(engine.state.batch, engine.state.output):
            pred, given = case["pred"], case["label"]
            file = f"{request['name']}{'.png' if is_picture(pred) else '.nii.gz'}"
            row = {
                "image": f"imagesTr/{file}",
                "label": f"labelsTr/{file}",
                "label_map": file_of(case["image"]),
                "source": file_of(case.get("source", request.get("source"))),
                "seed": int(request["seed"]),
                "dropped": request["dropped"],
                **self.options,
            }
            title = (request["dropped"] and f"without {request['dropped']}") or "complete"
            title = title if self.as_series else request["name"]
            record = {"row": row, "files": [row["image"], row["label"]], "title": title, "series": request["series"]}
            item, self._count = item_of(engine), self._count + 1
            self._made[image_key(item) if item else request["name"]] = record
            if len(self._drawn) < self.previews:  # drawn at once, since volumes would fill the memory
                self._drawn[row["image"]] = draw_tile(Tile(title, convert_to_numpy(pred), _labels(given)))
            if item:
                self._ledger.add(item, record)

    def _finish(self, engine: Engine) -> None:
        self._records = [self._made[key] for key in sorted(self._made, key=lambda key: self._order.get(key, 0))]
        self._rows = [record["row"] for record in self._records]
        (self.output_dir / "previews").mkdir(exist_ok=True)
        sheets = []
        for name, tiles in self._sheets().items():
            sheet = encode_png(sheet_of(tiles, columns=len(tiles) if self.as_series else 4))
            write_atomically(self.output_dir / "previews" / f"{name}.png", sheet)
            sheets.append(Picture("Each image beside its label map", name, sheet))
        self._remove_earlier({picture.case for picture in sheets})
        write_table(self.output_dir / "synthesis.csv", self._rows)
        content = json.dumps(self._content(), indent=1, ensure_ascii=False) + "\n"
        write_atomically(self.output_dir / "dataset.json", content)
        write_atomically(self.output_dir / "report.html", self._page(engine, sheets[:_SHEETS_ON_PAGE]))
        if not failures_of(engine, self.left_out):
            self._ledger.close()
        logger.info("%s: %d images with their label maps", self.output_dir, len(self._rows))

    def _sheets(self) -> dict[str, list[Image.Image]]:
        """Return the pictures of every sheet; those of an earlier run's images are drawn from its files."""
        sheets: dict[str, list[Image.Image]] = {}
        for place, record in enumerate(self._records[: self.previews]):
            name = record["series"] if self.as_series else f"grid_{place // _PER_SHEET + 1:02d}"
            sheets.setdefault(name, []).append(self._drawn.get(record["row"]["image"]) or self._drawn_again(record))
        return sheets

    def _drawn_again(self, record: Mapping[str, Any]) -> Image.Image:
        load = LoadImage(image_only=True, ensure_channel_first=True)
        try:
            image, label = (load(self.output_dir / name) for name in record["files"])
        except Exception as error:  # each reader has its own
            files = " or ".join(record["files"])
            raise InputError(
                f"{self.output_dir}: {files}, of an earlier run, cannot be read; remove both and resume again"
            ) from error
        return draw_tile(Tile(record["title"], convert_to_numpy(image), _labels(label)))

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
        timing = {"seconds in all": seconds, "seconds per image": round(seconds / max(self._count, 1), 2)}
        stated = {"labels": self.label_names, **self.settings, **self.options, **weights_and_sampling(engine), **timing}
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
        return Tile(f"label map {index + 1}", convert_to_numpy(image), _labels(label))


def _middle(label: Tensor, count: int) -> Tensor:
    """Cut ``count`` slices of (A, H, W, D) out, around the one with the most foreground."""
    amount = (label > 0).sum(dim=(0, 1, 2))
    first = int((amount.argmax() - count // 2).clamp(0, max(label.shape[3] - count, 0)))
    return label[..., first : first + count]


def _labels(label: Tensor) -> np.ndarray:
    return convert_to_numpy(label)[0].round().astype(np.int32)
