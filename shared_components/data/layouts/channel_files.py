"""One file a channel, told apart by nnU-Net's ending (``_0000``, ``_0001``), made into cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared_components.data.formats.files import CHANNEL_SUFFIX, PICTURE_SUFFIXES, image_stem
from shared_components.data.layouts.case_folder import Finding

Groups = dict[str, dict[int, Path]]


def has_channel_suffix(
    stems: Sequence[str], label_stems: set[str], meta: Mapping[str, Any], names: Sequence[str] | None
) -> bool:
    """Tell whether ``_0000`` at the end of image names is nnU-Net's channel, not a part of the id.

    Args:
        stems: names of the image files without their suffix.
        label_stems: those of the label maps.
        meta: content of ``dataset.json``.
        names: of the channels, where they are known.
    """
    matches = [match for match in map(CHANNEL_SUFFIX.match, stems) if match]
    if "channel_names" in meta and matches:
        return True
    if not matches or len(matches) < len(stems) or label_stems & set(stems):
        return False
    if label_stems:
        return any(match.group(1) in label_stems for match in matches)
    return max(int(match.group(2)) for match in matches) < max(len(names or ()), 1)


def group_channels(
    files: Sequence[tuple[str, Path]],
    suffixed: bool,
    names: Sequence[str] | None,
    chosen: Sequence[int] | None,
    problems: list[Finding],
) -> Groups:
    """Group (stem, file) pairs to cases: id to channel to file.

    Args:
        files: stems and files.
        suffixed: whether the end of a stem tells the channel; else every file is a case.
        names: of the channels, where they are known.
        chosen: the channels that the user names, in the user's order; ``None`` or none of them keeps all.
        problems: receives what is wrong.
    """
    groups: Groups = {}
    for stem, path in files:
        match = CHANNEL_SUFFIX.match(stem) if suffixed else None
        case, channel = (match.group(1), int(match.group(2))) if match else (stem, 0)
        if suffixed and not match:
            text = "no channel suffix such as _0000 in its name; rename it"
            problems.append(Finding("error", case, str(path), text, "no_suffix"))
        first = groups.setdefault(case, {}).setdefault(channel, path)
        if first != path:
            text = f"same case id as {first.name}; keep one of the two"
            problems.append(Finding("error", case, str(path), text, "duplicate_id"))
    if suffixed:
        problems += _missing_channels(groups, names, chosen)
    return _chosen(groups, chosen) if suffixed and chosen else groups


def _chosen(groups: Groups, chosen: Sequence[int]) -> Groups:
    kept = {case: {new: group[n] for new, n in enumerate(chosen) if n in group} for case, group in groups.items()}
    return {case: group for case, group in kept.items() if group}


def _missing_channels(groups: Groups, names: Sequence[str] | None, chosen: Sequence[int] | None) -> list[Finding]:
    most = max((max(group) for group in groups.values()), default=0) + 1
    names = names or tuple(f"channel {i}" for i in range(most))
    files = [path.name.lower() for group in groups.values() for path in group.values()]
    if most == 1 and len(names) == 3 and all(name.endswith(PICTURE_SUFFIXES) for name in files):
        return []  # nnU-Net's colour pictures: one file of three channels
    missing = []
    for case, group in groups.items():
        present = next(iter(group.values()))
        for channel, name in zip(chosen or range(len(names)), names):
            if channel not in group:
                file = present.with_name(present.name.replace(image_stem(present.name), f"{case}_{channel:04d}"))
                text = f"channel {channel} ({name}) is missing: there is no such file"
                missing.append(Finding("error", case, str(file), text, "missing_channel"))
    return missing
