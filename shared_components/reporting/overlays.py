"""Pictures of one case: image, reference, prediction, uncertainty and errors side by side."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import nibabel as nib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage.segmentation import find_boundaries

from shared_components.errors import InputError

# Okabe and Ito's colours, told apart with every kind of colour vision
PALETTE = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (0, 114, 178),
    (213, 94, 0),
)
ERROR_COLOURS = {"missed": (255, 45, 135), "added": (45, 225, 195), "wrong label": (255, 255, 255)}
# black, violet, red, orange, pale yellow: equally spaced stops of increasing lightness
HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
PANEL, GAP, STRIP, CAPTION = 288, 6, 26, 18


class View(NamedTuple):
    """One cut through the case, ready to be drawn: rows down, columns to the right."""

    caption: str
    size: tuple[int, int]
    letters: tuple[str, str, str, str]
    image: np.ndarray
    prediction: np.ndarray
    reference: np.ndarray | None
    uncertainty: np.ndarray | None
    instances: np.ndarray | None


def label_colour(index: int) -> tuple[int, int, int]:
    """Return the colour of a class, the same in every picture and chart."""
    return PALETTE[(index - 1) % len(PALETTE)]


def overlay_figure(
    image: np.ndarray,
    prediction: np.ndarray,
    affine: np.ndarray | None = None,
    reference: np.ndarray | None = None,
    uncertainty: np.ndarray | None = None,
    label_names: Mapping[int, str] | None = None,
    title: str = "",
    channel: int | None = None,
    instances: np.ndarray | None = None,
) -> np.ndarray:
    """Draw one case as a table of pictures.

    A volume is cut in the three planes of the body, each through the slice with the most foreground, in the
    radiological convention (the patient's right is on the left) with the directions written on the borders,
    and scaled to its true proportions. A 2-D image is drawn as it is stored, its first axis to the right.

    Args:
        image: (*spatial) grey values, or (K, *spatial) channels. Three channels of a 2-D image are its colours,
            shown as they are in [0, 255] or [0, 1] and stretched together otherwise; of other images one channel
            is shown.
        prediction: (*spatial) class indices, 2-D or 3-D.
        affine: (4, 4) voxel indices to RAS millimetres; identity without it.
        reference: (*spatial) class indices. Without it there are neither reference nor errors.
        uncertainty: (*spatial) in [0, 1].
        label_names: class index to name, without the background, for the legend.
        title: written above.
        channel: the channel to show in grey, of any image; by default the first, or all three as colours.
        instances: (*spatial) numbers of single objects, drawn in a column of their own, in the colours in turn.

    Returns:
        (height, width, 3) uint8.

    Raises:
        InputError: the image has no such channel.
    """
    background = displayed(np.asarray(image), prediction.ndim, channel)
    arrays = [background, prediction, reference, uncertainty, instances]
    views = _cut(arrays, np.eye(4) if affine is None else np.asarray(affine))
    columns = [name for name, known in _columns(reference, uncertainty, instances) if known]
    rows = [[_panel(view, name) for name in columns] for view in views]
    width = len(columns) * (PANEL + GAP) + GAP
    legend = _legend(width, label_names or {}, reference is not None, uncertainty is not None)
    tops = 2 * STRIP + np.cumsum([0] + [panels[0].height + GAP for panels in rows])
    height = int(tops[-1]) + legend.height
    canvas = Image.new("RGB", (width, height), "black")
    draw = ImageDraw.Draw(canvas)
    write_text(draw, (GAP, STRIP / 2), title, size=16, anchor="lm")
    for column, name in enumerate(columns):
        x = GAP + column * (PANEL + GAP)
        write_text(draw, (x + PANEL / 2, STRIP * 1.5), name, anchor="mm")
        for top, panels in zip(tops, rows):
            canvas.paste(panels[column], (x, int(top)))
    canvas.paste(legend, (0, height - legend.height))
    return np.asarray(canvas)


def encode_png(figure: np.ndarray) -> bytes:
    """Return a (height, width, 3) uint8 picture as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(figure).save(file, format="PNG")
    return file.getvalue()


def _columns(
    reference: np.ndarray | None, uncertainty: np.ndarray | None, instances: np.ndarray | None
) -> list[tuple[str, bool]]:
    known = reference is not None
    return [
        ("image", True),
        ("reference", known),
        ("prediction", True),
        ("instances", instances is not None),
        ("uncertainty", uncertainty is not None),
        ("errors", known),
    ]


def _cut(arrays: Sequence[np.ndarray | None], affine: np.ndarray) -> list[View]:
    """Choose the slices of image, prediction and what else a `View` holds, and turn them for display."""
    prediction = arrays[1]
    if prediction.ndim == 2:
        spacing = np.linalg.norm(affine[:2, :2], axis=0)
        flat = [None if array is None else array.swapaxes(0, 1) for array in arrays]
        return [View("", _fit(prediction.shape[::-1], spacing[::-1]), ("",) * 4, *flat)]
    orientation = nib.io_orientation(affine)
    arrays = [None if array is None else nib.apply_orientation(array, orientation) for array in arrays]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[np.argsort(orientation[:, 0])]
    planes = (("axial", 2, "APRL"), ("coronal", 1, "SIRL"), ("sagittal", 0, "SIAP"))
    return [
        _view(name, axis, tuple(letters), arrays, spacing)
        for name, axis, letters in planes
        if min(np.delete(arrays[1].shape, axis)) > 1
    ]


def _view(
    name: str, axis: int, letters: tuple[str, ...], arrays: Sequence[np.ndarray | None], spacing: np.ndarray
) -> View:
    """Cut RAS+ volumes across one axis, and turn the cut as a radiologist hangs it."""
    index = informative_slice(axis, *arrays[1:4])
    cuts = [None if array is None else np.take(array, index, axis=axis).T[::-1, ::-1] for array in arrays]
    size = _fit(cuts[1].shape, np.delete(spacing, axis)[::-1])
    return View(f"{name} {index + 1}/{arrays[1].shape[axis]}", size, letters, *cuts)


def informative_slice(
    axis: int, prediction: np.ndarray, reference: np.ndarray | None, uncertainty: np.ndarray | None
) -> int:
    """Return the slice with the most foreground; without any, with the most uncertainty; else the middle one."""
    others = tuple(a for a in range(prediction.ndim) if a != axis)
    foreground = prediction > 0 if reference is None else (prediction > 0) | (reference > 0)
    amount = foreground.sum(axis=others).astype(float)
    if not amount.any() and uncertainty is not None:
        amount = uncertainty.sum(axis=others)
    best = np.flatnonzero(amount == amount.max())
    return int(best[len(best) // 2])


def displayed(image: np.ndarray, dimensions: int, channel: int | None) -> np.ndarray:
    """Bring an image to grey (*spatial) or colour (*spatial, 3) values in [0, 255]."""
    image = image if image.ndim > dimensions else image[None]
    if channel is not None and not 0 <= channel < len(image):
        raise InputError(f"channel {channel}: the image has {len(image)} channels; expected 0 to {len(image) - 1}")
    if channel is None and dimensions == 2 and len(image) == 3:
        return _colours(np.moveaxis(np.asarray(image, dtype=np.float32), 0, -1))
    return _stretched(np.asarray(image[channel or 0], dtype=np.float32))


def _colours(image: np.ndarray) -> np.ndarray:
    """Colours of [0, 255] or [0, 1] as they are; normalised ones stretched, all three alike."""
    if not (image.min() >= 0 and image.max() <= 255):
        return _stretched(image)
    return image * 255 if image.max() <= 1 else image


def _stretched(image: np.ndarray) -> np.ndarray:
    """Stretch values to [0, 255], clipped to their 1st and 99th percentile."""
    image = np.nan_to_num(image, posinf=0, neginf=0)
    low, high = np.percentile(image, (1, 99))
    if high <= low:
        low, high = float(image.min()), float(image.max())
    return np.clip((image - low) / max(high - low, 1e-6), 0, 1) * 255


def _fit(shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, int]:
    """(height, width) in pixels of a (rows, columns) cut that fills the panel in its true proportions."""
    extent = np.asarray(shape) * np.asarray(spacing)
    height, width = np.maximum(np.round(extent * PANEL / extent.max()), 1).astype(int)
    return int(height), int(width)


def _nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    index = [((np.arange(n) + 0.5) * have / n).astype(int) for n, have in zip(size, array.shape)]
    return array[np.ix_(*index)]


def _scaled_image(view: View) -> np.ndarray:
    """The view's image in its display size, (height, width, 3) in [0, 255]; the mean where it shrinks."""
    picture = Image.fromarray(view.image.astype(np.uint8)).convert("RGB")
    return np.asarray(picture.resize(view.size[::-1], Image.Resampling.BOX), dtype=np.float32)


def _panel(view: View, name: str) -> Image.Image:
    """Draw one column's picture of a view, its slice written below."""
    base = _scaled_image(view)
    prediction = _nearest(view.prediction, view.size)
    reference = None if view.reference is None else _nearest(view.reference, view.size)
    if name == "reference":
        base = paint_labels(base, reference)
    elif name == "prediction":
        base = paint_labels(base, prediction)
    elif name == "instances":
        base = paint_labels(base, _nearest(view.instances, view.size))
    elif name == "uncertainty":
        base = _paint_heat(base, _nearest(view.uncertainty, view.size))
    elif name == "errors":
        base = _paint_errors(base, prediction, reference)
    height, width = view.size
    left = (PANEL - width) // 2
    panel = Image.new("RGB", (PANEL, height + (CAPTION if view.caption else 0)), "black")
    panel.paste(Image.fromarray(np.clip(base, 0, 255).astype(np.uint8)), (left, 0))
    _write_letters(ImageDraw.Draw(panel), view, left)
    return panel


def paint_labels(base: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Tint each class and draw its outline."""
    painted = base.copy()
    outlines = find_boundaries(labels, mode="inner")
    for index in np.unique(labels[labels > 0]):
        colour, inside = np.asarray(label_colour(int(index)), dtype=np.float32), labels == index
        painted[inside] = 0.75 * painted[inside] + 0.25 * colour
        painted[inside & outlines] = colour
    return painted


def heat_colours(values: np.ndarray) -> np.ndarray:
    """Colour values of [0, 1]: (..., 3) float in [0, 255]."""
    stops = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(values, stops, channel) for channel in np.transpose(HEAT)], axis=-1)


def _paint_heat(base: np.ndarray, uncertainty: np.ndarray) -> np.ndarray:
    """Lay the uncertainty over the image, the more opaque the higher it is."""
    opacity = np.clip(uncertainty * 3, 0, 0.9)[..., None]
    return (1 - opacity) * base + opacity * heat_colours(uncertainty)


def _paint_errors(base: np.ndarray, prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Colour what was missed, added and given the wrong label over a darkened image."""
    painted = 0.6 * base
    kinds = {
        "missed": (reference > 0) & (prediction == 0),
        "added": (prediction > 0) & (reference == 0),
        "wrong label": (prediction > 0) & (reference > 0) & (prediction != reference),
    }
    for kind, where in kinds.items():
        painted[where] = ERROR_COLOURS[kind]
    return painted


def write_text(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int = 13, anchor: str = "lt"
) -> None:
    """Write in white with a black rim, so that it can be read on any picture."""
    font = ImageFont.load_default(size)
    draw.text(place, text, fill="white", font=font, anchor=anchor, stroke_width=1, stroke_fill=0)


def _write_letters(draw: ImageDraw.ImageDraw, view: View, left: int) -> None:
    """Write the anatomical directions on the picture's borders and the slice below it."""
    height, width = view.size
    x, y = left + width / 2, height / 2
    places = ((x, 3, "mt"), (x, height - 3, "mb"), (left + 4, y, "lm"), (left + width - 4, y, "rm"))
    for letter, (x, y, anchor) in zip(view.letters, places):
        write_text(draw, (x, y), letter, anchor=anchor)
    write_text(draw, (PANEL / 2, height + CAPTION / 2), view.caption, size=11, anchor="mm")


def _legend(width: int, names: Mapping[int, str], errors: bool, heat: bool) -> Image.Image:
    """Draw the meaning of the colours, in as many lines as it takes."""
    entries = [(label_colour(index), name) for index, name in names.items()]
    kinds = list(ERROR_COLOURS.items())[: 3 if len(names) > 1 else 2] if errors else []
    entries += [(colour, kind) for kind, colour in kinds]
    sizes = [30 + 7 * len(name) for _, name in entries] + ([220] if heat else [])
    places, x, line = [], GAP, 0
    for size in sizes:
        x, line = (GAP, line + 1) if x + size > width and x > GAP else (x, line)
        places.append((x, line * STRIP + STRIP // 2))
        x += size
    legend = Image.new("RGB", (width, (line + 1) * STRIP + GAP), "black")
    draw = ImageDraw.Draw(legend)
    for (x, y), (colour, name) in zip(places, entries):
        draw.rectangle((x, y - 6, x + 12, y + 6), fill=colour)
        write_text(draw, (x + 18, y), name, anchor="lm")
    if heat:
        _draw_heat_scale(legend, places[-1])
    return legend


def _draw_heat_scale(legend: Image.Image, place: tuple[int, int]) -> None:
    (x, y), draw = place, ImageDraw.Draw(legend)
    bar = heat_colours(np.tile(np.linspace(0, 1, 100), (12, 1))).astype(np.uint8)
    write_text(draw, (x, y), "uncertainty 0", anchor="lm")
    legend.paste(Image.fromarray(bar), (x + 92, y - 6))
    write_text(draw, (x + 198, y), "1", anchor="lm")
