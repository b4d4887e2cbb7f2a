"""Images without the metadata that MONAI's transforms keep, and results with it."""

from monai.data import MetaTensor
from torch import Tensor


def plain(image: Tensor) -> Tensor:
    """Return an image as a tensor without metadata; nothing is copied."""
    return image.as_tensor() if isinstance(image, MetaTensor) else image


def with_metadata(result: Tensor, source: Tensor) -> Tensor:
    """Return the result with the metadata of its source, if that has some: what was done to the one is undone to it."""
    return MetaTensor(result).copy_meta_from(source) if isinstance(source, MetaTensor) else result
