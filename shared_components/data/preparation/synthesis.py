"""Public data sets made into the folders that the bundles which generate images train on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.processing import resample_from_to
from PIL import Image
from tqdm import tqdm

from shared_components.data.formats.files import image_files, image_stem, read_json_object, write_json
from shared_components.data.formats.pictures import read_picture
from shared_components.data.layouts.cases import find_cases
from shared_components.data.layouts.split import sections
from shared_components.errors import InputError
from shared_components.whole_files import whole_folder

# TotalSegmentator's structures of each class; names that begin so
ORGANS: dict[str, tuple[str, ...]] = {
    "liver": ("liver",),
    "spleen": ("spleen",),
    "kidneys": ("kidney_left", "kidney_right"),
    "aorta": ("aorta",),
    "bones": ("vertebrae", "rib_", "sacrum", "hip_", "femur", "sternum", "scapula", "clavicula", "humerus"),
}
_NO_ORGAN = ("kidney_cyst",)
_PUBLISHED_SECTIONS = {"train": "train", "val": "validation", "test": "test"}


def prepare_ct_organs(source: str | os.PathLike, output: str | os.PathLike) -> Path:
    """Make a folder in MSD layout of TotalSegmentator's data, its structures merged to five classes.

    Each subject's folder holds ``ct.nii.gz`` and ``segmentations/STRUCTURE.nii.gz``, as the data set is published, or
    ``image.nii.gz``, ``seg_total.nii.gz`` and ``labels.json`` (value to structure). Grids are kept.

    Args:
        source: folder of the subjects' folders.
        output: folder to make.

    Returns:
        The folder.

    Raises:
        InputError: no subject is there, one is incomplete or has a mask on another grid, or the output exists.
    """
    with _new_folder(source, output) as (root, target):
        subjects = sorted(path.parent for name in ("ct.nii.gz", "image.nii.gz") for path in root.glob(f"*/{name}"))
        if not subjects:
            raise InputError(f"{root}: no subject; expected folders with ct.nii.gz and segmentations/, or image.nii.gz")
        for subject in tqdm(subjects, desc="preparing", unit="subject"):
            image = nibabel.load(next(filter(Path.exists, (subject / "ct.nii.gz", subject / "image.nii.gz"))))
            parts = {"imagesTr": np.asarray(image.dataobj).astype(np.int16), "labelsTr": _organs(subject, image)}
            for part, values in parts.items():
                _save(nibabel.Nifti1Image(values, image.affine), target, part, subject)
        names = [f"{subject.name}.nii.gz" for subject in subjects]
        labels = {"0": "background", **{str(index + 1): name for index, name in enumerate(ORGANS)}}
        write_json(target / "dataset.json", _msd(labels, "CT", names))
    return Path(output).expanduser()


def prepare_breast_mri(
    source: str | os.PathLike, output: str | os.PathLike, size: int = 256, axis: int = 2, least_share: float = 0.01
) -> Path:
    """Cut volumes in MSD layout into 8-bit pictures with label maps, patients kept in one section each.

    A volume is scaled between its own 0.5 and 99.5 percentiles, and slices whose labels cover less than
    ``least_share`` of it are left out. Slices are laid with the volume's first in-plane axis to the right and the
    second down, as RAS order gives them; the published data's orientation is not known here.

    Args:
        source: folder with ``imagesTr`` and ``labelsTr``, one volume a patient, labels 1 to 3.
        output: folder to make: ``images/PATIENT_slice_NNN.png``, ``masks/``, ``split.json``.
        size: of the longest side of the pictures.
        axis: the volumes' slicing axis.
        least_share: see above.

    Returns:
        The folder.

    Raises:
        InputError: the source has no labelled volumes, or the output exists.
    """
    with _new_folder(source, output) as (root, target):
        folder = find_cases(root, 1)
        cases = [case for case in folder.cases if case.images and case.label]
        if not cases:
            raise InputError(
                f"{root}: no labelled volume; expected imagesTr/ and labelsTr/ with equally named NIfTI files"
            )
        for part in ("images", "masks"):
            (target / part).mkdir(parents=True)
        slices: dict[str, list[str]] = {}
        for case in tqdm(cases, desc="preparing", unit="patient"):
            image = nibabel.as_closest_canonical(nibabel.load(case.images[0]))
            label = nibabel.as_closest_canonical(nibabel.load(case.label))
            if label.shape != image.shape or not np.allclose(label.affine, image.affine, atol=1e-3):
                label = resample_from_to(label, image, order=0)
            slices[case.id] = _cut(
                case.id, image.get_fdata(), np.asarray(label.dataobj), target, size, axis, least_share
            )
        split = {
            name: [file for case in ids for file in slices.get(case, [])] for name, ids in sections(folder).items()
        }
        write_json(target / "split.json", split)
    return Path(output).expanduser()


def prepare_mask_types(img_dir: str | os.PathLike, seg_dir: str | os.PathLike, output: str | os.PathLike) -> Path:
    """Make one folder of images and label maps of the folders that the published code reads.

    Images lie in ``img_dir/{train,val,test}``, label maps of the same names in ``seg_dir/TYPE/{train,val,test}``, with
    one folder or several for kinds of masks. As published, kinds are merged in the order of their names, a later one
    filling only what is still background; unlike there, no value may stand for classes of two kinds.

    Args:
        img_dir, seg_dir: see above.
        output: folder to make: ``images/``, ``masks/`` (8-bit label values), ``split.json``.

    Returns:
        The folder.

    Raises:
        InputError: a folder is missing or empty, an image lacks a label map (all are named), a value stands in two
            kinds, sizes differ, or the output exists.
    """
    with _new_folder(img_dir, output) as (images, target):
        masks = Path(seg_dir).expanduser()
        kinds = sorted(path for path in masks.iterdir() if path.is_dir()) if masks.is_dir() else []
        listed = {name: image_files(images / part) for part, name in _PUBLISHED_SECTIONS.items()}
        if not kinds or not any(listed.values()):
            raise InputError(
                f"{images}, {masks}: expected train/, val/, test/ of images, and of label maps for every kind"
            )
        lacking = [
            str(kind / file.parent.name / file.name)
            for files in listed.values() for file in files for kind in kinds
            if not (kind / file.parent.name / file.name).is_file()
        ]  # fmt: skip
        if lacking:
            raise InputError(f"{len(lacking)} label maps are missing: {', '.join(lacking[:5])}; add them")
        for part in ("images", "masks"):
            (target / part).mkdir(parents=True)
        owner: dict[int, str] = {}
        for file in tqdm([file for files in listed.values() for file in files], desc="preparing", unit="image"):
            maps = {kind.name: read_picture(kind / file.parent.name / file.name, is_label=True) for kind in kinds}
            merged = _merged({kind: picture.pixels[..., 0] for kind, picture in maps.items()}, owner, file)
            name = f"{file.parent.name}_{image_stem(file.name)}"
            Image.fromarray(merged).save(target / "masks" / f"{name}.png")
            shutil.copy(file, target / "images" / f"{name}{file.suffix.lower()}")
        names = {name: [f"{f.parent.name}_{image_stem(f.name)}" for f in files] for name, files in listed.items()}
        write_json(target / "split.json", names)
    return Path(output).expanduser()


def _merged(maps: Mapping[str, np.ndarray], owner: dict[int, str], file: Path) -> np.ndarray:
    """Merge the kinds' label maps of an image; ``owner`` remembers which kind a value belongs to."""
    merged = np.zeros_like(next(iter(maps.values())), dtype=np.uint8)
    for kind, label in maps.items():
        if label.shape != merged.shape:
            raise InputError(f"{file.name}: label maps of {label.shape} and {merged.shape}; they must be of one size")
        for value in np.unique(label[label > 0]).tolist():
            if value > 255 or owner.setdefault(value, kind) != kind:
                raise InputError(f"{file.name}: value {value} of {kind} is one of {owner.get(value)} too; renumber it")
        merged = np.where(merged == 0, label, merged).astype(np.uint8)
    return merged


def _cut(
    case: str, image: np.ndarray, label: np.ndarray, target: Path, size: int, axis: int, least_share: float
) -> list[str]:
    low, high = np.percentile(image, (0.5, 99.5))
    grey = np.clip((image - low) / max(high - low, 1e-6), 0, 1) * 255
    names = []
    for index in range(image.shape[axis]):
        mask = np.take(label, index, axis=axis).round().astype(np.uint8)
        if np.mean(mask > 0) < least_share:
            continue
        name = f"{case}_slice_{index:03d}"
        picture = np.take(grey, index, axis=axis).round().astype(np.uint8)
        scale = size / max(picture.shape)
        shape = tuple(max(1, round(length * scale)) for length in picture.shape)
        Image.fromarray(picture.T).resize(shape, Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR).save(
            target / "images" / f"{name}.png"
        )
        Image.fromarray(mask.T).resize(shape, Image.Resampling.NEAREST).save(target / "masks" / f"{name}.png")
        names.append(name)
    return names


def _organs(subject: Path, image: nibabel.Nifti1Image) -> np.ndarray:
    label = np.zeros(image.shape, np.uint8)
    if (subject / "segmentations").is_dir():
        for file in sorted((subject / "segmentations").glob("*.nii.gz")):
            value = _class_of(file.name[: -len(".nii.gz")])
            if value:
                label[_on_grid(file, image) > 0] = value
        return label
    for name in ("seg_total.nii.gz", "labels.json"):
        if not (subject / name).is_file():
            raise InputError(f"{subject}: no segmentations/, and {name} is missing; add the labels")
    found = _on_grid(subject / "seg_total.nii.gz", image).round().astype(int)
    for key, structure in read_json_object(subject / "labels.json").items():
        if str(key).isdigit() and (value := _class_of(str(structure))):
            label[found == int(key)] = value
    return label


def _on_grid(file: Path, image: nibabel.Nifti1Image) -> np.ndarray:
    mask = nibabel.load(file)
    if mask.shape != image.shape or not np.allclose(mask.affine, image.affine, atol=0.5):  # mm
        raise InputError(
            f"{file}: {'x'.join(map(str, mask.shape))} on another grid than the image, "
            f"{'x'.join(map(str, image.shape))}; resample it to the image's, or remove the subject"
        )
    return np.asarray(mask.dataobj)


def _class_of(structure: str) -> int:
    """Return the class of a structure, 0 for none."""
    if structure.startswith(_NO_ORGAN):
        return 0
    return next((i + 1 for i, beginnings in enumerate(ORGANS.values()) if structure.startswith(beginnings)), 0)


def _msd(labels: Mapping[str, str], modality: str, names: Sequence[str]) -> dict[str, Any]:
    pairs = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    return {
        "name": "CT organs", "tensorImageSize": "3D", "modality": {"0": modality}, "labels": dict(labels),
        "numTraining": len(pairs), "numTest": 0, "training": pairs, "test": [],
    }  # fmt: skip


def _save(image: nibabel.Nifti1Image, target: Path, part: str, subject: Path) -> None:
    (target / part).mkdir(parents=True, exist_ok=True)
    nibabel.save(image, target / part / f"{subject.name}.nii.gz")


@contextmanager
def _new_folder(source: str | os.PathLike, output: str | os.PathLike) -> Iterator[tuple[Path, Path]]:
    """Give the source and a folder to fill, which gets its final name once it is complete."""
    root, target = Path(source).expanduser(), Path(output).expanduser()
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder of the data set")
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{target}: exists; remove it or name another output")
    with whole_folder(target) as folder:
        yield root, folder
