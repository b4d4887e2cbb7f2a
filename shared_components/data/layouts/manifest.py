"""Reading ``manifest.csv``: a row a case, with the paths of its images and of its label map."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PureWindowsPath

from shared_components.data.formats.files import composed, label_stem
from shared_components.data.layouts.dataset_json import SECTION_KEYS, SECTIONS, named_channels
from shared_components.errors import InputError

LABEL_COLUMNS = ("label", "mask", "seg", "segmentation")
CLASS_COLUMN = "class_label"
CLASS_COLUMNS = ("class", "image_label", "label")
GROUP_COLUMNS = ("patient", "patient_id", "patientid", "subject", "subject_id", "group")
_KNOWN = ("id", "image", "split", CLASS_COLUMN, *CLASS_COLUMNS, *LABEL_COLUMNS, *GROUP_COLUMNS)


@dataclass(frozen=True)
class Row:
    """A case: an absolute path for each image column and for the label, ``None`` where the cell is empty.

    ``class_label`` is the image's class as it stands in the cell, ``None`` without such a column.
    """

    id: str
    images: tuple[Path | None, ...]
    label: Path | None
    class_label: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What a ``manifest.csv`` says.

    Attributes:
        file: its path.
        image_columns: one a file of the case, in the order of the model's channels.
        label_column: ``None`` if no column was asked for or found.
        other_columns: further columns that hold paths of images.
        rows: in the order of the file.
        split: ids of each section that the column "split" names, sorted; ``None`` if there is no such column.
        groups: id to patient, where a column of `GROUP_COLUMNS` says.
        without_section: ids of rows whose "split" is empty.
        without_label: what to say where labels are needed and there is no label column, if not the usual.
    """

    file: Path
    image_columns: tuple[str, ...]
    label_column: str | None
    other_columns: tuple[str, ...]
    rows: list[Row]
    split: dict[str, list[str]] | None
    groups: dict[str, str]
    without_section: list[str]
    without_label: str = ""

    @property
    def no_label_text(self) -> str:
        """What to say where labels are needed and there is no label column."""
        if self.without_label:
            return self.without_label
        missing = f"no labels: has no column {', '.join(LABEL_COLUMNS)} that holds paths"
        others = f" ({', '.join(self.other_columns)})" if self.other_columns else ""
        return f"{missing}; name one that does with label_column{others}"


def read_manifest(file: Path, channels: Sequence[str] | int | None, label_column: str | None) -> Manifest:
    """Read a manifest.

    The id is the column "id", else the name of the first image without suffix. Paths are relative to the manifest's
    folder. Sections are those of the column "split" (train, validation or val, test), patients those of the first
    column of `GROUP_COLUMNS`; the column "class_label" holds the class of an image, for models that are told it.
    Capitals in the names of these columns do not matter.

    Args:
        file: the manifest; separated by commas, semicolons or tabs.
        channels: names of the image columns. If these are not columns, they are the names of the channels inside the
            files of the column "image", and a number says nothing about columns.
        label_column: name of the label's column; by default the first of `LABEL_COLUMNS` that holds paths of images
            or of Aperio annotations (.xml).

    Raises:
        InputError: the file cannot be read, has no rows, lacks a column that is needed or has one twice, or an id is no
            name of a file.
    """
    table = Table(file)
    paths = [column for column in table.columns if table.holds_paths(column)]
    label_column = _label_column(table, label_column, paths)
    image_columns = _image_columns(table, channels, [column for column in paths if column != label_column])
    group_column = next((column for column in GROUP_COLUMNS if column in table.columns), None)
    rows, groups = [], {}
    for number, cells in enumerate(table.rows, 1):
        images = tuple(cell_path(file.parent, cells[column]) for column in image_columns)
        label = cell_path(file.parent, cells[label_column]) if label_column else None
        case = composed(cells.get("id", "")) or next(
            (_stem(path) for path in (*images, label) if path), f"row {number}"
        )
        if "/" in case or "\\" in case:
            raise InputError(
                f"{file}: id '{case}' of case {number}: results are called by it; write it without slashes"
            )
        rows.append(Row(case, images, label, cells.get(CLASS_COLUMN)))
        if group_column and cells[group_column]:
            groups[case] = cells[group_column]
    split, without = _split(table, [row.id for row in rows])
    used = (*image_columns, label_column)
    others = tuple(column for column in paths if column not in used and table.exists(column))
    return Manifest(file, image_columns, label_column, others, rows, split, groups, without)


def column_if_there(dataset_dir: str | os.PathLike, column: str) -> str | None:
    """Return the name of a column if a folder has a manifest with it, else ``None``: a bundle's default for a key.

    Raises:
        InputError: as `read_manifest`, for a manifest that cannot be read.
    """
    file = Path(dataset_dir).expanduser() / "manifest.csv"
    return column if file.is_file() and column in Table(file).columns else None


class Table:
    """The cells of a CSV file, stripped, by column; columns that mean something here are written small.

    Args:
        file: separated by commas, semicolons or tabs.

    Raises:
        InputError: it cannot be read, has no rows or too long ones, or a column twice.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: cannot be read as UTF-8 text ({error}); mend or remove the file") from error
        separator = max(",;\t", key=lambda character: lines[0].count(character)) if lines else ","
        records = [[cell.strip() for cell in record] for record in csv.reader(lines, delimiter=separator)]
        self.columns = _known_as_such(records[0]) if records else []
        twice = [column for column, count in Counter(filter(None, self.columns)).items() if count > 1]
        if twice:
            raise InputError(f"{file}: two columns are called '{twice[0]}'; keep one, or rename it")
        self.rows = []
        for number, record in enumerate(records[1:], 2):
            if not any(record):
                continue
            if len(record) > len(self.columns):
                width = len(self.columns)
                raise InputError(f"{file}: row {number} has {len(record)} cells, the header {width}; mend it")
            self.rows.append(dict(zip(self.columns, record + [""] * len(self.columns))))
        if not self.rows:
            raise InputError(f"{file}: holds no rows; expected a header with id, image and label, and a row a case")

    def holds_paths(self, column: str) -> bool:
        """Tell whether the cells of a column that are not empty name files of images or annotations."""
        cells = [row[column] for row in self.rows if row[column]]
        return bool(cells) and all(label_stem(PureWindowsPath(cell).name) for cell in cells)

    def exists(self, column: str) -> bool:
        """Tell whether the first file that a column names is there."""
        path = cell_path(self.file.parent, next(row[column] for row in self.rows if row[column]))
        return path is not None and path.is_file()

    def needs(self, column: str, what: str) -> str:
        """Return the column, or raise if there is none of this name."""
        if column in self.columns:
            return column
        if column.lower() in _KNOWN and column.lower() in self.columns:
            return column.lower()
        near = get_close_matches(column, self.columns, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{self.file}: no column '{column}' for {what}; columns: {', '.join(self.columns)}{hint}")


def _known_as_such(columns: list[str]) -> list[str]:
    """Write the names of columns that mean something here small, unless one is written so already."""
    return [name.lower() if name.lower() in _KNOWN and name.lower() not in columns else name for name in columns]


def _label_column(table: Table, wanted: str | None, paths: list[str]) -> str | None:
    if wanted is None:
        return next((column for column in LABEL_COLUMNS if column in paths), None)
    column = table.needs(wanted, "label_column")
    if column not in paths:
        raise InputError(f"{table.file}: column '{wanted}' holds no paths of images; those that do: {', '.join(paths)}")
    return column


def _image_columns(table: Table, channels: Sequence[str] | int | None, paths: Sequence[str]) -> tuple[str, ...]:
    names = named_channels(channels)
    if names and (set(names) & set(table.columns) or "image" not in table.columns):
        return tuple(table.needs(name, "a channel") for name in names)
    if "image" in table.columns:
        return ("image",)
    found = f" (columns that hold paths: {', '.join(paths)})" if paths else ""
    raise InputError(f"{table.file}: no column 'image'; name the image columns with channels{found}")


def _split(table: Table, ids: list[str]) -> tuple[dict[str, list[str]] | None, list[str]]:
    if "split" not in table.columns:
        return None, []
    split: dict[str, list[str]] = {}
    without = []
    for case, row in zip(ids, table.rows):
        section = SECTION_KEYS.get(row["split"].lower())
        if section:
            split.setdefault(section, []).append(case)
        elif row["split"]:
            raise InputError(
                f"{table.file}: split of {case} is '{row['split']}', expected one of {', '.join(SECTIONS)}"
            )
        else:
            without.append(case)
    return {section: sorted(cases) for section, cases in split.items()} or None, without


def cell_path(folder: Path, cell: str) -> Path | None:
    """Return the file that a cell of a manifest in ``folder`` names, ``None`` for an empty one."""
    return folder / os.path.expanduser(cell.replace("\\", "/")) if cell else None


def _stem(path: Path) -> str:
    return label_stem(path.name) or path.name
