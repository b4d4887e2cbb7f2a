"""Reading volumes in blocks: values, grids, and what makes a file unusable."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from shared_components.data.formats import volumes
from shared_components.data.formats.volumes import Grid, UnusableImage, open_volume
from tests.data.folders import save, some_image


def read(path) -> tuple[volumes.Volume, np.ndarray]:
    with open_volume(path) as volume:
        blocks = list(volume.blocks())
    return volume, np.concatenate([values for _, _, values in blocks])


def test_blocks_give_every_voxel_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(volumes, "BLOCK_VOXELS", 7)
    image = some_image(shape=(6, 5, 4, 2))
    with open_volume(save(tmp_path / "a.nii.gz", image)) as volume:
        found = [(channel, start, values.copy()) for channel, start, values in volume.blocks()]
    for channel in (0, 1):
        parts = [values for c, _, values in found if c == channel]
        assert np.array_equal(np.concatenate(parts), image[..., channel].ravel(order="F"))
    assert [start for c, start, _ in found if c == 1] == list(range(0, 120, 7))


@pytest.mark.parametrize(
    "shape, channels", [((3, 4, 5), 1), ((3, 4, 5, 1), 1), ((3, 4, 5, 2), 2), ((3, 4, 5, 1, 2), 2)]
)
def test_shapes_with_further_axes(tmp_path, shape, channels):
    image = some_image(shape=shape)
    volume, values = read(save(tmp_path / "a.nii", image))
    assert (volume.grid.shape, volume.num_channels) == ((3, 4, 5), channels)
    assert np.array_equal(values, image.ravel(order="F"))


def test_a_scale_factor_is_applied_and_big_endian_and_nifti_2_are_read(tmp_path):
    stored = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    image = nibabel.Nifti1Image(stored, np.eye(4), header)
    image.header.set_slope_inter(0.5, -3)
    image.to_filename(tmp_path / "scaled.nii.gz")
    expected = np.asanyarray(nibabel.load(tmp_path / "scaled.nii.gz").dataobj).ravel(order="F")
    assert np.array_equal(read(tmp_path / "scaled.nii.gz")[1], expected)
    nibabel.save(nibabel.Nifti2Image(stored, np.diag([2, 2, 3, 1])), tmp_path / "two.nii")
    volume, values = read(tmp_path / "two.nii")
    assert np.array_equal(values, stored.ravel(order="F")) and volume.grid.spacing == (2, 2, 3)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_itk_formats_have_the_grid_and_the_values_of_the_nifti_file(tmp_path, suffix):
    itk = pytest.importorskip("itk")
    affine = np.array([[0, -1.5, 0, 7], [2, 0, 0, -3], [0, 0, 0.8, 1], [0, 0, 0, 1.0]])
    nifti = save(tmp_path / "a.nii.gz", some_image(), affine)
    itk.imwrite(itk.imread(str(nifti)), str(tmp_path / f"a{suffix}"))
    expected, expected_values = read(nifti)
    found, values = read(tmp_path / f"a{suffix}")
    assert found.grid.shape == expected.grid.shape and found.num_channels == 1
    assert np.allclose(found.grid.affine, expected.grid.affine, atol=1e-6)
    assert np.array_equal(values, expected_values)


def test_vector_images_of_itk_have_channels(tmp_path):
    itk = pytest.importorskip("itk")
    array = some_image(shape=(4, 5, 6, 3))
    itk.imwrite(itk.image_from_array(array, is_vector=True), str(tmp_path / "a.mha"))
    volume, values = read(tmp_path / "a.mha")
    assert (volume.grid.shape, volume.num_channels) == ((6, 5, 4), 3)
    assert np.array_equal(values[:120], array[..., 0].ravel())


def test_a_picture_is_no_volume_and_a_broken_one_is_unreadable(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    image_module.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(tmp_path / "a.png")
    with pytest.raises(UnusableImage, match="2-D image of shape .4, 3., the model takes 3-D") as error:
        read(tmp_path / "a.png")
    assert error.value.kind == "rank"
    (tmp_path / "b.nrrd").write_bytes(b"NRRD0004\ntype: short\n")
    with pytest.raises(UnusableImage, match="truncated/corrupt"):
        read(tmp_path / "b.nrrd")


def test_corner_distance_is_the_largest_shift_of_a_corner():
    first = Grid((11, 21, 31), np.eye(4))
    turned = np.eye(4)
    turned[2, 0] = 0.03
    assert first.corner_distance(Grid((11, 21, 31), turned)) == pytest.approx(0.3)
    assert first.corner_distance(first) == 0
    assert str(Grid((512, 512, 94), np.diag([0.734, 0.734, 5, 1]))) == "512x512x94 voxels of 0.734x0.734x5 mm"
