"""Pictures: what is drawn where, in which orientation, at which proportions."""

import io

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from shared_components.reporting.overlays import (
    CAPTION,
    ERROR_COLOURS,
    GAP,
    PANEL,
    STRIP,
    encode_png,
    heat_colours,
    label_colour,
    overlay_figure,
)


def volume(shape=(20, 24, 16), seed=0):
    """A noisy image, a box as reference, and the box moved by two voxels as prediction."""
    random = np.random.default_rng(seed)
    reference = np.zeros(shape, dtype=np.int64)
    reference[5:12, 8:16, 4:10] = 1
    return random.random(shape).astype(np.float32), np.roll(reference, 2, axis=0), reference


def count(figure, colour):
    return int((figure == np.asarray(colour, dtype=np.uint8)).all(-1).sum())


def panel(figure, column, top=2 * STRIP, height=PANEL):
    left = GAP + column * (PANEL + GAP)
    return figure[top : top + height, left : left + PANEL]


def test_is_a_png_of_five_columns():
    image, prediction, reference = volume()
    figure = overlay_figure(image, prediction, np.eye(4), reference, image * 0.5, {1: "box"}, "case")
    assert figure.dtype == np.uint8 and figure.shape[1] == 5 * (PANEL + GAP) + GAP
    decoded = Image.open(io.BytesIO(encode_png(figure)))
    assert decoded.format == "PNG" and np.array_equal(np.asarray(decoded), figure)


def test_inference_has_no_reference_and_no_errors():
    image, prediction, _ = volume()
    assert overlay_figure(image, prediction).shape[1] == 2 * (PANEL + GAP) + GAP
    assert overlay_figure(image, prediction, uncertainty=image).shape[1] == 3 * (PANEL + GAP) + GAP


@pytest.mark.parametrize("codes", ["LPS", "PIR", "SAL", "RSA"])
def test_voxel_order_does_not_show(codes):
    """A volume stored in another order is the same picture."""
    affine = np.diag([0.8, 1.0, 2.0, 1.0])
    arrays = volume()
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes))
    turned = [nib.orientations.apply_orientation(array, turn) for array in arrays]
    new_affine = affine @ nib.orientations.inv_ornt_aff(turn, arrays[0].shape)
    expected = overlay_figure(arrays[0], arrays[1], affine, arrays[2], arrays[0])
    assert np.array_equal(overlay_figure(turned[0], turned[1], new_affine, turned[2], turned[0]), expected)


def test_radiological_convention():
    """In the axial cut the patient's right is on the left, the front above."""
    image, prediction = np.zeros((40, 40, 5)), np.zeros((40, 40, 5), dtype=np.int64)
    prediction[30:36, 32:38, 2] = 1  # right (large x) and anterior (large y) in RAS
    axial = panel(overlay_figure(image, prediction, np.eye(4)), 1)
    rows, columns = np.nonzero((axial == np.asarray(label_colour(1))).all(-1))
    assert columns.max() < PANEL / 2 and rows.max() < PANEL / 2


def test_cuts_through_the_most_foreground():
    image, prediction = np.zeros((20, 20, 20)), np.zeros((20, 20, 20), dtype=np.int64)
    prediction[10, 10, 3] = prediction[5:15, 5:15, 16] = 1
    axial = panel(overlay_figure(image, prediction, np.eye(4)), 1)
    assert count(axial, label_colour(1)) > 300


def test_true_proportions():
    """Thick slices are drawn thick: 10 slices of 4 mm are as high as 40 voxels of 1 mm are wide."""
    image, prediction, _ = volume((40, 40, 10))
    figure = overlay_figure(image, prediction, np.diag([1, 1, 4, 1.0]))
    assert figure.shape[0] == overlay_figure(*volume((40, 40, 40))[:2]).shape[0]
    flat = overlay_figure(image, prediction, np.eye(4))
    assert figure.shape[0] - flat.shape[0] == 2 * (PANEL - PANEL // 4)


def test_errors_are_coloured_by_kind():
    image = np.zeros((8, 8))
    reference, prediction = np.zeros((2, 8, 8), dtype=np.int64)
    reference[0:2], prediction[1:3] = 1, 1
    prediction[1, :4] = 2
    errors = panel(overlay_figure(image, prediction, None, reference, None, {1: "a", 2: "b"}), 3)
    voxel = (PANEL // 8) ** 2
    assert count(errors, ERROR_COLOURS["missed"]) == 8 * voxel
    assert count(errors, ERROR_COLOURS["added"]) == 8 * voxel
    assert count(errors, ERROR_COLOURS["wrong label"]) == 4 * voxel


def test_uncertainty_is_drawn_as_heat():
    image, uncertainty = np.zeros((8, 8)), np.zeros((8, 8))
    uncertainty[2, 5] = 1.0
    heat = panel(overlay_figure(image, image.astype(int), uncertainty=uncertainty), 2)
    expected = (0.9 * heat_colours(np.array(1.0))).astype(np.uint8)
    x, y = 2 * PANEL // 8, 5 * PANEL // 8  # the first axis runs to the right
    assert (heat[y : y + PANEL // 8, x : x + PANEL // 8] == expected).all()
    assert count(heat, expected) == (PANEL // 8) ** 2


def test_single_objects_have_a_column_in_colours_of_their_own():
    image, numbers = np.full((40, 40), 128.0), np.zeros((40, 40), int)
    numbers[5:35, 5:20], numbers[5:35, 20:35] = 1, 2  # two that touch
    figure = overlay_figure(image, (numbers > 0).astype(int), instances=numbers)
    assert figure.shape[1] == 3 * (PANEL + GAP) + GAP
    prediction, instances = panel(figure, 1), panel(figure, 2)
    assert count(prediction, label_colour(1)) > 0 == count(prediction, label_colour(2))
    assert count(instances, label_colour(1)) > 0 < count(instances, label_colour(2))


def test_colour_pictures_keep_their_colours():
    image = np.zeros((3, 12, 12))
    image[0], image[:, 0, 0] = 200.0, 255.0
    figure = overlay_figure(image, np.zeros((12, 12), dtype=int))
    middle = panel(figure, 0)[PANEL // 2, PANEL // 2]
    assert middle[0] > 150 and middle[1] == middle[2] == 0


@pytest.mark.parametrize("image", [np.zeros((6, 6, 6)), np.full((2, 6, 6, 6), 7.0), np.full((6, 6, 6), np.nan)])
def test_flat_images_and_empty_predictions(image):
    figure = overlay_figure(image, np.zeros((6, 6, 6), dtype=int), np.eye(4), np.zeros((6, 6, 6), dtype=int))
    assert figure.shape == (2 * STRIP + 3 * (PANEL + CAPTION + GAP) + STRIP + GAP, 4 * (PANEL + GAP) + GAP, 3)


def test_one_slice_and_large_images():
    one = overlay_figure(np.zeros((30, 30, 1)), np.zeros((30, 30, 1), dtype=int), np.eye(4))
    assert one.shape[0] == 2 * STRIP + PANEL + CAPTION + 2 * GAP + STRIP
    large = overlay_figure(np.zeros((700, 350)), np.zeros((700, 350), dtype=int))
    assert large.shape[0] == 2 * STRIP + PANEL // 2 + 2 * GAP + STRIP
