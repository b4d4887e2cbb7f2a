"""Reading pictures: what of them is kept, what is converted, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared_components.data.formats.files import UnusableImage
from shared_components.data.formats.pictures import channels_fit, is_picture, read_picture
from tests.data.folders import save_deep_png, save_picture, some_mask, some_picture


def kinds(picture) -> list[str]:
    return [kind for kind, _ in picture.notes]


def rows_first(picture) -> np.ndarray:
    pixels = picture.pixels.swapaxes(0, 1)
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
@pytest.mark.parametrize("shape", [(10, 12), (10, 12, 3)])
def test_pixels_have_columns_first_and_are_exact(tmp_path, suffix, shape):
    array = some_picture(shape=shape)
    picture = read_picture(save_picture(tmp_path / f"a{suffix}", array))
    assert picture.pixels.shape == (12, 10, 3 if len(shape) == 3 else 1)
    assert picture.pixels[4, 7].tolist() == np.atleast_1d(array[7, 4]).tolist()
    assert np.array_equal(rows_first(picture), array) and picture.notes == ()


def test_depth_is_kept(tmp_path):
    grey = some_picture(shape=(10, 12)).astype(np.uint16) * 257
    picture = read_picture(save_picture(tmp_path / "deep.png", grey))
    assert picture.pixels.dtype == np.uint16 and np.array_equal(rows_first(picture), grey) and picture.notes == ()
    few = read_picture(save_picture(tmp_path / "few.png", grey // 16))
    assert kinds(few) == ["bit_depth"] and "12 bits" in few.notes[0][1]
    real = some_picture(shape=(10, 12)).astype(np.float32) / 7
    assert np.array_equal(rows_first(read_picture(save_picture(tmp_path / "real.tif", real))), real)


@pytest.mark.parametrize("components, alpha", [(2, True), (3, False), (4, True)])
def test_colours_of_16_bits_are_not_cut_to_8(tmp_path, components, alpha):
    array = np.random.default_rng(1).integers(0, 1 << 16, (5, 7, components)).astype(np.uint16)
    picture = read_picture(save_deep_png(tmp_path / "deep.png", array))
    expected = array[..., 0] if components == 2 else array[..., :3]
    assert picture.pixels.dtype == np.uint16 and np.array_equal(rows_first(picture), expected)
    assert kinds(picture) == (["alpha"] if alpha else [])


def test_alpha_palette_one_bit_and_cmyk(tmp_path):
    colour, grey = some_picture(), some_picture(shape=(10, 12))
    rgba = np.concatenate([colour, grey[..., None]], axis=-1)
    found = read_picture(save_picture(tmp_path / "rgba.png", rgba))
    assert np.array_equal(rows_first(found), colour) and kinds(found) == ["alpha"]
    found = read_picture(save_picture(tmp_path / "la.png", np.stack([grey, 255 - grey], axis=-1)))
    assert np.array_equal(rows_first(found), grey) and kinds(found) == ["alpha"]
    palette = Image.fromarray(colour).quantize(16)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(rows_first(read_picture(tmp_path / "palette.png")), np.asarray(palette.convert("RGB")))
    Image.fromarray(grey).convert("P").save(tmp_path / "grey.png")
    assert np.array_equal(rows_first(read_picture(tmp_path / "grey.png")), grey)
    Image.fromarray(some_mask()).convert("1").save(tmp_path / "bit.png")
    assert np.array_equal(rows_first(read_picture(tmp_path / "bit.png")), some_mask())
    Image.fromarray(colour).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert read_picture(tmp_path / "cmyk.jpg").pixels.shape == (12, 10, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_image_and_mask_alike(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = np.add.outer(np.arange(16) * 9, np.arange(24) * 4).astype(np.uint8)
    file = save_picture(tmp_path / "a.jpg", smooth, exif=exif, quality=95)
    picture = read_picture(file)
    assert picture.pixels.shape == ((24, 16, 1) if orientation < 5 else (16, 24, 1))
    turned = {1: smooth, 2: smooth[:, ::-1], 3: smooth[::-1, ::-1], 4: smooth[::-1], 5: smooth.T}
    turned |= {6: smooth[::-1].T, 7: smooth[::-1, ::-1].T, 8: smooth[:, ::-1].T}
    assert np.abs(rows_first(picture).astype(int) - turned[orientation]).max() <= 4
    assert kinds(picture) == ([] if orientation == 1 else ["exif"])
    label = read_picture(file, is_label=True)
    assert np.array_equal(rows_first(label) == 255, rows_first(picture) >= 128)


def test_a_cameras_jpeg_with_a_preview_is_its_first_picture(tmp_path):
    first, preview = Image.new("L", (24, 16), 200), Image.new("L", (6, 4), 10)
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[preview])
    picture = read_picture(tmp_path / "a.jpg")
    assert picture.file_format == "MPO" and np.array_equal(rows_first(picture), np.full((16, 24), 200))


def test_masks_of_every_kind_give_the_same_labels(tmp_path):
    mask = some_mask()
    files = [save_picture(tmp_path / name, mask) for name in ("a.png", "a.tif", "a.bmp", "a.gif")]
    files.append(save_picture(tmp_path / "colour.png", np.stack([mask] * 3, axis=-1)))
    files.append(save_picture(tmp_path / "opaque.png", np.stack([mask] * 3 + [mask * 0 + 255], axis=-1)))
    for mode in ("1", "P"):
        Image.fromarray(mask).convert(mode).save(tmp_path / f"{mode}.png")
        files.append(tmp_path / f"{mode}.png")
    reversed_palette = Image.fromarray((mask == 0).astype(np.uint8), mode="P")
    reversed_palette.putpalette([255, 255, 255, 0, 0, 0])
    reversed_palette.save(tmp_path / "reversed.png")
    for file in [*files, tmp_path / "reversed.png"]:
        assert np.array_equal(rows_first(read_picture(file, is_label=True)), mask), file.name


def test_a_coloured_palette_means_its_index(tmp_path):
    labels = np.arange(120, dtype=np.uint8).reshape(10, 12) % 3
    image = Image.fromarray(labels, mode="P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    image.save(tmp_path / "voc.png")
    found = read_picture(tmp_path / "voc.png", is_label=True)
    assert np.array_equal(rows_first(found), labels) and kinds(found) == ["palette_mask"]


def test_a_jpeg_mask_is_cut_at_half_and_said_to_be_one(tmp_path):
    mask = np.kron(some_mask(), np.ones((4, 4), np.uint8))
    file = save_picture(tmp_path / "mask.jpg", mask, quality=40)
    stored = np.asarray(Image.open(file))
    between = int(((stored > 0) & (stored < 255)).sum())
    found = read_picture(file, is_label=True)
    assert between > 0 and np.array_equal(rows_first(found), np.where(stored >= 128, 255, 0))
    assert np.array_equal(rows_first(found), mask)
    assert kinds(found) == ["jpeg_mask"] and f"{between} pixels between 0 and 255" in found.notes[0][1]
    dim = save_picture(tmp_path / "dim.jpg", mask // 255)
    with pytest.raises(UnusableImage, match="no value above 1, expected 255") as error:
        read_picture(dim, is_label=True)
    assert error.value.kind == "label_jpeg"


def test_masks_that_cannot_be_understood(tmp_path):
    mask = some_mask()
    red = save_picture(tmp_path / "red.png", np.stack([mask, mask * 0, mask * 0], axis=-1))
    with pytest.raises(UnusableImage, match="differ in 24 pixels"):
        read_picture(red, is_label=True)
    hidden = save_picture(tmp_path / "hidden.png", np.stack([mask * 0] * 3 + [mask], axis=-1))
    with pytest.raises(UnusableImage, match="alpha channel"):
        read_picture(hidden, is_label=True)


def png_bytes() -> bytes:
    file = io.BytesIO()
    Image.fromarray(some_picture(shape=(64, 64, 3))).save(file, format="PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "name, content, phrase",
    [
        ("a.png", png_bytes()[:4000], "truncated or corrupt"),
        ("a.png", png_bytes()[:6000] + bytes([png_bytes()[6000] ^ 1]) + png_bytes()[6001:], "truncated or corrupt"),
        ("a.jpg", b"<!DOCTYPE html><html>not found</html>", "no picture that can be read .starts b'<!DOCTYPE"),
        ("a.tif", b"II*\0nothing", "truncated"),
    ],
)
def test_damaged_files(tmp_path, name, content, phrase):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnusableImage, match=phrase) as error:
        read_picture(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_truncated_jpeg_and_a_missing_file(tmp_path):
    file = save_picture(tmp_path / "a.jpg", some_picture(shape=(64, 64, 3)))
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(UnusableImage, match="truncated"):
        read_picture(file)
    with pytest.raises(UnusableImage, match="No such file"):
        read_picture(tmp_path / "absent.png")


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_animations_are_refused(tmp_path, suffix):
    frames = [Image.fromarray(some_picture(number)) for number in range(2)]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(UnusableImage, match="animated picture of 2 frames") as error:
        read_picture(tmp_path / f"a{suffix}")
    assert error.value.kind == "animated"


def test_a_tiff_of_several_pages_is_a_volume_and_no_picture(tmp_path):
    pages = [Image.fromarray(some_picture(number, (10, 12))) for number in range(3)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    assert not is_picture(tmp_path / "stack.tif")
    assert is_picture(save_picture(tmp_path / "page.TIF", some_picture()))
    assert is_picture(Path("a.JPG")) and not is_picture(Path("a.nii.gz"))


def test_which_channels_fit():
    fitting = {(found, wanted) for found in range(1, 5) for wanted in range(1, 5) if channels_fit(found, wanted)}
    assert fitting == {(1, 1), (2, 2), (3, 3), (4, 4), (1, 3), (3, 1)}
