"""Labels that a segmenter of another domain gives to unlabelled images, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from skimage.morphology import remove_small_objects
from torch import Tensor, nn
from tqdm import tqdm

from shared_components.data.datalists import inference_cases, note_failure
from shared_components.data.formats.files import image_stem, write_json
from shared_components.data.layouts.cases import find_cases
from shared_components.data.layouts.split import choose_split, sections
from shared_components.diffusion.metadata import plain
from shared_components.errors import InputError, check_choice
from shared_components.training.files import load_safely
from shared_components.whole_files import whole_folder

logger = logging.getLogger(__name__)

STATISTICS = ("source", "target")
DESCRIPTION = "pseudo_labels.json"


def target_images(
    dataset_dir: str | os.PathLike,
    section: str,
    skip_bad: bool = False,
    num_channels: int = 3,
    fold: int | None = None,
    num_folds: int = 5,
    patient_pattern: str | None = None,
) -> list[dict[str, Any]]:
    """List a section's images of the target domain; labels in the folder are not looked at.

    The sections are those of `shared_components.data.layouts.split.sections`, so that images kept for scoring are not
    trained on.

    Args:
        dataset_dir: folder of the data set, of any layout.
        section: "train", "validation" or "test".
        skip_bad: leave out unreadable images, with a warning, instead of refusing the section.
        num_channels: that the images are loaded with.
        fold, num_folds, patient_pattern: how the folder is divided, as for `shared_components.data.datalists.datalist`.

    Raises:
        InputError: the folder does not exist, an image cannot be used, or the section has none.
    """
    usable, failures = inference_cases(dataset_dir, num_channels, spatial_dims=2)
    if failures and not skip_bad:
        raise InputError(
            f"{dataset_dir}: {len(failures)} images cannot be used (--skip_bad True leaves them out): {failures[0]}"
        )
    if failures:
        logger.warning("%s: %d images left out: %s", dataset_dir, len(failures), " | ".join(failures))
    folder = find_cases(dataset_dir, num_channels)
    choose_split(folder, fold, num_folds, patient_pattern)
    for failure in failures:
        note_failure(folder.root, failure, failure)
    ids = set(sections(folder)[section])
    wanted = {str(case.images[0]) for case in folder.cases if case.id in ids and case.images}
    found = [item for item in usable if _first(item["image"]) in wanted]
    if not found:
        raise InputError(f"{dataset_dir}: no usable image in section '{section}'; add images or change split.json")
    return found


def _first(image: str | Sequence[str]) -> str:
    return image if isinstance(image, str) else image[0]


@torch.no_grad()
def adapt_statistics(network: nn.Module, images: Sequence[Tensor]) -> None:
    """Re-estimate the statistics of all batch normalisations over a set of images, then freeze them.

    Adaptive batch normalisation (Li et al. 2017). The published code labels in training mode, so that a label depends
    on the batch it was in, while its running statistics drift; this is what may be useful in that, made repeatable.

    Args:
        network: changed in place, in evaluation mode afterwards.
        images: each (B, K, H, W), all of the target domain; every image weighs the same.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    network.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain average over the calls
        layer.train()
    for image in images:
        network(image)
    network.eval()
    for layer, momentum in zip(layers, momenta):
        layer.momentum = momentum


def pseudo_labelled(
    items: Sequence[Mapping[str, Any]],
    network: nn.Module,
    weights: str | os.PathLike,
    preprocessing: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    output_dir: str | os.PathLike,
    statistics: str = "source",
    device: str | torch.device = "cpu",
    settings: Mapping[str, Any] | None = None,
    max_share: float = 1.0,
    min_size: int = 0,
) -> list[dict[str, Any]]:
    """Label images by a segmenter and return them as a datalist with labels.

    Labels are hard, 0 or 1, as in the published AdaptDiff: the more probable class, here with what `confident_mask`
    leaves of it. They are computed once for whole images, in evaluation mode and without gradients, and kept as
    ``<output_dir>/<image>.png`` (8 bits, 0 or 255) on the grid that the preprocessing leaves; if the same weights and
    settings made what is there, it is used.

    Args:
        items: of `target_images`.
        network: (1, K, W, H) to class probabilities (1, 2, W, H) of any size; its weights are loaded here.
        weights: file of its state dict.
        preprocessing: of an item with "image".
        output_dir: where the labels lie.
        statistics: of the batch normalisations: ``source``, as trained, or ``target`` (`adapt_statistics`).
        device: to run on.
        settings: what else the labels depend on, stated beside them.
        max_share, min_size: see `confident_mask`.

    Raises:
        InputError: no such weights or weights of another network, an unknown name, a share or size out of its range, or
            two images of one name.
    """
    if not 0 < max_share <= 1 or min_size < 0:
        raise InputError(f"max_share {max_share}, min_size {min_size}: expected a share above 0, a size of at least 0")
    check_choice("pseudo_label_statistics", statistics, STATISTICS)
    folder = Path(output_dir)
    labels = [folder / f"{image_stem(Path(_first(item['image'])).name)}.png" for item in items]
    if len(set(labels)) < len(labels):
        raise InputError(f"{_first(items[0]['image'])}: two images have one name; give every image a name of its own")
    listed = [{**item, "label": str(label)} for item, label in zip(items, labels)]
    settings = {**(settings or {}), "max_share": max_share, "min_size": min_size}
    stated = _stated(weights, statistics, [_first(item["image"]) for item in items], settings)
    if _is_current(folder, stated, labels):
        logger.info("%s: %d pseudo-labels are there already", folder, len(labels))
        return listed
    load_weights(network, weights)
    network = network.to(device)
    if statistics == "target":
        adapt_statistics(network, _Batches(items, preprocessing, device))
    network.eval()
    with whole_folder(folder, replace=True) as made:
        for item, label in tqdm(list(zip(items, labels)), "pseudo-labels", leave=False):
            probability = _segment(network, preprocessing(item)["image"], device)
            _write_mask(confident_mask(probability, max_share, min_size), made / label.name)
        write_json(made / DESCRIPTION, stated)
    return listed


def load_weights(network: nn.Module, weights: str | os.PathLike) -> None:
    """Load a flat state dict strictly.

    Raises:
        InputError: no such file, or weights of another network.
    """
    if not Path(weights).is_file():
        raise InputError(f"{weights}: no such weights; run configs/train_segmenter.json first, or give segmenter_ckpt")
    try:
        network.load_state_dict(load_safely(weights))
    except (RuntimeError, AttributeError, TypeError) as error:
        raise InputError(f"{weights}: weights of another network; give those of train_segmenter.json") from error


class _Batches(Sequence):
    """Preprocessed images one by one, none kept."""

    def __init__(self, items: Sequence[Mapping], preprocessing: Callable, device: str | torch.device) -> None:
        self.items, self.preprocessing, self.device = items, preprocessing, device

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor:
        return plain(self.preprocessing(self.items[index])["image"])[None].to(self.device)


@torch.inference_mode()
def _segment(network: nn.Module, image: Tensor, device: str | torch.device) -> np.ndarray:
    """Return the probability of foreground (W, H) of an image (K, W, H)."""
    return network(plain(image)[None].to(device))[0, 1].cpu().numpy()


def confident_mask(probability: np.ndarray, max_share: float = 1.0, min_size: int = 0) -> np.ndarray:
    """Return what of a probability map is foreground, (W, H) bool.

    On another modality a network is sure of too much: it takes speckle for vessels. What is known of the anatomy
    without a label, that vessels cover no more than a share of an image and hang together, takes most of that away.
    The published method does neither.

    Args:
        probability: of foreground, (W, H).
        max_share: only the most probable pixels are foreground, at most this share of the image, of those above 1/2.
        min_size: connected regions (eight neighbours) of fewer pixels are background.
    """
    mask = probability > max(0.5, float(np.quantile(probability, 1 - max_share)))
    return remove_small_objects(mask, max_size=min_size - 1, connectivity=2) if min_size > 1 else mask


def _write_mask(mask: np.ndarray, path: Path) -> None:
    """Write a mask (W, H) as an 8-bit picture of 0 and 255, its first axis to the right."""
    Image.fromarray(np.where(mask.T, 255, 0).astype(np.uint8)).save(path)


def _stated(
    weights: str | os.PathLike, statistics: str, images: Sequence[str], settings: Mapping[str, Any] | None
) -> dict[str, Any]:
    path = Path(weights)
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    stated = {"weights": digest, "statistics": statistics, "images": list(images), "settings": dict(settings or {})}
    return json.loads(json.dumps(stated, default=str))


def _is_current(folder: Path, stated: Mapping[str, Any], labels: Sequence[Path]) -> bool:
    try:
        found = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return found == stated and all(label.is_file() for label in labels)
