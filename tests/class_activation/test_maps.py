"""Class activation maps on classifiers whose maps are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shared_components.class_activation.maps import LayerCAM, ScoreCAM
from shared_components.class_activation.segmenter import METHODS, ClassActivationSegmenter
from shared_components.errors import InputError


class Bright(nn.Module):
    """Two feature maps, the image and its negative; the logit of class 1 is 3 times the first one's sum."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(1, 2, 1, bias=False)
        self.features.weight.data = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1)
        self.head = nn.Linear(2, 2, bias=False)
        self.head.weight.data = torch.tensor([[0.0, 0.0], [3.0, -0.5]])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).sum(dim=(2, 3)))


def image() -> torch.Tensor:
    x = torch.zeros(1, 1, 12, 12)
    x[..., 3:7, 4:9] = 1
    x[..., 9:11, 1:3] = -1
    return x


def test_layercam_is_the_formula():
    found = LayerCAM(Bright(), "features").compute_map(image().requires_grad_(True), class_idx=1)
    # gradients are 3 and -0.5: only the first map counts
    assert torch.allclose(found, (3 * image()).clamp(min=0))


def test_scorecam_is_the_formula():
    network, x = Bright(), image()
    with torch.no_grad():
        maps = network.features(x)[0]
        masks = torch.stack([(m - m.min()) / (m.max() - m.min()) for m in maps])
        weights = torch.stack([network(x * mask)[0, 1] for mask in masks]).softmax(0)
        expected = (weights.reshape(2, 1, 1) * maps).sum(0).clamp(min=0)
    assert torch.allclose(ScoreCAM(network, "features").compute_map(x, 1)[0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_marks_what_the_classifier_looks_at(method):
    options = {"method": method, "target_layer": "features", "gated": False, "mask_size": 3}
    network = ClassActivationSegmenter(Bright(), **options).eval()
    x = torch.cat([image(), image().flip(3)])
    with torch.no_grad():
        found = network(x)
    assert torch.allclose(found.sum(1), torch.ones(2, 12, 12))
    mask, truth = found.argmax(1) == 1, x[:, 0] > 0
    assert torch.equal(mask[1], mask[0].flip(1))
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > (0.6 if method == "occlusion" else 0.99)
    hooks = [len(m._forward_hooks) + len(m._backward_hooks) for m in network.modules()]
    assert sum(hooks) == 0


def test_the_gate_empties_negative_slices():
    network = ClassActivationSegmenter(Bright(), "layercam", "features").eval()
    with torch.no_grad():
        described = network.describe(torch.cat([image(), -image()]))
    assert (described["positive"] > 0.5).tolist() == [True, False]
    assert described["pred"][0, 1].max() > 0.5 and described["pred"][1, 1].max() == 0


def test_mistakes_are_told():
    with pytest.raises(InputError, match="method must be one of .*gradcam.*'camera'"):
        ClassActivationSegmenter(Bright(), "camera", "features")
    with pytest.raises(InputError, match="target_layer 'layer9'"):
        ClassActivationSegmenter(Bright(), "gradcam", "layer9")
