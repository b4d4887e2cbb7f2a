from __future__ import annotations

import torch
from torch import nn

from shared_components.networks.cdal_generator import CDALGenerator
from shared_components.networks.plain import PlainDenoiser


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
