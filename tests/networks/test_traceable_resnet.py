"""A traced gate looks at the image that it is given."""

from __future__ import annotations

import torch
from monai.networks.nets import ResNet

from shared_components.networks.traceable_resnet import TraceableResNet

OPTIONS = {
    "block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [8, 16, 16, 24], "spatial_dims": 2,
    "n_input_channels": 1, "conv1_t_size": 3, "conv1_t_stride": 1, "no_max_pool": True, "num_classes": 2,
    "shortcut_type": "A",
}  # fmt: skip


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
