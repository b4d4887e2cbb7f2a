"""The page about an adaptation: scores before and after, generated pairs, segmentations of the target."""

from __future__ import annotations

import base64
import csv
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from PIL import Image

from shared_components.adaptation.command_line import command
from shared_components.adaptation.pairs import SHEET, read_grey
from shared_components.adaptation.pseudo_labels import load_weights, target_images
from shared_components.adaptation.scale import folder_width, target_sheet
from shared_components.data.datalists import datalist
from shared_components.data.formats.files import image_stem
from shared_components.data.loaders import LoadLabelMapd
from shared_components.errors import InputError
from shared_components.reporting.files import write_atomically
from shared_components.reporting.overlays import encode_png
from shared_components.reporting.page import page, section
from shared_components.reporting.report import environment, subtitle
from shared_components.reporting.tables import heading_of, html_table, number, settings_table

REPORT = "report.html"
NUM_SHOWN = 4
_NUM_CROPS = 12
_PANEL = 320
_ROWS = {
    "segmenter": "source only",
    "adapted": "adapted",
    "ceiling": "trained on the target's labels",
}
_METRICS = ("dice_{}", "iou_{}", "hd95_px_{}", "ece_near_foreground", "error_auroc_near_foreground")
_LABELS = {"vessel": 1}
_OF_INFERENCE = ("clip_limit", "num_channels", "labels", "num_samples", "combine")
_OF_A_STAGE = ("dataset_dir", "vessel_polarity", "longest_side", "ckpt_path", "output_dir")


def write_adaptation_report(
    bundle: Path, output: Path, data: Any, stages: Sequence[Any], overlay: str | None = None
) -> Path:
    """Write ``report.html`` into the run's folder.

    Args:
        bundle: folder of the bundle, whose ``inference.json`` says how to segment.
        output: folder of the run.
        data: `shared_components.adaptation.stages.Data`.
        stages: that were run; the folders of those below ``scores/`` hold tables.
        overlay: configuration added to ``inference.json``.
    """
    scores = {
        stage.folder.split("/")[1]: read_summary(output / stage.folder) for stage in stages if "/" in stage.folder
    }
    evaluation = next(stage for stage in stages if stage.config == "evaluate")
    overrides = {key: value for key, value in evaluation.overrides.items() if key not in _OF_A_STAGE}
    label, part = next(iter(overrides.get("labels", _LABELS))), overrides.get("section", "test")
    tables = [
        section(
            f"Scores on the {domain}'s {part} cases", *(make(scores, domain, label) for make in (_score_table, _gap))
        )
        for domain in ("target", "source")
    ]
    pictures = _target_pictures(bundle, output, data, overrides, overlay, labelled="target_adapted" in scores)
    pairs = _figure("each generated image above its mask", (output / "pairs" / SHEET).read_bytes())
    note = "Image as the network sees it; what the network found before and after adaptation"
    note += "; reference." if "target_adapted" in scores else ". There are no labels of this target to compare with."
    stated = {"data": data._asdict(), **{stage.folder: stage.overrides for stage in stages if "/" not in stage.folder}}
    body = [
        *tables,
        section("Images of the target, segmented", "".join(pictures), note),
        section("Generated pairs", pairs, "The masks are of the source; the images are made for them."),
        section("Scale", *_scale(bundle, output, data, overrides, overlay)),
        section("Segmenting other pictures of the target", *_use(bundle, output, data, overrides, overlay)),
        section("How it was made", settings_table({**stated, "environment": environment()})),
    ]
    title = "AdaptDiff: from one modality to another"
    return write_atomically(output / REPORT, page(title, subtitle(f"{len(stages)} stages"), body))


def read_summary(folder: Path) -> dict[str, float]:
    """Return the means of ``metrics_summary.csv``, by metric."""
    with open(folder / "metrics_summary.csv", newline="", encoding="utf-8") as file:
        return {row["metric"]: float(row["mean"]) for row in csv.DictReader(file)}


def _score_table(scores: Mapping[str, Mapping[str, float]], domain: str, label: str) -> str:
    rows = [(name, scores[f"{domain}_{key}"]) for key, name in _ROWS.items() if f"{domain}_{key}" in scores]
    if not rows:
        return ""
    metrics = [metric.format(label) for metric in _METRICS]
    columns = [metric for metric in metrics if any(metric in row for _, row in rows)]
    head = "".join(f"<th>{escape(heading_of(column))}</th>" for column in columns)
    lines = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(f"<td>{number(row.get(column, math.nan))}</td>" for column in columns)
        + "</tr>"
        for name, row in rows
    )
    return html_table(f"<th></th>{head}", lines)


def _gap(scores: Mapping[str, Mapping[str, float]], domain: str, label: str) -> str:
    """Say which share of the gap between source only and the ceiling the adaptation closes."""
    names = [f"{domain}_{key}" for key in _ROWS]
    if not all(name in scores for name in names):
        return ""
    before, after, ceiling = (scores[name][f"dice_{label}"] for name in names)
    if not ceiling > before:
        return "There is no gap to close: the network of the source is as good as one that knows the target's labels."
    if after < before:
        return f"Adaptation does harm here: Dice falls from {before:.3f} to {after:.3f}; {ceiling:.3f} is possible."
    return f"Adaptation closes {100 * (after - before) / (ceiling - before):.0f} % of the gap in Dice."


def _target_pictures(
    bundle: Path, output: Path, data: Any, overrides: Mapping[str, Any], overlay: str | None, labelled: bool
) -> list[str]:
    keys = {**overrides, **data.keys("target"), "bundle_root": str(bundle)}
    labels, channels = overrides.get("labels", _LABELS), overrides.get("num_channels", 3)
    split, skip_bad = _split(overrides), overrides.get("skip_bad", False)
    if labelled:
        part = overrides.get("section", "test")
        items = datalist(data.target, part, labels, skip_bad, channels, spatial_dims=2, **split)
    else:
        items = _test_images(data.target, skip_bad, channels, split)
    found = [
        segment(bundle, keys, overlay, output / name / "model.pt", items[:NUM_SHOWN])
        for name in _ROWS
        if name != "ceiling"
    ]
    figures = []
    for item, (image, before), (_, after) in zip(items, *found):
        panels = [image, 255 * before, 255 * after]
        if labelled:
            panels.append(255 * np.asarray(LoadLabelMapd("label", labels)(item)["label"][0]).T)
        figures.append(_figure(Path(str(item["image"])).name, _side_by_side(panels)))
    return figures


def _use(bundle: Path, output: Path, data: Any, overrides: Mapping[str, Any], overlay: str | None) -> tuple[str, str]:
    """Return the command that segments by the adapted network, with the size and polarity it was adapted with."""
    files = [bundle / "configs" / f"{name}.json" for name in ("inference", overlay) if name]
    same = {key: value for key, value in overrides.items() if key in _OF_INFERENCE or key.startswith("segmenter")}
    keys = {"dataset_dir": "FOLDER", "output_dir": "OUT", "ckpt_path": output / "adapted" / "model.pt"}
    shown = shlex.join(["python", *command(files, {**same, **data.keys("target"), **keys})])
    note = (
        "FOLDER has the pictures. Size and polarity are those that the network was adapted with; with others it fails."
    )
    return f"<p><code>{escape(shown)}</code></p>", note


def _split(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that say how a folder is divided."""
    return {key: overrides[key] for key in ("fold", "num_folds", "patient_pattern") if key in overrides}


def _scale(bundle: Path, output: Path, data: Any, overrides: Mapping[str, Any], overlay: str | None) -> tuple[str, str]:
    """Return a figure and a sentence by which to judge whether vessels are equally wide in source and target."""
    labels, masks = output / "diffusion" / "pseudo_labels" / "train", output / "pairs" / "masks"
    channels, split = overrides.get("num_channels", 3), _split(overrides)
    items = target_images(data.target, "train", True, channels, **split)
    items = [item for item in items if _label_of(labels, item).is_file()]
    if not items:
        return "", ""
    keys = {**overrides, **data.keys("target"), "bundle_root": str(bundle)}
    preprocessing = _configured(bundle, keys, overlay).get_parsed_content("preprocessing")
    shown = items[:: -(-len(items) // _NUM_CROPS)]
    images = {_label_of(labels, item).name: _as_seen(preprocessing, item) for item in shown}
    size = read_grey(next(masks.glob("*.png"))).shape
    figure = _figure("images of the target above their pseudo-labels", target_sheet(images, labels, size))
    return figure, (
        f"One pixel here is one above. Vessels are {folder_width(masks):.1f} pixels wide in the source's masks and "
        f"{folder_width(labels):.1f} in the pseudo-labels (area by length), which miss thin vessels first and so look "
        "wider. They should be as wide in the images of the target as in the generated ones: if not, change "
        "longest_side, which costs no label and is worth more than any other setting."
    )


def _label_of(folder: Path, item: Mapping[str, Any]) -> Path:
    image = item["image"]
    return folder / f"{image_stem(Path(image if isinstance(image, str) else image[0]).name)}.png"


def _test_images(folder: str, skip_bad: bool, num_channels: int, split: Mapping[str, Any]) -> list[dict[str, Any]]:
    try:
        return target_images(folder, "test", skip_bad, num_channels, **split)
    except InputError:  # too few images for a section of their own
        return target_images(folder, "train", skip_bad, num_channels, **split)


def segment(
    bundle: Path, keys: Mapping[str, Any], overlay: str | None, weights: Path, items: Sequence[Mapping[str, Any]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Segment images by ``inference.json``, with other weights and keys.

    Returns:
        Of each the image as the network sees it, 0..255, and the mask, 0 or 1; both (rows, columns).
    """
    parser = _configured(bundle, keys, overlay)
    network, preprocessing = (parser.get_parsed_content(name) for name in ("network_def", "preprocessing"))
    load_weights(network, weights)
    device = torch.device(parser.get_parsed_content("device"))
    network.to(device).eval()
    results = []
    with torch.inference_mode():
        for item in items:
            image = preprocessing({"image": item["image"]})["image"].as_tensor()
            mask = network(image[None].to(device))[0].argmax(dim=0).cpu()
            results.append((255 * image[0].numpy().T, mask.numpy().T))
    return results


def _configured(bundle: Path, keys: Mapping[str, Any], overlay: str | None) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / f"{name}.json") for name in ("inference", overlay) if name])
    parser.update(dict(keys))
    return parser


def _as_seen(preprocessing: Callable[[Mapping[str, Any]], Mapping[str, Any]], item: Mapping[str, Any]) -> np.ndarray:
    """Return an image as the network sees it, (rows, columns) in 0..255."""
    return 255 * preprocessing({"image": item["image"]})["image"].as_tensor()[0].numpy().T


def _side_by_side(panels: Sequence[np.ndarray]) -> bytes:
    images = [Image.fromarray(np.clip(panel, 0, 255).astype(np.uint8)) for panel in panels]
    width, height = images[0].size
    size = (_PANEL, max(1, round(_PANEL * height / width)))
    joined = np.concatenate([np.asarray(image.resize(size)) for image in images], axis=1)
    return encode_png(np.repeat(joined[..., None], 3, axis=2))


def _figure(caption: str, png: bytes) -> str:
    data = base64.b64encode(png).decode("ascii")
    caption = escape(caption)
    return (
        f'<figure><figcaption>{caption}</figcaption><img alt="{caption}" src="data:image/png;base64,{data}"></figure>'
    )
