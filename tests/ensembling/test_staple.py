"""STAPLE against ITK's filter and against the cases in which ITK answers NaN."""

import itertools

import numpy as np
import pytest
import torch

from shared_components.ensembling import rater_rates, staple
from shared_components.ensembling.staple import pack_votes


def noisy_votes(rates, shape=(24, 20), seed=0):
    """Votes of raters who flip each voxel of one box with their own rate, (M, *shape) bool."""
    random = np.random.default_rng(seed)
    truth = np.zeros(shape, dtype=bool)
    truth[tuple(slice(n // 4, n // 4 * 3) for n in shape)] = True
    return np.stack([np.where(random.random(shape) < rate, ~truth, truth) for rate in rates])


def disc(row, column, radius):
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


SHIFTED = torch.stack([disc(*centre, 5) for centre in ((8, 8), (8, 9), (9, 8), (8, 7), (7, 8))])
ONE_ELSEWHERE = torch.cat([SHIFTED[:4], disc(4, 4, 3)[None]])
TOY = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]])


def itk_filter(votes, max_iterations=None):
    itk = pytest.importorskip("itk")
    kind = itk.Image[itk.D, votes.ndim - 1]
    staple_filter = itk.STAPLEImageFilter[kind, kind].New()
    staple_filter.SetForegroundValue(1.0)
    if max_iterations is not None:
        staple_filter.SetMaximumIterations(max_iterations)
    for i, vote in enumerate(votes):
        staple_filter.SetInput(i, itk.image_from_array(vote.astype(np.float64)))
    staple_filter.Update()
    return staple_filter


def itk_staple(votes, max_iterations=None):
    return pytest.importorskip("itk").array_from_image(itk_filter(votes, max_iterations).GetOutput())


@pytest.mark.parametrize("rates", [(0.1, 0.2), (0.05, 0.1, 0.2, 0.3, 0.15), (0.4, 0.02, 0.02), (0.1,) * 13])
@pytest.mark.parametrize("shape", [(24, 20), (10, 12, 8)])
def test_equals_itk(rates, shape):
    votes = noisy_votes(rates, shape)
    found = staple(torch.from_numpy(votes), max_iterations=1000)
    assert found.dtype == torch.float32
    assert np.abs(found.numpy() - itk_staple(votes)).max() < 1e-6


@pytest.mark.parametrize(
    ("votes", "pixels", "total", "sensitivity", "specificity"),
    [
        (SHIFTED, (81, 77, 69), 79.458, [1.0, *[0.87596] * 4], [0.99127, *[0.93544] * 4]),
        (
            ONE_ELSEWHERE,
            (80, 75, 61),
            79.4508,
            [1.0, 0.877432, 0.879781, 0.877747, 0.123799],
            [0.991225, 0.936067, 0.937124, 0.936209, 0.891452],
        ),
    ],
)
def test_five_discs_of_the_specification(votes, pixels, total, sensitivity, specificity):
    """Pixels of STAPLE, of the majority and of the squared mean that the published MedSegDiff calls STAPLE."""
    assert [int(vote.sum()) for vote in votes[:4]] == [81] * 4
    probability, mean = staple(votes), votes.float().mean(0)
    assert tuple(int((fused > 0.5).sum()) for fused in (probability, mean, mean**2)) == pixels
    assert probability.double().sum().item() == pytest.approx(total, abs=1e-4)
    rates = rater_rates(votes, probability)
    assert rates.sensitivity.tolist() == pytest.approx(sensitivity, abs=1e-5)
    assert rates.specificity.tolist() == pytest.approx(specificity, abs=1e-5)


def test_three_raters_of_the_specification():
    probability = staple(TOY)
    assert probability.tolist() == pytest.approx([1, 1, 7.95e-8, 0], rel=1e-3, abs=1e-12)
    rates = rater_rates(TOY, probability)
    assert rates.sensitivity.tolist() == pytest.approx([1, 0.5, 1], abs=1e-6)
    assert rates.specificity.tolist() == pytest.approx([1, 1, 0.5], abs=1e-6)


@pytest.mark.parametrize("votes", [SHIFTED, ONE_ELSEWHERE, torch.from_numpy(noisy_votes((0.05, 0.1, 0.2, 0.3)))])
def test_rates_equal_itks(votes):
    peer, rates = itk_filter(votes.numpy()), rater_rates(votes, staple(votes, 1000))
    raters = range(len(votes))
    assert rates.sensitivity.tolist() == pytest.approx([peer.GetSensitivity(i) for i in raters], abs=1e-6)
    assert rates.specificity.tolist() == pytest.approx([peer.GetSpecificity(i) for i in raters], abs=1e-6)


def test_rates_against_a_reference_mask():
    """The first rater finds 2 of 3 and spares 4 of 5; where there is nothing to find, there is no sensitivity."""
    votes = torch.tensor([[1, 1, 0, 1, 0, 0, 0, 0], [0] * 8])
    rates = rater_rates(votes, torch.tensor([1, 1, 1, 0, 0, 0, 0, 0]))
    assert rates.sensitivity.tolist() == pytest.approx([2 / 3, 0]) and rates.specificity.tolist() == [0.8, 1]
    nowhere, everywhere = (rater_rates(votes, torch.full((8,), value)) for value in (0.0, 1.0))
    assert nowhere.sensitivity.isnan().all() and nowhere.specificity.tolist() == [5 / 8, 1]
    assert everywhere.specificity.isnan().all() and everywhere.sensitivity.tolist() == [3 / 8, 0]


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
    scripted, rates = torch.jit.script(rater_rates)(votes, votes[0]), rater_rates(votes, votes[0])
    assert torch.equal(scripted.sensitivity, rates.sensitivity) and rates.sensitivity[0] == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("rates", [(0.1, 0.2, 0.3), (0.1,) * 13])
def test_cuda_equals_cpu(rates):
    votes = torch.from_numpy(noisy_votes(rates))
    assert (staple(votes.cuda()).cpu() - staple(votes)).abs().max() < 1e-6
