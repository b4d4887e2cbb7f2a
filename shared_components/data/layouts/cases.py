"""What is in a data folder: its cases, channels, labels and split, understood without a flag."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shared_components.data.formats.aperio import looks_like_aperio
from shared_components.data.formats.files import (
    IMAGE_FOLDERS,
    PAIRED_LABEL_FOLDERS,
    annotations_by_stem,
    image_stem,
    images_by_stem,
    is_series,
    labels_beside,
    read_json_object,
    subfolders,
    without_label_suffix,
)
from shared_components.data.layouts.abdomen import AbdomenCases, abdomen_cases
from shared_components.data.layouts.bids import bids_cases
from shared_components.data.layouts.case_folder import Case, CaseFolder, Finding, named_apart, paired_cases
from shared_components.data.layouts.channel_files import group_channels, has_channel_suffix
from shared_components.data.layouts.columns import Columns, case_folders, channel_folders, masks_by_class
from shared_components.data.layouts.dataset_json import (
    channel_names,
    chosen_channels,
    ignored_value,
    label_names,
    read_split,
    refuse_another_order,
    training_list,
)
from shared_components.data.layouts.hints import NearMisses, hint_at_images
from shared_components.data.layouts.manifest import Manifest, Row, read_manifest
from shared_components.data.layouts.parts import joined_cases, part_folders, with_part_names
from shared_components.errors import InputError

LOOKED_FOR = (
    "an MSD or nnU-Net folder (imagesTr/ and labelsTr/), a manifest.csv, BIDS, images/ beside labels/ or masks/, "
    "images/ or Tissue Images/ beside Annotations/ of Aperio XML files, such folders in one called Training and one "
    "called Test, a folder a channel beside one of labels, "
    "a folder a case with its label in it, CHAOS or BTCV as they are shipped, "
    "or image files directly or one folder down "
    "(NIfTI, NRRD, MHA, DICOM series, PNG, JPEG, TIFF, BMP, GIF, slices as NumPy arrays)"
)
_ANNOTATION_FOLDERS = ("Annotations", "annotations")


def find_cases(
    dataset_dir: str | os.PathLike,
    channels: Sequence[str] | int | None = None,
    label_column: str | None = None,
) -> CaseFolder:
    """Find the cases of a folder of images; no image is read.

    Understood are the layouts "msd" (``dataset.json``, ``imagesTr``, ``labelsTr``, optional ``imagesTs``),
    "nnunet" (the same with a channel suffix such as ``_0000`` on every image), "manifest" (``manifest.csv`` with a
    row a case: `shared_components.data.layouts.manifest.read_manifest`), "bids"
    (`shared_components.data.layouts.bids.bids_cases`), "chaos", "btcv" and "stacks" (as those data
    sets are shipped or prepared: `shared_components.data.layouts.abdomen.abdomen_cases`), "paired" (``images/``,
    ``img/``, ``Tissue Images/`` or ``CXR_png/``, and ``labels/``, ``masks/`` or ``mask/``, with equally named files; a
    label's name may end in _segmentation, _mask, _seg, _label or _gt; or the masks lie in a folder a class), "channel
    folders" and "case folders" (`shared_components.data.layouts.columns`), and "images" (image files alone, directly
    in the folder or one folder down), each with an optional ``split.json`` of ids under "train", "validation" and
    "test", which comes before a manifest's own split. Wherever an image may lie, a folder with a DICOM series can
    stand in for it.

    Wherever a label may lie, an Aperio annotation (``.xml``: `shared_components.data.formats.aperio`) can stand in for
    it; a label map of the same name comes first. "paired" is also what MoNuSeg ships: ``Annotations/`` (or
    ``annotations/``) of XML files beside the images' folder, where there is no folder of masks, and images and XML
    files in one folder.

    A case id is the file name without suffix (and, one folder down, with the folder's name before it). Where
    ``dataset.json`` lists its training cases, the list and ``split.json`` decide which files are cases; the
    others are reported. Hidden files are left out.

    Args:
        dataset_dir: the folder.
        channels: names of the image channels, or their number; by default those of ``dataset.json``, else as
            many as there are files a case. Names that it has, of a file a channel, choose and order the files. For a
            manifest, names of its image columns, by default "image"; for folders of channels or of cases, names of
            those folders or files.
        label_column: the manifest's column of label paths; by default the first of label, mask, seg and segmentation
            that holds paths. For folders of channels or of cases, the folder's or the files' name.

    Raises:
        InputError: there is no such folder, it holds nothing usable, one of its JSON files or its manifest is broken,
            or ``label_column`` is given where there is no manifest.
    """
    root = Path(os.path.abspath(os.path.expanduser(dataset_dir)))
    if not root.is_dir():
        found = "is a file" if root.is_file() else "no such folder"
        raise InputError(f"{root}: {found}; dataset_dir must be {LOOKED_FOR}")
    folder = _Finder(root, channels, label_column).find()
    if not folder.cases and not folder.unlabelled:
        raise InputError(f"{root}: no images found; looked for {LOOKED_FOR}{hint_at_images(root)}")
    return folder


class _Finder:
    """Gathers the files of one folder into cases, and what is wrong with them into ``problems``."""

    def __init__(self, root: Path, channels: Sequence[str] | int | None, label_column: str | None = None) -> None:
        file = root / "dataset.json"
        self.root = root
        self.channels = channels
        self.label_column = label_column
        self.meta = read_json_object(file) if file.is_file() else {}
        self.names = channel_names(channels, self.meta, file)
        self.chosen = chosen_channels(channels, self.meta, file)
        self.label_names = label_names(self.meta, file)
        self.ignored = ignored_value(self.meta, file)
        self.listing = training_list(self.meta, root, file)
        self.split = read_split(root)
        self.problems: list[Finding] = []
        self.near_misses = NearMisses(root)

    def find(self) -> CaseFolder:
        if self._is_msd():
            layout, cases, unlabelled = self._labelled(self.root / "imagesTr", self.root / "labelsTr")
        elif (self.root / "manifest.csv").is_file():
            return self._from_manifest(read_manifest(self.root / "manifest.csv", self.channels, self.label_column))
        elif columns := bids_cases(self.root, self.channels, self.label_column):
            return self._from_columns(columns)
        elif self.label_column is None and (found := abdomen_cases(self.root)):
            return self._shipped(found)
        elif columns := channel_folders(self.root, self.channels, self.label_column):
            return self._from_columns(columns)
        elif self.label_column is None and (folders := self._paired_folders()):
            if by_class := masks_by_class(folders[1]):
                return self._with_masks(folders[0], *by_class)
            layout, cases, unlabelled = self._labelled(*folders)
        elif self.label_column is None and (parts := self._parts()):
            return self._from_parts(parts)
        elif columns := case_folders(self.root, self.channels, self.label_column):
            return self._from_columns(columns)
        else:
            layout, cases, unlabelled = self._images_alone()
        if self.label_column is not None:
            raise InputError(
                f"{self.root}: label_column '{self.label_column}', but there is no manifest.csv, no folder and no "
                "file of the cases' folders of that name; leave it out"
            )
        return self._folder(layout, cases, unlabelled)

    def _folder(self, layout: str, cases: list[Case], unlabelled: list[Case], **more: Any) -> CaseFolder:
        self._check_ids(cases, unlabelled)
        if self.chosen:  # their results are called by the case, not by the channel that happens to be the first
            cases, unlabelled = ([replace(case, named=True) for case in part] for part in (cases, unlabelled))
        cases, unlabelled = named_apart(cases), named_apart(unlabelled)
        most = max((len(case.images) for case in cases + unlabelled), default=1)
        names = self.names or (tuple(f"channel {i}" for i in range(most)) if most > 1 else ("image",))
        named = self.names is not None or most > 1
        found = (self.root, layout, names, self.label_names, cases, unlabelled, self.split, self.problems, named)
        return CaseFolder(*found, ignored=self.ignored, **more)

    def _is_msd(self) -> bool:
        return bool(self.listing) or any((self.root / name).is_dir() for name in ("imagesTr", "labelsTr", "imagesTs"))

    def _paired_folders(self) -> tuple[Path, Path] | None:
        labels = self._one_of(PAIRED_LABEL_FOLDERS, "images") or self._annotation_folder()
        if labels:
            return self._one_of(IMAGE_FOLDERS, "labels") or self.root / "images", labels
        folder = self._one_of(IMAGE_FOLDERS, "cases") or self.root
        stems = {stem for stem, _ in images_by_stem(folder)}
        annotations = [path for stem, path in annotations_by_stem(folder) if stem in stems]
        return (folder, folder) if any(map(looks_like_aperio, annotations)) else None

    def _annotation_folder(self) -> Path | None:
        folder = self._one_of(_ANNOTATION_FOLDERS, "images")
        found = folder is not None and any(looks_like_aperio(path) for _, path in annotations_by_stem(folder))
        return folder if found else None

    def _one_of(self, names: tuple[str, ...], what: str) -> Path | None:
        found = [child for child in subfolders(self.root) if child.name.lower() in {name.lower() for name in names}]
        if len(found) > 1:
            both = " and ".join(f"{folder.name}/" for folder in found)
            raise InputError(f"{self.root}: has both {both}; keep the one that belongs to the {what}")
        return found[0] if found else None

    def _from_columns(self, columns: Columns) -> CaseFolder:
        self.label_names = self.label_names or columns.label_names
        return self._from_manifest(columns.manifest, columns.layout, columns.masks)

    def _parts(self) -> dict[str, CaseFolder]:
        """Return what is in a folder of training and one of testing cases, where both are understood as such."""
        found = {section: _Finder(part, self.channels).find() for section, part in part_folders(self.root).items()}
        layouts = {section: part.layout for section, part in found.items() if part.cases}
        fitting = layouts.get("train") == "paired" and set(layouts.values()) <= {"paired", "images"}
        alike = len({(*part.label_names.items(), part.ignored) for part in found.values() if part.labelled}) <= 1
        return with_part_names(found) if fitting and alike and len(layouts) == len(found) else {}

    def _from_parts(self, parts: Mapping[str, CaseFolder]) -> CaseFolder:
        cases, unlabelled, split = joined_cases(parts)
        self.split = self.split or split
        self.label_names, self.ignored = parts["train"].label_names, parts["train"].ignored
        self.problems += [problem for part in parts.values() for problem in part.problems]
        return self._folder("parts", cases, unlabelled)

    def _shipped(self, found: AbdomenCases) -> CaseFolder:
        self.label_names = found.label_names
        labels = {case.id: case.label for case in found.cases if case.label}
        if labels:
            self._report_unpaired({c.id: dict(enumerate(c.images)) for c in found.cases if c.images}, labels)
        return self._folder(found.layout, found.cases, [])

    def _with_masks(
        self, image_dir: Path, names: tuple[str, ...], masks: dict[str, tuple[Path | None, ...]]
    ) -> CaseFolder:
        """Return the folder of images whose masks lie in a folder a class."""
        self.label_names = {name: number for number, name in enumerate(names, 1)}
        images = images_by_stem(image_dir)
        suffixed = has_channel_suffix([stem for stem, _ in images], set(masks), self.meta, self.names)
        groups = self._grouped(images, suffixed)
        self._report_unpaired(groups, {case: next(filter(None, paths)) for case, paths in masks.items()})
        cases = [replace(case, masks=masks.get(case.id, ())) for case in paired_cases(groups, {})]
        return self._folder("paired", cases, [])

    def _from_manifest(
        self,
        manifest: Manifest,
        layout: str = "manifest",
        masks: Mapping[str, tuple[Path | None, ...]] | None = None,
    ) -> CaseFolder:
        if len(manifest.image_columns) > 1:
            self.names = manifest.image_columns
        self.split = manifest.split if self.split is None else self.split
        cases: dict[str, Case] = {}
        for row in manifest.rows:
            if row.id in cases:
                self._problem(row.id, manifest.file, "listed twice; keep one of the rows", "duplicate_id")
                continue
            self._report_empty_cells(manifest, row, (masks or {}).get(row.id, ()))
            images = tuple(path for path in row.images if path)
            own = layout in ("case folders", "bids")  # files in them are called alike, or by their channel
            cases[row.id] = Case(row.id, images, row.label, (masks or {}).get(row.id, ()), own, row.class_label)
        if manifest.split is self.split:
            for case in manifest.without_section:
                self._problem(case, manifest.file, "in no section: its split is empty", "no_section", "warning")
        if manifest.label_column is None:
            self._problem("", manifest.file, manifest.no_label_text, "no_label_column", "warning")
        source = "the subjects of BIDS" if layout == "bids" else "the manifest's column of patients"
        rule = source if manifest.groups else ""
        more = {"label_column": manifest.label_column, "groups": manifest.groups, "patient_rule": rule}
        return self._folder(layout, sorted(cases.values(), key=lambda case: case.id), [], **more)

    def _report_empty_cells(self, manifest: Manifest, row: Row, masks: Sequence[Path | None] = ()) -> None:
        in_table = manifest.file.suffix == ".csv"
        lacks = "the cell is empty" if in_table else "there is no such file, or more than one"
        empty = [column for column, path in zip(manifest.image_columns, row.images) if path is None]
        if len(empty) == len(row.images):
            text = f"row without an image: {', '.join(empty)} is empty"
            text = text if in_table else f"label without an image: no {', '.join(empty)}"
            self._problem(row.id, manifest.file, text, "no_image")
        else:
            for column in empty:
                text = f"channel {manifest.image_columns.index(column)} ({column}) is missing: {lacks}"
                self._problem(row.id, manifest.file, text, "missing_channel")
        if manifest.label_column and row.label is None and not any(masks):
            text = f"image without a label: {manifest.label_column} is empty"
            text = text if in_table else f"image without a label: no {manifest.label_column}"
            self._problem(row.id, manifest.file, text, "no_label")

    def _images_alone(self) -> tuple[str, list[Case], list[Case]]:
        folder = self._one_of(IMAGE_FOLDERS, "cases") or self.root
        files = images_by_stem(folder)
        if not files and is_series(folder):
            files = [(folder.name, folder)]
        below = [(f"{child.name}_{stem}", path) for child in subfolders(folder) for stem, path in images_by_stem(child)]
        if files and below:
            text = f"{len(below)} images below it, such as {below[0][1].relative_to(folder)}, are not looked at"
            self._problem("", folder, f"{text}; give their folder as dataset_dir", "images_below", "warning")
        files = self._without_labels_beside(files or below)
        suffixed = has_channel_suffix([stem for stem, _ in files], set(), self.meta, self.names)
        return "images", paired_cases(self._grouped(files, suffixed), {}), []

    def _without_labels_beside(self, files: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
        """Leave out ``a_seg`` beside ``a``: the label map of an image, not another image."""
        if not (beside := labels_beside(files)):
            return files
        text = f"files called as label maps ({len(beside)}, such as {beside[0][1].name}) are not taken for images"
        text += "; to train on them, put them into a folder labels/ beside images/"
        self._problem("", self.root, text, "labels_beside", "warning")
        return sorted(set(files) - set(beside))

    def _labelled(self, image_dir: Path, label_dir: Path) -> tuple[str, list[Case], list[Case]]:
        images = images_by_stem(image_dir)
        labels = _labels_by_stem(label_dir, images) if label_dir != image_dir else annotations_by_stem(label_dir)
        paired = image_dir.name != "imagesTr"
        tests = [] if paired else images_by_stem(self.root / "imagesTs")
        labels = without_label_suffix(labels, [stem for stem, _ in images]) if paired else labels
        suffixed = has_channel_suffix(
            [stem for stem, _ in images or tests], {stem for stem, _ in labels}, self.meta, self.names
        )
        image_groups = self._grouped(images, suffixed)
        label_paths = {case: group[0] for case, group in self._grouped(labels, False).items()}
        if self.listing and not suffixed:
            image_groups, label_paths = self._listed(image_groups, label_paths)
        self._report_unpaired(image_groups, label_paths)
        layout = "paired" if paired else "nnunet" if suffixed else "msd"
        if not suffixed:
            refuse_another_order(self.chosen, self.meta, self.root / "dataset.json")
        return layout, paired_cases(image_groups, label_paths), paired_cases(self._grouped(tests, suffixed), {})

    def _grouped(self, files: list[tuple[str, Path]], suffixed: bool) -> dict[str, dict[int, Path]]:
        return group_channels(files, suffixed, self.names, self.chosen, self.problems)

    def _listed(
        self, images: dict[str, dict[int, Path]], labels: dict[str, Path]
    ) -> tuple[dict[str, dict[int, Path]], dict[str, Path]]:
        """Keep the cases that the list or ``split.json`` names, with the files that the list gives."""
        listed: dict[str, tuple[Path, Path | None]] = {}
        for image, label in self.listing:
            case = image_stem(image.name) or image.name
            if case in listed:
                self._problem(case, image, "listed twice in dataset.json; remove one entry", "duplicate_id")
            listed[case] = (image, label)
            for file, kind in ((image, "no_image"), (label, "no_label")):
                if file is not None and not file.is_file():
                    self._problem(case, file, "listed in dataset.json, but there is no such file", kind)
        chosen = {case for ids in (self.split or {}).values() for case in ids}
        self._report_unlisted(images, labels, listed, chosen)
        images = {case: group for case, group in images.items() if case in chosen and case not in listed}
        labels = {case: path for case, path in labels.items() if case in chosen and case not in listed}
        images.update({case: {0: image} for case, (image, _) in listed.items() if image.is_file()})
        labels.update({case: label for case, (_, label) in listed.items() if label and label.is_file()})
        return images, labels

    def _report_unlisted(
        self,
        images: dict[str, dict[int, Path]],
        labels: dict[str, Path],
        listed: dict[str, tuple[Path, Path | None]],
        chosen: set[str],
    ) -> None:
        listed_files = {file for pair in listed.values() for file in pair}
        for case in sorted((set(images) | set(labels)) - set(listed) - chosen):
            image, label = images.get(case, {}).get(0), labels.get(case)
            if image and label:
                self._problem(case, image, "not listed in dataset.json: not used", "not_listed", "warning")
            elif (image or label) not in listed_files:
                self._report_half(case, image, label)

    def _report_unpaired(self, images: dict[str, dict[int, Path]], labels: dict[str, Path]) -> None:
        reported = {problem.case for problem in self.problems if problem.kind in ("no_image", "no_label")}
        for case in sorted((set(images) ^ set(labels)) - reported):
            group = images.get(case)
            self._report_half(case, next(iter(group.values())) if group else None, labels.get(case))

    def _report_half(self, case: str, image: Path | None, label: Path | None) -> None:
        """Report an image without a label, or a label without an image."""
        hint = self.near_misses.hint(case)
        if image:
            text = f"image without a label: no file of the name {case} among labels{hint}"
            self._problem(case, image, text, "no_label")
        elif label:
            text = f"label without an image: no file of the name {case} among images{hint}"
            self._problem(case, label, text, "no_image")

    def _check_ids(self, cases: list[Case], unlabelled: list[Case]) -> None:
        known = {case.id for case in cases}
        for section, ids in (self.split or {}).items():
            for case in sorted(set(ids) - known):
                text = f"'{section}' names {case}, but there is no such case; correct the list"
                self._problem(case, self.root / "split.json", text, "no_such_case")
        for case in unlabelled:
            if case.id in known:
                text = "same case id in imagesTr and imagesTs; rename one"
                self._problem(case.id, case.images[0], text, "duplicate_id")

    def _problem(self, case: str, file: Path, message: str, kind: str, level: str = "error") -> None:
        self.problems.append(Finding(level, case, str(file), message, kind))


def _labels_by_stem(folder: Path, images: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Return the label maps of a folder, and annotations for the images that have none; or annotations alone."""
    maps, annotations = images_by_stem(folder), annotations_by_stem(folder)
    if not maps:
        return annotations
    stems = [stem for stem, _ in images]
    lacking = set(stems) - {stem for stem, _ in without_label_suffix(maps, stems)}
    return maps + [(stem, path) for stem, path in annotations if stem in lacking]
