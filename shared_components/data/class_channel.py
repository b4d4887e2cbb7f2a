"""The class of an image as one more channel of it, for denoisers that are told the class."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type, convert_to_tensor

from shared_components.data.layouts.manifest import CLASS_COLUMN
from shared_components.data.transforms import file_or_key
from shared_components.errors import InputError

UNKNOWN_CLASS = -1


class ClassLabelChanneld(MapTransform):
    """Append a channel that holds an image's class everywhere, as `ClassFromCondition` expects it.

    The class is the entry ``class_label`` of the case (a manifest's column of this name), a whole number from 0 on; an
    empty or missing one is -1, "not known". It goes last in a pipeline, behind what changes grey values.

    Args:
        keys: images (K, *spatial); they become (K + 1, *spatial).
        num_classes: classes that the network knows; nothing is appended when ``None``.
    """

    def __init__(self, keys: KeysCollection, num_classes: int | None) -> None:
        super().__init__(keys)
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Append the channel.

        Raises:
            InputError: the class is not one of 0 to ``num_classes`` - 1, nor empty.
        """
        result = dict(data)
        if self.num_classes is None:
            return result
        cell = str(result.get(CLASS_COLUMN, ""))
        label = int(cell) if cell.isdecimal() else UNKNOWN_CLASS
        for key in self.key_iterator(result):
            if cell and not 0 <= label < self.num_classes:
                raise InputError(
                    f"{file_or_key(result[key], key)}: {CLASS_COLUMN} is '{cell}', expected 0 to "
                    f"{self.num_classes - 1}; mend the manifest or give num_classes"
                )
            values = convert_to_tensor(result[key])
            appended = torch.cat([values, torch.full_like(values[:1], label)])
            result[key] = convert_to_dst_type(appended, result[key])[0]
        return result
