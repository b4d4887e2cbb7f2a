"""Fusing members: values by hand, STAPLE per image and class against ITK, TorchScript and tracing."""

import numpy as np
import pytest
import torch

from shared_components.ensembling import COMBINE_CHOICES, combine_members, staple


def random_members(members=5, batch=2, classes=3, shape=(8, 6), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(members, batch, classes, *shape, generator=generator).softmax(2)


def test_majority_and_mean_by_hand():
    members = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.6, 0.1, 0.3]]).reshape(3, 1, 3, 1)
    assert combine_members(members, "majority").flatten().tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert combine_members(members, "mean").flatten().tolist() == pytest.approx([0.4, 1 / 3, 0.8 / 3])


def test_staple_is_staple_of_each_image_and_class():
    members = random_members()
    votes = torch.nn.functional.one_hot(members.argmax(2), 3).movedim(-1, 2)
    expected = torch.stack([torch.stack([staple(votes[:, b, c]) for c in range(3)]) for b in range(2)])
    found = combine_members(members, "staple")
    assert torch.allclose(found, expected / expected.sum(1, keepdim=True), atol=1e-6)


@pytest.mark.parametrize("combine", COMBINE_CHOICES)
@pytest.mark.parametrize("count", [1, 2, 5, 11])
def test_probabilities_sum_to_one(combine, count):
    found = combine_members(random_members(count, shape=(4, 3, 2)), combine)
    assert found.shape == (2, 3, 4, 3, 2) and found.dtype == torch.float32
    assert (found >= 0).all() and torch.allclose(found.sum(1), torch.ones(2, 4, 3, 2), atol=1e-6)


@pytest.mark.parametrize("combine", COMBINE_CHOICES)
def test_an_image_does_not_depend_on_its_batch(combine):
    members = random_members(batch=4)
    alone = torch.cat([combine_members(members[:, b : b + 1], combine) for b in range(4)])
    assert torch.equal(combine_members(members, combine), alone)


@pytest.mark.parametrize("combine", ["majority", "staple"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_unanimous_members_leave_no_doubt(combine, count):
    one = random_members(1)
    expected = torch.nn.functional.one_hot(one[0].argmax(1), 3).movedim(-1, 1).float()
    found = combine_members(one.expand(count, *one.shape[1:]), combine)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("combine", COMBINE_CHOICES)
@pytest.mark.parametrize("count", [1, 4])
def test_all_members_empty(combine, count):
    background = torch.zeros(count, 1, 2, 5, 5)
    background[:, :, 0] = 1
    assert torch.equal(combine_members(background, combine), background[0])


def test_two_classes_are_complementary_under_staple():
    found = combine_members(random_members(classes=2), "staple")
    votes = random_members(classes=2).argmax(2)
    assert torch.allclose(found[0, 1], staple(votes[:, 0]), atol=1e-6)


def test_half_precision_members():
    members = random_members()
    found = combine_members(members.half(), "mean")
    assert found.dtype == torch.float32 and torch.allclose(found, members.mean(0), atol=1e-3)


def test_mistakes():
    with pytest.raises(ValueError, match="majority, mean, staple"):
        combine_members(random_members(), "median")
    with pytest.raises(ValueError, match="1 to 62 members, not 63"):
        combine_members(random_members(63), "staple")
    with pytest.raises(ValueError, match="2 or more classes"):
        combine_members(random_members(classes=1), "majority")


class Ensemble(torch.nn.Module):
    def __init__(self, combine: str):
        super().__init__()
        self.combine = combine

    def forward(self, members: torch.Tensor) -> torch.Tensor:
        return combine_members(members, self.combine)


@pytest.mark.parametrize("combine", COMBINE_CHOICES)
def test_scripts(combine, tmp_path):
    path = str(tmp_path / "ensemble.ts")
    torch.jit.script(Ensemble(combine)).save(path)
    for members in (random_members(), random_members(12, 1, 4, (3, 4, 5))):
        assert torch.equal(torch.jit.load(path)(members), combine_members(members, combine))


@pytest.mark.parametrize("combine", COMBINE_CHOICES)
def test_a_trace_serves_other_data(combine):
    traced = torch.jit.trace(Ensemble(combine), random_members(seed=1))
    other = random_members(seed=2, batch=3, shape=(5, 7))
    assert np.allclose(traced(other), combine_members(other, combine), atol=1e-6)
