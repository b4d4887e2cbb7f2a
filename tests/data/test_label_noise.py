"""Polluted masks: how many pixels, drawn from which mask, always the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from shared_components.data.label_noise import LabelNoised, pollute
from shared_components.errors import InputError


def test_how_many_pixels_change():
    mask = np.zeros((10, 10), np.uint8)
    mask[:2] = 1
    before = mask.copy()
    polluted = pollute(mask, 0.2, 0.2, np.random.default_rng(0))
    assert np.array_equal(mask, before)  # the published code edits it in place
    assert ((polluted == 1) & (mask == 0)).sum() == 16
    assert ((polluted == 0) & (mask == 1)).sum() == 4
    assert polluted.sum() == 32


def test_extremes():
    mask = np.eye(4, dtype=np.uint8)
    rng = np.random.default_rng(0)
    assert np.array_equal(pollute(mask, 0, 0, rng), mask)
    assert np.array_equal(pollute(mask, 1, 1, rng), 1 - mask)


def test_an_image_is_always_polluted_alike_and_each_by_itself():
    def of(name: str, seed: int = 0) -> torch.Tensor:
        label = MetaTensor(torch.zeros(1, 20, 20), meta={"filename_or_obj": name})
        label[:, :5] = 1
        return LabelNoised("label", 0.2, 0.2, seed)({"label": label})["label"]

    first = of("/a/x.png")
    assert isinstance(first, MetaTensor) and first.shape == (1, 20, 20)
    assert torch.equal(first, of("/elsewhere/x.png"))
    assert not torch.equal(first, of("/a/y.png")) and not torch.equal(first, of("/a/x.png", 1))


@pytest.mark.parametrize("shares", [(-0.1, 0), (0, 1.5)])
def test_shares_out_of_range(shares):
    with pytest.raises(InputError, match="shares from 0 to 1"):
        LabelNoised("label", *shares)
