"""Which label values make the nested regions of a brain tumour, in the numbering of the data at hand."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from shared_components.data.checks.cases import usual_spatial_dims
from shared_components.data.formats.files import UnusableImage
from shared_components.data.formats.scan import scan_values
from shared_components.data.formats.volumes import open_volume
from shared_components.data.layouts.case_folder import CaseFolder
from shared_components.data.layouts.cases import find_cases
from shared_components.errors import InputError

logger = logging.getLogger(__name__)

PHANTOM_REGIONS = [[1, 2, 3], [2, 3], [3]]
# BRATS 2012 to 2016 (1 necrosis, 2 oedema, 3 non-enhancing, 4 enhancing); BraTS 2017 to 2021 have no 3
ENHANCING_IS_4 = [[1, 2, 3, 4], [1, 3, 4], [4]]
# in this order: "surrounding non-enhancing FLAIR hyperintensity" is oedema, "non-enhancing" core
_PARTS = {
    "oedema": r"o?edema|\bed\b|snfh|hyperintens|invaded",
    "core": r"non[ _-]*enhanc|necro|\bncr\b|\bnetc?\b|^core$",
    "enhancing": r"enhanc|\bet\b|\bat\b",
}
_OVERRIDE = (
    "say which values make whole tumour, core and enhancing tumour, such as "
    "--label_values '[[1,2,3],[2,3],[3]]' (MSD Task01), '[[1,2,3],[1,3],[3]]' (BraTS 2023 and later) or "
    "'[[1,2,3,4],[1,3,4],[4]]' (BRATS 2012 to BraTS 2021)"
)


def tumour_regions(labelled: Mapping[str, Any] | None, demonstration: bool = False) -> list[list[int]]:
    """Return the label values of whole tumour, tumour core and enhancing tumour.

    The data sets of brain tumours number the parts differently. The label names of ``dataset.json`` decide; without
    them a value 4 in the label files, which stands for enhancing tumour up to BraTS 2021. Any other values have
    several meanings and are refused. What was chosen is logged.

    Args:
        labelled: arguments of `shared_components.data.layouts.cases.find_cases` for the folder whose labels are read;
            ``None`` where none are, as in inference, which needs the number of regions alone.
        demonstration: the labels are those of the phantoms.

    Raises:
        InputError: neither names nor values say what the values mean.
    """
    if demonstration:
        return PHANTOM_REGIONS
    if labelled is None or labelled.get("dataset_dir") is None:
        return ENHANCING_IS_4
    folder = find_cases(**labelled)
    if folder.label_names:
        regions, reason = regions_of_names(folder.label_names, folder.root), "label names of dataset.json"
    elif any(case.label is not None for case in folder.cases):
        regions, reason = _regions_of_values(folder), "value 4 in the labels"
    else:
        return ENHANCING_IS_4  # nothing is labelled, which the datalist refuses in better words
    logger.info("%s: whole tumour %s, core %s, enhancing tumour %s (%s)", folder.root, *regions, reason)
    return regions


def regions_of_names(names: Mapping[str, int], source: str | os.PathLike) -> list[list[int]]:
    """Return the values of the three regions by the names of the parts.

    Args:
        names: name to value, without the background.
        source: what they are the names of, for messages.

    Raises:
        InputError: a name is that of no part, or there is no oedema, no core or no enhancing part.
    """
    values: dict[str, list[int]] = {part: [] for part in _PARTS}
    for name, value in names.items():
        parts = [part for part, pattern in _PARTS.items() if re.search(pattern, name.replace("_", " ").strip().lower())]
        if not parts:
            raise InputError(
                f"{source}: label '{name}' ({value}) is no oedema, non-enhancing or enhancing part; {_OVERRIDE}, "
                f"with --known_labels '{sorted(names.values())}' if a label is no tumour"
            )
        values[parts[0]].append(value)
    missing = [part for part, found in values.items() if not found]
    if missing:
        raise InputError(f"{source}: of the labels {', '.join(names)} none is {' or '.join(missing)}; {_OVERRIDE}")
    core = values["core"] + values["enhancing"]
    return [sorted(values["oedema"] + core), sorted(core), sorted(values["enhancing"])]


def _regions_of_values(folder: CaseFolder) -> list[list[int]]:
    spatial_dims = usual_spatial_dims(folder.cases)
    found: set[int] = set()
    for case in folder.cases:
        found |= _label_values(case.label, spatial_dims, case.images) if case.label is not None else set()
        found.discard(folder.ignored)
        if 4 in found:
            return ENHANCING_IS_4
    values = ", ".join(map(str, sorted(found - {0}))) or "none"
    raise InputError(
        f"{folder.root}: the label values ({values}) are numbered differently by several data sets, and no "
        f"dataset.json names them; {_OVERRIDE}"
    )


def _label_values(path: Any, spatial_dims: int, images: Sequence[Any]) -> set[int]:
    try:
        with open_volume(path, spatial_dims, True, next(iter(images), None)) as volume:
            return set(scan_values(volume, is_label=True).values)
    except UnusableImage:
        return set()  # the datalist says what is wrong with it
