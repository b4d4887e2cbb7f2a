"""Objects of a prediction, told apart and numbered."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from shared_components.ensembling import FindInstancesd, find_instances
from shared_components.errors import InputError
from tests.reporting.test_instances import discs, objects


@pytest.mark.parametrize("split", ["distance", "probability"])
def test_discs_that_touch_are_cut_where_they_meet(split):
    mask = discs((15, 10), (15, 21))
    y, x = np.ogrid[:40, :40]
    hills = [np.exp(-((y - 15) ** 2 + (x - column) ** 2) / 40) for column in (10, 21)]
    probability = 0.5 + 0.5 * np.maximum(*hills)
    assert find_instances(mask, "components").max() == 1
    found = find_instances(mask, split, probability, min_distance=4)
    assert found.max() == 2 and np.array_equal(found > 0, mask)
    left, right = found[15, 10], found[15, 21]
    assert (found[:, :15][mask[:, :15]] == left).all() and (found[:, 17:][mask[:, 17:]] == right).all()


def test_what_has_no_peak_stays_whole():
    """Single pixels, flat squares, an object at the border, a picture full of foreground, none."""
    mask = objects((0, 1, 0, 1), (5, 7, 5, 7), (12, 20, 12, 20)) > 0
    found = find_instances(mask)
    assert found.max() == 3 and np.array_equal(found > 0, mask)
    assert [len(np.unique(found[part][mask[part]])) for part in (np.s_[:3], np.s_[4:9], np.s_[11:])] == [1, 1, 1]
    assert find_instances(np.ones((8, 9), bool)).tolist() == np.ones((8, 9), int).tolist()
    assert find_instances(np.zeros((8, 9), bool)).max() == 0
    flat = find_instances(mask, "probability", np.full(mask.shape, 0.7))
    assert flat.max() == 3 and np.array_equal(flat > 0, mask)


def test_small_objects_are_left_out_and_numbers_have_no_gaps():
    mask = objects((0, 1, 0, 2), (5, 10, 5, 10), (15, 20, 15, 20)) > 0
    found = find_instances(mask, "components", min_size=3)
    assert np.bincount(found.flat).tolist() == [400 - 50, 25, 25]


def test_volumes():
    mask = np.zeros((10, 10, 10), bool)
    mask[1:4, 1:4, 1:4] = mask[6:9, 6:9, 6:9] = True
    assert find_instances(mask).max() == 2


def test_the_transform_numbers_the_objects_of_probabilities():
    mask = torch.from_numpy(discs((15, 10), (15, 21), (33, 33)))
    probabilities = torch.stack([1.0 - mask.float(), 0.4 * mask, 0.6 * mask])
    image = MetaTensor(probabilities, meta={"filename_or_obj": "x.png"})
    found = FindInstancesd("pred", min_distance=4)({"pred": image})
    numbers = found["instances"]
    assert found["pred"] is image and numbers.meta["filename_or_obj"] == "x.png"
    assert numbers.dtype == torch.int32 and numbers.shape == (1, 40, 40)
    assert np.array_equal(numbers[0].numpy(), find_instances(mask.numpy(), min_distance=4)) and numbers.max() == 3


def test_sizes_that_are_none_are_refused():
    for options in ({"min_distance": 0}, {"min_size": -1}):
        with pytest.raises(InputError, match="expected at least 1 and at least 0"):
            FindInstancesd("pred", **options)
