"""Cases, the folder that holds them, and what is found in it: what everything about data speaks of."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from shared_components.data.formats.files import image_stem

_NAMED = 3  # findings of a folder that is refused
TABLES = ("manifest", "bids", "channel folders", "case folders")  # layouts with a column for the labels, or none


@dataclass(frozen=True)
class Finding:
    """One thing about a case or the folder that is wrong (``level`` "error"), worth knowing ("warning") or good to know
    ("note").

    ``case`` is empty for what concerns the whole folder; ``kind`` is a short stable word for programs.
    """

    level: str
    case: str
    file: str
    message: str
    kind: str = ""


@dataclass(frozen=True)
class Case:
    """A case: its image files (one, or one a channel; none if only a label was found) and its label file.

    ``masks`` stands in for the label where there is a mask file for each class, ``None`` where a case lacks one.
    ``named`` says that other cases' files have the same names, so that results are to be called by the id.
    ``class_label`` is the image's class as a manifest has it, empty where it is not known.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None = None
    masks: tuple[Path | None, ...] = ()
    named: bool = False
    class_label: str | None = None

    def datalist_item(self) -> dict[str, str | list[str]]:
        """Return the case as an entry of a MONAI datalist; "image" is a list for one file a channel."""
        paths = [str(path) for path in self.images]
        item: dict[str, str | list[str]] = {"image": paths[0] if len(paths) == 1 else paths}
        if self.label is not None:
            item["label"] = str(self.label)
        elif any(self.masks):
            item["label"] = [str(path or "") for path in self.masks]
        if self.class_label is not None:
            item["class_label"] = self.class_label
        return {**item, "case": self.id} if self.named else item


@dataclass
class CaseFolder:
    """What `find_cases` understood of a folder.

    Attributes:
        root: absolute path of the folder.
        layout: "msd", "nnunet", "manifest", "bids", "chaos", "btcv", "stacks", "paired", "parts", "channel folders",
            "case folders" or "images"; "published" for folders a class
            (`shared_components.data.layouts.class_folders`).
        channels: names of the image channels.
        label_names: name to value, without the background; empty if no ``dataset.json`` says.
        cases: the cases of the labelled part of the folder (or all images), complete or not, sorted by id.
        unlabelled: the cases of ``imagesTs``, or of a part without labels.
        split: sections of ``split.json``, of the manifest or of the parts, or ``None``.
        problems: what is missing, ambiguous or unused.
        channels_named: the user, ``dataset.json`` or the manifest says how many channels there are.
        label_column: the manifest's column of labels, or ``None``.
        groups: case id to patient, for cases that must stay in one section.
        patient_rule: what says so, for people; empty if every case is taken for a patient of its own.
        patient_pattern: the pattern that says so, if one does (`shared_components.data.layouts.split.group_patients`).
        fold, num_folds: which part of what is not tested validates (`shared_components.data.layouts.split.sections`).
        ignored: label value of the voxels that nobody judged, or ``None``
            (`shared_components.data.layouts.dataset_json.ignored_value`).
    """

    root: Path
    layout: str
    channels: tuple[str, ...]
    label_names: dict[str, int]
    cases: list[Case]
    unlabelled: list[Case] = field(default_factory=list)
    split: dict[str, list[str]] | None = None
    problems: list[Finding] = field(default_factory=list)
    channels_named: bool = True
    label_column: str | None = None
    groups: dict[str, str] = field(default_factory=dict)
    patient_rule: str = ""
    patient_pattern: str | None = None
    fold: int | None = None
    num_folds: int = 5
    ignored: int | None = None

    @property
    def labelled(self) -> bool:
        """Whether the layout has labels at all."""
        return self.layout != "images" and (self.layout not in TABLES or self.label_column is not None)


def describe(finding: Finding, root: Path) -> str:
    """Return "case: file: message" on one line, with the file relative to the data folder."""
    file = os.path.relpath(finding.file, root)
    parts = [finding.case, "" if file == "." else file, finding.message]
    return " ".join(": ".join(part for part in parts if part).split())


def describe_some(findings: Sequence[Finding], root: Path) -> str:
    """Return the first findings on one line, and how many more there are."""
    more = f"; and {len(findings) - _NAMED} more" if len(findings) > _NAMED else ""
    return "; ".join(describe(finding, root) for finding in findings[:_NAMED]) + more


def errors_by_case(findings: Sequence[Finding], root: Path) -> dict[str, str]:
    """Return case id to what is wrong with it, of errors alone, on one line."""
    lines: dict[str, list[str]] = defaultdict(list)
    for finding in findings:
        if finding.level == "error":
            lines[finding.case].append(describe(finding, root))
    return {case: "; ".join(found) for case, found in lines.items()}


def named_apart(cases: list[Case]) -> list[Case]:
    """Mark the cases whose (first) image file has the same name as another's."""
    stems = Counter(image_stem(case.images[0].name) or case.images[0].name for case in cases if case.images)
    return [replace(case, named=True) for case in cases] if max(stems.values(), default=1) > 1 else cases


def paired_cases(images: dict[str, dict[int, Path]], labels: dict[str, Path]) -> list[Case]:
    """Return the cases of images (id to channel to file) and labels (id to file), sorted by id."""
    return [
        Case(case, tuple(path for _, path in sorted(images.get(case, {}).items())), labels.get(case))
        for case in sorted(set(images) | set(labels))
    ]
