"""The network of a segmentation bundle, for scoring generated images."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from shared_components.bundle_tools.settings import check_device
from shared_components.diffusion.slices import pad_to_multiple, volume_to_slices
from shared_components.errors import InputError


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
    bundle: str | os.PathLike | None, device: str | torch.device = "cpu", ckpt_path: str | os.PathLike | None = None
) -> BundleSegmenter | None:
    """Load the network of a segmentation bundle with its weights.

    Args:
        bundle: its folder; ``None`` for no segmenter.
        device: where the network runs.
        ckpt_path: weights; the bundle's ``models/model.pt`` when ``None``.

    Returns:
        The segmenter in eval mode, or ``None`` without a bundle.

    Raises:
        InputError: no such bundle, or no weights.
    """
    if bundle is None:
        return None
    folder = Path(bundle)
    config = folder / "configs" / "inference.json"
    weights = Path(ckpt_path) if ckpt_path is not None else folder / "models" / "model.pt"
    for file, what in ((config, "a bundle's configuration"), (weights, "its weights")):
        if not file.is_file():
            raise InputError(
                f"segmenter_bundle {folder}: {file} is missing; expected a segmentation bundle with {what}"
            )
    parser = ConfigParser()
    parser.read_config(str(config))
    parser.update({"bundle_root": str(folder), "device": str(check_device(device))})
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    normalisation = parser.get_parsed_content("normalisation") if "normalisation" in parser else None
    return BundleSegmenter(network.to(device), normalisation, folder.resolve().name)


def sibling_bundle(bundle_root: str | os.PathLike, name: str) -> str | None:
    """Return the folder of another bundle beside this one if it has weights, else ``None``."""
    folder = Path(bundle_root).resolve().parent / name
    return str(folder) if (folder / "models" / "model.pt").is_file() else None


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
