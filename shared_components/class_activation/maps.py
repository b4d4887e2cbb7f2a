"""Class activation maps that MONAI lacks: LayerCAM and ScoreCAM."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.visualize import GradCAM
from torch import Tensor, nn


class LayerCAM(GradCAM):
    """LayerCAM (Jiang et al. 2021): ReLU of the sum over the channels of ReLU(gradient) times activation.

    Used as `monai.visualize.GradCAM`.
    """

    def compute_map(
        self, x: Tensor, class_idx: int | None = None, retain_graph: bool = False, layer_idx: int = -1, **kwargs
    ) -> Tensor:
        """Return the map (B, 1, *spatial of the layer)."""
        _, activations, gradients = self.nn_module(x, class_idx=class_idx, retain_graph=retain_graph, **kwargs)
        return F.relu((F.relu(gradients[layer_idx]) * activations[layer_idx]).sum(dim=1, keepdim=True))


class ScoreCAM:
    """ScoreCAM (Wang et al. 2020): activations weighed by what the classifier says of the image masked by each.

    Every channel of a layer's output is enlarged to the image's size and scaled to [0, 1]; the image is multiplied by
    it, and the score of the class, the logit, is taken. The weights are the softmax of the scores over the channels, as
    published; the map is the ReLU of the weighted sum of the activations.

    Args:
        nn_module: classifier: images (B, C, *spatial) to logits (B, K).
        target_layers: name of the layer.
        max_batch_size: masked images in one call.
    """

    def __init__(self, nn_module: nn.Module, target_layers: str, max_batch_size: int = 64) -> None:
        self.network = nn_module
        self.layer = nn_module.get_submodule(target_layers)
        self.max_batch_size = max_batch_size

    @torch.no_grad()
    def compute_map(self, x: Tensor, class_idx: int) -> Tensor:
        """Return the map (B, 1, *spatial of the layer) of images (B, C, *spatial)."""
        kept: list[Tensor] = []
        handle = self.layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
        try:
            self.network(x)
        finally:
            handle.remove()
        activations = kept[0]
        maps = [self._weighed(image, of_image, class_idx) for image, of_image in zip(x, activations)]
        return torch.stack(maps)

    def _weighed(self, image: Tensor, activations: Tensor, class_idx: int) -> Tensor:
        masks = F.interpolate(activations[:, None].float(), size=image.shape[1:], mode="bilinear", align_corners=False)
        low, high = masks.amin(dim=(2, 3), keepdim=True), masks.amax(dim=(2, 3), keepdim=True)
        masks = (masks - low) / torch.where(high > low, high - low, torch.ones_like(high))
        parts = masks.split(self.max_batch_size)
        scores = torch.cat([self.network(image[None] * part)[:, class_idx] for part in parts]).float()
        weights = scores.softmax(dim=0).reshape(-1, 1, 1)
        return F.relu((weights * activations).sum(dim=0, keepdim=True))
