"""What all networks that segment by a saliency map share, with maps and a gate that are known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shared_components.diffusion.saliency_network import SaliencyNetwork


class MeanGate(nn.Module):
    """Says that slices of a positive mean show the object, and keeps how many it was asked about at once."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def forward(self, slices: Tensor) -> Tensor:
        self.asked.append(len(slices))
        mean = slices.mean(dim=(1, 2, 3))
        return torch.stack([-10 * mean, 10 * mean], dim=1)


class ImageAsMap(SaliencyNetwork):
    """Two draws: the slice, and the slice times the number of its position; their mean keeps the slice's order."""

    def member_maps(self, slices: Tensor, position: Tensor) -> Tensor:
        self.held = max(getattr(self, "held", 0), len(slices))
        return torch.stack([slices, slices * position.reshape(-1, 1, 1, 1)])


def test_a_deep_volume_is_taken_in_parts_and_every_slice_gets_its_own_result() -> None:
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(1, 1, 6, 5, 90, generator=generator) + torch.tensor([1.0, -1.0, 1.0]).repeat(30)
    gate = MeanGate()
    network = ImageAsMap(gate, num_samples=2, downsampling=4).eval()
    found = network.describe(volume, draws=True)
    assert sum(gate.asked) == 90 and max(gate.asked) <= 32 and network.held <= 32
    assert torch.equal((found["positive"][0] > 0.5), torch.tensor([True, False, True]).repeat(30))
    for index in (0, 1, 2, 50, 88, 89):
        seen = volume[..., index]
        expected = network.mask.scaled(seen, seen)[0] * float(index % 3 != 1)
        assert torch.allclose(found["saliency"][..., index], expected, atol=1e-6)
    assert not found["pred"][:, 1, :, :, 1::3].any() and found["pred"][:, 1, :, :, 0::3].any()
    assert found["draws"].shape == (1, 2, 6, 5, 90) and not found["draws"][..., 1::3].any()


def test_a_volume_without_the_object_gets_no_mask() -> None:
    found = ImageAsMap(MeanGate(), num_samples=2).describe(-torch.rand(1, 1, 4, 4, 3), draws=True)
    assert not found["pred"][:, 1].any() and found["pred"][:, 0].min() == 1 and not found["draws"].any()
