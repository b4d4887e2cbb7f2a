"""A folder of the usable cases of another one: links to their files, mended copies where that was asked for."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np

from shared_components.data.formats.files import NIFTI_SUFFIXES, label_suffix, write_json
from shared_components.data.layouts.cases import Case, CaseFolder, Finding
from shared_components.data.layouts.class_column import manifest_words
from shared_components.data.layouts.class_folders import LabelledSlices
from shared_components.data.layouts.dataset_json import IGNORED
from shared_components.data.layouts.split import sections
from shared_components.errors import InputError

_FILLABLE = NIFTI_SUFFIXES + (".nrrd", ".mha")


def check_folder_target(path: str | os.PathLike) -> Path:
    """Return a folder that can be made, or is there and empty.

    Raises:
        InputError: it holds something, or cannot be made.
    """
    folder = Path(os.path.abspath(os.path.expanduser(path)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
    except OSError as error:
        raise InputError(f"--skip_bad {folder}: cannot be made ({error.strerror}); give another folder") from error
    if taken:
        raise InputError(f"--skip_bad {folder}: holds files already; give a new folder, or a name that ends in .json")
    return folder


def write_checked_folder(
    folder: CaseFolder, cases: list[Case], target: Path, mended: Mapping[Path, Path] | None = None
) -> None:
    """Write a folder that is a ``dataset_dir`` of its own: the cases given, in the sections that they had.

    It has the layout of MSD, or nnU-Net's where a case has a file a channel: ``imagesTr`` and ``labelsTr`` (or
    ``images`` alone without labels) of symbolic links, ``dataset.json``, and ``split.json``. Where there is a mask file
    for each class, it is ``images`` beside ``masks`` with a folder a class. CHAOS keeps its folders.

    Args:
        folder: where the cases are.
        cases: those to keep.
        target: an empty folder.
        mended: file of a case to the copy that takes its place; the copy lies in ``target``.
    """
    mended = mended or {}
    if folder.layout == "chaos":
        _link_chaos(folder, cases, target)
        return
    labelled = {case.id for case in folder.cases}
    several = max((len(case.images) for case in cases), default=1) > 1
    by_class = any(case.masks for case in cases)
    for case in cases:
        alone = by_class or not folder.labelled
        part = "images" if alone else "imagesTr" if case.id in labelled else "imagesTs"
        for number, image in enumerate(case.images):
            suffix = f"_{number:04d}" if several else ""
            _link(mended.get(image, image), target / part / f"{case.id}{suffix}{label_suffix(image.name)}")
        if case.label is not None:
            _link(case.label, target / "labelsTr" / f"{case.id}{label_suffix(case.label.name)}")
        for name, mask in zip(folder.label_names, case.masks):
            if mask is not None:
                _link(mask, target / "masks" / name / f"{case.id}{label_suffix(mask.name)}")
    if not folder.labelled:
        return
    _write_split(folder, cases, target)
    content: dict[str, object] = {"name": folder.root.name, "description": f"usable cases of {folder.root}"}
    if folder.channels_named:
        key = "channel_names" if several else "modality"
        content[key] = {str(number): name for number, name in enumerate(folder.channels)}
    names = {str(value): name for name, value in folder.label_names.items()}
    names |= {} if folder.ignored is None else {str(folder.ignored): IGNORED}
    if names:
        content["labels"] = {"0": "background", **names}
    write_json(target / "dataset.json", content)


def _write_split(folder: CaseFolder, cases: list[Case], target: Path) -> None:
    kept = {case.id for case in cases}
    split = {section: [case for case in ids if case in kept] for section, ids in sections(folder).items()}
    write_json(target / "split.json", split)


def _link_chaos(folder: CaseFolder, cases: list[Case], target: Path) -> None:
    """Link series and ground truth, which stay beside each other, from the folder of the modality on."""
    for case in cases:
        for file in filter(None, (*case.images, case.label)):
            modality = len(file.parts) - 1 - file.parts[::-1].index(case.id.partition("_")[0])
            _link(file, target.joinpath(*file.parts[modality:]))
    _write_split(folder, cases, target)


def write_class_folders(
    found: LabelledSlices, cases: list[Case], target: Path, mended: Mapping[Path, Path] | None = None
) -> None:
    """Write a folder of the images with labels given, as `write_checked_folder` does.

    Folders a class keep their places; a manifest becomes one of links, with the labels, the sections and the patients.

    Args:
        found: the folder that they are in.
        cases: those to keep.
        target: an empty folder.
        mended: file of a case to the copy that takes its place; the copy lies in ``target``.
    """
    if found.folder.layout == "manifest":
        _write_class_manifest(found, cases, target, mended or {})
        return
    for case in cases:
        for file in [*case.images, *found.masks.get(case.id, [case.label] if case.label else [])]:
            _link((mended or {}).get(file, file), target / file.relative_to(found.folder.root))


def _write_class_manifest(found: LabelledSlices, cases: list[Case], target: Path, mended: Mapping[Path, Path]) -> None:
    folder = found.folder
    section = {case: name for name, ids in sections(folder).items() for case in ids}
    words = manifest_words(folder)[1]
    masks = folder.label_column or "mask"
    rows = []
    for case in cases:
        row = {"id": case.id, "split": section.get(case.id, ""), "patient": folder.groups.get(case.id, "")}
        row["class"] = words.get(case.id, "")
        for column, image in zip(folder.channels, case.images):
            row[column] = f"{column}/{case.id}{label_suffix(image.name)}"
            _link(mended.get(image, image), target / row[column])
        if case.label is not None:
            row[masks] = f"{masks}/{case.id}{label_suffix(case.label.name)}"
            _link(case.label, target / row[masks])
        rows.append(row)
    columns = ["id", "split", "patient", "class", *folder.channels, *([masks] if folder.labelled else [])]
    with open(target / "manifest.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _link(source: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if source != link:
        link.symlink_to(source.resolve())


def fill_nonfinite(case: Case, findings: list[Finding], target: Path) -> tuple[dict[Path, Path], list[Finding]]:
    """Write copies of a case's images with numbers in place of NaN and infinities.

    NaN and minus infinity become the least finite value of their channel, plus infinity the greatest.

    Args:
        case: whose images have such voxels.
        findings: about the case.
        target: folder to write to.

    Returns:
        The copies by file; and the findings, those about such voxels of these files turned to warnings.
    """
    copies: dict[Path, Path] = {}
    changed = []
    for finding in findings:
        path = Path(finding.file)
        if finding.kind != "nonfinite" or not path.name.lower().endswith(_FILLABLE):
            changed.append(finding)
            continue
        copies[path] = target / "filled" / case.id / path.name  # other cases' files may have its name
        copies[path].parent.mkdir(parents=True, exist_ok=True)
        _fill(path, copies[path])
        what = finding.message.partition(";")[0]
        changed.append(replace(finding, level="warning", message=f"{what}; filled in the copy {copies[path]}"))
    return copies, changed


def _fill(source: Path, target: Path) -> None:
    if source.name.lower().endswith(NIFTI_SUFFIXES):
        image = nibabel.load(source)
        values = np.asarray(image.dataobj)
        for channel in np.moveaxis(values, -1, 0) if values.ndim == 4 else [values]:
            _fill_channel(channel)
        header = image.header.copy()
        header.set_data_dtype(values.dtype)
        nibabel.save(type(image)(values, image.affine, header), target)
        return
    import itk

    image = itk.imread(str(source))
    values = itk.array_view_from_image(image)
    several = image.GetNumberOfComponentsPerPixel() > 1
    for channel in np.moveaxis(values, -1, 0) if several else [values]:
        _fill_channel(channel)
    itk.imwrite(image, str(target))


def _fill_channel(values: np.ndarray) -> None:
    """Fill in place."""
    finite = np.isfinite(values)
    known = values[finite] if finite.any() else np.zeros(1, values.dtype)
    values[~finite] = np.nan_to_num(values[~finite], nan=known.min(), posinf=known.max(), neginf=known.min())
