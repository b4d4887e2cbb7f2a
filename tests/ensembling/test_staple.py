"""STAPLE against ITK's filter and against the cases in which ITK answers NaN."""

import itertools

import numpy as np
import pytest
import torch

from shared_components.ensembling import staple
from shared_components.ensembling.staple import pack_votes


def noisy_votes(rates, shape=(24, 20), seed=0):
    """Votes of raters who flip each voxel of one box with their own rate, (M, *shape) bool."""
    random = np.random.default_rng(seed)
    truth = np.zeros(shape, dtype=bool)
    truth[tuple(slice(n // 4, n // 4 * 3) for n in shape)] = True
    return np.stack([np.where(random.random(shape) < rate, ~truth, truth) for rate in rates])


def itk_staple(votes, max_iterations=None):
    itk = pytest.importorskip("itk")
    kind = itk.Image[itk.D, votes.ndim - 1]
    staple_filter = itk.STAPLEImageFilter[kind, kind].New()
    staple_filter.SetForegroundValue(1.0)
    if max_iterations is not None:
        staple_filter.SetMaximumIterations(max_iterations)
    for i, vote in enumerate(votes):
        staple_filter.SetInput(i, itk.image_from_array(vote.astype(np.float64)))
    staple_filter.Update()
    return itk.array_from_image(staple_filter.GetOutput())


@pytest.mark.parametrize("rates", [(0.1, 0.2), (0.05, 0.1, 0.2, 0.3, 0.15), (0.4, 0.02, 0.02), (0.1,) * 13])
@pytest.mark.parametrize("shape", [(24, 20), (10, 12, 8)])
def test_equals_itk(rates, shape):
    votes = noisy_votes(rates, shape)
    found = staple(torch.from_numpy(votes), max_iterations=1000)
    assert found.dtype == torch.float32
    assert np.abs(found.numpy() - itk_staple(votes)).max() < 1e-6


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_equals_itk_after_each_iteration(iterations):
    votes = noisy_votes((0.05, 0.1, 0.2, 0.3, 0.15))
    found = staple(torch.from_numpy(votes), max_iterations=iterations)
    assert np.abs(found.numpy() - itk_staple(votes, iterations)).max() < 1e-6


def test_one_iteration_by_hand():
    """Two raters, four voxels, shares 1, 1/2, 0, 0, prior 3/8; rater 0 marks two, rater 1 the first."""
    votes = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]])
    sensitivity, specificity = (1.5 / 1.5, 1 / 1.5), (2 / 2.5, 2.5 / 2.5)

    def posterior(first, second):
        inside, outside = 3 / 8, 5 / 8
        for vote, p, q in zip((first, second), sensitivity, specificity):
            inside *= p if vote else 1 - p
            outside *= 1 - q if vote else q
        return inside / (inside + outside)

    expected = [posterior(1, 1), posterior(1, 0), posterior(0, 0), posterior(0, 0)]
    assert staple(votes, max_iterations=1).tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("raters", [1, 2, 4, 12, 62])
def test_identical_raters_are_believed(raters):
    vote = torch.from_numpy(noisy_votes((0.1,))[0])
    assert torch.equal(staple(vote.expand(raters, -1, -1)), vote.float())


@pytest.mark.parametrize("raters", [1, 3, 12])
@pytest.mark.parametrize("value", [0, 1])
def test_nobody_or_everybody_marks_everything(raters, value):
    """ITK divides zero by zero here."""
    found = staple(torch.full((raters, 5, 4), value, dtype=torch.uint8))
    assert torch.equal(found, torch.full((5, 4), float(value)))


def test_even_split_gives_finite_probabilities():
    vote = torch.from_numpy(noisy_votes((0.1,))[0])
    found = staple(torch.stack([vote, ~vote]))
    assert torch.isfinite(found).all() and found.min() >= 0 and found.max() <= 1


def test_better_raters_weigh_more():
    """Three bad raters outvote two good ones; STAPLE finds out who is good, the majority does not."""
    votes = noisy_votes((0.02, 0.02, 0.35, 0.35, 0.35), (40, 40))
    truth = noisy_votes((0.0,), (40, 40))[0]
    errors = ((staple(torch.from_numpy(votes)) > 0.5).numpy() != truth).sum()
    majority_errors = ((votes.mean(0) > 0.5) != truth).sum()
    assert errors < majority_errors / 2


def test_the_62nd_rater_is_heard():
    votes = torch.zeros(62, 2, dtype=torch.uint8)
    votes[61, 1] = 1
    assert pack_votes(votes).tolist() == [0, 2**61]
    assert staple(votes).isfinite().all()


@pytest.mark.parametrize("raters", [0, 63])
def test_too_few_or_too_many_raters(raters):
    with pytest.raises(ValueError, match=f"1 to 62 raters, not {raters}"):
        staple(torch.zeros(raters, 3))


def test_many_raters_by_lookup_equal_few_by_table():
    """An eleventh rater who repeats the first changes the code path, not who is right."""
    for rates in itertools.islice(itertools.permutations((0.1, 0.2, 0.3)), 2):
        votes = torch.from_numpy(noisy_votes(rates * 3))
        more = torch.cat([votes, votes[:2]])
        assert np.abs(staple(more, 1000).numpy() - itk_staple(more.numpy())).max() < 1e-6


def test_scripts():
    votes = torch.from_numpy(noisy_votes((0.1, 0.2, 0.3)))
    assert torch.equal(torch.jit.script(staple)(votes), staple(votes))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("rates", [(0.1, 0.2, 0.3), (0.1,) * 13])
def test_cuda_equals_cpu(rates):
    votes = torch.from_numpy(noisy_votes(rates))
    assert (staple(votes.cuda()).cpu() - staple(votes)).abs().max() < 1e-6
