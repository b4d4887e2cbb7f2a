"""A denoiser that reads the class from its condition's last channel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from shared_components.errors import InputError
from shared_components.networks.class_from_condition import ClassFromCondition, class_conditioned
from shared_components.networks.medsegdiff import MedSegDiffV1, MedSegDiffV2

SMALL = {
    "channels": 32, "channel_mult": (1, 1, 1, 1), "num_res_blocks": 1, "attention_factors": (), "num_classes": 2,
    "use_scale_shift_norm": True,  # one channel a group: what is merely added is normalised away
}  # fmt: skip


def network(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    more = {"image_size": 32} if kind is MedSegDiffV1 else {}
    built = kind(**SMALL, **more).eval()
    for parameter in built.parameters():
        if parameter.abs().max() == 0:  # layers that start at zero would hide the class
            nn.init.normal_(parameter, std=0.05)
    return built


def with_class(condition: Tensor, labels: list[int]) -> Tensor:
    channel = torch.tensor(labels, dtype=condition.dtype).reshape(-1, 1, 1, 1).expand(-1, 1, *condition.shape[2:])
    return torch.cat([condition, channel], dim=1)


@pytest.mark.parametrize("kind", [MedSegDiffV1, MedSegDiffV2])
def test_the_denoiser_is_told_the_class_of_each_image(kind: type[nn.Module]) -> None:
    denoiser = network(kind)
    noisy, condition, timesteps = torch.randn(3, 1, 32, 32), torch.randn(3, 3, 32, 32), torch.tensor([1, 50, 900])
    with torch.no_grad():
        told = ClassFromCondition(denoiser)(noisy, timesteps, with_class(condition, [1, 0, -1]))
        expected = [
            denoiser(noisy[:2], timesteps[:2], condition[:2], class_labels=torch.tensor([1, 0])),
            denoiser(noisy[2:], timesteps[2:], condition[2:]),
        ]
        other = ClassFromCondition(denoiser)(noisy, timesteps, with_class(condition, [0, 1, 0]))
    torch.testing.assert_close(told, torch.cat(expected), atol=1e-5, rtol=1e-4)
    assert ((told - other).abs().amax(dim=(1, 2, 3)) > 1e-4).all()


def test_it_scripts_and_keeps_the_features_of_the_image() -> None:
    denoiser = ClassFromCondition(network(MedSegDiffV1))
    scripted = torch.jit.script(denoiser)
    noisy, condition = torch.randn(1, 1, 32, 32), with_class(torch.randn(1, 3, 32, 32), [1])
    with torch.no_grad():
        features = scripted.encode_condition(condition)
        once = scripted(noisy, torch.tensor([7]), condition, None, features)
        torch.testing.assert_close(once, denoiser(noisy, torch.tensor([7]), condition), atol=1e-5, rtol=1e-4)


def test_without_classes_nothing_is_wrapped() -> None:
    plain = nn.Conv2d(1, 1, 1)
    assert class_conditioned(plain, None) is plain


def test_a_denoiser_without_classes_is_refused() -> None:
    with pytest.raises(InputError, match="num_classes is given, but Conv2d takes no class"):
        class_conditioned(nn.Conv2d(1, 1, 1), 2)
