"""A folder in BIDS, the brain imaging data structure: images named by what they show, labels in ``derivatives/``."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared_components.data.formats.files import images_by_stem, subfolders
from shared_components.data.layouts.columns import Channels, Columns
from shared_components.data.layouts.dataset_json import named_channels
from shared_components.data.layouts.manifest import Manifest, Row
from shared_components.errors import InputError

_RAW = ("", "rawdata")
_DATA_TYPES = ("anat", "dwi", "func", "perf", "pet", "fmap", "ct", "xray", "micr")
_LABEL_SUFFIXES = ("dseg", "mask", "seg", "segmentation", "label", "lesion", "roi")  # the earlier, the more a label map
_USUAL = "anat"

Place = tuple[str, str]  # of a subject, and of a session or ""


@dataclass
class _Session:
    """The files of a subject's session by what follows subject and session in their names: ``T1w``, ``run-2_bold``."""

    images: dict[str, Path] = field(default_factory=dict)
    usual: set[str] = field(default_factory=set)
    labels: dict[str, Path] = field(default_factory=dict)


def bids_cases(root: Path, channels: Channels, label_column: str | None) -> Columns | None:
    """Understand ``sub-01/anat/sub-01_T1w.nii.gz`` and ``derivatives/NAME/sub-01/anat/sub-01_dseg.nii.gz``; else
    ``None``.

    A case is a subject, ``sub-01``, or a session of one, ``sub-01_ses-02``; the subject is the patient. Channels are
    the suffixes (``T1w``, ``FLAIR``, or with what is before them, ``acq-sag_T2w``) that ``channels`` names, else the
    anatomical ones that most cases have. The label is the file whose suffix is ``dseg``, else ``mask``, ``seg`` and the
    like, in a folder of ``derivatives/`` or beside the images; where there are several, the one that names the first
    channel, or else ``label_column``: what follows subject and session in its name, or the folder in ``derivatives/``.
    Masks of the whole brain are taken only if that names them. A ``dseg.tsv`` (index, name) names the labels.

    Raises:
        InputError: a channel or the label that is named is in no case.
    """
    raw = next((root / part for part in _RAW if _subjects(root / part)), None)
    sessions = _sessions(raw) if raw else {}
    if not any(session.images for session in sessions.values()):
        return None
    pipelines = [path for path in subfolders(root / "derivatives") if _subjects(path)]
    for pipeline in pipelines:
        for place, found in _sessions(pipeline).items():
            labels = {f"{pipeline.name}/{name}": path for name, path in found.labels.items()}
            sessions.setdefault(place, _Session()).labels.update(labels)
    images = _image_names(root, channels, sessions)
    label, text = _label_name(root, label_column, images, sessions)
    rows, groups = [], {}
    for place, session in sorted(sessions.items()):
        files = tuple(_image(session, name) for name in images)
        labelled = session.labels.get(label) if label else None
        if any(files) or labelled:
            case = "_".join(filter(None, place))
            rows.append(Row(case, files, labelled))
            groups[case] = place[0]
    others = tuple(name for name in _counts(sessions) if name not in images)
    manifest = Manifest(root, images, label, others, rows, None, groups, [], text)
    return Columns("bids", manifest, _label_names(root / "derivatives" / label.partition("/")[0]) if label else {})


def _subjects(root: Path) -> list[Path]:
    return [folder for folder in subfolders(root) if folder.name.startswith("sub-")]


def _sessions(root: Path) -> dict[Place, _Session]:
    """Return what lies in the folders of data types of every subject and session."""
    found: dict[Place, _Session] = {}
    for subject in _subjects(root):
        for folder in [subject, *(inside for inside in subfolders(subject) if inside.name.startswith("ses-"))]:
            place = (subject.name, "" if folder == subject else folder.name)
            for data_type in subfolders(folder):
                if data_type.name in _DATA_TYPES:
                    _add(found.setdefault(place, _Session()), data_type, "_".join(filter(None, place)))
    return found


def _add(session: _Session, folder: Path, before: str) -> None:
    for stem, path in images_by_stem(folder):
        name = stem.removeprefix(f"{before}_")
        if name == stem:
            continue  # of another subject or session, or of no name that BIDS knows
        if _rank(name) is not None:
            session.labels[name] = path
        elif not name.endswith("probseg"):
            session.images[name] = path
            session.usual |= {name} if folder.name == _USUAL else set()


def _suffix(name: str) -> str:
    return name.rpartition("/")[2].rpartition("_")[2]


def _rank(name: str) -> int | None:
    """Return how much a file's name says that it is a label map, the less the more; ``None`` if it does not."""
    suffix = _suffix(name).partition("-")[0]  # seg-manual
    return _LABEL_SUFFIXES.index(suffix) if suffix in _LABEL_SUFFIXES else None


def _image(session: _Session, name: str) -> Path | None:
    """Return the file of a channel: of its name, or the only one that ends in it."""
    ending = [path for other, path in session.images.items() if _suffix(other) == name]
    return session.images.get(name) or (ending[0] if len(ending) == 1 else None)


def _counts(sessions: dict[Place, _Session], usual: bool = False) -> Counter[str]:
    """Return in how many cases each channel is: by its suffix, and by its whole name where there are several."""
    counts: Counter[str] = Counter()
    for session in sessions.values():
        names = [name for name in session.images if not usual or name in session.usual]
        ending = Counter(map(_suffix, names))
        counts.update(_suffix(name) if ending[_suffix(name)] == 1 else name for name in names)
    return counts


def _image_names(root: Path, channels: Channels, sessions: dict[Place, _Session]) -> tuple[str, ...]:
    named = named_channels(channels)
    for name in named:
        if not any(_image(session, name) for session in sessions.values()):
            known = ", ".join(sorted(_counts(sessions)))
            raise InputError(f"{root}: no image '{name}' of any subject; there are {known}")
    counts = _counts(sessions, usual=True) or _counts(sessions)
    with_images = sum(bool(session.images) for session in sessions.values())
    usual = sorted(name for name, count in counts.items() if 2 * count > with_images)
    return named or tuple(usual) or (max(sorted(counts), key=counts.__getitem__),)


def _label_name(
    root: Path, wanted: str | None, images: Sequence[str], sessions: dict[Place, _Session]
) -> tuple[str | None, str]:
    """Return which of the label files is meant, or ``None`` and what to say of it."""
    names = sorted({name for session in sessions.values() for name in session.labels})
    listed = ", ".join(names)
    if wanted is not None:
        chosen = [n for n in names if wanted in (n, n.partition("/")[0], n.partition("/")[2], _suffix(n))]
        if len(chosen) == 1:
            return chosen[0], ""
        problem = "is no label" if not chosen else "is not one label alone"
        raise InputError(f"{root}: label_column '{wanted}' {problem}; there are {listed or 'none'}")
    chosen = [name for name in names if "brain" not in name.lower()]
    about = [name for name in chosen if images[0] in name.rpartition("/")[2].split("_")[:-1]]
    chosen = about or chosen
    best = min((_rank(name) or 0 for name in chosen), default=0)
    chosen = [name for name in chosen if _rank(name) == best]
    if len(chosen) == 1:
        return chosen[0], ""
    if not names:
        return None, "no labels: no file in derivatives/ ends in _dseg, _mask, _seg or _label"
    return None, f"no label is taken: which one is meant? Name it with label_column ({listed})"


def _label_names(pipeline: Path) -> dict[str, int]:
    """Return name to value of the table of labels, where there is one."""
    file = next(iter(sorted(pipeline.glob("*dseg.tsv"))), None)
    if file is None:
        return {}
    try:
        rows = list(csv.DictReader(file.read_text(encoding="utf-8-sig").splitlines(), delimiter="\t"))
        return {row["name"]: int(row["index"]) for row in rows if int(row["index"]) > 0}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file}: no table of index and name ({error}); mend or remove it") from error
