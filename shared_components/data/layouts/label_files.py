"""Names of label maps: how a file that is no image is told from those that are, before anything is read."""

from __future__ import annotations

import re
from collections.abc import Mapping

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")  # OTMultiClass: OT, Multi, Class
_LABEL_WORDS = frozenset(
    "seg segs segmentation segmentations label labels mask masks gt truth groundtruth annotation annotations ot "
    "glistr".split()
)
_WHOLE_ORGANS = frozenset("brain body head skull".split())
_ANY_MASK = re.compile(r"^.*mask$", re.IGNORECASE)


def is_label_name(name: str) -> bool:
    """Tell whether a file's name, without its suffix, has a word for a label map: ``ct_seg``, ``OTMultiClass`` (BRATS
    2015), ``GlistrBoost_ManuallyCorrected`` (TCGA).
    """
    return not _LABEL_WORDS.isdisjoint(_words(name))


def is_no_image(name: str) -> bool:
    """Tell whether a file of this name is a label map or any other mask, such as ``brainmask``."""
    return is_label_name(name) or _ANY_MASK.match(name) is not None


def chosen_label(counts: Mapping[str, int]) -> str | None:
    """Choose the label map among names, given how many cases have each; ``None`` where no name is one of a label map.

    A mask of the whole brain or body is the last choice; else what most cases have comes first, then the name.
    """
    found = [name for name in counts if is_label_name(name)]
    return min(found, key=lambda name: (_is_whole_organ(name), -counts[name], name), default=None)


def _is_whole_organ(name: str) -> bool:
    return not _WHOLE_ORGANS.isdisjoint(_words(name))


def _words(name: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(name)}
