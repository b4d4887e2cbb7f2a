"""Drawing the polygons of an Aperio ImageScope annotation (XML), as MoNuSeg ships them, instead of reading a mask."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from skimage.draw import polygon
from skimage.segmentation import relabel_sequential

from shared_components.data.formats.files import (
    ANNOTATION_SUFFIXES,
    IMAGE_FOLDERS,
    UnusableImage,
    image_files,
    image_stem,
)
from shared_components.data.formats.pictures import Picture, picture_size

_FARTHEST = 1e9  # pixels; more is no coordinate of a picture
_NO = ("", "0", "false")
_NAMED_IN_NOTE = 3


@dataclass(frozen=True)
class Region:
    """A region of an annotation.

    Attributes:
        id: its "Id", else its place in the file, from 1.
        layer: number of the ``Annotation`` element that it belongs to, from 0.
        negative: it is cut out of the layer's other regions ("NegativeROA").
        vertices: (N, 2) x and y in pixels, from the upper left corner of the picture.
    """

    id: str
    layer: int
    negative: bool
    vertices: np.ndarray


def is_annotation(path: Any) -> bool:
    """Tell whether something is the path of a file that is read as an Aperio annotation: by its suffix, .xml."""
    return isinstance(path, (str, os.PathLike)) and os.fspath(path).lower().endswith(ANNOTATION_SUFFIXES)


def looks_like_aperio(path: Path) -> bool:
    """Tell whether an XML file begins as an Aperio annotation does; there are other kinds beside images."""
    try:
        with open(path, "rb") as file:
            return b"<Annotations" in file.read(4096).replace(b"\0", b"")
    except OSError:
        return False


def read_annotation(path: Path, image: Path | None = None, numbered: bool = False) -> Picture:
    """Draw an annotation as a label map of its image's size: 1 in every region, or the regions' numbers.

    The format does not say how large the image is. The size is that of ``image``, from its header, or else of the
    picture of the same name in the same folder, or in ``Tissue Images/``, ``images/`` or ``img/`` beside that folder.
    All regions are of one class, whatever their layer; `draw_regions` says what is drawn where.

    Args:
        path: the XML file.
        image: the picture that was annotated.
        numbered: number the regions in their order in the file, 1 to n; those that leave no pixel are not counted.

    Returns:
        The map, (columns, rows, 1) uint8 or, ``numbered``, int32. Its notes say where there are several layers
        ("annotation_layers") and which regions leave no pixel ("region_without_pixels").

    Raises:
        UnusableImage: the file cannot be read or is no Aperio annotation; a vertex has no usable coordinates; the
            image's size cannot be found; there are regions, but none of them in the image.
    """
    regions = read_regions(path)
    image = _image_of(path) if image is None else image
    try:
        size = picture_size(image)
    except UnusableImage as error:
        raise UnusableImage(f"the size of its image {image.name} is not known: {error}", error.kind) from error
    numbers = draw_regions(regions, size)
    drawn = set(np.unique(numbers).tolist())
    positive = {number: region.id for number, region in enumerate(regions, 1) if not region.negative}
    without = [name for number, name in positive.items() if number not in drawn]
    if positive and not any(_overlaps(region.vertices, size) for region in regions if not region.negative):
        found = f"none of its {len(positive)} regions lies in {image.name} of {size[0]}x{size[1]} pixels"
        raise UnusableImage(f"{found}; is it the annotation of another image?", "annotation_outside")
    values = relabel_sequential(numbers)[0].astype(np.int32) if numbered else (numbers > 0).astype(np.uint8)
    notes = _notes(regions, without, len(positive))
    return Picture(np.ascontiguousarray(values.T[..., None]), "Aperio XML", notes)


def read_regions(path: Path) -> list[Region]:
    """Read the regions of an annotation in the order of the file.

    Nothing that an XML file can refer to is fetched or expanded: a document type declaration, which Aperio's files
    do not have, is refused.

    Raises:
        UnusableImage: the file cannot be read, is no XML or no Aperio annotation, or a vertex lacks usable numbers.
    """
    try:
        content = path.read_bytes()
        if b"<!DOCTYPE" in content.replace(b"\0", b""):  # any encoding that expat reads: UTF-16 has zeros between
            raise UnusableImage("XML with a document type declaration, which is not read; remove <!DOCTYPE ...>")
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise UnusableImage(f"no XML or a truncated one ({error})") from error
    except (ValueError, LookupError) as error:
        raise UnusableImage(f"XML that cannot be read ({error})") from error
    except OSError as error:
        raise UnusableImage(f"cannot be read ({error.strerror or error})") from error
    if root.tag != "Annotations":
        raise UnusableImage(f"no Aperio annotation: its root element is <{root.tag}>, expected <Annotations>")
    regions: list[Region] = []
    for layer, annotation in enumerate(root.iter("Annotation")):
        for element in annotation.iter("Region"):
            name = element.get("Id") or str(len(regions) + 1)
            vertices = [[_coordinate(vertex, axis, name) for axis in "XY"] for vertex in element.iter("Vertex")]
            negative = element.get("NegativeROA", "").strip().lower() not in _NO
            regions.append(Region(name, layer, negative, np.array(vertices, dtype=float).reshape(-1, 2)))
    return regions


def draw_regions(regions: Sequence[Region], size: tuple[int, int]) -> np.ndarray:
    """Draw regions as polygons.

    A pixel belongs to a region if its centre lies inside: coordinates count from the picture's upper left corner, so
    the centre of the first pixel is (0.5, 0.5). So a region has as many pixels as its area says. What lies outside
    the picture is cut off. Where regions overlap, a pixel stays with the one that comes first; a negative region is
    cut out of every region of its own layer, whatever their order. An outline that crosses itself is filled by the
    even-odd rule. A region whose vertices do not span an area (fewer than three of them, all on a line) or between
    pixel centres leaves nothing. Whatever its "Type", a region is the polygon of its vertices.

    Args:
        regions: of any layer.
        size: columns and rows of the picture.

    Returns:
        (rows, columns) int32: 0 for the background, else the region's place in ``regions``, from 1.
    """
    shape = size[::-1]
    numbers = np.zeros(shape, np.int32)
    holes: dict[int, np.ndarray] = {}
    for region in regions:
        if region.negative:
            holes.setdefault(region.layer, np.zeros(shape, bool))[_pixels(region.vertices, shape)] = True
    for number, region in enumerate(regions, 1):
        if region.negative:
            continue
        rows, columns = _pixels(region.vertices, shape)
        free = numbers[rows, columns] == 0
        if region.layer in holes:
            free &= ~holes[region.layer][rows, columns]
        numbers[rows[free], columns[free]] = number
    return numbers


def _coordinate(vertex: ElementTree.Element, axis: str, region: str) -> float:
    text = vertex.get(axis)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not abs(value) < _FARTHEST:
        found = f"no {axis}" if text is None else f"{axis} '{text}'"
        raise UnusableImage(f"region {region} has a vertex with {found}, expected a number of pixels", "annotation")
    return value


def _pixels(vertices: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns of the pixels whose centres lie in a polygon."""
    if len(vertices) < 3 or np.linalg.matrix_rank(vertices - vertices[0]) < 2:
        nothing = np.zeros(0, np.intp)
        return nothing, nothing
    columns, rows = (vertices - 0.5).T
    return polygon(rows, columns, shape)


def _overlaps(vertices: np.ndarray, size: tuple[int, int]) -> bool:
    """Tell whether the box around a region and the picture have a point in common."""
    return len(vertices) > 0 and bool((vertices.max(0) >= 0).all() and (vertices.min(0) <= size).all())


def _image_of(path: Path) -> Path:
    """Return the picture that belongs to an annotation by its name."""
    stem = path.name[: -len(path.suffix)]
    for folder in (path.parent, *(path.parent.parent / name for name in IMAGE_FOLDERS)):
        found = [file for file in image_files(folder) if image_stem(file.name) == stem]
        if found and _one_size(found):
            return found[0]
        if found:
            names = " and ".join(file.name for file in found)
            raise UnusableImage(f"the size of its image is not known: {names} differ in size", "annotation_image")
    places = ", ".join(f"{name}/" for name in IMAGE_FOLDERS)
    text = f"the size of its image is not known: no picture {stem}.tif, .png, ... beside it or in {places}"
    raise UnusableImage(text, "annotation_image")


def _one_size(files: list[Path]) -> bool:
    return len(files) == 1 or len({picture_size(file) for file in files}) == 1


def _notes(regions: Sequence[Region], without: list[str], num_positive: int) -> tuple[tuple[str, str], ...]:
    notes = []
    num_layers = len({region.layer for region in regions if not region.negative})
    if num_layers > 1:
        notes.append(("annotation_layers", f"regions in {num_layers} annotation layers, taken as one class"))
    if without:
        some = ", ".join(without[:_NAMED_IN_NOTE]) + (", ..." if len(without) > _NAMED_IN_NOTE else "")
        why = "too small or too thin, outside the image, or covered"
        text = f"{len(without)} of {num_positive} regions leave no pixel (Id {some}): {why}"
        notes.append(("region_without_pixels", text))
    return tuple(notes)
