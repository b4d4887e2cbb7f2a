"""The network of a segmentation bundle, for scoring generated images."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from shared_components.bundle_tools.settings import check_device
from shared_components.diffusion.slices import pad_to_multiple, volume_to_slices
from shared_components.errors import InputError
from shared_components.training.checkpoints import LoadWeights

logger = logging.getLogger(__name__)


class BundleSegmenter(nn.Module):
    """A bundle's network behind the bundle's own normalisation, for images of any scale.

    Args:
        network: of a bundle: class probabilities (B, classes, *spatial) of images (B, C, *spatial).
        normalisation: dictionary transform of ``{"image": (C, *spatial)}``; ``None`` for none.
        name: of the bundle.
    """

    def __init__(self, network: nn.Module, normalisation: Callable[[dict], dict] | None, name: str) -> None:
        super().__init__()
        self.network = network.eval()
        self.normalisation = normalisation
        self.name = name

    def _normalised(self, image: Tensor) -> Tensor:
        if self.normalisation is None:
            return image
        return torch.stack([torch.as_tensor(self.normalisation({"image": item})["image"]) for item in image])

    def forward(self, image: Tensor) -> Tensor:
        """Return class probabilities of images (B, C, *spatial)."""
        return self.network(self._normalised(image))

    def features(self, image: Tensor) -> Tensor:
        """Return the condition branch's last features, their mean over each slice: (N, F), N slices in all."""
        seen = self._normalised(image)
        slices = volume_to_slices(seen, self.network.num_adjacent_slices) if seen.ndim == 5 else seen
        padded, _ = pad_to_multiple(slices, self.network.downsampling)
        parts = [self.network.denoiser.encode_condition(part)[-1].mean(dim=(2, 3)) for part in padded.split(64)]
        return torch.cat(parts)


def load_segmenter(
    bundle: str | os.PathLike | None,
    device: str | torch.device = "cpu",
    ckpt_path: str | os.PathLike | None = None,
    labels: Mapping[str, int] | None = None,
    num_channels: int | None = None,
) -> BundleSegmenter | None:
    """Load the network of a segmentation bundle with its weights.

    Args:
        bundle: its folder; ``None`` for no segmenter.
        device: where the network runs.
        ckpt_path: weights; the bundle's ``models/model.pt`` when ``None``.
        labels: name to value of the classes of the images to judge, which it must have as many of; ``None`` to leave
            this unchecked.
        num_channels: of the images, likewise.

    Returns:
        The segmenter in eval mode, or ``None`` without a bundle.

    Raises:
        InputError: no such bundle, no weights, weights of another network, or a segmenter of other images.
    """
    if bundle is None:
        return None
    folder = Path(bundle)
    weights = Path(ckpt_path) if ckpt_path is not None else folder / "models" / "model.pt"
    for file, what in ((_config(folder), "a bundle's configuration"), (weights, "its weights")):
        if not file.is_file():
            raise InputError(
                f"segmenter_bundle {folder}: {file} is missing; expected a segmentation bundle with {what}"
            )
    parser = _parser(folder)
    parser["device"] = str(check_device(device))
    classes, channels = _judged(parser)
    for found, wanted, what in (
        (classes and len(classes), labels and len(labels), "classes"),
        (channels, num_channels, "image channels"),
    ):
        if found and wanted and found != wanted:
            raise InputError(
                f"segmenter_bundle {folder}: its network has {found} {what}, the images to judge {wanted}; give a "
                "segmenter of these images, or none by --segmenter_bundle '$None'"
            )
    network = parser.get_parsed_content("network_def")
    LoadWeights(weights, network)()
    normalisation = parser.get_parsed_content("normalisation") if "normalisation" in parser else None
    return BundleSegmenter(network.to(device), normalisation, folder.resolve().name)


def sibling_bundle(
    bundle_root: str | os.PathLike,
    name: str,
    labels: Mapping[str, int] | None = None,
    num_channels: int | None = None,
) -> str | None:
    """Return the folder of another bundle beside this one if it has weights and, if asked, judges such images.

    Args:
        bundle_root: of this bundle.
        name: of the other one.
        labels: classes that the other one must have, by the same names; told where it has not.
        num_channels: channels that it must take, likewise.
    """
    folder = Path(bundle_root).resolve().parent / name
    if not (folder / "models" / "model.pt").is_file():
        return None
    classes, channels = _judged(_parser(folder))
    if (labels and classes and dict(labels) != classes) or (num_channels and channels and num_channels != channels):
        logger.warning(
            "%s segments %s in images of %s channels: it does not judge these images; name a segmenter of their "
            "classes by --segmenter_bundle",
            name,
            " and ".join(classes or {}),
            channels,
        )
        return None
    return str(folder)


def _config(folder: Path) -> Path:
    return folder / "configs" / "inference.json"


def _parser(folder: Path) -> ConfigParser:
    """Read the configuration; a bundle that stands alone carries the package that it names in its own folder."""
    if any(folder.glob("shared_components_*")) and str(folder.resolve()) not in sys.path:
        sys.path.append(str(folder.resolve()))
    parser = ConfigParser()
    parser.read_config(str(_config(folder)))
    parser["bundle_root"] = str(folder)
    return parser


def _judged(parser: ConfigParser) -> tuple[dict[str, int] | None, int | None]:
    """Return classes and image channels of a bundle, ``None`` what its configuration does not say."""
    labels, channels = (parser.get_parsed_content(key) if key in parser else None for key in ("labels", "num_channels"))
    return labels and dict(labels), channels


def feature_network(
    segmenter: BundleSegmenter | None, path: str | os.PathLike | None, fallback: nn.Module, device: Any = "cpu"
) -> tuple[Callable[[Tensor], Tensor], str]:
    """Choose what tells generated from real images (FID, MMD), and say what it is.

    Args:
        segmenter: whose features are taken, if it has a condition branch.
        path: TorchScript file of the user's own network, (N, C, H, W) in [0, 1] to (N, F), such as an Inception or
            RadImageNet network; it comes first. Volumes are given slice by slice.
        fallback: stands in where there is neither.
        device: where the network runs.

    Returns:
        The function of images (B, C, *spatial), and its name.

    Raises:
        InputError: the file is no TorchScript network.
    """
    if path is not None:
        try:
            network = torch.jit.load(str(path), map_location=device).eval()
        except (RuntimeError, ValueError) as error:
            raise InputError(f"feature_network {path}: not a readable TorchScript file; export the network") from error
        return lambda image: network(volume_to_slices(image) if image.ndim == 5 else image), Path(path).name
    if segmenter is not None and hasattr(segmenter.network, "denoiser"):
        return segmenter.features, f"condition branch of {segmenter.name}, mean over each slice"
    return fallback.to(device), f"{type(fallback).__name__}, fixed weights without training"
