"""Generalised energy distance, Dice between members and their volumes, against values computed by hand and by MONAI."""

import math

import pytest
import torch
from monai.metrics import compute_dice, compute_iou
from torch.nn.functional import one_hot

from shared_components.ensembling import score_members

FULL, HALF, NONE = [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]


def scores(members, label, classes=2):
    return score_members(torch.tensor(members, dtype=torch.uint8), torch.tensor(label), classes)


@pytest.mark.parametrize(
    "members, label, ged, dice, variation",
    [
        # 1 - IoU to the reference 0 and 1/2, between the members 1/2 in two of four ordered pairs; volumes 2 and 1
        ([FULL, HALF], FULL, 2 * 0.25 - 0.25, 2 / 3, math.sqrt(0.5) / 1.5),
        # 1, 1, 0 to the reference; four of nine ordered pairs at 1; one of three pairs agrees; volumes 0, 0, 2
        ([NONE, NONE, FULL], FULL, 4 / 3 - 4 / 9, 1 / 3, math.sqrt(3)),
        ([FULL, FULL, FULL], FULL, 0, 1, 0),
        ([FULL, FULL], HALF, 1, 1, 0),
        ([FULL, FULL], NONE, 2, 1, 0),
    ],
)
def test_values_by_hand(members, label, ged, dice, variation):
    expected = {"ged": ged, "member_dice": dice, "volume_cv": variation}
    assert scores(members, label) == pytest.approx(expected, abs=1e-12)


def test_nothing_marked_by_anyone_is_agreement_without_a_volume():
    found = scores([NONE, NONE], NONE)
    assert (found["ged"], found["member_dice"]) == (0, 1) and math.isnan(found["volume_cv"])
    assert scores([NONE, NONE], HALF)["ged"] == 2


def test_classes_count_alike_and_one_that_is_nowhere_has_no_volume():
    # class 1 agrees with the reference, class 2 is marked by one member of two and not by the reference
    found = scores([[1, 2, 0], [1, 0, 0]], [1, 0, 0], classes=4)
    assert found["ged"] == pytest.approx((2 * 0.5 - 0.5) / 3)
    assert found["member_dice"] == pytest.approx((1 + 0 + 1) / 3)
    assert found["volume_cv"] == pytest.approx((0 + math.sqrt(2)) / 2)


def test_equals_monais_overlaps_pair_by_pair():
    generator = torch.Generator().manual_seed(1)
    maps = torch.randint(3, (5, 6, 5, 4), generator=generator)
    hot = one_hot(maps, 3).movedim(-1, 1)

    def overlap(compute, first, second):
        return float(compute(hot[first, None], hot[second, None], include_background=False, ignore_empty=False).mean())

    count = len(maps) - 1  # the last one is the reference
    distance = [[1 - overlap(compute_iou, i, j) for j in range(count + 1)] for i in range(count)]
    to_reference = sum(row[count] for row in distance) / count
    among = sum(sum(row[:count]) for row in distance) / count**2
    pairs = [overlap(compute_dice, i, j) for i in range(count) for j in range(i)]
    found = score_members(maps[:count].to(torch.uint8), maps[count], 3)
    assert found["ged"] == pytest.approx(2 * to_reference - among, abs=1e-6)
    assert found["member_dice"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


@pytest.mark.parametrize("members, label", [([FULL], FULL), ([FULL, HALF], [1, 1])])
def test_one_member_or_another_grid_is_refused(members, label):
    with pytest.raises(ValueError, match="2 or more members and a label of their shape"):
        scores(members, label)
