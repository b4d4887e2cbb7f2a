"""The three folds in which cDAL was published on chest radiographs of two hospitals."""

from __future__ import annotations

from typing import Any

from shared_components.data.formats.files import image_stem
from shared_components.data.layouts.case_folder import CaseFolder
from shared_components.errors import InputError

FOLDS = (0, 1, 2)


def published_lung_split(folder: CaseFolder, fold: Any) -> dict[str, list[str]]:
    """Return "train" and "test" of a fold of the Kaggle data set "Chest X-ray masks and labels".

    Its masks tell the hospitals apart: those of Shenzhen have "mask" in their name (``CHNCXR_0001_0_mask.png``), those
    of Montgomery are called as their pictures. Fold 0 trains on Shenzhen and tests on Montgomery; in folds 1 and 2 the
    first or the last of Shenzhen's sorted pictures, as many as Montgomery has (138), are tested instead, and Montgomery
    is trained on. Pictures without a mask are in no section.

    Raises:
        InputError: there is no such fold, or the masks are not those of two hospitals.
    """
    if fold not in FOLDS:
        raise InputError(f"published_fold is {fold!r}; expected 0, 1, 2 or none")
    masks = {case.id: image_stem(case.label.name) or "" for case in folder.cases if case.label and case.images}
    shenzhen = sorted(case for case, mask in masks.items() if "mask" in mask)
    montgomery = sorted(case for case in masks if case not in set(shenzhen))
    if not shenzhen or not montgomery:
        raise InputError(
            f"{folder.root}: published_fold {fold}: found {len(shenzhen)} masks called NAME_mask, of Shenzhen, and "
            f"{len(montgomery)} called as their pictures, of Montgomery; expected both, as in the Kaggle data set's "
            "folder of CXR_png/ and masks/; leave published_fold out for other data"
        )
    if fold == 0:
        return {"train": shenzhen, "test": montgomery}
    test = shenzhen[: len(montgomery)] if fold == 1 else shenzhen[-len(montgomery) :]
    return {"train": sorted({*shenzhen, *montgomery} - set(test)), "test": test}
