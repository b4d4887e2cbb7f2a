"""The rules by which settings follow from data."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared_components.bundle_tools.adaptation_plan import Task, Template, cached_bytes, fit_batch, plan
from shared_components.data.fingerprint import Fingerprint, LabelClass

VALUES = {"min": -1024.0, "max": 2000.0, "mean": 50.0, "std": 25.0, "p0_5": -100.0, "p50": 40.0, "p99_5": 200.0}
VOLUMES = Template("volumes", 8, 40 * 56 * 6, None, 8)
TILES = Template("tiles", 4, 128 * 128 * 4, (128, 128), 8, 4)
PICTURES = Template("pictures", 8, 128 * 128, (128, 128), 16)
EITHER = Template("either", 4, 128 * 128 * 4, (128, 128), 16, 4)


def volumes(size=(200.0, 180.0, 60.0), spacing=(1.0, 1.0, 3.0), **changed) -> Fingerprint:
    content = {
        "layout": "paired",
        "channels": ("image",),
        "num_cases": 10,
        "num_labelled": 10,
        "pictures": False,
        "num_channels": 1,
        "colour": False,
        "sizes": tuple((side / 2, side, side * 2) for side in size),
        "spacings": tuple((step, step, step) for step in spacing),
        "intensities": (VALUES,),
        "foreground": (VALUES,),
        "zero_share": 0.0,
        "classes": (LabelClass(1, 10, 0.75, 0.03), LabelClass(2, 10, 0.25, 0.01)),
        "num_slices": tuple(int(10 * side) for side in size),
        "modality": "MR",
        "modality_source": "a name",
        "instances": False,
    }
    return Fingerprint(**{**content, **changed})


def pictures(size=(600.0, 450.0), **changed) -> Fingerprint:
    return volumes((*size, 1.0), **{
        "sizes": tuple((side, side, side) for side in size), "spacings": (), "pictures": True, "num_slices": (10,),
        "modality": "grey", "classes": (LabelClass(1, 10, 1.0, 0.1),), **changed,
    })  # fmt: skip


def task(**changed) -> Task:
    content = {
        "classes": {"a": [1], "b": [2]},
        "channels": ("image",),
        "columns": False,
        "num_train": 8,
        "fold": 0,
        "num_folds": 5,
        "patient_pattern": None,
        "patient_rule": "",
        "split_source": "by sorted id",
        "device": "cpu",
        "memory": 8 * 2**30,
    }
    return Task(**{**content, **changed})


def settings(found, template, wanted=None) -> dict:
    return {choice.key: choice.value for choice in plan(found, template, wanted or task())}


@pytest.mark.parametrize(
    ("spacing", "axcodes", "slice_axes"),
    [
        ((1.0, 1.0, 1.1), "RAS", [2, 0, 1]),
        ((1.0, 1.0, 3.0), "RAS", [2]),
        ((1.0, 3.0, 1.0), "SRA", [2]),
        ((4.0, 1.0, 1.0), "ASR", [2]),
        ((1.0, 1.0, 1.4), "RAS", [2]),
    ],
)
def test_slices_lie_across_the_coarsest_axis_and_cubes_are_seen_from_three_sides(spacing, axcodes, slice_axes):
    found = settings(volumes((60.0, 60.0, 60.0), spacing), VOLUMES)
    assert (found["axcodes"], found["slice_axes"]) == (axcodes, slice_axes)
    assert found["pixdim"][2] == max(spacing) and found["num_samples"] == (6 if len(slice_axes) == 3 else 4)
    assert len(slice_axes) == 1 or found["pixdim"] == [1.1, 1.1, 1.1]


def test_large_slices_are_coarsened_to_what_the_device_bears_and_never_refined():
    on_cpu = settings(volumes(), VOLUMES)
    assert on_cpu["pixdim"] == [1.56, 1.56, 3.0]  # 200 mm in 128 pixels
    assert on_cpu["patch_size"] == [96, 96, 6]
    assert settings(volumes(), VOLUMES, task(device="cuda"))["pixdim"] == [1.0, 1.0, 3.0]
    assert settings(volumes((40.0, 30.0, 20.0)), VOLUMES)["pixdim"] == [1.0, 1.0, 3.0]


def test_neighbours_that_are_far_away_are_not_looked_at():
    assert settings(volumes(), VOLUMES)["num_adjacent_slices"] == 1
    assert settings(volumes(spacing=(1.0, 1.0, 8.0)), VOLUMES)["num_adjacent_slices"] == 0


def test_ct_has_one_window_from_the_foreground_scaled_by_its_mean_and_deviation():
    window = settings(volumes(modality="CT"), VOLUMES)["normalisation"]
    assert (window["a_min"], window["a_max"]) == (-100.0, 200.0)
    assert (window["b_min"], window["b_max"]) == (-6.0, 6.0)
    assert window["clip"] is True


def test_mr_is_normalised_case_by_case_and_without_a_background_of_zeros():
    assert "nonzero" not in settings(volumes(), VOLUMES)["normalisation"]
    assert settings(volumes(zero_share=0.5), VOLUMES)["normalisation"]["nonzero"] is True


def test_colours_are_normalised_by_channel_and_grey_crops_alike():
    colours = pictures(colour=True, modality="RGB", num_channels=3, intensities=(VALUES,) * 3)
    assert settings(colours, PICTURES)["normalisation"]["subtrahend"] == [50.0, 50.0, 50.0]
    assert settings(pictures(), PICTURES)["normalisation"]["_target_"].endswith("PercentileNormalized")
    assert settings(pictures(), TILES)["normalisation"]["_target_"] == "NormalizeIntensityd"
    assert settings(pictures(), TILES)["colour_transform"]["_target_"] == "RandAdjustContrastd"
    assert "colour_transform" not in settings(colours, TILES)


def test_pictures_keep_their_proportions_at_about_the_templates_pixels():
    width, height = settings(pictures((600.0, 300.0)), PICTURES)["image_size"]
    assert (width, height) == (192, 96)
    assert settings(pictures((50.0, 40.0)), PICTURES)["image_size"] == [64, 48]


def test_tiles_are_no_larger_than_the_smallest_picture():
    found = settings(pictures((1024.0, 100.0)), TILES)
    assert found["scale"] == 0.5
    assert found["crop_size"] == [48, 48]


def test_classes_keep_their_numbers_where_files_have_them_and_are_renumbered_where_not():
    assert "stored_values" not in settings(volumes(), VOLUMES)
    chosen = settings(volumes(), VOLUMES, task(classes={"b": [2]}))
    assert chosen["labels"] == {"b": 1}
    assert chosen["stored_values"].endswith("else [[2]]")
    assert chosen["known_labels"].endswith("else [1, 2]")  # the other one is no mistake
    merged = settings(volumes(), EITHER, task(classes={"both": [1, 2]}))
    assert merged["stored_values"].endswith("else [[1, 2]]")
    assert merged["label_values"] == [[1]]


@pytest.mark.parametrize(("name", "mirrored"), [("kidney_left", False), ("Right lung", False), ("brightness", True)])
def test_what_is_on_one_side_of_the_body_is_not_mirrored(name, mirrored):
    found = settings(volumes(), VOLUMES, task(classes={name: [1], "b": [2]}))
    assert (found.get("mirror_members", True), found.get("flip_prob", 0.5)) == (mirrored, 0.5 if mirrored else 0.0)


def test_the_recipe_is_as_long_as_there_are_slices_within_bounds():
    def steps(found, wanted):
        chosen = settings(found, VOLUMES, wanted)
        return chosen["max_epochs"] * -(-wanted.num_train // chosen["batch_size"])

    assert steps(volumes(num_slices=(20, 20, 20)), task()) == pytest.approx(1000, abs=8)
    assert steps(volumes(num_slices=(200, 200, 200)), task()) == pytest.approx(160 * 15, abs=8)
    assert steps(volumes(num_slices=(9000, 9000, 9000)), task()) == pytest.approx(4000, abs=8)


def test_a_batch_fits_into_the_memory_and_the_epochs_follow():
    found, wanted = pictures((128.0, 128.0)), task(num_train=64, memory=2**30)
    choices = plan(found, PICTURES, wanted)
    before = {choice.key: choice for choice in choices}
    after = {choice.key: choice for choice in fit_batch(choices, found, wanted, 2**28)}
    assert (before["batch_size"].value, after["batch_size"].value) == (8, 4)
    assert after["max_epochs"].value == pytest.approx(before["max_epochs"].value / 2, abs=1)
    assert "1 GiB" in after["batch_size"].reason
    assert {choice.key: choice for choice in fit_batch(choices, found, wanted, 2**20)}["batch_size"].value == 8


def test_the_memory_of_the_cases_follows_from_what_they_are_resampled_to():
    found = volumes((100.0, 100.0, 10.0))
    wanted = task()
    choices = plan(found, VOLUMES, wanted)
    assert cached_bytes(found, wanted, choices) == 8 * 100 * 100 * 10 * 2 * 4
    assert cached_bytes(found, replace(wanted, num_train=16), choices) == 2 * cached_bytes(found, wanted, choices)
