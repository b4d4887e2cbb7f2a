"""Loading images and label maps of every supported kind with the channels and the label values a model takes."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, NibabelReader
from monai.data.image_reader import ImageReader
from monai.data.utils import to_affine_nd
from monai.transforms import LoadImage, LoadImaged
from monai.utils import ImageMetaKey, MetaKeys, ensure_tuple

from shared_components.data.formats.aperio import is_annotation
from shared_components.data.formats.files import UnusableImage, label_stem, label_suffix
from shared_components.data.formats.pictures import LUMINANCE, channels_fit
from shared_components.data.formats.readers import (
    PICTURE_FORMAT,
    Annotation,
    AnnotationReader,
    PartlyLabelled,
    PictureReader,
    VolumeReader,
)
from shared_components.data.formats.scan import Labels, allowed_values, full_scale_label
from shared_components.data.ignored import IGNORED
from shared_components.data.transforms import rounded_labels
from shared_components.errors import InputError

_READ_FROM = "read_from"  # the file itself, where the result is called otherwise

StoredValues = Sequence[int | Sequence[int]] | None


class _FileLoader(LoadImage):
    """`LoadImage` with the readers that the data checks read with; returns what MONAI Label asks of it too."""

    def __init__(self, is_label: bool) -> None:
        super().__init__(image_only=True, ensure_channel_first=True)
        self.register(NibabelReader(squeeze_non_spatial_dims=True))
        self.register(PictureReader(is_label))
        self.register(VolumeReader(is_label))

    def load(self, filename: str | os.PathLike, reader: ImageReader | None) -> MetaTensor:
        """Load one file as (C, *spatial) float32, with a 4x4 affine."""
        try:
            loaded = super().__call__(filename, reader)
        except UnusableImage as error:
            raise InputError(f"{filename}: {error}") from error
        image = loaded if self.image_only else loaded[0]
        for key in (MetaKeys.AFFINE, MetaKeys.ORIGINAL_AFFINE):
            image.meta[key] = to_affine_nd(3, image.meta[key])  # ITK gives 2-D images a 3x3 one
        return image

    def result(self, image: MetaTensor) -> MetaTensor | tuple[MetaTensor, dict]:
        return image if self.image_only else (image, image.meta)


class _ChannelLoader(_FileLoader):
    def __init__(self, num_channels: int | None, channel: int | None = None) -> None:
        super().__init__(is_label=False)
        self.num_channels, self.channel = num_channels, channel

    def __call__(self, filename: Any, reader: ImageReader | None = None) -> MetaTensor | tuple[MetaTensor, dict]:
        names = ensure_tuple(filename)
        wanted = self.num_channels if len(names) == 1 else 1
        loaded = [self._chosen(self.load(name, reader), str(name)) for name in names]
        images = [_with_channels(image, wanted, str(name)) for image, name in zip(loaded, names)]
        if self.num_channels is not None and len(names) not in (1, self.num_channels):
            raise InputError(f"{names[0]}: {len(names)} channel files, model takes {self.num_channels} channels")
        if len({image.shape for image in images}) > 1:
            shapes = ", ".join(f"{Path(name).name} {tuple(image.shape[1:])}" for name, image in zip(names, images))
            raise InputError(f"{names[0]}: the channel files have different shapes: {shapes}")
        first = images[0]
        stacked = torch.cat([image.as_tensor() for image in images]) if len(images) > 1 else first.as_tensor()
        return self.result(MetaTensor(stacked, meta=first.meta))

    def _chosen(self, image: MetaTensor, name: str) -> MetaTensor:
        if self.channel is None:
            return image
        if not 0 <= self.channel < image.shape[0]:
            raise InputError(f"{name}: {image.shape[0]} channels; channel is {self.channel}, counted from 0")
        return MetaTensor(image.as_tensor()[self.channel : self.channel + 1], meta=image.meta)


class _LabelLoader(_FileLoader):
    def __init__(
        self, labels: Labels, numbered: bool = False, stored_values: StoredValues = None, united: bool = False
    ) -> None:
        super().__init__(is_label=True)
        self.united = united
        self.allowed, self.numbered = allowed_values(labels), numbered
        self.classes = None if stored_values is None else [ensure_tuple(values) for values in stored_values]

    def __call__(self, filename: Any, reader: ImageReader | None = None) -> MetaTensor | tuple[MetaTensor, dict]:
        if isinstance(filename, (list, tuple)) and len(filename) > 1:
            return self.result(self._united(filename, reader) if self.united else self._one_a_class(filename))
        (name,) = ensure_tuple(filename)
        if isinstance(name, Annotation):
            return self.result(self.load(name.path, AnnotationReader(name, self.numbered)))
        if isinstance(name, PartlyLabelled):
            return self.result(self._one(name.path, reader, name.ignored))
        return self.result(self._one(name, reader))

    def _one(self, name: Any, reader: ImageReader | None, ignored: int | None = None) -> MetaTensor:
        label = self.load(name, reader)
        if label.shape[0] > 1:
            raise InputError(f"{name}: label with {label.shape[0]} channels, expected one label map")
        values = rounded_labels(label.as_tensor(), str(name))
        unjudged = torch.zeros_like(values, dtype=torch.bool) if ignored is None else values == ignored
        values = values.masked_fill(unjudged, 0.0)
        white = None if self.numbered else full_scale_label(torch.unique(values).int().tolist(), self.allowed)
        if white is not None:
            values = torch.where(values == white[0], float(white[1]), 0.0)
        return MetaTensor(self._numbered_classes(values).masked_fill(unjudged, float(IGNORED)), meta=label.meta)

    def _united(self, names: Sequence[str], reader: ImageReader | None) -> MetaTensor:
        """Merge several masks of the same: where two overlap, the larger value counts."""
        first, *others = (self._one(name, reader) for name in names)
        values = first.as_tensor()
        for name, other in zip(names[1:], others):
            if other.shape != first.shape:
                shapes = tuple(other.shape[1:]), tuple(first.shape[1:])
                raise InputError(f"{name}: shape {shapes[0]}, expected {shapes[1]}, that of {names[0]}")
            values = torch.maximum(values, other.as_tensor())
        return MetaTensor(values, meta=first.meta)

    def _one_a_class(self, names: Sequence[str]) -> MetaTensor:
        """Merge one mask a class ("" for a class that the case has not); where two overlap, the later class counts."""
        merged = None
        for number, name in enumerate(names, 1):
            if name:
                mask = self.load(name, None)
                merged = MetaTensor(torch.zeros_like(mask.as_tensor()), meta=mask.meta) if merged is None else merged
                merged[mask > 0] = float(number)
        if merged is None:
            raise InputError("a case without any mask; leave it out")
        return MetaTensor(self._numbered_classes(merged.as_tensor()), meta=merged.meta)

    def _numbered_classes(self, values: torch.Tensor) -> torch.Tensor:
        if self.classes is None:
            return values
        numbers = torch.zeros_like(values)
        for number, stored in enumerate(self.classes, 1):
            numbers[torch.isin(values, torch.tensor(stored, dtype=values.dtype))] = float(number)
        return numbers


class _LoadCased(LoadImaged):
    """`LoadImaged` that notes a file name by which each result gets a name of its own, that of the report.

    The entry "case", if there is one, is the name; else the file's.
    """

    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict[Hashable, Any]:
        loaded = super().__call__(data, reader)
        for key in self.key_iterator(loaded):
            if isinstance(loaded[key], MetaTensor):
                meta = loaded[key].meta
                meta[_READ_FROM] = str(meta[ImageMetaKey.FILENAME_OR_OBJ])
                meta[ImageMetaKey.FILENAME_OR_OBJ] = str(_result_file(Path(meta[_READ_FROM]), loaded.get("case")))
        return loaded


def _result_file(file: Path, case: str | None) -> Path:
    """Return the file as ``case`` would be called, with a suffix that MONAI takes off the name of a result.

    Of a series in a folder called 1.2.840.1 it would take off the last number, which leaves 1.2.840 to two patients; of
    scan.NII.GZ only the half.
    """
    suffix = label_suffix(file.name)
    name = case or label_stem(file.name) or file.name
    if suffix.lower().endswith(".gz"):
        suffix = suffix.lower()
    elif not suffix and "." in name and file.is_dir():
        suffix = ".dcm"
    return file.with_name(name + suffix)


class LoadImageChannelsd(_LoadCased):
    """Load an image of any supported kind as (C, *spatial) float32 with the number of channels the model takes.

    A path is one file (4-D NIfTI included), a list of paths one file a channel, stacked in this order with the first
    file's metadata. A grey picture becomes a colour one by repetition, a colour picture a grey one by its luminance, an
    alpha channel is dropped (`shared_components.data.formats.pictures.read_picture`). Pictures of 8 and of 16 bits go
    from 0 to 255. Axes are ordered as MONAI orders them: (C, columns, rows) for a picture, so that `PILWriter` writes
    it as its source lies. Where other cases' files have the same name, the entry "case" names what is loaded.
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_channels: int | None = None,
        allow_missing_keys: bool = False,
        channel: int | None = None,
    ) -> None:
        """Create the transform.

        Args:
            keys: entries to load.
            num_channels: image channels that the model takes; ``None`` leaves them as they are.
            allow_missing_keys: leave out keys that the data does not have.
            channel: the one to take of files that have several, counted from 0.
        """
        super().__init__(keys, allow_missing_keys=allow_missing_keys)
        self._loader = _ChannelLoader(num_channels, channel)


class LoadLabelMapd(_LoadCased):
    """Load a label map of any supported kind as (1, *spatial) float32 with the label values of the model.

    A mask of 0 and 255 (or 65535) in a task with one label has 255 replaced by the label. A JPEG is cut at half first,
    colours that agree are one value, values that a float file stores next to a whole number are rounded; all other
    values stay. An Aperio annotation (``.xml``) is drawn as 1 in every region
    (`shared_components.data.formats.aperio.read_annotation`), in the size of the entry's image, which may be loaded
    already. A list of paths is one mask a class, "" for a class that a case has not; or, ``united``, several masks of
    one image. The value that the entry "ignored_value" of the case names, if it has one, becomes `IGNORED`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        labels: Labels = None,
        allow_missing_keys: bool = False,
        image_key: Hashable = "image",
        stored_values: StoredValues = None,
        united: bool = False,
    ) -> None:
        """Create the transform.

        Args:
            keys: entries to load.
            labels: the label values beside 0, as a mapping from names or as values; ``None`` is one label, 1, for a
                mask of 0 and 255 and leaves everything else as it is.
            allow_missing_keys: leave out keys that the data does not have.
            image_key: the image (file, list of files or loaded image) whose size an annotation is drawn in; without
                one the picture of the annotation's name is looked for.
            stored_values: for each class 1, 2, ... the value or the values that files store for it; other values are
                background. By default a class is stored as its number.
            united: whether a list of paths is one mask in several files, such as one a lesion.

        Raises:
            InputError: a label value is no whole number. On loading: the file cannot be understood as a label map.
        """
        super().__init__(keys, allow_missing_keys=allow_missing_keys)
        self._loader = _LabelLoader(labels, stored_values=stored_values, united=united)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict[Hashable, Any]:
        """Load the label maps of one case."""
        image = _file_of(data.get(self.image_key))
        labels = {key: data[key] for key in self.key_iterator(dict(data)) if is_annotation(data[key])}
        drawn = {key: Annotation(os.path.expanduser(path), image) for key, path in labels.items()}
        if (ignored := data.get("ignored_value")) is not None and not self._loader.numbered:
            files = {key: data[key] for key in self.key_iterator(dict(data)) if key not in drawn}
            paths = {key: file for key, file in files.items() if isinstance(file, (str, os.PathLike))}
            drawn |= {key: PartlyLabelled(os.fspath(file), int(ignored)) for key, file in paths.items()}
        return super().__call__({**data, **drawn}, reader)


class LoadInstancesd(LoadLabelMapd):
    """Load a map of numbered objects as (1, *spatial) float32, numbers as they are, 0 where there is no object.

    The files are those of `shared_components.reporting.add_instances`: numbered pictures or volumes, or Aperio
    annotations (``.xml``), whose regions are numbered in their order.
    """

    def __init__(
        self, keys: KeysCollection = "instances", allow_missing_keys: bool = True, image_key: Hashable = "image"
    ) -> None:
        """Create the transform; the arguments are those of `LoadLabelMapd`.

        Raises:
            InputError: on loading: the file cannot be understood as a map of numbers.
        """
        super().__init__(keys, None, allow_missing_keys, image_key)
        self._loader = _LabelLoader(None, numbered=True)


def _file_of(image: Any) -> Path | None:
    """Return the (first) file that an entry names or was loaded from, or ``None``."""
    if isinstance(image, (list, tuple)):
        image = image[0] if image else None
    if isinstance(image, MetaTensor):
        image = image.meta.get(_READ_FROM, image.meta.get(ImageMetaKey.FILENAME_OR_OBJ))
    return Path(image).expanduser() if isinstance(image, (str, os.PathLike)) else None


def _with_channels(image: MetaTensor, wanted: int | None, name: str) -> MetaTensor:
    """Turn a picture from grey to colour or back if ``wanted`` says so."""
    found = image.shape[0]
    if wanted is None or found == wanted:
        return image
    if PICTURE_FORMAT not in image.meta or not channels_fit(found, wanted):
        raise InputError(f"{name}: {found} channel{'s' if found > 1 else ''}, expected {wanted}")
    if wanted == 1:
        weights = torch.tensor(LUMINANCE, dtype=torch.float64)
        values = torch.einsum("c,c...->...", weights, image.as_tensor().double())[None].float()
    else:
        values = image.as_tensor().repeat(wanted, *[1] * (image.ndim - 1))
    return MetaTensor(values, meta=image.meta)
