"""Public data sets as folders for the bundles that generate images."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from shared_components.__main__ import main
from shared_components.data.checks.cases import check_folder
from shared_components.data.layouts.cases import find_cases
from shared_components.data.phantoms import make_phantoms
from shared_components.data.preparation.synthesis import prepare_breast_mri, prepare_ct_organs, prepare_mask_types
from shared_components.errors import InputError


def test_the_example_of_totalsegmentator_becomes_a_data_set(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "TotalSegmentator_example"
    main(["prepare_ct_organs", "--source", str(source), "--output", str(tmp_path / "out")])
    folder = find_cases(tmp_path / "out")
    assert [case.id for case in folder.cases] == ["ct", "ct_sm"]
    assert folder.label_names == {"liver": 1, "spleen": 2, "kidneys": 3, "aorta": 4, "bones": 5}
    assert not [finding for finding in check_folder(folder) if finding.level == "error"]
    found = np.asarray(nibabel.load(tmp_path / "out" / "labelsTr" / "ct_sm.nii.gz").dataobj)
    given = np.asarray(nibabel.load(source / "ct_sm" / "seg_total.nii.gz").dataobj)
    assert np.array_equal(found == 1, given == 5) and np.array_equal(found == 3, (given == 2) | (given == 3))


def test_structures_in_files_of_their_own_are_merged(tmp_path: Path) -> None:
    subject = tmp_path / "in" / "s0001"
    (subject / "segmentations").mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(np.full((4, 4, 2), -20, np.int16), np.eye(4)), subject / "ct.nii.gz")
    for column, name in enumerate(("spleen", "rib_left_1", "kidney_cyst_left", "kidney_left")):
        mask = np.zeros((4, 4, 2), np.uint8)
        mask[column] = 1
        nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), subject / "segmentations" / f"{name}.nii.gz")
    label = nibabel.load(prepare_ct_organs(tmp_path / "in", tmp_path / "out") / "labelsTr" / "s0001.nii.gz")
    assert np.asarray(label.dataobj)[:, 0, 0].tolist() == [2, 5, 0, 3]
    with pytest.raises(InputError, match="exists; remove it"):
        prepare_ct_organs(tmp_path / "in", tmp_path / "out")
    with pytest.raises(InputError, match="no subject"):
        prepare_ct_organs(subject, tmp_path / "other")


@pytest.mark.parametrize(("shape", "affine"), [((4, 4, 3), np.eye(4)), ((4, 4, 2), np.diag([-1.0, 1, 1, 1]))])
def test_a_mask_on_another_grid_is_named(tmp_path: Path, shape: tuple[int, ...], affine: np.ndarray) -> None:
    subject = tmp_path / "in" / "s0001"
    (subject / "segmentations").mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 2), np.int16), np.eye(4)), subject / "ct.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.ones(shape, np.uint8), affine), subject / "segmentations" / "liver.nii.gz")
    with pytest.raises(InputError, match="s0001.*liver.nii.gz: 4x4x. on another grid than the image, 4x4x2"):
        prepare_ct_organs(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_volumes_are_cut_into_pictures_a_patient_in_one_section(tmp_path: Path) -> None:
    source = make_phantoms(tmp_path / "in", 6)
    folder = find_cases(prepare_breast_mri(source, tmp_path / "out", size=64, least_share=0.02))
    assert folder.layout == "paired" and len(folder.cases) > 20 and not folder.problems
    patients = [{case.split("_slice_")[0] for case in ids} for ids in folder.split.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 6
    case = folder.cases[3]
    picture, mask = np.asarray(Image.open(case.images[0])), np.asarray(Image.open(case.label))
    assert picture.dtype == mask.dtype == np.uint8 and picture.shape == mask.shape and max(mask.shape) == 64
    assert set(np.unique(mask)) <= {0, 1, 2} and (mask > 0).mean() > 0.015 and picture.std() > 10
    name, index = case.id.split("_slice_")
    volume = nibabel.load(source / "labelsTr" / f"{name}.nii.gz").get_fdata()[..., int(index)]
    assert abs((mask > 0).mean() - (volume > 0).mean()) < 0.01


def published(folder: Path, second: np.ndarray) -> tuple[Path, Path]:
    for part in ("train", "val", "test"):
        for kind, pixels in (("images", np.eye(4) * 200), ("masks/a", np.diag([0, 1, 2, 0])), ("masks/b", second)):
            (folder / kind / part).mkdir(parents=True)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / kind / part / "x.png")
    return folder / "images", folder / "masks"


def test_kinds_of_masks_are_merged_as_published(tmp_path: Path) -> None:
    images, masks = published(tmp_path, np.diag([3, 3, 0, 0]))
    folder = find_cases(prepare_mask_types(images, masks, tmp_path / "out"))
    assert folder.split == {"train": ["train_x"], "validation": ["val_x"], "test": ["test_x"]} and not folder.problems
    assert np.diag(np.asarray(Image.open(folder.cases[0].label))).tolist() == [3, 1, 2, 0]


def test_kinds_of_masks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    images, masks = published(tmp_path, np.diag([1, 0, 0, 0]))
    with pytest.raises(InputError, match="value 1 of b is one of a too"):
        prepare_mask_types(images, masks, tmp_path / "out")
    (masks / "b" / "val" / "x.png").unlink()
    with pytest.raises(InputError, match="1 label maps are missing: .*val/x.png"):
        prepare_mask_types(images, masks, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "masks"]
