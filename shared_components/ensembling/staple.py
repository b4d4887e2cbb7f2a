"""STAPLE: one consensus from several binary votes, and how good each rater is, by expectation-maximisation.

S. K. Warfield, K. H. Zou, W. M. Wells, "Simultaneous Truth and Performance Level Estimation (STAPLE)",
IEEE Transactions on Medical Imaging 23(7), 2004. Voxels that received the same votes have the same posterior,
so the iteration runs over the vote patterns that occur (at most ``2 ** raters``) instead of over the voxels:
exact, and independent of the image's size.
"""

from typing import NamedTuple, Tuple

import torch
from torch import Tensor

# TorchScript resolves no module constants inside a scripted function, hence the literals below:
# 10 raters (1024 patterns) are tabulated, more are looked up; 62 is what an int64 code holds; 1e-300 stands
# for 0 under a logarithm.


class RaterRates(NamedTuple):
    """How good each rater is, for `rater_rates`.

    Attributes:
        sensitivity: (M,) float64, STAPLE's p: share of the structure that the rater marks; NaN without a structure.
        specificity: (M,) float64, STAPLE's q: share of the rest that the rater leaves; NaN where there is no rest.
    """

    sensitivity: Tensor
    specificity: Tensor


def pack_votes(votes: Tensor) -> Tensor:
    """Write each voxel's votes as the bits of one integer, rater ``i`` as bit ``i``.

    Args:
        votes: (M, *voxels), zero or not zero, M <= 62.

    Returns:
        (*voxels) int64.
    """
    codes = torch.zeros_like(votes[0], dtype=torch.int64)
    for rater in range(votes.shape[0]):
        codes.bitwise_or_((votes[rater] != 0).to(torch.int64) * (1 << rater))
    return codes


def staple(votes: Tensor, max_iterations: int = 100, tolerance: float = 1e-7) -> Tensor:
    """Estimate the probability that each voxel belongs to one binary structure (STAPLE).

    Starts from the share of votes per voxel, with the mean share as the prior, and stops when no rater's
    sensitivity or specificity moves by more than ``tolerance``: the same as ``itk.STAPLEImageFilter``. Where
    ITK answers NaN (nobody, or everybody, marks every voxel), the votes themselves are the answer. How good it has
    found each rater, tells `rater_rates`.

    Args:
        votes: (M, *voxels), zero or not zero; M raters, 1 to 62.
        max_iterations: upper bound on the iterations.
        tolerance: largest change of a sensitivity or specificity that counts as converged.

    Returns:
        (*voxels) float32 posterior probability in [0, 1].

    Raises:
        ValueError: for no rater or more than 62.
    """
    raters = votes.shape[0]
    if raters < 1 or raters > 62:
        raise ValueError(f"STAPLE takes 1 to 62 raters, not {raters}")
    codes = pack_votes(votes)
    return staple_from_codes(codes.reshape(1, -1), raters, max_iterations, tolerance).reshape(codes.shape)


def rater_rates(votes: Tensor, probability: Tensor) -> RaterRates:
    """Estimate each rater's sensitivity and specificity against a consensus.

    With the posterior of `staple` they are the rates that STAPLE has converged to. Any other consensus, or a reference
    mask of zeros and ones, will do.

    Args:
        votes: (M, *voxels), zero or not zero.
        probability: (*voxels) in [0, 1], that a voxel belongs to the structure.
    """
    marked = (votes != 0).flatten(1).to(torch.float64)
    inside = probability.flatten().to(torch.float64)
    outside = 1.0 - inside
    sensitivity = torch.mv(marked, inside) / inside.sum()
    return RaterRates(sensitivity, torch.mv(1.0 - marked, outside) / outside.sum())


@torch.jit.script_if_tracing
def staple_from_codes(codes: Tensor, raters: int, max_iterations: int = 100, tolerance: float = 1e-7) -> Tensor:
    """Run STAPLE on several structures at once, each by itself.

    Inside a trace it stays a script: its number of iterations depends on the data.

    Args:
        codes: (G, V) int64 from `pack_votes`: G structures (or images) of V voxels each.
        raters: number of raters packed into the codes.
        max_iterations: as in `staple`.
        tolerance: as in `staple`.

    Returns:
        (G, V) float32 posterior probabilities.
    """
    posterior = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)
    if raters <= 10:
        patterns = torch.arange(1 << raters, device=codes.device)
        table = staple_table(_count_patterns(codes, len(patterns)), patterns, raters, max_iterations, tolerance)
        return torch.gather(table.to(torch.float32), 1, codes)
    for group in range(codes.shape[0]):
        patterns, inverse, counts = torch.unique(codes[group], return_inverse=True, return_counts=True)
        table = staple_table(counts[None].to(torch.float64), patterns, raters, max_iterations, tolerance)
        posterior[group] = table[0].to(torch.float32)[inverse]
    return posterior


def _count_patterns(codes: Tensor, patterns: int) -> Tensor:
    """Count how often each of ``patterns`` codes occurs in each row of (G, V): (G, patterns) float64."""
    groups = codes.shape[0]
    offset = torch.arange(groups, device=codes.device).unsqueeze(1) * patterns
    counts = torch.bincount((codes + offset).flatten(), minlength=groups * patterns)
    return counts.reshape(groups, patterns).to(torch.float64)


def staple_table(counts: Tensor, patterns: Tensor, raters: int, max_iterations: int, tolerance: float) -> Tensor:
    """Iterate expectation and maximisation over vote patterns.

    Args:
        counts: (G, P) float64, how many voxels of each group show each pattern.
        patterns: (P,) int64 codes of `pack_votes`.
        raters: number of raters M.
        max_iterations: as in `staple`.
        tolerance: as in `staple`.

    Returns:
        (G, P) float64 posterior probability of each pattern.
    """
    shifts = torch.arange(raters, device=counts.device)
    votes = ((patterns.unsqueeze(1) >> shifts) & 1).to(torch.float64)
    posterior = votes.mean(dim=1).expand_as(counts)
    prior = (counts * posterior).sum(dim=1, keepdim=True) / counts.sum(dim=1, keepdim=True).clamp_min(1.0)
    prior_log_odds = _log(prior) - _log(1.0 - prior)
    last = torch.full((2, counts.shape[0], raters), -10.0, dtype=torch.float64, device=counts.device)
    active = torch.ones_like(prior, dtype=torch.bool)
    for _ in range(max_iterations):
        sensitivity, specificity = _rate(counts, posterior, votes)
        # log-odds instead of the products of the paper: many certain raters underflow a product
        if_marked = _log(sensitivity) - _log(1.0 - specificity)
        if_unmarked = _log(1.0 - sensitivity) - _log(specificity)
        evidence = torch.matmul(if_marked - if_unmarked, votes.t()) + if_unmarked.sum(dim=1, keepdim=True)
        posterior = torch.where(active, torch.sigmoid(prior_log_odds + evidence), posterior)
        now = torch.stack([sensitivity, specificity])
        # a group that has converged stays as it is, so that it does not depend on its neighbours in the batch
        active = active & ((now - last).abs() > tolerance).any(dim=0).any(dim=1, keepdim=True)
        last = now
        if not bool(active.any()):
            break
    return posterior


def _rate(counts: Tensor, posterior: Tensor, votes: Tensor) -> Tuple[Tensor, Tensor]:
    """Estimate each rater's sensitivity and specificity, (G, M) each; 1 where no voxel speaks against it."""
    inside = counts * posterior
    outside = counts - inside
    marked, unmarked = torch.matmul(inside, votes), torch.matmul(outside, 1.0 - votes)
    inside, outside = inside.sum(dim=1, keepdim=True), outside.sum(dim=1, keepdim=True)
    sensitivity = torch.where(inside > 0, marked / inside.clamp_min(1e-300), torch.ones_like(marked))
    specificity = torch.where(outside > 0, unmarked / outside.clamp_min(1e-300), torch.ones_like(unmarked))
    return sensitivity.clamp(0.0, 1.0), specificity.clamp(0.0, 1.0)


def _log(probability: Tensor) -> Tensor:
    """Take the logarithm with 0 held just above 0: two contradicting certainties cancel, and make no NaN."""
    return probability.clamp_min(1e-300).log()
