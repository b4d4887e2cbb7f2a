"""A traced gate looks at the image that it is given."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import ResNet

from shared_components.networks.medsegdiff_unet import count_parameters
from shared_components.networks.traceable_resnet import TraceableResNet

OPTIONS = {
    "block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [8, 16, 16, 24], "spatial_dims": 2,
    "n_input_channels": 1, "conv1_t_size": 3, "conv1_t_stride": 1, "no_max_pool": True, "num_classes": 2,
    "shortcut_type": "A",
}  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "channels", "expected"),
    [([3, 4, 6, 3], 1, 23_505_858), ([3, 4, 6, 3], 3, 23_512_130), ([3, 4, 23, 3], 1, 42_497_986)],
)
def test_parameters_of_cdms_classifiers_of_clean_images(layers, channels, expected):
    options = {"block": "bottleneck", "layers": layers, "block_inplanes": [64, 128, 256, 512], "spatial_dims": 2}
    options |= {"n_input_channels": channels, "num_classes": 2, "bias_downsample": False}
    assert count_parameters(lambda: TraceableResNet(**options)) == expected


@torch.no_grad()
def test_a_trace_sees_the_image():
    torch.manual_seed(0)
    network, plain = TraceableResNet(**OPTIONS).eval(), ResNet(**OPTIONS).eval()
    plain.load_state_dict(network.state_dict())
    first, second = torch.randn(2, 1, 20, 24), torch.randn(2, 1, 20, 24)
    expected = plain(second)
    assert torch.equal(network(second), expected)
    traced = torch.jit.trace(network, (first,), check_trace=False)
    assert torch.allclose(traced(second), expected, atol=1e-5)
    frozen = torch.jit.trace(plain, (first,), check_trace=False)
    assert not torch.allclose(frozen(second), expected, atol=1e-3)  # once MONAI's follows, this class can go
