"""Reading what ``dataset.json`` and ``split.json`` of a data set say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared_components.data.formats.files import composed, image_stem, read_json_object
from shared_components.errors import InputError

SECTIONS = ("train", "validation", "test")
IGNORED = "ignore"
SECTION_KEYS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}


def named_channels(channels: Sequence[str] | str | int | None) -> tuple[str, ...]:
    """Return the names that the user gives to channels; none where only their number is given, or nothing."""
    if channels is None or isinstance(channels, int):
        return ()
    return (channels,) if isinstance(channels, str) else tuple(map(str, channels))


def channel_names(channels: Sequence[str] | int | None, meta: dict[str, Any], file: Path) -> tuple[str, ...] | None:
    """Return the names of the image channels, or ``None`` if nothing says how many there are.

    Args:
        channels: the user's own names, or their number; they come before those of ``dataset.json``.
        meta: content of ``dataset.json``: "channel_names" (nnU-Net) or "modality" (MSD), an object or a list.
        file: its path, for messages.
    """
    named = meta.get("channel_names", meta.get("modality"))
    if isinstance(named, dict):
        named = [named[key] for key in sorted(named, key=lambda key: _integer(key, "a channel number", file))]
    elif isinstance(named, str):
        named = [named]
    names = tuple(str(name) for name in named) if named else None
    if channels is None:
        return names
    if isinstance(channels, int):
        if channels < 1:
            raise InputError(f"channels: {channels}, expected a number of at least 1 or a list of names")
        return names if names and len(names) == channels else tuple(f"channel {i}" for i in range(channels))
    return named_channels(channels)


def chosen_channels(channels: Sequence[str] | int | None, meta: dict[str, Any], file: Path) -> tuple[int, ...] | None:
    """Return which of the channels that ``dataset.json`` names the user's names are, in the user's order.

    ``None`` if they are all of them in the same order, or other names: those stand for the channels as they come.
    """
    own = [name.lower() for name in channel_names(None, meta, file) or ()]
    wanted = [name.lower() for name in named_channels(channels)]
    if not wanted or wanted == own or not set(wanted) <= set(own):
        return None
    return tuple(own.index(name) for name in wanted)


def refuse_another_order(chosen: tuple[int, ...] | None, meta: dict[str, Any], file: Path) -> None:
    """Refuse all of the channels in another order where they lie in one file, which is not taken apart.

    Raises:
        InputError: ``chosen`` (`chosen_channels`) is such an order.
    """
    own = channel_names(None, meta, file) or ()
    if chosen and sorted(chosen) == list(range(len(own))):
        asked = ", ".join(own[number] for number in chosen)
        raise InputError(
            f"{file}: the files hold the channels {', '.join(own)}, asked for were {asked}; keep the order"
        )


def label_names(meta: dict[str, Any], file: Path) -> dict[str, int]:
    """Return name to value of the labels but the background, from either MSD's or nnU-Net's form.

    MSD writes ``{"0": "background", "1": "anterior"}``, nnU-Net v2 ``{"background": 0, "anterior": 1}``. nnU-Net's
    regions, ``{"whole tumour": [1, 2, 3], "core": [2, 3]}``, name no single value: with them no label is named. Its
    ``ignore`` is no label either (`ignored_value`).

    Raises:
        InputError: a label's value is no whole number, or one of a region's is not; two labels share a value or a name.
    """
    labels = _label_items(meta, file)
    regions = [(name, value) for name, value in labels.items() if isinstance(value, list)]
    if regions:
        for name, values in regions:
            for value in values:
                _integer(value, f"a value of region '{name}'", file)
        return {}
    names = {name: _integer(value, f"the value of label '{name}'", file) for name, value in labels.items()}
    owners: dict[int, str] = {}
    for name, value in names.items():
        if owners.setdefault(value, name) != name:
            raise InputError(f"{file}: the labels '{owners[value]}' and '{name}' both have the value {value}; keep one")
    return {name: number for name, number in names.items() if number != 0 and name.lower() != IGNORED}


def ignored_value(meta: dict[str, Any], file: Path) -> int | None:
    """Return the value of the voxels that nobody judged, nnU-Net's label ``ignore``, or ``None`` if there are none.

    They take no part in a loss or in a score, and no model predicts them.

    Raises:
        InputError: the value is no whole number above 0, or another label's too.
    """
    labels = _label_items(meta, file)
    name = next((name for name in labels if name.lower() == IGNORED), None)
    if name is None:
        return None
    value = _integer(labels.pop(name), f"the value of label '{name}'", file)
    others = [number for other in labels.values() for number in (other if isinstance(other, list) else [other])]
    if value < 1 or str(value) in map(str, others):
        raise InputError(f"{file}: label '{name}' has the value {value}; expected one above 0 that no other label has")
    return value


def _label_items(meta: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return name to value, or to the values of a region, of all labels."""
    labels = meta.get("labels", {})
    if not isinstance(labels, dict):
        raise InputError(f'{file}: "labels" must be an object such as {{"0": "background", "1": "tumour"}}')
    named = {}
    for key, value in labels.items():
        msd_form = isinstance(value, str) and not value.lstrip("-").isdigit()
        name, number = (value, key) if msd_form else (key, value)
        if str(name) in named:
            raise InputError(f"{file}: two labels are called '{name}'; give each a name of its own")
        named[str(name)] = number
    return named


def training_list(meta: dict[str, Any], root: Path, file: Path) -> list[tuple[Path, Path | None]]:
    """Return the (image, label) files that MSD's "training" list names; empty if there is no such list.

    Raises:
        InputError: an entry is not of the form ``{"image": "...", "label": "..."}``.
    """
    pairs: list[tuple[Path, Path | None]] = []
    for number, entry in enumerate(meta.get("training") or []):
        image = entry.get("image") if isinstance(entry, dict) else None
        label = entry.get("label") if isinstance(entry, dict) else None
        if not isinstance(image, str) or not isinstance(label, (str, type(None))):
            raise InputError(f'{file}: "training" entry {number} must be {{"image": "...", "label": "..."}}')
        pairs.append((root / image, root / label if label else None))
    return pairs


def read_split(root: Path) -> dict[str, list[str]] | None:
    """Return the ids of each section that ``split.json`` names, sorted, or ``None`` if there is no such file.

    A section that the file leaves out is missing here too, which `shared_components.data.layouts.split` fills.

    Raises:
        InputError: the file is broken, has an unknown section, or a section is no list of ids.
    """
    file = root / "split.json"
    if not file.is_file():
        return None
    split: dict[str, list[str]] = {}
    for key, ids in read_json_object(file).items():
        if key.lower() not in SECTION_KEYS:
            raise InputError(f"{file}: unknown section '{key}'; expected {', '.join(SECTIONS)}")
        if not isinstance(ids, list) or not all(isinstance(case, str) for case in ids):
            raise InputError(f"{file}: section '{key}' must be a list of case ids (file names without suffix)")
        split[SECTION_KEYS[key.lower()]] = sorted(image_stem(Path(case).name) or composed(case) for case in ids)
    if not any(split.values()):
        raise InputError(f"{file}: names no case; list ids under {', '.join(SECTIONS)} or remove the file")
    return split


def _integer(value: Any, what: str, file: Path) -> int:
    try:
        if isinstance(value, (int, str)) and not isinstance(value, bool):
            return int(value)
    except ValueError:
        pass
    raise InputError(f"{file}: {what} is {value!r}, expected a whole number")
