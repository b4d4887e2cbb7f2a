"""Reading pictures (PNG, JPEG, TIFF, BMP, GIF) so that nothing of them is lost or taken for something else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from shared_components.data.formats.arrays import is_stack, read_array
from shared_components.data.formats.files import (
    ARRAY_SUFFIXES,
    ITK_LOCK,
    PICTURE_SUFFIXES,
    TIFF_SUFFIXES,
    UnusableImage,
    last_line,
)

_EXIF_ORIENTATION = 0x0112
_DEEP_COLOUR = re.compile(r"\b(LA|RGB|RGBA|RGBX);16")
_JPEG = ("JPEG", "MPO")
_HALF = 128
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, as in Pillow and OpenCV

Notes = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
        pixels: (columns, rows, channels) with 1 channel (grey) or 3 (red, green, blue), as stored: uint8, uint16,
            int32 or float32. Columns come first as with MONAI's `PILReader`, which its `PILWriter` undoes.
        file_format: what the content is, as Pillow names it, such as "PNG" or "JPEG".
        notes: (kind, text) of each choice that reading it took.
    """

    pixels: np.ndarray
    file_format: str
    notes: Notes = ()


def is_picture(path: Path) -> bool:
    """Tell whether a file is read as a 2-D picture: by its suffix, unless it is a volume, a TIFF of several pages or a
    stack of slices as NumPy array.
    """
    name = path.name.lower()
    if name.endswith(ARRAY_SUFFIXES):
        return not is_stack(path)
    if not name.endswith(TIFF_SUFFIXES):
        return name.endswith(PICTURE_SUFFIXES)
    try:
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1) == 1
    except (OSError, SyntaxError, ValueError):
        return True  # unreadable: `read_picture` says why


def channels_fit(found: int, wanted: int) -> bool:
    """Tell whether a picture of ``found`` channels can be shown to a model of ``wanted``: the same, or grey and RGB."""
    return found == wanted or {found, wanted} == {1, 3}


def read_picture(path: Path, is_label: bool = False) -> Picture:
    """Read a picture.

    An image keeps its depth; an alpha channel is dropped, a palette resolved, an EXIF orientation applied (viewers and
    annotation tools do so too). A label map comes out with one channel: colours that agree are one value, a palette's
    index is the label unless its colours are black and white, and a JPEG, whose values are never exact, is cut at half
    into 0 and 255. A NumPy array is read by `shared_components.data.formats.arrays.read_array`.

    Raises:
        UnusableImage: the file is no picture, damaged, animated, or a label map that cannot be understood.
    """
    if path.name.lower().endswith(ARRAY_SUFFIXES):
        return _array_picture(path, is_label)
    try:
        with Image.open(path) as image:
            image.verify()  # a PNG's checksums, which decoding does not look at
        with Image.open(path) as image:
            return _decode(path, image, is_label)
    except UnidentifiedImageError as error:
        head = path.read_bytes()[:16]
        raise UnusableImage(f"truncated/corrupt or no picture that can be read (starts {head!r})") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None)
        raise UnusableImage(f"cannot be read ({reason})" if reason else f"truncated or corrupt ({error})") from error


def _array_picture(path: Path, is_label: bool) -> Picture:
    notes: list[tuple[str, str]] = []
    pixels = read_array(path, is_label)
    _note_unused_bits(pixels, is_label, notes)
    return Picture(np.ascontiguousarray(pixels.swapaxes(0, 1)), "NPY", tuple(notes))


def picture_size(path: Path) -> tuple[int, int]:
    """Return columns and rows of a picture as `read_picture` turns it, from its header alone.

    Raises:
        UnusableImage: the file is no picture or cannot be read.
    """
    try:
        with Image.open(path) as image:
            columns, rows = image.size
            on_its_side = image.getexif().get(_EXIF_ORIENTATION, 1) in range(5, 9)
    except UnidentifiedImageError as error:
        raise UnusableImage("truncated/corrupt or no picture that can be read") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UnusableImage(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error
    return (rows, columns) if on_its_side else (columns, rows)


def _decode(path: Path, image: Image.Image, is_label: bool) -> Picture:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in _JPEG:  # a camera's JPEG may hold previews after the picture
        text = f"animated picture of {frames} frames, expected one; save the one that is meant"
        raise UnusableImage(text, "animated")
    notes: list[tuple[str, str]] = []
    file_format = str(image.format)
    deep = _DEEP_COLOUR.search(" ".join(str(tile[3]) for tile in image.tile))
    orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    if orientation in range(2, 9):
        if deep:
            raise UnusableImage(f"16-bit colours with EXIF orientation {orientation}; save it upright", "exif")
        notes.append(("exif", f"turned upright by its EXIF orientation {orientation}; its mask must be upright too"))
        image = ImageOps.exif_transpose(image)
    if is_label and file_format in _JPEG:
        array = _cut_at_half(np.asarray(image.convert("L")), notes)
    elif is_label and image.mode == "P":
        array = _palette_labels(image, notes)
    else:
        array = _deep_colour(path, len(deep.group(1)), notes) if deep else _image_array(image, notes)
        array = _one_channel(array, image) if is_label else array
        _note_unused_bits(array, is_label, notes)
    pixels = array[..., None] if array.ndim == 2 else array
    return Picture(np.ascontiguousarray(pixels.swapaxes(0, 1)), file_format, tuple(notes))


def _image_array(image: Image.Image, notes: list[tuple[str, str]]) -> np.ndarray:
    """Return (rows, columns) or (rows, columns, 3) without palette and alpha channel."""
    if image.has_transparency_data:
        notes.append(("alpha", "alpha channel dropped"))
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        colours = np.asarray(image)[..., :3]
        return colours[..., 0] if _is_grey(colours) else colours
    if image.mode.startswith(("I", "F")):
        array = np.asarray(image)
        deep_grey = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
        return array.astype(np.uint16) if deep_grey else array
    return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB"))


def _deep_colour(path: Path, num_components: int, notes: list[tuple[str, str]]) -> np.ndarray:
    """Read a colour picture of 16 bits a channel, of which Pillow keeps the upper 8, by ITK."""
    import itk

    with ITK_LOCK:
        try:
            image = itk.imread(str(path), itk.Vector[itk.F, num_components])
        except RuntimeError as error:
            raise UnusableImage(f"16-bit colour picture that ITK cannot read ({last_line(error)})") from error
        array = itk.array_from_image(image).astype(np.uint16)
    if num_components in (2, 4):
        notes.append(("alpha", "alpha channel dropped"))
    return array[..., 0] if num_components == 2 else array[..., :3]


def _note_unused_bits(array: np.ndarray, is_label: bool, notes: list[tuple[str, str]]) -> None:
    if not is_label and array.dtype == np.uint16 and 0 < array.max() < 1 << 15:
        bits = int(array.max()).bit_length()
        notes.append(("bit_depth", f"16-bit picture that uses {bits} bits: dark where 65535 is taken as white"))


def _one_channel(array: np.ndarray, image: Image.Image) -> np.ndarray:
    """Return the label values, (rows, columns), of a decoded picture."""
    if image.mode in ("LA", "RGBA") and array.min() == array.max() and len(set(image.getchannel("A").getextrema())) > 1:
        raise UnusableImage("the mask lies in the alpha channel; save it as a grey picture", "label_alpha")
    if array.ndim == 2:
        return array
    if not _is_grey(array):
        differing = int((array != array[..., :1]).any(axis=-1).sum())
        text = f"colour mask: red, green and blue differ in {differing} pixels; save the label values as a grey PNG"
        raise UnusableImage(text, "label_colour")
    return array[..., 0]


def _cut_at_half(values: np.ndarray, notes: list[tuple[str, str]]) -> np.ndarray:
    highest = int(values.max())
    if 0 < highest < _HALF:
        text = f"mask stored as JPEG with no value above {highest}, expected 255 for the label; save it as PNG"
        raise UnusableImage(text, "label_jpeg")
    between = int(((values > 0) & (values < 255)).sum())
    text = f"mask stored as JPEG: {between} pixels between 0 and 255, cut at half; save masks as PNG"
    notes.append(("jpeg_mask", text))
    return np.where(values >= _HALF, np.uint8(255), np.uint8(0))


def _palette_labels(image: Image.Image, notes: list[tuple[str, str]]) -> np.ndarray:
    colours = np.asarray(image.convert("RGB"))
    if _is_grey(colours) and not set(np.unique(colours).tolist()) - {0, 255}:
        return colours[..., 0]
    notes.append(("palette_mask", "palette picture: the index is taken as the label"))
    return np.asarray(image)


def _is_grey(colours: np.ndarray) -> bool:
    return bool((colours == colours[..., :1]).all())
