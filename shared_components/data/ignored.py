"""Voxels that nobody judged: nnU-Net's label ``ignore``, from the file to the score.

`shared_components.data.loaders.LoadLabelMapd` turns the value that a folder has for them into `IGNORED`;
`shared_components.diffusion.label_coding.LabelCoding` codes them as known to nobody, and losses leave them out;
`LeaveOutIgnoredd` does so in an evaluation.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor

IGNORED = -1


class LeaveOutIgnoredd(MapTransform):
    """Make the voxels that nobody judged background in prediction and reference alike, so that no score counts them.

    For the end of an evaluator's postprocessing, where the prediction is on the label's grid. Overlaps and errors are
    then those of the other voxels; of a structure that such voxels cut, both surfaces end there. Cases without such
    voxels stay as they are.

    Args:
        keys: predictions (C, *spatial): probabilities or one-hot, background first; or label maps (1, *spatial).
        label_key: label map (1, *spatial) with `IGNORED` in such voxels.
        ignored_key: what receives the voxels (1, *spatial) bool; where it is there already, as for another prediction
            of the same case, they are these.

    Of these cases a prediction as it was before is kept under its key and "_whole", for single objects that such voxels
    cut.
    """

    def __init__(self, keys: KeysCollection, label_key: Hashable = "label", ignored_key: Hashable = "ignored") -> None:
        super().__init__(keys)
        self.label_key, self.ignored_key = label_key, ignored_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Leave the voxels out of one case."""
        result = dict(data)
        label = result.get(self.label_key)
        ignored = result.get(self.ignored_key)
        if ignored is None and label is not None:
            ignored = convert_to_tensor(label) == IGNORED
        if ignored is None or not bool(ignored.any()):
            return result
        result[self.ignored_key] = ignored
        result[self.label_key] = label.masked_fill(ignored.to(label.device), 0)
        for key in self.key_iterator(result):
            there = ignored.to(result[key].device)
            result[f"{key}_whole"] = result[key]
            result[key] = result[key].masked_fill(there, 0)
            if len(result[key]) > 1:
                result[key][:1] = result[key][:1].masked_fill(there, 1)
        return result
