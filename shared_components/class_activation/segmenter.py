"""Segmentation by a class activation map: image in, probabilities of background and object out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from monai.visualize import GradCAM, GradCAMpp, OcclusionSensitivity
from torch import Tensor, nn

from shared_components.class_activation.maps import LayerCAM, ScoreCAM
from shared_components.diffusion.saliency_network import SaliencyNetwork
from shared_components.errors import InputError, check_choice

_BY_GRADIENT = {"gradcam": GradCAM, "gradcam++": GradCAMpp, "layercam": LayerCAM}
METHODS = (*_BY_GRADIENT, "scorecam", "occlusion")


class ClassActivationSegmenter(SaliencyNetwork):
    """GradCAM, GradCAM++, LayerCAM, ScoreCAM or occlusion of a classifier, with CDM's gate, scaling and threshold.

    GradCAM, GradCAM++ and occlusion are MONAI's. A map of a layer is enlarged to the slice linearly. For occlusion the
    map is by how much the logarithm of the positive class's odds falls when a square is covered.

    Args:
        classifier: clean slices (N, K, H, W) to logits; where the map comes from.
        method: one of `METHODS`.
        target_layer: name of the layer in the classifier; for occlusion without effect.
        gate: as in `SaliencyNetwork`; the classifier when ``None``.
        mask_size: side of the covered square in pixels, and ``overlap`` of neighbouring ones, 0 to below 1.
        max_batch_size: masked images of ScoreCAM in one call.
        **options: of `SaliencyNetwork`.

    Raises:
        InputError: an unknown method, or a layer that the classifier does not have.
    """

    def __init__(
        self,
        classifier: nn.Module,
        method: str = "gradcam",
        target_layer: str = "layer4",
        gate: nn.Module | None = None,
        mask_size: int = 9,
        overlap: float = 0.6,
        max_batch_size: int = 64,
        **options: Any,
    ) -> None:
        check_choice("method", method, METHODS)
        if target_layer not in dict(classifier.named_modules()):
            raise InputError(f"target_layer {target_layer!r}: the classifier has no such layer")
        super().__init__(gate if gate is not None else classifier, **options)
        self.classifier = classifier
        self.method = method
        self.target_layer = target_layer
        self.mask_size = mask_size
        self.overlap = overlap
        self.max_batch_size = max_batch_size

    def member_maps(self, slices: Tensor, position: Tensor) -> Tensor:
        """Return the maps (1, N, 1, H, W) of N slices; none is negative but those of occlusion."""
        make = self._occluded if self.method == "occlusion" else self._activation
        maps = torch.cat([make(one) for one in slices.split(1)])  # MONAI's GradCAM++ and occlusion take one image
        if self.method != "occlusion":
            maps = F.interpolate(maps, size=slices.shape[2:], mode="bilinear", align_corners=False)
        return maps.detach().unsqueeze(0)

    def _activation(self, slices: Tensor) -> Tensor:
        if self.method == "scorecam":
            return ScoreCAM(self.classifier, self.target_layer, self.max_batch_size).compute_map(
                slices, self.positive_class
            )
        with torch.enable_grad():  # for the layers' gradients, also within an evaluator
            cam = _BY_GRADIENT[self.method](self.classifier, self.target_layer)
            try:
                return cam.compute_map(slices.clone().requires_grad_(True), class_idx=self.positive_class)
            finally:
                _remove_hooks(self.classifier)

    def _occluded(self, image: Tensor) -> Tensor:
        side = min(self.mask_size, *image.shape[2:])
        log_odds = _LogOdds(self.classifier, self.positive_class, self.negative_class)
        occlusion = OcclusionSensitivity(
            log_odds.train(self.classifier.training),  # the mode that MONAI goes back to
            mask_size=side,
            overlap=self.overlap,
            mode="mean_img",
            verbose=False,
            activate=False,
        )
        with torch.no_grad():
            seen, _ = occlusion(image)
        return -seen.as_tensor().reshape(1, 1, *image.shape[2:]).to(image.dtype)


class _LogOdds(nn.Module):
    """The logarithm of the positive class's odds, as one output (N, 1)."""

    def __init__(self, classifier: nn.Module, positive: int, negative: int) -> None:
        super().__init__()
        self.classifier, self.positive, self.negative = classifier, positive, negative

    def forward(self, slices: Tensor) -> Tensor:
        logits = self.classifier(slices)
        return (logits[:, self.positive] - logits[:, self.negative]).unsqueeze(1)


def _remove_hooks(network: nn.Module) -> None:
    """Take MONAI's hooks off, which it never removes: they would keep every map's activations."""
    for module in network.modules():
        for hooks in (module._forward_hooks, module._backward_hooks):
            for key in [key for key, hook in hooks.items() if "ModelWithHooks" in getattr(hook, "__qualname__", "")]:
                del hooks[key]
