"""CG-Diff: inversion that denoising undoes, guidance towards the healthy class, and images sampled from noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from shared_components.diffusion.class_sampler import ClassSampler, write_samples
from shared_components.diffusion.counterfactual_segmenter import CounterfactualSegmenter
from shared_components.errors import InputError
from tests.diffusion.class_stubs import LinearClassifier, StubDenoiser, scheduler


class Gaussian(StubDenoiser):
    """The exact denoiser of images that are normal around a mean of their class: (K, 1, H, W), deviation 0.3."""

    def forward(self, noisy, timesteps, class_weights=None):
        level = scheduler(1000).alphas_cumprod[timesteps.long()].float().view(-1, 1, 1, 1)
        mean = torch.einsum("bk,kchw->bchw", class_weights, self.table)
        return (1 - level).sqrt() * (noisy - level.sqrt() * mean) / (level * 0.09 + 1 - level)


def means() -> Tensor:
    table = torch.zeros(2, 1, 8, 8)
    table[1, 0, 2:5, 3:6] = 0.6
    return table


def segmenter(denoiser, **options) -> CounterfactualSegmenter:
    defaults = {"signal_level": 0.3, "num_inference_steps": None, "clip": None, "gated": False, "guidance_scale": 0.0}
    return CounterfactualSegmenter(denoiser, scheduler(1000), **{**defaults, **options}).eval()


def test_denoising_undoes_the_inversion():
    image = means()[1:] + 0.1 * torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    same = Gaussian(torch.cat([means()[1:], means()[1:]]))  # either class is the image's own
    with torch.no_grad():
        exact = segmenter(same).counterfactual(image)
        strides = segmenter(same, num_inference_steps=50).counterfactual(image)
    assert (exact - image).abs().max() < 0.01
    assert (strides - image).abs().max() < 0.05


def test_the_counterfactual_is_the_image_in_the_other_class():
    """With exact denoisers the deterministic path moves an image from one mean to the other."""
    image = means()[1:] + 0.1 * torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    network = segmenter(Gaussian(means()), signal_level=0.01)
    with torch.no_grad():
        found, described = network.counterfactual(image), network.describe(image)
    assert (found - (image - means()[1:])).abs().max() < 0.1
    assert torch.equal(described["pred"].argmax(1)[0] == 1, means()[1, 0] > 0)


def test_the_classifier_pushes_towards_the_healthy_class():
    image = torch.zeros(1, 1, 8, 8)
    network = segmenter(Gaussian(torch.zeros(2, 1, 8, 8)), classifier=LinearClassifier(1.0), guidance_scale=2.0)
    with torch.no_grad():
        assert network.counterfactual(image).mean() < -0.03  # class 1 has the larger sum


def test_classifier_free_guidance_goes_further():
    table = torch.cat([means(), means()[:1] + 0.1])  # healthy, with the object, and no class
    image = means()[1:]
    moved = []
    for scale in (1.0, 3.0):
        options = {"path": "classifier_free", "classifier_free_scale": scale}
        with torch.no_grad():
            moved.append(segmenter(Gaussian(table, null_class=True), **options).counterfactual(image))
    assert float((moved[1] - moved[0]).mean()) < -0.01
    with pytest.raises(InputError, match="null class"):
        segmenter(Gaussian(means()), path="classifier_free")
    with pytest.raises(InputError, match="path must be one of classifier, classifier_free, not 'detour'"):
        segmenter(Gaussian(means()), path="detour")


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_samples_have_their_classes_mean_and_do_not_depend_on_the_batch(sampler):
    options = {"num_inference_steps": 100, "sampler": sampler, "clip": (-2.0, 2.0)}
    network = ClassSampler(Gaussian(means()), scheduler(1000), **options).eval()
    classes, indices = torch.tensor([1, 0]).repeat(32), torch.arange(64)
    found = network(classes, indices, 8, 8)
    for label in (0, 1):
        of_class = found[classes == label]
        assert (of_class.mean(0) - means()[label]).abs().max() < 0.2
        assert float(of_class.std(0).mean()) == pytest.approx(0.3, rel=0.15)
    assert torch.allclose(network(classes[5:6], indices[5:6], 8, 8), found[5:6], atol=1e-5)
    guided = ClassSampler(
        Gaussian(means()), scheduler(1000), classifier=LinearClassifier(1.0), guidance_scale=0.5, **options
    ).eval()
    assert guided(torch.ones(64).long(), indices, 8, 8).mean() > found.mean() + 0.05


def test_unconditional_samples_take_no_class():
    class Unconditional(Gaussian):
        def forward(self, noisy, timesteps, class_weights=None):
            assert class_weights is None
            return super().forward(noisy, timesteps, torch.ones(len(noisy), 1))

    denoiser = Unconditional(means()[1:])
    denoiser.num_class_weights = 0
    found = ClassSampler(denoiser, scheduler(1000), 20).eval()(None, torch.arange(4), 8, 8)
    assert found.shape == (4, 1, 8, 8) and (found.mean(0) - means()[1]).abs().max() < 0.5


def test_samples_are_written_as_pictures_and_as_an_archive(tmp_path):
    network = ClassSampler(Gaussian(means()), scheduler(1000), 5)
    network.register_parameter("any", torch.nn.Parameter(torch.zeros(1)))
    names = write_samples(network, str(tmp_path / "s"), 3, None, (8, 8), batch_size=2)
    assert names == ["class_0_0000.png", "class_1_0001.png", "class_0_0002.png"]
    content = np.load(tmp_path / "s" / "samples_3x8x8x1.npz")
    assert content["arr_0"].shape == (3, 8, 8, 1) and content["arr_1"].tolist() == [0, 1, 0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "s" / names[1])), content["arr_0"][1, ..., 0])
    with pytest.raises(InputError, match="holds pictures already"):
        write_samples(network, str(tmp_path / "s"), 3, 1, (8, 8))
