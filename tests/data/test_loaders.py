"""Loading images and label maps: channels, values, axes and metadata, and the way back to the source's grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.metrics import DiceMetric
from monai.transforms import AsDiscreted, Compose, Invertd, LoadImaged, SaveImaged, ScaleIntensityRanged
from PIL import Image

from shared_components.data.loaders import LoadImageChannelsd, LoadLabelMapd
from shared_components.data.transforms import AveragingResized
from shared_components.errors import InputError
from tests.data.folders import SHAPE, save, save_deep_png, save_picture, some_image, some_label, some_mask, some_picture


def load(source, num_channels: int | None = None) -> MetaTensor:
    source = [str(path) for path in source] if isinstance(source, list) else str(source)
    return LoadImageChannelsd("image", num_channels)({"image": source})["image"]


def load_label(path: Path, labels=None) -> np.ndarray:
    """Return the label map with rows first."""
    return LoadLabelMapd("label", labels)({"label": str(path)})["label"][0].numpy().T


@pytest.mark.parametrize("shape, channels", [((10, 12), 1), ((10, 12, 3), 3)])
def test_a_plain_picture_is_what_monai_loads(tmp_path, shape, channels):
    file = save_picture(tmp_path / "a.png", some_picture(shape=shape))
    image = load(file, channels)
    stock = LoadImaged("image", ensure_channel_first=True)({"image": str(file)})["image"]
    assert torch.equal(image.as_tensor(), stock.as_tensor()) and image.dtype == torch.float32
    assert torch.equal(image.affine, stock.affine) and image.meta["spatial_shape"].tolist() == [12, 10]
    assert image.meta["filename_or_obj"] == str(file) and image.applied_operations == []


def test_grey_for_colour_and_colour_for_grey(tmp_path):
    grey, colour = some_picture(shape=(10, 12)), some_picture()
    grey_file, colour_file = save_picture(tmp_path / "g.png", grey), save_picture(tmp_path / "c.png", colour)
    assert np.array_equal(load(grey_file, 3).numpy(), np.stack([grey.T] * 3).astype(np.float32))
    luminance = load(colour_file, 1)[0].numpy().T
    assert np.allclose(luminance, colour @ np.array([0.299, 0.587, 0.114]), atol=1e-4)
    assert np.abs(luminance - np.asarray(Image.fromarray(colour).convert("L"))).max() <= 0.51
    alike = save_picture(tmp_path / "alike.png", np.stack([grey] * 3, axis=-1))
    assert np.array_equal(load(alike, 1)[0].numpy().T, grey)
    assert (load(grey_file).shape, load(colour_file).shape) == ((1, 12, 10), (3, 12, 10))
    assert load(grey_file, 3).meta["filename_or_obj"] == str(grey_file)


def test_pictures_of_16_bits_have_the_range_of_8_without_rounding(tmp_path):
    deep = np.random.default_rng(0).integers(0, 1 << 16, (10, 12, 4)).astype(np.uint16)
    image = load(save_deep_png(tmp_path / "a.png", deep), 3)
    assert np.allclose(image.numpy(), np.moveaxis(deep[..., :3], -1, 0).swapaxes(1, 2) / 257, atol=1e-4)
    scaled = ScaleIntensityRanged("image", 0, 255, -1, 1, clip=True)({"image": image})["image"]
    assert torch.allclose(scaled.as_tensor(), image.as_tensor() / 127.5 - 1, atol=1e-6)


def test_one_picture_a_channel_is_stacked_in_the_order_given(tmp_path):
    pictures = [some_picture(number, (10, 12)) for number in range(3)]
    files = [save_picture(tmp_path / f"{number}.png", picture) for number, picture in enumerate(pictures)]
    image = load([files[2], files[0]], 2)
    assert np.array_equal(image.numpy(), np.stack([pictures[2].T, pictures[0].T]).astype(np.float32))
    assert image.meta["filename_or_obj"] == str(files[2])
    colour = save_picture(tmp_path / "colour.tif", np.stack([pictures[1]] * 3, axis=-1))
    assert np.array_equal(load([files[0], colour], 2)[1].numpy(), pictures[1].T)
    with pytest.raises(InputError, match="3 channel files, model takes 2"):
        load(files, 2)
    other = save_picture(tmp_path / "other.png", some_picture(shape=(10, 11)))
    with pytest.raises(InputError, match=r"different shapes: 0.png \(12, 10\), other.png \(11, 10\)"):
        load([files[0], other], 2)


@pytest.mark.parametrize("shape", [(*SHAPE, 2), (*SHAPE, 1, 2)])
def test_a_4d_volume_and_one_volume_a_channel_are_the_same(tmp_path, shape):
    array, affine = some_image(shape=shape), np.array([[0, -2, 0, 5], [1, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1.0]])
    channels = array.reshape(*SHAPE, 2)
    whole = load(save(tmp_path / "whole.nii.gz", array, affine), 2)
    files = [save(tmp_path / f"{c}.nii.gz", channels[..., c], affine) for c in range(2)]
    split = load(files, 2)
    assert np.array_equal(whole.numpy(), np.moveaxis(channels, -1, 0)) and torch.equal(whole, split)
    assert np.array_equal(whole.affine.numpy(), affine) and np.array_equal(split.affine.numpy(), affine)
    assert split.meta["spatial_shape"].tolist() == list(SHAPE)


def test_volumes_are_not_converted_between_grey_and_colour(tmp_path):
    volume = save(tmp_path / "a.nii.gz", some_image(shape=(*SHAPE, 3)))
    with pytest.raises(InputError, match="a.nii.gz: 3 channels, expected 1"):
        load(volume, 1)
    with pytest.raises(InputError, match="g.nii.gz: 1 channel, expected 3"):
        load(save(tmp_path / "g.nii.gz", some_image()), 3)
    with pytest.raises(InputError, match="p.png: 3 channels, expected 2"):
        load(save_picture(tmp_path / "p.png", some_picture()), 2)


def test_other_2d_images_and_a_tiff_of_several_pages(tmp_path):
    itk = pytest.importorskip("itk")
    array = some_image(shape=(10, 12))
    itk.imwrite(itk.image_from_array(array), str(tmp_path / "a.mha"))
    for file in (tmp_path / "a.mha", save(tmp_path / "a.nii.gz", array.T)):
        image = load(file, 1)
        assert np.array_equal(image.numpy()[0], array.T) and image.affine.shape == (4, 4)
    pages = [some_picture(number, (10, 12)) for number in range(4)]
    stack = [Image.fromarray(page) for page in pages]
    stack[0].save(tmp_path / "stack.tif", save_all=True, append_images=stack[1:])
    assert np.array_equal(load(tmp_path / "stack.tif", 1).numpy()[0], np.stack([page.T for page in pages], axis=-1))


def test_an_unreadable_picture_is_named_in_one_line(tmp_path):
    (tmp_path / "a.png").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(InputError, match="a.png: truncated/corrupt or no picture"):
        load(tmp_path / "a.png")


def test_monai_label_may_ask_for_the_metadata_beside_the_image(tmp_path):
    file = save_picture(tmp_path / "a.png", some_picture())
    transform = LoadImageChannelsd("image", 3)
    assert isinstance(transform, LoadImaged)
    transform._loader.image_only = False
    data = transform({"image": str(file)})
    assert data["image"].shape == (3, 12, 10) and data["image_meta_dict"]["filename_or_obj"] == str(file)


@pytest.mark.parametrize("labels, value", [({"lesion": 1}, 1), (None, 1), ([3], 3), ([255], 255), ([1, 2], 255)])
def test_what_white_means(tmp_path, labels, value):
    file = save_picture(tmp_path / "mask.png", some_mask())
    assert np.array_equal(load_label(file, labels), np.where(some_mask() == 255, value, 0))


def test_masks_of_16_bits_colours_jpeg_and_zeros(tmp_path):
    mask = np.kron(some_mask(), np.ones((4, 4), np.uint8))
    expected = mask // 255
    files = [
        save_picture(tmp_path / "deep.png", mask.astype(np.uint16) * 257),
        save_picture(tmp_path / "colour.png", np.stack([mask] * 3, axis=-1)),
        save_picture(tmp_path / "mask.jpg", np.stack([mask] * 3, axis=-1), quality=50),
        save_picture(tmp_path / "ones.png", expected),
        save(tmp_path / "mask.nii.gz", mask.T),
    ]
    for file in files:
        assert np.array_equal(load_label(file, {"lesion": 1}), expected), file.name
    assert load_label(save_picture(tmp_path / "empty.png", mask * 0), {"lesion": 1}).max() == 0


def test_label_values_are_kept_and_rounded(tmp_path):
    labels = np.arange(120, dtype=np.uint8).reshape(10, 12) % 5
    assert np.array_equal(load_label(save_picture(tmp_path / "a.png", labels), [1, 2, 3, 4]), labels)
    instances = np.arange(120, dtype=np.uint16).reshape(10, 12) * 9
    assert np.array_equal(load_label(save_picture(tmp_path / "instances.png", instances)), instances)
    scaled = some_label().astype(np.float32) * np.float32(0.99999997)
    loaded = LoadLabelMapd("label")({"label": str(save(tmp_path / "a.nii.gz", scaled))})["label"]
    assert np.array_equal(loaded.numpy()[0], some_label()) and loaded.dtype == torch.float32
    with pytest.raises(InputError, match="half.nii.gz: non-integer labels"):
        load_label(save(tmp_path / "half.nii.gz", some_label() * 0.5))
    with pytest.raises(InputError, match="4d.nii.gz: label with 2 channels"):
        load_label(save(tmp_path / "4d.nii.gz", some_image(shape=(*SHAPE, 2))))
    with pytest.raises(InputError, match="red, green and blue differ"):
        load_label(save_picture(tmp_path / "colour.png", some_picture()), [1])


@pytest.mark.parametrize("shape, size", [((37, 53), (64, 64)), ((37, 53), (16, 16)), ((16, 16), (16, 16))])
def test_a_prediction_comes_back_to_the_pictures_grid_and_is_written_as_the_picture_lies(tmp_path, shape, size):
    bright = np.zeros((*shape, 3), np.uint8)
    bright[: shape[0] // 4, shape[1] // 2 :] = 250
    picture = save_picture(tmp_path / "in" / "a.png", bright)
    mask = save_picture(tmp_path / "in" / "mask.png", bright[..., 0] // 250 * 255)
    preprocessing = Compose(
        [
            LoadImageChannelsd("image", 3),
            LoadLabelMapd("label", {"lesion": 1}),
            AveragingResized("image", size),
            ScaleIntensityRanged("image", 0, 250, 0, 1),
        ]
    )
    saving = {"output_dir": tmp_path / "out", "output_postfix": "seg", "output_ext": ".png", "scale": 255}
    saving |= {"separate_folder": False, "print_log": False}
    item = {"image": str(picture), "label": str(mask)}
    batch = next(iter(DataLoader(Dataset([item], preprocessing), batch_size=1)))
    batch["pred"] = torch.cat([1 - batch["image"][:, :1], batch["image"][:, :1]], dim=1)
    postprocessing = Compose(
        [
            Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False),
            AsDiscreted("pred", argmax=True),
            SaveImaged("pred", **saving),
        ]
    )
    (result,) = [postprocessing(case) for case in decollate_batch(batch)]
    assert result["pred"].shape == result["label"].shape == (1, *shape[::-1])
    dice = DiceMetric()(result["pred"][None], result["label"][None]).item()
    assert dice > 0.85 and (dice == 1 or size != shape)
    written = np.asarray(Image.open(tmp_path / "out" / "a_seg.png"))
    assert written.shape == shape and np.array_equal(written.T > 0, result["pred"][0].numpy() > 0)
    truth = np.asarray(Image.open(mask)) > 0
    assert 2 * (truth & (written > 0)).sum() / (truth.sum() + (written > 0).sum()) == pytest.approx(dice, abs=1e-5)


def test_stored_values_become_class_numbers_and_all_others_background(tmp_path):
    label = np.array([[[0, 3, 7]], [[9, 7, 3]]], np.uint8)
    file = save(tmp_path / "a.nii.gz", label)
    loaded = LoadLabelMapd("label", labels=[3, 7, 9], stored_values=[[7], [3, 9]])({"label": str(file)})["label"]
    assert np.array_equal(np.asarray(loaded)[0], [[[0, 2, 1]], [[2, 1, 2]]])


def test_the_entry_case_names_what_is_loaded(tmp_path):
    file = save(tmp_path / "p1" / "image.nii.gz", some_image())
    image = LoadImageChannelsd("image", 1)({"image": str(file), "case": "p1"})["image"]
    assert image.meta["filename_or_obj"] == str(tmp_path / "p1" / "p1.nii.gz")
    assert LoadImageChannelsd("image", 1)({"image": str(file)})["image"].meta["filename_or_obj"] == str(file)


@pytest.mark.parametrize("name, result", [("scan.v2.NII.GZ", "scan.v2"), ("scan.v2.nii.gz", "scan.v2"), ("a.nii", "a")])
def test_a_result_is_called_as_its_image(tmp_path, name, result):
    image = LoadImageChannelsd("image", 1)({"image": str(save(tmp_path / name, some_image()))})
    SaveImaged("image", output_dir=tmp_path / "out", output_postfix="seg", separate_folder=False)(image)
    assert [file.name for file in (tmp_path / "out").iterdir()] == [f"{result}_seg.nii.gz"]
