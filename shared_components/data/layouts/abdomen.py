"""The folders in which abdominal data lie for CDM: CHAOS and BTCV (Synapse) as they are shipped, and as prepared."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shared_components.data.formats.arrays import is_stack
from shared_components.data.formats.files import image_files, image_stem, is_series
from shared_components.data.formats.ground import GROUND, GROUND_LABELS, SERIES
from shared_components.data.layouts.case_folder import Case
from shared_components.errors import InputError

BTCV_LABELS = {
    "spleen": 1, "right kidney": 2, "left kidney": 3, "gallbladder": 4, "oesophagus": 5, "liver": 6, "stomach": 7,
    "aorta": 8, "inferior vena cava": 9, "portal and splenic vein": 10, "pancreas": 11, "right adrenal gland": 12,
    "left adrenal gland": 13,
}  # fmt: skip
_BTCV_PARTS = ("", "Training", "RawData/Training")
_BTCV_NAME = re.compile(r"(?P<kind>img|label)(?P<number>\d+)$")
_SEQUENCES = {"MR": "T2SPIR", "CT": ""}  # the other MR sequence, T1DUAL, is two series to one ground truth


@dataclass
class AbdomenCases:
    """The cases of one of the data sets.

    Attributes:
        layout: "chaos", "btcv" or "stacks"; "images" where none has a label.
        cases: volume and label of each; the label is ``None`` where there is none.
        label_names: name to value, as the loaders read them.
    """

    layout: str
    cases: list[Case]
    label_names: dict[str, int] = field(default_factory=dict)


def abdomen_cases(root: Path) -> AbdomenCases | None:
    """Understand CHAOS or BTCV as they are shipped, or stacks; ``None`` for any other folder.

    CHAOS is ``CT/<n>/`` or ``MR/<n>/T2SPIR/``, each with a series in ``DICOM_anon/`` and, in the training part, a
    picture a slice in ``Ground/`` (`shared_components.data.formats.ground`); ``dataset_dir`` is the folder of the
    numbers, the one above it or a ``Train_Sets/`` in that. BTCV is ``img/img0001.nii.gz`` and
    ``label/label0001.nii.gz``, there or in ``Training/``. Stacks are what the published CDM prepares of either: a
    NumPy array a patient, (slices, 2, rows, columns) of image and label map, there or in ``preprocessed/``; its
    ``splits.pkl`` is not read.

    Raises:
        InputError: CT and MR volumes of CHAOS lie in one folder: their intensities and labels are different ones.
    """
    return _chaos(root) or _btcv(root) or _stacks(root)


def _chaos(root: Path) -> AbdomenCases | None:
    found: dict[str, list[Case]] = {}
    for top in (root, root / "Train_Sets", root / "Test_Sets"):
        for modality in _SEQUENCES:
            if (top / modality).is_dir() and (cases := list(_chaos_cases(top / modality))):
                found.setdefault(modality, cases)
    if len(found) > 1:
        raise InputError(
            f"{root}: CHAOS with CT and MR volumes, whose labels are different ones; give the folder of one of them as "
            "dataset_dir, such as Train_Sets/MR"
        )
    cases = next(iter(found.values()), None) or (list(_chaos_cases(root)) if root.name in _SEQUENCES else [])
    if not cases:
        return None
    labelled = any(case.label for case in cases)
    return AbdomenCases("chaos", cases, GROUND_LABELS) if labelled else AbdomenCases("images", cases)


def _chaos_cases(folder: Path) -> Iterator[Case]:
    """Yield the cases of the folder ``CT`` or ``MR``."""
    numbers = [child for child in folder.iterdir() if child.is_dir() and child.name.isdigit()]
    for patient in sorted(numbers, key=lambda child: int(child.name)):
        place = patient / _SEQUENCES[folder.name]
        if is_series(place / SERIES):
            ground = place / GROUND if image_files(place / GROUND) else None
            yield Case(f"{folder.name}_{int(patient.name):02d}", (place / SERIES,), ground, named=True)


def _btcv(root: Path) -> AbdomenCases | None:
    for part in _BTCV_PARTS:
        images, labels = (_numbered(root / part / kind, kind) for kind in ("img", "label"))
        if images and labels:
            cases = [
                Case(f"img{number}", (images[number],) if number in images else (), labels.get(number))
                for number in sorted({*images, *labels})
            ]
            return AbdomenCases("btcv", cases, BTCV_LABELS)
    return None


def _stacks(root: Path) -> AbdomenCases | None:
    for part in (root, root / "preprocessed"):
        files = image_files(part)
        if files and all(map(is_stack, files)):
            return AbdomenCases("stacks", [Case(image_stem(file.name) or file.name, (file,), file) for file in files])
    return None


def _numbered(folder: Path, kind: str) -> dict[str, Path]:
    """Return the files ``<kind>0001`` of a folder by number; none if one of its images is called otherwise."""
    matches = {path: _BTCV_NAME.match(image_stem(path.name) or "") for path in image_files(folder)}
    if not all(match and match["kind"] == kind for match in matches.values()):
        return {}
    return {match["number"]: path for path, match in matches.items() if match}
