"""How good generated images are: faithful to their label maps, realistic, diverse, and not copies."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from ignite.handlers import Timer
from monai.metrics import DiceMetric, FIDMetric, MMDMetric, MultiScaleSSIMMetric
from monai.networks.utils import one_hot
from monai.utils import convert_to_tensor
from PIL import Image
from torch import Tensor

from shared_components.errors import InputError
from shared_components.reporting.charts import strip_chart
from shared_components.reporting.files import case_file, case_name, claim_outputs, foreground_names, write_atomically
from shared_components.reporting.grids import Tile, contact_sheet, draw_tile, sheet_of
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
from shared_components.reporting.tables import case_table, html_table, settings_table

logger = logging.getLogger(__name__)

SSIM_SIZE, NEAREST_SIZE = 64, 32
# three scales and a kernel of 5 pixels: what a picture of 64 pixels has room for
_SSIM_OPTIONS = {"spatial_dims": 2, "kernel_size": 5, "weights": (0.0710, 0.4530, 0.4760)}


class SynthesisMetrics:
    """Score generated images against their label maps and real images; write tables and a page at the end.

    * Faithfulness: Dice of a segmenter's result on the generated image with the given label map, for each class; and,
      as the ceiling, on the real image of the same map (Konz et al. 2024).
    * Realism: FID and MMD (linear kernel, as MONAI's) between features of generated and of real slices, by the feature
      network that is declared; each feature is divided by its standard deviation on the real slices, and left out where
      there is none, so the figures of different networks do not compare. The same between two halves of the real cases
      is what no set can fall below.
    * Diversity: mean MS-SSIM (three scales, 64x64) of pairs of generated images, and of pairs of real ones; a higher
      one than theirs says that the generated images are too much alike.
    * Memorisation: root mean square difference (32x32, values in [0, 1]) of each generated image to the nearest
      training image, and of real test images to theirs; generated ones that are much nearer are copies.

    Diversity and memorisation look at one image a case: of a volume, the slice with the most foreground.

    A case of the evaluator has the label map as ``image`` (the network's input), the real image as ``label`` (the
    target) and the generated one as ``pred``, both in [0, 1].

    Args:
        output_dir: where ``synthesis_per_case.csv``, ``synthesis_summary.csv``, ``synthesis.html`` and
            ``synthesis_grid.png`` go.
        label_names: name to value of the classes.
        segmenter: ``segmenter(image (B, C, *spatial) in [0, 1])`` returns class scores (B, classes, *spatial), class
            k being the k-th of the values in order; ``None`` leaves faithfulness out.
        features: ``features(image (B, C, *spatial))`` returns (N, F) of the image's slices; ``None`` leaves realism
            out.
        feature_name: what the feature network is, for the report.
        training_data: items with ``image`` (C, *spatial) in [0, 1] and ``label``; ``None`` leaves memorisation out.
        settings: what to state about the run.
        title: heading of the page.
        max_pairs: of images whose MS-SSIM is taken.
        overwrite: whether results of an earlier run may be replaced.
        left_out: a line for each case that was left out before the run, or a function that tells when it is over.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        label_names: Mapping[str, int],
        segmenter: Callable[[Tensor], Tensor] | None = None,
        features: Callable[[Tensor], Tensor] | None = None,
        feature_name: str = "",
        training_data: Sequence[Mapping[str, Any]] | None = None,
        settings: Mapping[str, Any] | None = None,
        title: str = "Generated images",
        max_pairs: int = 500,
        overwrite: bool = False,
        left_out: Sequence[str] | Callable[[], Sequence[str]] = (),
    ) -> None:
        self.left_out = left_out
        self.output_dir = Path(output_dir)
        self.label_names = dict(sorted(label_names.items(), key=lambda item: item[1]))  # as a segmenter has them
        self.segmenter, self.features, self.feature_name = segmenter, features, feature_name
        self.training_data, self.settings, self.title = training_data, dict(settings or {}), title
        self.max_pairs, self.overwrite = max_pairs, overwrite

    def attach(self, engine: Engine) -> None:
        """Add the handler to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        if idist.get_world_size() > 1:
            raise InputError("generated images are evaluated in one process; start it without torchrun")
        names = ["synthesis_per_case.csv", "synthesis_summary.csv", "synthesis.html", "synthesis_grid.png"]
        claim_outputs(self.output_dir, names, self.overwrite)
        self.overwrite = True
        self._rows: list[dict[str, Any]] = []
        self._features: dict[str, list[Tensor]] = {"generated": [], "real": []}
        self._pictures: dict[str, list[Tensor]] = {"generated": [], "real": []}
        self._tiles: list[Image.Image] = []
        self._drawn: dict[str, list[Tile]] = {}
        self._timer = Timer()

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """Score the cases of one iteration."""
        for case in engine.state.output:
            given = convert_to_tensor(case["image"])[:1].round()
            images = {"generated": convert_to_tensor(case["pred"])}
            if case.get("label") is not None:
                images["real"] = convert_to_tensor(case["label"])
            name = case_name(case_file(case["image"])) or f"case_{len(self._rows) + 1}"
            row: dict[str, Any] = {"case": name}
            for kind, image in images.items():
                if self.segmenter is not None:
                    row.update(self._faithfulness(kind, image, given))
                if self.features is not None:
                    self._features[kind].append(self.features(image[None].float()).float().cpu())
                self._pictures[kind].append(shown_slice(image, given).float().cpu())
                tile = Tile(f"{name}, {kind}", shown_slice(image, given).cpu().numpy(), _shown_label(given))
                self._drawn.setdefault(name, []).append(tile)
                if len(self._tiles) < 24:  # drawn at once, since volumes would fill the memory
                    tile = Tile(f"{name}, {kind}", image.cpu().numpy(), given[0].cpu().int().numpy())
                    self._tiles.append(draw_tile(tile))
            self._rows.append(row)

    def _faithfulness(self, kind: str, image: Tensor, given: Tensor) -> dict[str, float]:
        classes = len(self.label_names) + 1
        found = one_hot(self.segmenter(image[None].float()).argmax(1, keepdim=True), classes)
        wanted = torch.zeros_like(given)
        for index, value in enumerate(self.label_names.values()):
            wanted = torch.where(given == value, index + 1.0, wanted)
        score = DiceMetric(include_background=False, reduction="none")(found, one_hot(wanted[None], classes))[0]
        names = foreground_names({name: index + 1 for index, name in enumerate(self.label_names)}, classes)
        row = {f"dice_{name}_{kind}": float(value) for name, value in zip(names.values(), score)}
        return {**row, f"dice_mean_{kind}": float(np.nanmean([*row.values(), np.nan]) if row else np.nan)}

    @torch.no_grad()
    def _finish(self, engine: Engine) -> None:
        summary = [*self._mean_dice(), *self._realism(), *self._diversity(), *self._memorisation()]
        engine.state.synthesis_summary = summary
        write_table(self.output_dir / "synthesis_per_case.csv", self._rows)
        write_table(self.output_dir / "synthesis_summary.csv", summary)
        sheet = encode_png(sheet_of(self._tiles))
        write_atomically(self.output_dir / "synthesis_grid.png", sheet)
        seconds = {"seconds in all": round(self._timer.value(), 1)}
        settings = {**self.settings, "feature network": self.feature_name or "none", **weights_and_sampling(engine)}
        settings = {**settings, **seconds, "environment": environment()}
        worst = sorted((row for row in self._rows if "dice_mean_generated" in row), key=_faithful)
        pictures = [self._picture(kind, row) for kind, row in _ends(worst)]
        sheet_of_all = [Picture("Generated and real", "of the same label maps", sheet)]
        body = [
            failed_cases(failures_of(engine, self.left_out)),
            section("Scores", _table(summary), "What each says: the documentation of SynthesisMetrics."),
            section("Distribution over the cases", _charts(self._rows), "Hover over a point for its case."),
            section(
                "All cases",
                case_table(self._rows, {picture.case for picture in pictures}),
                "Dice: of what a segmenter finds in an image with the label map given. Click a heading to sort.",
            ),
            section("Least and most faithful", figures(pictures)),
            section("Generated and real images of the same label maps", figures(sheet_of_all)),
            section("How it was made", settings_table(settings)),
        ]
        text = page(self.title, subtitle(counted(len(self._rows), "case")), body)
        write_atomically(self.output_dir / "synthesis.html", text)
        logger.info("%s: %s", self.output_dir, "; ".join(_one_line(row) for row in summary))

    def _picture(self, kind: str, row: Mapping[str, Any]) -> Picture:
        sheet = encode_png(contact_sheet(self._drawn[row["case"]]))
        return Picture(kind, row["case"], sheet, f"Dice: {row['dice_mean_generated']:.3f}")

    def _mean_dice(self) -> list[dict[str, Any]]:
        names = [key[5:-10] for key in (self._rows[0] if self._rows else {}) if key.endswith("_generated")]
        rows = []
        for name in names:
            values = {
                kind: [row[f"dice_{name}_{kind}"] for row in self._rows if f"dice_{name}_{kind}" in row]
                for kind in ("generated", "real")
            }
            means = {kind: float(np.nanmean(found)) if found else None for kind, found in values.items()}
            rows.append({"metric": f"Dice {name}", **means, "n": len(values["generated"])})
        return rows

    def _realism(self) -> list[dict[str, Any]]:
        if self.features is None or not self._features["real"]:
            return []
        generated, real = (torch.cat(self._features[kind]).double() for kind in ("generated", "real"))
        if min(len(generated), len(real)) < 2:  # one picture has no distribution
            return []
        scale = real.std(dim=0)
        varied = scale > 1e-3 * scale.max()  # a feature that is the same on every real slice has no unit
        if not varied.any():
            return []
        generated, real = (features[:, varied] / scale[varied] for features in (generated, real))
        rows, several = [], len(self._features["real"]) > 3  # a half needs two cases
        parts = [torch.cat(self._features["real"][start::2]).double() for start in (0, 1) if several]
        halves = [part[:, varied] / scale[varied] for part in parts]
        for name, metric in (("FID", FIDMetric()), ("MMD", _mmd)):
            among_real = float(metric(*halves)) if several else None
            value = float(metric(generated, real))
            rows.append({"metric": name, "generated": value, "real": among_real, "n": len(generated)})
        return rows

    def _diversity(self) -> list[dict[str, Any]]:
        found: dict[str, Any] = {"metric": "MS-SSIM of pairs", "generated": None, "real": None}
        for kind, pictures in self._pictures.items():
            if len(pictures) > 1:
                found[kind] = mean_similarity(_resized(pictures, SSIM_SIZE), self.max_pairs)
        return [{**found, "n": len(self._pictures["generated"])}] if found["generated"] is not None else []

    def _memorisation(self) -> list[dict[str, Any]]:
        if self.training_data is None:
            return []
        known = _thumbnails(_slices(self.training_data))
        rows: dict[str, dict[str, Any]] = {
            name: {"metric": f"{name} distance to the nearest training image"} for name in ("mean", "least")
        }
        for kind, pictures in self._pictures.items():
            if pictures:
                nearest = nearest_distances(_thumbnails(pictures), known)
                rows["mean"][kind], rows["least"][kind] = float(nearest.mean()), float(nearest.min())
        return [{**row, "n": len(self._pictures["generated"])} for row in rows.values()]


def _faithful(row: Mapping[str, Any]) -> float:
    return -1.0 if np.isnan(row["dice_mean_generated"]) else row["dice_mean_generated"]


def _ends(ranked: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """The first two and the last two cases, none twice."""
    ends = (("Least faithful", ranked[:2]), ("Most faithful", ranked[2:][-2:]))
    return [(kind, row) for kind, rows in ends for row in rows]


def _charts(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = [key for key in (rows[0] if rows else {}) if key.startswith("dice_") and not key.startswith("dice_mean")]
    groups = {key[5:].replace("_", " "): {row["case"]: row[key] for row in rows if key in row} for key in columns}
    return f'<div class="charts">{strip_chart(groups, "Dice", 1.0)}</div>' if groups else ""


def _shown_label(given: Tensor) -> np.ndarray:
    return shown_slice(given, given)[0].cpu().int().numpy()


def shown_slice(image: Tensor, label: Tensor) -> Tensor:
    """Return one picture (C, H, W) of an image (C, *spatial): of a volume, the slice with the most foreground."""
    return image if image.ndim == 3 else image[..., int((label > 0).sum(dim=(0, 1, 2)).argmax())]


def mean_similarity(pictures: Tensor, max_pairs: int) -> float:
    """Return the mean MS-SSIM of pairs of pictures (N, C, 64, 64) in [0, 1], N at least 2; evenly chosen pairs."""
    first, second = torch.triu_indices(len(pictures), len(pictures), 1)
    chosen = torch.linspace(0, len(first) - 1, min(max_pairs, len(first))).round().long()
    metric = MultiScaleSSIMMetric(**_SSIM_OPTIONS)
    values = [metric(pictures[first[part]], pictures[second[part]]).flatten() for part in chosen.split(64)]
    return float(torch.cat(values).mean())


def nearest_distances(pictures: Tensor, known: Tensor) -> Tensor:
    """Return the root mean square difference of each of (N, P) pictures to the nearest of (M, P) others, (N,)."""
    parts = [torch.cdist(pictures, part).amin(dim=1) for part in known.split(4096)]
    return torch.stack(parts).amin(dim=0) / pictures.shape[1] ** 0.5


def _slices(data: Iterable[Mapping[str, Any]]) -> list[Tensor]:
    """All images (C, H, W) of a data set: of volumes every slice."""
    found: list[Tensor] = []
    for item in data:
        image = convert_to_tensor(item["image"]).float()
        found.extend(image.unbind(-1) if image.ndim == 4 else [image])
    return found


def _thumbnails(pictures: Iterable[Tensor]) -> Tensor:
    return _resized(pictures, NEAREST_SIZE).flatten(1)


def _resized(pictures: Iterable[Tensor], size: int) -> Tensor:
    options = {"size": (size, size), "mode": "bilinear", "antialias": True}
    return torch.cat([F.interpolate(picture[None].float(), **options) for picture in pictures])


def _mmd(generated: Tensor, real: Tensor) -> Tensor:
    """MONAI's MMD wants two sets of one size: as many of the larger one as the smaller has, evenly chosen."""
    count = min(len(generated), len(real))
    chosen = (items[torch.linspace(0, len(items) - 1, count).round().long()] for items in (real, generated))
    return MMDMetric()(*chosen)


def _table(summary: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", "generated", "real", "n"))
    body = "".join(
        f"<tr><td>{escape(str(row['metric']))}</td>"
        + "".join(f"<td>{_number(row.get(kind))}</td>" for kind in ("generated", "real", "n"))
        + "</tr>"
        for row in summary
    )
    return html_table(head, body)


def _number(value: Any) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.4g}"


def _one_line(row: Mapping[str, Any]) -> str:
    return f"{row['metric']} {_number(row.get('generated'))} (real {_number(row.get('real')) or 'unknown'})"
