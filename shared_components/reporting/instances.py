"""How well single objects, such as nuclei, are found and told apart."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from skimage.measure import label as connected_components
from skimage.metrics import contingency_table
from skimage.segmentation import relabel_sequential
from torch import Tensor

from shared_components.ensembling.instances import SPLITS, check_sizes, find_instances
from shared_components.errors import InputError, check_choice
from shared_components.reporting.files import case_name
from shared_components.reporting.metrics import as_array

logger = logging.getLogger(__name__)

MATCH_IOU = 0.5
_ANNOTATION_SUFFIX = ".xml"


class InstanceScores:
    """Find the objects of a prediction and compare them with those of the reference, for `CaseMetrics`.

    Objects of the reference are given by a numbered map or, without one, are the connected parts of the label
    map, in which objects that touch are one. All foreground classes count as one. Pixels that nobody judged are taken
    out of both maps before objects are matched: what is left of an object counts.

    Args:
        split: how the prediction becomes objects, see `find_instances`: "components", "distance" or
            "probability".
        min_distance: as in `find_instances`.
        min_size: as in `find_instances`, for the prediction alone.
    """

    def __init__(self, split: str = "distance", min_distance: int = 4, min_size: int = 10) -> None:
        check_choice("split", split, SPLITS)
        check_sizes(min_distance, min_size)
        self.split, self.min_distance, self.min_size = split, min_distance, min_size

    def __call__(
        self, prediction: Tensor, label: Tensor, instances: Tensor | None = None, ignored: Tensor | None = None
    ) -> dict[str, float]:
        """Score one case.

        Args:
            prediction: (C, *spatial) class probabilities, or a (1, *spatial) label map.
            label: (1, *spatial) label map or (C, *spatial) one-hot, on the same grid.
            instances: (1, *spatial) numbers of the reference's objects, 0 where there is none.
            ignored: (1, *spatial) bool, pixels that nobody judged, if there are any.

        Returns:
            As `score_instances`.

        Raises:
            InputError: the grids differ.
        """
        reference = label if instances is None else instances
        if prediction.shape[1:] != reference.shape[1:]:
            raise InputError(
                f"prediction of shape {tuple(prediction.shape[1:])} and objects of shape "
                f"{tuple(reference.shape[1:])}: they must be on one grid; load the objects without preprocessing"
            )
        prediction, reference = as_array(prediction), as_array(reference)
        if instances is None:
            numbers = connected_components(_foreground(reference), connectivity=1)
        else:
            numbers = np.round(reference[0]).astype(np.int64)
        probability = 1 - prediction[0] if len(prediction) > 1 else None
        foreground = _foreground(prediction)
        found = find_instances(foreground, self.split, probability, self.min_distance, self.min_size)
        if ignored is not None:
            judged = as_array(ignored)[0] == 0
            found, numbers = found * judged, numbers * judged
        return score_instances(found, numbers)


def score_instances(prediction: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Compare two numbered maps of objects.

    Two objects match where their intersection over union exceeds 0.5, which no second object can then. Where
    neither map has an object every score is 1; where one of them has none, 0.

    Args:
        prediction: (*spatial) whole numbers, 0 for the background.
        reference: (*spatial) likewise.

    Returns:
        ``aji``: aggregated Jaccard index (Kumar et al., "A Dataset and a Technique for Generalized Nuclear
        Segmentation for Computational Pathology", IEEE TMI 36(7), 2017, algorithm 1), where an object of the
        reference that nothing touches adds its size to the union. ``pq``: panoptic quality (Kirillov et al.,
        CVPR 2019). ``f1_iou50``: F1 score of the matches. ``instances_reference`` and
        ``instances_predicted``: how many objects there are.
    """
    overlap = _overlaps(prediction, reference)
    shared = overlap[1:, 1:]
    sizes, found_sizes = overlap[1:].sum(axis=1), overlap[:, 1:].sum(axis=0)
    iou = shared / np.maximum(sizes[:, None] + found_sizes - shared, 1)
    counts = {"instances_reference": len(sizes), "instances_predicted": len(found_sizes)}
    if not len(sizes) or not len(found_sizes):
        return {**dict.fromkeys(("aji", "pq", "f1_iou50"), float(len(sizes) == len(found_sizes))), **counts}
    matched = iou[iou > MATCH_IOU]
    objects = (len(sizes) + len(found_sizes)) / 2
    return {
        "aji": _aggregated_jaccard(shared, iou, sizes, found_sizes),
        "pq": float(matched.sum() / objects),
        "f1_iou50": len(matched) / objects,
        **counts,
    }


def _overlaps(prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Count the pixels that objects share: (1 + reference's objects, 1 + prediction's), the background first."""
    numbers = [relabel_sequential(np.asarray(item).astype(np.int64))[0] for item in (reference, prediction)]
    return np.asarray(contingency_table(*numbers).todense()).astype(np.float64)


def _aggregated_jaccard(shared: np.ndarray, iou: np.ndarray, sizes: np.ndarray, found_sizes: np.ndarray) -> float:
    best = iou.argmax(axis=1)
    common = shared[np.arange(len(best)), best]
    touched = common > 0
    unused = np.setdiff1d(np.arange(len(found_sizes)), best[touched])
    union = sizes.sum() + found_sizes[best[touched]].sum() - common.sum() + found_sizes[unused].sum()
    return float(common.sum() / union)


def add_instances(datalist: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Add ``instances`` to the cases whose numbered map lies in ``instances/`` beside the label's folder.

    So ``images/a.png``, ``masks/a.png`` and ``instances/a.png`` are one case. A label that is an Aperio annotation
    (``.xml``) is its own numbered map where there is no other; so is one in ``instances/``.
    `shared_components.data.loaders.LoadInstancesd` loads either. A case without a map is scored by the connected
    parts of its label; that is said in the log.

    Args:
        datalist: ``[{"image": path, "label": path}, ...]``.
    """
    folders = [Path(case["label"]).parent.parent / "instances" for case in datalist]
    maps = {folder: _numbered_maps(folder) for folder in set(folders)}
    cases = []
    for case, folder in zip(datalist, folders):
        file = maps[folder].get(_stem(case["label"]), os.fspath(case["label"]) if _annotated(case["label"]) else None)
        cases.append(dict(case) if file is None else {**case, "instances": file})
    missing = sum("instances" not in case for case in cases)
    if missing:
        logger.warning(
            "%d of %d cases have no numbered objects: the connected parts of their labels stand in for them",
            missing,
            len(cases),
        )
    return cases


def _numbered_maps(folder: Path) -> dict[str, str]:
    files = sorted(folder.iterdir(), key=lambda file: (not _annotated(file), file)) if folder.is_dir() else []
    return {_stem(file): os.fspath(file) for file in files if not file.name.startswith(".")}  # a map before polygons


def _annotated(file: str | os.PathLike) -> bool:
    return os.fspath(file).lower().endswith(_ANNOTATION_SUFFIX)


def _stem(file: str | os.PathLike) -> str:
    """Return the name of the case that a label or a numbered map belongs to."""
    return Path(file).stem if _annotated(file) else case_name(os.fspath(file))


def _foreground(item: np.ndarray) -> np.ndarray:
    """(C, *spatial) scores or a (1, *spatial) label map as (*spatial) bool."""
    return item.argmax(axis=0) > 0 if len(item) > 1 else np.round(item[0]) > 0
