"""Small synthetic data sets for demonstrations, one kind for every sort of image that a bundle takes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
from PIL import Image

from shared_components.data.formats.files import write_json
from shared_components.data.phantoms import (
    breast,
    hippocampus,
    lesion,
    lungs,
    nuclei,
    organs,
    slices,
    tumour,
    vessels,
)
from shared_components.errors import InputError, check_choice
from shared_components.whole_files import whole_folder

logger = logging.getLogger(__name__)

_PICTURES_VERSION = 1


class PhantomKind(NamedTuple):
    """A kind of phantom and how it lies on disk.

    Attributes:
        draw: (seed, index) to the arrays of a case, one for each of ``files``. Volumes are (x, y, z),
            pictures (height, width) or (height, width, 3).
        files: where the arrays go, ``{}`` standing for the case id.
        marker: name of the file that says what the set is.
        describe: (number of cases, seed) to that file's content.
    """

    draw: Callable[[int, int], tuple[np.ndarray, ...]]
    files: tuple[str, ...]
    marker: str
    describe: Callable[[int, int], dict[str, Any]]


def _pictures(name: str, draw: Callable[[int, int], tuple[np.ndarray, ...]], files: tuple[str, ...]) -> PhantomKind:
    """Return a kind whose images lie in ``images/`` and their masks, 0 or 255, in ``masks/``."""

    def describe(num_cases: int, seed: int) -> dict[str, Any]:
        return {
            "name": f"{name.capitalize()} phantoms",
            "description": "Synthetic images for demonstrations; no patient data",
            "licence": "CC0 1.0",
            "phantoms": {"kind": name, "version": _PICTURES_VERSION, "num_cases": num_cases, "seed": seed},
        }

    return PhantomKind(draw, files, "phantoms.json", describe)


KINDS = {
    "breast": _pictures("breast", breast.breast_case, breast.FILES),
    "hippocampus": PhantomKind(hippocampus.hippocampus_case, hippocampus.FILES, "dataset.json", hippocampus.describe),
    "lesion": _pictures("lesion", lesion.lesion_case, lesion.FILES),
    "lungs": _pictures("lungs", lungs.lungs_case, lungs.FILES),
    "nuclei": _pictures("nuclei", nuclei.nuclei_case, nuclei.FILES),
    "organs": PhantomKind(organs.organs_case, organs.FILES, "dataset.json", organs.describe),
    "tumour": PhantomKind(tumour.tumour_case, tumour.FILES, "dataset.json", tumour.describe),
    "fundus": _pictures("fundus", vessels.fundus_case, vessels.FILES),
    "octa": _pictures("octa", vessels.octa_case, vessels.FILES),
    "tumour_slices": _pictures("tumour_slices", slices.tumour_slice, slices.FILES),
    "kidney_slices": _pictures("kidney_slices", slices.kidney_slice, slices.FILES),
}


def make_phantoms(output_dir: str | os.PathLike, num_cases: int = 24, seed: int = 0, kind: str = "hippocampus") -> Path:
    """Write a phantom data set with a ``split.json``; takes a few seconds.

    Every case is a function of (seed, number of the case) alone, so a larger set begins with the smaller
    one's images. A complete set of the same parameters is used as it is. The set appears under its name at
    once, when it is complete.

    Args:
        output_dir: folder to make; it may exist if it is empty or holds the same set.
        num_cases: at least 3, so that training, validation and test have a case each.
        seed: at least 0.
        kind: "hippocampus" (volumes in MSD layout), "lesion" and "nuclei" (colour pictures in ``images/`` with
            ``masks/``, for nuclei ``instances/`` too), "lungs", "tumour_slices" and "kidney_slices" (grey pictures laid
            out alike; of the last two, half the masks are empty), "breast" (likewise, with label maps of three
            classes), "fundus" and "octa" (vessels of other patients in two modalities, colour and grey pictures laid
            out alike), "organs" (volumes of five classes in MSD layout), or "tumour" (volumes of two channels in
            nnU-Net's raw layout).

    Returns:
        The folder.

    Raises:
        InputError: the folder holds something else or cannot be written, a number is out of range, or there is
            no such kind.
    """
    folder = Path(os.path.abspath(os.path.expanduser(output_dir)))
    phantoms = _kind(kind)
    if num_cases < 3 or seed < 0:
        raise InputError(f"num_cases {num_cases}, seed {seed}: expected at least 3 cases and a seed of at least 0")
    if _is_complete(folder, phantoms, num_cases, seed):
        return folder
    try:
        with whole_folder(folder) as made:
            _write_set(made, phantoms, num_cases, seed)
    except OSError as error:
        if _is_complete(folder, phantoms, num_cases, seed):
            return folder  # another process was faster
        raise InputError(f"{folder}: the phantoms cannot be written ({error.strerror}); give another folder") from error
    return folder


def demonstration_data(
    dataset_dir: str | os.PathLike | None,
    output_dir: str | os.PathLike,
    kind: str = "hippocampus",
    num_cases: int = 24,
) -> str:
    """Return ``dataset_dir``, or phantoms made under ``output_dir`` if there is none.

    Args:
        dataset_dir: the user's data folder; ``None`` or an empty string asks for the demonstration.
        output_dir: folder of the run; the phantoms go into its folder ``phantoms``.
        kind, num_cases: as in `make_phantoms`.

    Raises:
        InputError: ``dataset_dir`` is given but does not exist (phantoms never stand in for it).
    """
    if dataset_dir:
        if not Path(dataset_dir).expanduser().is_dir():
            raise InputError(f"dataset_dir {dataset_dir}: no such folder")
        return str(dataset_dir)
    folder = make_phantoms(Path(output_dir) / "phantoms", num_cases, kind=kind)
    logger.warning("no dataset_dir given: this is a demonstration on synthetic phantoms (%s), not on patients", folder)
    return str(folder)


def phantom_case(seed: int, index: int, kind: str = "hippocampus") -> tuple[np.ndarray, ...]:
    """Draw one phantom without writing it; the module of the kind says what is in it.

    Returns:
        The case's arrays, images first: (image, label) for "breast", "hippocampus" and "organs", (image, mask) for
        "lesion", "lungs", "fundus", "octa", "tumour_slices" and "kidney_slices", (image, mask, instances) for "nuclei",
        (FLAIR, T1ce, label) for "tumour".
    """
    return _kind(kind).draw(seed, index)


def _kind(kind: str) -> PhantomKind:
    check_choice("kind", kind, KINDS)
    return KINDS[kind]


def _ids(num_cases: int) -> list[str]:
    return [f"phantom_{index:03d}" for index in range(num_cases)]


def _is_complete(folder: Path, phantoms: PhantomKind, num_cases: int, seed: int) -> bool:
    """Tell whether the folder holds this very set.

    Raises:
        InputError: it holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    description = phantoms.describe(num_cases, seed)
    try:
        found = json.loads((folder / phantoms.marker).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    files = [folder / file.format(case) for case in _ids(num_cases) for file in phantoms.files]
    if found != description or not all(file.is_file() for file in [*files, folder / "split.json"]):
        wanted = description["phantoms"]
        raise InputError(f"{folder}: holds something other than phantoms of {wanted}; remove it or give another folder")
    return True


def _write_set(folder: Path, phantoms: PhantomKind, num_cases: int, seed: int) -> None:
    for file in phantoms.files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
    for index, case in enumerate(_ids(num_cases)):
        for file, array in zip(phantoms.files, phantoms.draw(seed, index), strict=True):
            _write_array(folder / file.format(case), array)
    contents = {"split.json": _split(_ids(num_cases)), phantoms.marker: phantoms.describe(num_cases, seed)}
    for name, content in contents.items():
        write_json(folder / name, content)


def _write_array(path: Path, array: np.ndarray) -> None:
    if path.suffix == ".png":
        Image.fromarray(array).save(path)
    else:
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)


def _split(ids: list[str]) -> dict[str, list[str]]:
    test = ids[3::4] or ids[-1:]
    rest = [case for case in ids if case not in test]
    validation = rest[5::6] or rest[-1:]
    return {
        "train": [case for case in rest if case not in validation],
        "validation": validation,
        "test": test,
    }
