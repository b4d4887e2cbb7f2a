"""Results as files: on the pixels of what was read, in the format of what was read, whole or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImaged, Orientationd, Resized, SaveImaged
from PIL import Image

from shared_components.data.loaders import LoadImageChannelsd
from shared_components.data.writers import AtomicNibabelWriter, AtomicPNGWriter, AtomicWriter
from shared_components.errors import InputError, one_line

OBLIQUE = np.array([[0.96, -0.28, 0, 3], [0.28, 0.96, 0, -7], [0, 0, 2, 11], [0, 0, 0, 1]], float)


def some_picture(rows: int, columns: int, channels: int = 3) -> np.ndarray:
    """A picture that is like none of its rotations and mirror images."""
    values = np.random.default_rng(rows * columns).integers(0, 256, (rows, columns, channels)).astype(np.uint8)
    return values[..., 0] if channels == 1 else values


def saver(folder: Path, key: str = "pred", dtype: torch.dtype = torch.uint8, writer=AtomicWriter, **more) -> SaveImaged:
    """`SaveImaged` as a bundle configures it."""
    options = {"output_postfix": "seg", "separate_folder": False, "print_log": False, **more}
    return SaveImaged(key, output_dir=folder, output_dtype=dtype, writer=writer, **options)


def saved(image_file: Path, folder: Path, predict, **options) -> Path:
    """Load an image, write what ``predict`` makes of its first channel, and return the one file that is there."""
    data = Compose([LoadImaged("image"), EnsureChannelFirstd("image")])({"image": str(image_file)})
    saver(folder, **options)({"pred": predict(data["image"][:1])})
    (file,) = folder.iterdir()
    return file


@pytest.mark.parametrize("rows, columns", [(5, 7), (7, 5), (1, 9), (9, 1), (1, 1), (131, 77)])
@pytest.mark.parametrize("suffix", [".png", ".PNG", ".tif", ".bmp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_result_lies_pixel_for_pixel_as_its_picture(tmp_path, rows, columns, suffix, channels):
    picture = some_picture(rows, columns, channels)
    source = tmp_path / f"a.b{suffix}"
    Image.fromarray(picture).save(source)
    data = {"image": str(source)}
    if suffix != ".tif":
        data = Compose([LoadImaged("image"), EnsureChannelFirstd("image")])(data)
    else:  # as the package's own reader loads it, which MONAI's does not
        meta = {"filename_or_obj": str(source)}
        data = {"image": MetaTensor(np.atleast_3d(picture).transpose(2, 1, 0).astype(np.float32), meta=meta)}
    saver(tmp_path / "out")({"pred": (data["image"][:1] > 100).float()})
    expected = (picture if channels == 1 else picture[..., 0]) > 100
    with Image.open(tmp_path / "out" / "a.b_seg.png") as result:
        assert result.mode == "L" and result.size == (columns, rows)
        assert np.array_equal(np.asarray(result), expected.astype(np.uint8))


def test_a_jpeg_resized_and_turned_back(tmp_path):
    """The way through a bundle: preprocessing, prediction, inversion."""
    picture = np.zeros((60, 90, 3), np.uint8)
    picture[10:25, 50:80] = 255
    Image.fromarray(picture).save(tmp_path / "case.jpeg", quality=95)
    before = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", "RAS", labels=None),
            Resized("image", (45, 30), mode="bilinear"),
        ]
    )
    data = before({"image": str(tmp_path / "case.jpeg")})
    data["pred"] = (data["image"][:1] > 127).float()
    invert = Invertd("pred", before, orig_keys="image", nearest_interp=True)
    saver(tmp_path / "out")(invert(data))
    result = np.asarray(Image.open(tmp_path / "out" / "case_seg.png"))
    assert result.shape == (60, 90)
    assert (result != (picture[..., 0] > 127)).mean() < 0.02


def test_through_the_packages_own_reader(tmp_path):
    """Colours of an odd size, grey of 16 bits, and a photograph that EXIF turns: it lies as viewers show it."""
    Image.fromarray(some_picture(9, 14)).save(tmp_path / "colour.tif")
    Image.fromarray(np.arange(35, dtype=np.uint16).reshape(5, 7) * 1000).save(tmp_path / "deep.png")
    turned = np.zeros((40, 24), np.uint8)
    turned[:8, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(turned).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    expected = {
        "colour": some_picture(9, 14)[..., 0] > 100,
        "deep": np.arange(35).reshape(5, 7) * 1000 / 257 > 100,
        "turned": np.rot90(turned, -1) > 100,
    }
    for source in sorted(tmp_path.iterdir()):
        data = LoadImageChannelsd("image")({"image": str(source)})
        saver(tmp_path / "out")({"pred": (data["image"][:1] > 100).float()})
        result = np.asarray(Image.open(tmp_path / "out" / f"{source.stem}_seg.png"))
        assert np.array_equal(result, expected[source.stem].astype(np.uint8))


def test_class_indices_stay_themselves_and_get_16_bits_where_8_do_not_do(tmp_path):
    Image.fromarray(np.arange(15, dtype=np.uint8).reshape(3, 5)).save(tmp_path / "a.png")
    file = saved(tmp_path / "a.png", tmp_path / "few", lambda image: image)
    assert np.array_equal(np.asarray(Image.open(file)), np.arange(15).reshape(3, 5))
    assert Image.open(file).mode == "L"
    file = saved(tmp_path / "a.png", tmp_path / "many", lambda image: image * 100)
    assert np.array_equal(np.asarray(Image.open(file)), np.arange(15).reshape(3, 5) * 100)
    assert Image.open(file).mode.startswith("I")


def test_uncertainty_is_16_bits_of_a_documented_scale(tmp_path):
    Image.fromarray(some_picture(6, 11)).save(tmp_path / "a.png")
    values = np.random.default_rng(0).random((6, 11)).astype(np.float32)
    values[0, :2] = 0, 1
    predict = lambda image: MetaTensor(values.T[None], meta=image.meta)  # noqa: E731
    file = saved(tmp_path / "a.png", tmp_path / "out", predict, dtype=torch.float32, output_postfix="uncertainty")
    assert file.name == "a_uncertainty.png"
    with Image.open(file) as result:
        assert result.text == {"Scale": "grey value / 65535"}
        stored = np.asarray(result)
    assert stored[0, 0] == 0 and stored[0, 1] == 65535
    assert np.abs(stored / 65535 - values).max() <= 0.5 / 65535 + 1e-7


@pytest.mark.parametrize(
    "shape, affine", [((7, 4), np.diag([0.5, 0.7, 1, 1])), ((7, 4, 3), OBLIQUE), ((7, 1, 1), OBLIQUE)]
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_nifti_gets_a_nifti_on_its_grid(tmp_path, shape, affine, dtype):
    values = np.random.default_rng(0).integers(0, 2, shape).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "v.nii.gz")
    file = saved(tmp_path / "v.nii.gz", tmp_path / "out", lambda image: image, dtype=dtype)
    result = nibabel.load(file)
    assert file.name == "v_seg.nii.gz" and result.shape == shape
    assert np.array_equal(np.asarray(result.dataobj), values) and np.allclose(result.affine, affine)
    assert result.get_data_dtype() == (np.uint8 if dtype == torch.uint8 else np.float32)


def test_it_writes_volumes_as_the_writer_of_volumes_does(tmp_path):
    values = MetaTensor(torch.rand(1, 4, 3, 2), affine=torch.tensor(OBLIQUE), meta={"filename_or_obj": "v.mha"})
    for name, writer in (("own", AtomicNibabelWriter), ("any", AtomicWriter)):
        saver(tmp_path / name, dtype=torch.float32, writer=writer)({"pred": values})
    assert (tmp_path / "own" / "v_seg.nii.gz").read_bytes() == (tmp_path / "any" / "v_seg.nii.gz").read_bytes()


def test_kinds_mix_in_one_run_and_volumes_are_never_pictures(tmp_path):
    save = saver(tmp_path)
    for name, shape in (
        ("a.png", (1, 4, 3)),
        ("b.nii.gz", (1, 4, 3)),
        ("c.nii", (1, 4, 3, 2)),
        ("d.tif", (1, 4, 3, 2)),
    ):
        save({"pred": MetaTensor(torch.ones(shape), meta={"filename_or_obj": f"/data/{name}"})})
    names = ["a_seg.png", "b_seg.nii.gz", "c_seg.nii.gz", "d_seg.nii.gz"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize("extension, name", [(".nii.gz", "a_seg.png"), ("", "a_seg.png"), (".png", "a_seg.png")])
def test_the_suffix_is_the_formats(tmp_path, extension, name):
    save = saver(tmp_path, output_ext=extension)
    save({"pred": MetaTensor(torch.ones(1, 4, 3), meta={"filename_or_obj": "a.jpg"})})
    save({"pred": MetaTensor(torch.ones(1, 4, 3, 2), meta={"filename_or_obj": "a.nrrd"})})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_seg.nii.gz", name]


def test_data_without_metadata_of_its_own(tmp_path):
    writer = AtomicWriter(output_dtype=np.uint8)
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    writer.set_data_array(values[None])
    writer.set_metadata({"filename_or_obj": "a.png"}, resample=False)
    writer.write(tmp_path / "b")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), values.T)
    writer = AtomicWriter(output_dtype=np.uint8)
    writer.set_data_array(values, channel_dim=None)
    writer.write(tmp_path / "b.nii")
    assert np.array_equal(np.asanyarray(nibabel.load(tmp_path / "b.nii").dataobj), values)


@pytest.mark.parametrize(
    "array, dtype, phrase",
    [
        (np.full((1, 4, 3), 1.5), np.float32, "found values 1.5 to 1.5, expected 0 to 1"),
        (np.full((1, 4, 3), np.nan), np.float32, "found values nan to nan"),
        (np.full((1, 4, 3), -1.0), np.uint8, "found class indices -1 to -1"),
        (np.full((3, 4, 3), 0.0), np.uint8, r"data of shape \(3, 4, 3\): a PNG holds one channel"),
        (np.full((1, 4, 3, 2), 0.0), np.uint8, "a PNG holds one channel of a 2-D image"),
    ],
)
def test_what_a_png_cannot_hold_is_refused_and_leaves_no_file(tmp_path, array, dtype, phrase):
    writer = AtomicPNGWriter(output_dtype=dtype)
    with pytest.raises(InputError, match=phrase):
        writer.set_data_array(array)
        writer.set_metadata({}, resample=False)
        writer.write(tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file, shape", [("a.png", (1, 4, 3)), ("a.nii.gz", (1, 4, 3, 2))])
def test_an_interrupted_write_leaves_the_earlier_file(tmp_path, monkeypatch, file, shape):
    tensor = MetaTensor(torch.ones(shape), meta={"filename_or_obj": file})
    saver(tmp_path)({"pred": tensor})
    (result,) = tmp_path.iterdir()
    before = result.read_bytes()

    def full_disk(source, target):
        assert Path(source).exists() and Path(target) == result
        raise OSError("no space left")

    monkeypatch.setattr("shared_components.whole_files.os.replace", full_disk)
    with pytest.raises(RuntimeError):
        saver(tmp_path)({"pred": tensor * 0})
    assert [path.name for path in tmp_path.iterdir()] == [result.name] and result.read_bytes() == before


def test_what_the_system_said_is_told_where_a_result_cannot_be_written(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("monai.data.NibabelWriter.write", full)
    save = saver(tmp_path, "image", torch.float32, AtomicNibabelWriter)
    with pytest.raises(RuntimeError) as caught:  # MONAI says to install its writers
        save({"image": MetaTensor(torch.zeros(1, 4, 4, 4), meta={"filename_or_obj": "case.nii.gz"})})
    file = tmp_path / "case_seg.nii.gz"
    remedy = "make room or give another --output_dir"
    assert one_line(caught.value) == f"{file} could not be written: No space left on device; {remedy}"
    assert list(tmp_path.iterdir()) == []
