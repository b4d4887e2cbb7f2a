"""The Kaggle data set of chest radiographs, as it is unpacked, and the folds that cDAL was published in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shared_components.data.datalists import datalist
from shared_components.data.layouts.cases import find_cases
from shared_components.errors import InputError
from tests.data.folders import save_picture, some_mask, some_picture

SHENZHEN = [f"CHNCXR_{number:04d}_0" for number in range(1, 13)]
MONTGOMERY = [f"MCUCXR_{number:04d}_0" for number in range(1, 4)]
WITHOUT = SHENZHEN[2]
MASKED = [name for name in SHENZHEN if name != WITHOUT]


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    """``data/Lung Segmentation``; the pictures without a mask lie in ``test/`` too."""
    root = tmp_path / "data" / "Lung Segmentation"
    for number, name in enumerate(SHENZHEN + MONTGOMERY):
        save_picture(root / "CXR_png" / f"{name}.png", some_picture(number, (10, 12)))
        if name != WITHOUT:
            mask = f"{name}_mask.png" if name in SHENZHEN else f"{name}.png"
            save_picture(root / "masks" / mask, some_mask())
    (root / "test").mkdir()
    shutil.copy(root / "CXR_png" / f"{WITHOUT}.png", root / "test")
    save_picture(root / "test" / f"{SHENZHEN[0]}.png", some_picture(0, (10, 12)))  # no second channel
    (root / "ClinicalReadings").mkdir()
    return root


def names_of(folder: Path, section: str, **options) -> list[str]:
    items = datalist(folder, section, {"lungs": 1}, num_channels=1, spatial_dims=2, **options)
    return [Path(item["image"]).stem for item in items]


def test_every_mask_finds_its_picture_and_pictures_without_are_named(kaggle):
    folder = find_cases(kaggle, 1)
    assert (folder.layout, [case.id for case in folder.cases]) == ("paired", sorted(SHENZHEN + MONTGOMERY))
    assert [(problem.case, problem.kind) for problem in folder.problems] == [(WITHOUT, "no_label")]
    with pytest.raises(InputError, match=f"for want of a label; .*--skip_bad True.*{WITHOUT}"):
        names_of(kaggle, "train")
    assert WITHOUT not in names_of(kaggle, "train", skip_bad=True)
    assert WITHOUT in names_of(kaggle, "inference")


@pytest.mark.parametrize(
    ("fold", "test"), [(0, MONTGOMERY), (1, MASKED[:3]), (2, MASKED[-3:])], ids=["first", "second", "third"]
)
def test_published_folds(kaggle, fold, test, caplog):
    rest = [name for name in MASKED + MONTGOMERY if name not in test]
    found = {section: names_of(kaggle, section, published_fold=fold) for section in ("train", "validation", "test")}
    assert found["test"] == test and sorted(found["train"] + found["validation"]) == rest and found["validation"]
    (line,) = [line for line in caplog.messages if "published" in line]
    assert f"1 of 15 pictures, such as {WITHOUT}, have no mask" in line
    parts = [names_of(kaggle, "validation", published_fold=fold, fold=part, num_folds=4) for part in range(4)]
    assert sorted(sum(parts, [])) == rest


def test_other_folds_and_other_data_are_refused(kaggle):
    with pytest.raises(InputError, match="published_fold is 3; expected 0, 1, 2 or none"):
        names_of(kaggle, "train", published_fold=3)
    for name in MONTGOMERY:
        (kaggle / "masks" / f"{name}.png").unlink()
    with pytest.raises(InputError, match="found 11 masks called NAME_mask, of Shenzhen, and 0 called as their pict"):
        names_of(kaggle, "train", published_fold=0)


def test_the_folder_is_found_from_where_it_was_unpacked(kaggle):
    for above in (kaggle.parent, kaggle.parent.parent):
        with pytest.raises(InputError, match=f"did you mean .*{kaggle.name}"):
            find_cases(above)
