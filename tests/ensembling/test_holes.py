"""Small holes in the objects of a prediction."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from shared_components.ensembling import FillSmallHolesd, entropy, fill_small_holes
from shared_components.errors import InputError


def ring(inner: int, size: int = 24) -> torch.Tensor:
    """Probabilities (3, size, size): a square of class 2 with a hole, ``inner`` wide, where class 1 comes next."""
    values = torch.empty(3, size, size)
    values[:] = torch.tensor([0.8, 0.05, 0.15])[:, None, None]
    values[:, 4:20, 4:20] = torch.tensor([0.1, 0.2, 0.7])[:, None, None]
    values[:, 10 : 10 + inner, 10 : 10 + inner] = torch.tensor([0.6, 0.3, 0.1])[:, None, None]
    return values


def test_a_hole_of_the_size_is_filled_with_the_class_that_is_likeliest_there():
    before = ring(3)
    after = fill_small_holes(before, 9)
    assert (after.argmax(0)[10:13, 10:13] == 1).all()
    torch.testing.assert_close(after[:, 10:13, 10:13], before[[1, 0, 2], 10:13, 10:13])
    outside = torch.ones(24, 24, dtype=torch.bool)
    outside[10:13, 10:13] = False
    assert torch.equal(after[:, outside], before[:, outside])
    torch.testing.assert_close(entropy(after[None]), entropy(before[None]))


def test_a_larger_hole_and_what_is_open_to_the_border_stay():
    before = ring(3)
    assert fill_small_holes(before, 8) is before
    opened = ring(3)
    opened[:, 11, 4:11] = torch.tensor([0.6, 0.3, 0.1])[:, None]  # a channel to the left
    assert fill_small_holes(opened, 100) is opened


def test_the_transform_keeps_metadata_and_can_be_switched_off():
    image = MetaTensor(ring(2), meta={"filename_or_obj": "x.png"})
    filled = FillSmallHolesd("pred", 4)({"pred": image})["pred"]
    assert filled.meta["filename_or_obj"] == "x.png" and (filled.argmax(0)[10:12, 10:12] > 0).all()
    for off in (None, 0):
        assert FillSmallHolesd("pred", off)({"pred": image})["pred"] is image


@pytest.mark.parametrize("size", [-1, 2.5, "9", True])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(InputError, match="max_hole_size is .*; expected a whole number of pixels"):
        FillSmallHolesd("pred", size)
