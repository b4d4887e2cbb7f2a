"""A plain network on few outlined slices."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from torch import nn

from shared_components.errors import InputError
from shared_components.reporting.outlined_slices import outlined_slices


def slices(count: int, seed: int) -> list[dict]:
    """Half of them with a bright square, whose mask it is."""
    rng, items = np.random.default_rng(seed), []
    for index in range(count):
        mask = torch.zeros(1, 16, 16)
        if index % 2:
            row, column = rng.integers(0, 10, 2)
            mask[:, row : row + 6, column : column + 6] = 1
        image = 2 * mask - 1 + 0.1 * torch.randn(1, 16, 16)
        items.append({"image": image, "label": mask, "class": index % 2, "patient": str(index % 4)})
    return items


def run(items, folder, **options):
    loader = DataLoader(Dataset(slices(8, 1)), batch_size=4)
    options = {"counts": (1, 99), "repeats": 2, "steps": 60, "learning_rate": 0.05, **options}
    return outlined_slices(
        items, lambda item: item, lambda: nn.Conv2d(1, 1, 1), loader, lambda case: case, folder, **options
    )


def test_a_network_is_trained_on_each_number_of_outlines(tmp_path):
    items = slices(12, 0)
    table = run(items, tmp_path)
    assert [row["outlined"] for row in table] == [1, 6]  # more than there are is all of them
    for row in table:
        assert 0.9 < row["dice_low"] <= row["dice"] <= row["dice_high"] <= 1 and row["dice_3d"] > 0.9
    with open(tmp_path / "outlined_slices_per_training.csv", encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 4
    assert (tmp_path / "outlined_slices.md").read_text(encoding="utf-8").startswith("| outlined | dice |")
    again = run(items, tmp_path, overwrite=True)
    assert again == table


def test_untrained_it_scores_less(tmp_path):
    assert run(slices(12, 0), tmp_path, steps=1)[0]["dice"] < 0.9


@pytest.mark.parametrize("kept", [0, 1])
def test_slices_of_one_kind_or_without_masks_are_refused(kept, tmp_path):
    items = [{key: value for key, value in item.items() if kept == 0 or key != "label"} for item in slices(4, 0)]
    with pytest.raises(InputError, match="0 positive training slices with masks and 2 negative ones"):
        run([item for item in items if kept or item["class"] == 0], tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_a_mask_to_score_nothing_is_trained(tmp_path):
    """The first training used to end in a KeyError."""
    bare = [{key: item[key] for key in ("image", "class", "patient")} for item in slices(8, 1)]
    for data in (slices(8, 1)[::2], bare):
        loader = DataLoader(Dataset(data), batch_size=4)
        with pytest.raises(InputError, match=f"none of the {len(data)} test slices is a positive one with a mask"):
            outlined_slices(slices(12, 0), None, None, loader, None, tmp_path)
    assert not list(tmp_path.iterdir())
