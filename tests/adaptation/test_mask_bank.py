"""Windows of masks, and the folder of pairs made from them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared_components.adaptation.mask_bank import windows, write_mask_bank
from shared_components.adaptation.pairs import finish_pairs, mask_items, pending_masks, read_grey, read_masks
from shared_components.data.layouts.cases import find_cases
from shared_components.data.layouts.split import sections
from shared_components.data.phantoms import make_phantoms
from shared_components.errors import InputError


def test_a_bank_of_published_sizes(tmp_path):
    masks = [np.ones((584, 565), np.uint8)] * 2 + [np.ones((605, 700), np.uint8)] * 3
    items = [{"label": f"{number}.png"} for number in range(5)]
    bank = write_mask_bank(items, masks, tmp_path, (384, 384), 50)
    assert len(bank) == 250 and len({item["seed"] for item in bank}) == 250
    assert {Image.open(item["label"]).size for item in bank[::25]} == {(384, 384)}


def test_every_place_is_drawn_the_last_one_too():
    """The published code never draws the last place, and fails where the mask is as large as the window."""
    mask = np.arange(36).reshape(6, 6)
    rng = np.random.default_rng(0)
    corners = {int(window[0, 0]) for window in windows(mask, (4, 5), 200, rng)}
    assert corners == {6 * row + column for row in range(3) for column in range(2)}
    assert np.array_equal(windows(mask, (6, 6), 1, rng)[0], mask)
    padded = windows(mask, (8, 4), 1, rng)[0]
    assert padded.shape == (8, 4) and not padded[6:].any()


def test_empty_windows_are_avoided():
    mask = np.zeros((64, 64), np.uint8)
    mask[:8, :8] = 1
    found = windows(mask, (16, 16), 30, np.random.default_rng(0), min_foreground=0.01)
    assert np.mean([window.any() for window in found]) > 0.25  # of a single try one in forty


def test_masks_are_saved_as_masks(tmp_path):
    """The published code saves them through the mapping of images, which makes 0 into 0.5."""
    mask = (np.random.default_rng(0).uniform(size=(20, 20)) > 0.5).astype(np.uint8)
    (item,) = write_mask_bank([{"label": "a.png"}], [mask], tmp_path, (20, 20), 1)
    saved = np.asarray(Image.open(item["label"]))
    assert saved.dtype == np.uint8 and np.array_equal(saved, 255 * mask)


def test_masks_are_read_as_they_lie(tmp_path):
    mask = np.zeros((6, 10), np.uint8)
    mask[1, 7] = 255
    Image.fromarray(mask).save(tmp_path / "a.png")
    items = [{"label": str(tmp_path / "a.png")}]
    assert np.array_equal(read_masks(items, {"vessel": 1})[0], mask // 255)
    assert read_masks(items, {"vessel": 1}, 20)[0].shape == (12, 20)


@pytest.fixture
def options(tmp_path) -> dict:
    source = make_phantoms(tmp_path / "fundus", 3, kind="fundus")
    items = [{"label": str(path)} for path in sorted((source / "masks").iterdir())]
    (tmp_path / "model.pt").write_bytes(b"weights")
    return {
        "items": items, "masks": read_masks(items, {"vessel": 1}), "output_dir": tmp_path / "pairs",
        "weights": tmp_path / "model.pt", "settings": {"steps": 25}, "size": (32, 32), "num_per_mask": 3,
    }  # fmt: skip


def generate(pending: list[dict], folder: Path) -> None:
    for item in pending:
        Image.fromarray(np.full((32, 32), 30000, np.uint16)).save(folder / "images" / Path(item["label"]).name)


def test_generation_goes_on_where_it_was(options):
    folder = options["output_dir"]
    pending = pending_masks(**options)
    assert len(pending) == 9
    generate(pending[:4], folder)
    assert pending_masks(**options) == pending[4:]
    with pytest.raises(InputError, match="5 of 9 images are missing"):
        finish_pairs(folder)
    generate(pending[4:], folder)
    assert pending_masks(**options) == []
    assert Image.open(finish_pairs(folder)).size == (9 * 32, 64)
    found = find_cases(folder)
    assert len(found.cases) == 9 and found.layout == "paired"
    assert {name: len(ids) for name, ids in sections(found).items()} == {"train": 8, "validation": 1, "test": 0}
    assert read_grey(folder / "images" / "phantom_000_000.png").max() == round(30000 / 257)


def test_other_weights_or_settings_are_not_mixed_in(options):
    generate(pending_masks(**options), options["output_dir"])
    changed = {**options, "settings": {"steps": 300}}
    with pytest.raises(InputError, match="other weights or settings.*overwrite"):
        pending_masks(**changed)
    assert len(pending_masks(**changed, overwrite=True)) == 9
    with pytest.raises(InputError, match="no such weights"):
        pending_masks(**{**options, "weights": "none.pt"})


def test_other_windows_are_made_anew_where_asked_for(options):
    """More windows, or masks of another scale under the same names: nothing of the earlier ones is left."""
    folder = options["output_dir"]
    generate(pending_masks(**options), folder)
    finish_pairs(folder)
    thick = [np.pad(np.maximum(mask[1:], mask[:-1]), [(0, 1), (0, 0)]) for mask in options["masks"]]
    for changed, count, what in (
        ({"num_per_mask": 2}, 6, "num_per_mask"),
        ({"masks": thick}, 9, "pixels of the masks"),
    ):
        with pytest.raises(InputError, match=f"other weights or settings .{what}"):
            pending_masks(**{**options, **changed})
        pending = pending_masks(**{**options, **changed}, overwrite=True)
        assert len(pending) == count == len(list((folder / "masks").iterdir())) and not (folder / "pairs.png").exists()
        generate(pending, folder)
        assert pending_masks(**{**options, **changed}, overwrite=True) == []  # a stage that goes on
        assert len(pending_masks(**options, overwrite=True)) == 9
        generate(pending_masks(**options), folder)


def test_masks_of_one_name_have_windows_of_their_own(tmp_path):
    masks = [np.full((8, 8), number, np.uint8) for number in (0, 1)]
    items = [{"label": "a/seg.png"}, {"label": "b/seg.png"}]
    bank = write_mask_bank(items, masks, tmp_path, (8, 8), 1)
    assert [int(np.asarray(Image.open(item["label"])).max()) for item in bank] == [0, 255]
    cases = write_mask_bank([{**item, "case": item["label"][0]} for item in items], masks, tmp_path / "c", (8, 8), 1)
    assert [Path(item["label"]).name for item in cases] == ["a_000.png", "b_000.png"]


def test_a_folder_of_masks_needs_no_images(tmp_path):
    """As the published command takes one; directly, or in masks/."""
    source = make_phantoms(tmp_path / "fundus", 5, kind="fundus")
    names = sorted(path.name for path in (source / "masks").iterdir())
    for folder in (tmp_path / "alone", tmp_path / "below" / "masks"):
        shutil.copytree(source / "masks", folder)
        found = mask_items(folder.parent if folder.name == "masks" else folder, {"vessel": 1})
        assert [Path(item["label"]).name for item in found] == names
        assert read_masks(found, {"vessel": 1})[0].max() == 1
    assert len(mask_items(source, {"vessel": 1})) == 3  # of a data set those to train on
    Image.fromarray(np.full((9, 9), 90, np.uint8)).save(tmp_path / "alone" / names[0])
    with pytest.raises(InputError, match=f"1 of 5 pictures cannot be used; expected masks of 0 and 255.*{names[0]}"):
        mask_items(tmp_path / "alone", {"vessel": 1})
    assert len(mask_items(tmp_path / "alone", {"vessel": 1}, skip_bad=True)) == 4
    with pytest.raises(InputError, match="as masks, 5 of 5 pictures cannot be used"):
        mask_items(source / "images", {"vessel": 1}, skip_bad=True)
