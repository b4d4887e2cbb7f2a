"""The most central objects of a prediction."""

from __future__ import annotations

import logging

import pytest
import torch
from monai.data import MetaTensor

from shared_components.ensembling import KeepCentralObjectsd, entropy, keep_central_objects
from shared_components.errors import InputError


def picture(*objects: tuple[slice, slice, float], size: int = 40) -> torch.Tensor:
    """Probabilities (2, size, size) of objects (rows, columns, probability) on a background of 0.1."""
    foreground = torch.full((size, size), 0.1)
    for rows, columns, probability in objects:
        foreground[rows, columns] = probability
    return torch.stack([1 - foreground, foreground])


LESION = (slice(16, 24), slice(18, 26), 0.9)
PATCH = (slice(0, 40), slice(32, 40), 0.98)  # larger and more certain, at the border
SPECK = (slice(19, 21), slice(10, 12), 0.6)


def test_the_central_object_is_kept_however_large_and_certain_the_others_are():
    found = keep_central_objects(picture(LESION, PATCH, SPECK), 1).argmax(0)
    torch.testing.assert_close(found, picture(LESION).argmax(0))


def test_a_certain_object_is_preferred_to_a_doubtful_one_nearer_to_the_centre():
    beside, doubtful = (slice(8, 16), slice(18, 26), 0.95), (slice(20, 22), slice(20, 22), 0.55)
    found = keep_central_objects(picture(beside, doubtful), 1).argmax(0)
    torch.testing.assert_close(found, picture(beside).argmax(0))


def test_what_is_given_up_keeps_its_uncertainty():
    before = picture(LESION, PATCH, SPECK)
    after = keep_central_objects(before, 1)
    torch.testing.assert_close(after.sum(0), torch.ones(40, 40))
    torch.testing.assert_close(entropy(after[None]), entropy(before[None]))
    torch.testing.assert_close(after[:, SPECK[0], SPECK[1]], before.flip(0)[:, SPECK[0], SPECK[1]])


def test_as_many_are_kept_as_are_asked_for():
    before = picture(LESION, PATCH, SPECK)
    torch.testing.assert_close(keep_central_objects(before, 2).argmax(0), picture(LESION, SPECK).argmax(0))
    assert keep_central_objects(before, 3) is before
    assert KeepCentralObjectsd(num_objects=None)({"pred": before})["pred"] is before
    nothing = picture()
    assert keep_central_objects(nothing, 1) is nothing


def test_an_object_of_several_classes_is_one_object_and_diagonals_connect():
    probabilities = torch.zeros(3, 10, 10)
    probabilities[0] = 1
    for index, (row, column) in enumerate([(4, 4), (5, 5)], 1):
        probabilities[:, row, column] = torch.eye(3)[index]
    probabilities[:, 0, 0] = torch.tensor([0.1, 0.2, 0.7])
    found = keep_central_objects(probabilities, 1)
    assert found.argmax(0)[4, 4] == 1 and found.argmax(0)[5, 5] == 2
    torch.testing.assert_close(found[:, 0, 0], torch.tensor([0.7, 0.2, 0.1]))


def test_volumes_keep_their_metadata():
    foreground = torch.zeros(12, 12, 12)
    foreground[5:8, 5:8, 5:8] = 1
    foreground[0, 0, 0] = 1
    volume = MetaTensor(torch.stack([1 - foreground, foreground]), meta={"filename_or_obj": "a.nii.gz"})
    found = keep_central_objects(volume, 1)
    assert found.meta["filename_or_obj"] == "a.nii.gz"
    assert int(found[1].sum()) == 27 and int(volume[1].sum()) == 28


def test_a_reference_with_several_objects_is_told_of_once(caplog):
    reference = MetaTensor(picture(LESION, PATCH).argmax(0, keepdim=True), meta={"filename_or_obj": "two.png"})
    keep = KeepCentralObjectsd(num_objects=1)
    with caplog.at_level(logging.WARNING):
        keep({"pred": picture(LESION), "label": picture(LESION).argmax(0, keepdim=True)})
        slip = picture((slice(8, 24), slice(8, 24), 1.0)).argmax(0, keepdim=True)
        slip[0, 0, 0] = 1  # 1 of 257 pixels
        keep({"pred": picture(LESION), "label": slip})
        assert not caplog.records
        keep({"pred": picture(LESION), "label": reference})
        keep({"pred": picture(LESION), "label": reference})
    assert [record.getMessage() for record in caplog.records] == [
        "two.png: the reference has more than 1 object(s), and num_objects keeps no more of a prediction; for such "
        "data give --num_objects '$None', to inference too"
    ]


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "one"])
def test_nonsense_is_refused(wrong):
    with pytest.raises(InputError, match=f"num_objects is {wrong!r}; expected a whole number of at least 1"):
        KeepCentralObjectsd(num_objects=wrong)
