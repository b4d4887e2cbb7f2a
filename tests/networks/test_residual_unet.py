"""AdaptDiff's segmentation network: reference values and sizes."""

from __future__ import annotations

import pytest
import torch

from shared_components.networks.residual_unet import ResidualUNet
from tests.networks import denoisers
from tests.networks.adaptdiff_oracles import fill, ramps


def test_published_size():
    network = ResidualUNet(final_relu=True)
    assert denoisers.count(network) == 743_150
    counts = {name: [denoisers.count(part) for part in module] for name, module in network.named_children()}
    assert counts["encoder"] == [1216, 18912, 19680, 76224, 78272, 5744]
    assert counts["downsample"] == [1048, 16480, 16480, 65728, 65728, 4144]
    assert counts["upsample"] == [4144, 65728, 65728, 16480, 16480, 1048]
    assert counts["decoder"] == [76224, 82368, 22752, 20704, 1720, 118]


@torch.inference_mode()
def test_reference_values():
    network, (image, _) = fill(ResidualUNet(final_relu=True)), ramps(64, 64)
    logits = network(image)
    assert [float(v) for v in (logits.mean(), logits.std(), logits.min())] == pytest.approx(
        [0.111153, 0.12661, 0], abs=1e-5
    )
    assert network.encode(image)[0].shape == (1, 16, 1, 1)


@torch.inference_mode()
def test_without_the_last_relu_logits_are_negative_too():
    image = ramps(64, 64)[0]
    bounded, free = fill(ResidualUNet(final_relu=True)), fill(ResidualUNet())
    assert free(image).min() < 0
    torch.testing.assert_close(free(image).relu(), bounded(image))


@pytest.mark.parametrize("size", [256, 320, 384, 304, 400])
@torch.inference_mode()
def test_sizes(size):
    network = ResidualUNet(channels=(2, 2, 2, 2, 2, 2)).eval()
    if size % 64:
        with pytest.raises(ValueError, match=f"{size} x {size}.*multiples of 64"):
            network(torch.zeros(1, 1, size, size))
    else:
        assert network(torch.zeros(1, 1, size, size)).shape == (1, 2, size, size)


@torch.no_grad()
def test_scripts_and_is_independent_of_the_batch():
    torch.manual_seed(0)
    network = denoisers.awaken(ResidualUNet(channels=(4, 4, 4)))
    image = denoisers.noise(3, 1, 16, 24)
    torch.testing.assert_close(torch.jit.script(network)(image), network(image))
    denoisers.assert_samples_are_independent(network, image)
