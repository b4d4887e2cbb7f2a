from __future__ import annotations

import torch
from monai.networks.schedulers import DDPMScheduler
from torch import nn

import shared_components.diffusion.schedules  # noqa: F401  registers the schedule
from shared_components.diffusion.label_coding import LabelCoding
from shared_components.diffusion.segmenter import DiffusionSegmenter
from shared_components.networks.cdal_generator import CDALGenerator
from shared_components.networks.highway import Highway
from shared_components.networks.plain import PlainConditionBranch, PlainDenoiser


def test_only_the_image_matters():
    torch.manual_seed(0)
    backbone = CDALGenerator(
        3, 1, channels=(8, 16), attention_levels=(False, False), num_condition_blocks=1, condition_norm_groups=4
    )
    for parameter in backbone.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    plain, image = PlainDenoiser(backbone), torch.randn(2, 1, 8, 8)
    results = [
        plain(torch.randn(2, 3, 8, 8), torch.tensor([n, 0]), image, torch.randn(2, 50), plain.encode_condition(image))
        for n in (0, 1)
    ]
    assert torch.equal(*results)
    zeros = torch.zeros(2, dtype=torch.long)
    assert torch.equal(results[0], backbone(torch.zeros(2, 3, 8, 8), zeros, image, torch.zeros(2, 50)))
    assert not torch.equal(results[0], plain(torch.zeros(2, 3, 8, 8), zeros, image + 1))
    torch.jit.script(plain)


def plain_branch() -> PlainConditionBranch:
    torch.manual_seed(0)
    return PlainConditionBranch(Highway(3, 2, num_poolings=2, channels=4, dropout=0.1, norm="group"), 2)


def test_a_condition_branch_alone_is_a_denoiser_that_sees_the_image_alone():
    plain, image = plain_branch().eval(), torch.randn(2, 3, 8, 12)
    expected = 2 * plain.branch(image)[0] - 1
    first = plain(torch.randn(2, 2, 8, 12), torch.tensor([7, 0]), image)
    assert torch.equal(first, expected)
    assert -1 < first.min() and first.max() < 1
    features = plain.encode_condition(image)
    assert torch.equal(plain(torch.randn(2, 2, 8, 12), torch.tensor([0, 9]), image + 1, None, features), expected)
    assert (plain.in_channels, plain.latent_dim, plain.downsampling) == (2, 0, 4)
    first.square().mean().backward()
    assert all(parameter.grad is not None for parameter in plain.parameters())


def test_segmenting_by_a_condition_branch_is_its_map():
    scheduler, coding = DDPMScheduler(1000, schedule="cosine_double"), LabelCoding([1, 2])
    plain, image = plain_branch(), torch.randn(1, 3, 10, 9)  # no multiple of the branch's 4
    network = DiffusionSegmenter(plain, scheduler, 1, 1, "mean", coding, sampler="ddim", clip=(-1.0, 1.0)).eval()
    found = network(image)
    padded = torch.nn.functional.pad(image, (1, 2, 1, 1), mode="replicate")
    expected = coding.probabilities(plain.branch(padded)[0])[:, :, 1:11, 1:10]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.jit.script(network)(image), found)
