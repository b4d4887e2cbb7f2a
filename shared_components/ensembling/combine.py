"""One prediction out of several members: the share of votes, the mean probability, or STAPLE."""

import torch
from torch import Tensor

from shared_components.ensembling.staple import staple_from_codes

COMBINE_CHOICES = ("majority", "mean", "staple")


def combine_members(members: Tensor, combine: str) -> Tensor:
    """Fuse the members of an ensemble into one set of class probabilities.

    Every image of the batch is fused by itself, so the result does not depend on what it was batched with.
    Scripts.

    Args:
        members: (M, B, C, *spatial) class probabilities in [0, 1] that sum to 1 over C >= 2 classes, M >= 1.
        combine: ``"majority"``, the share of members whose most probable class it is; ``"mean"``, the mean of
            the members' probabilities; ``"staple"``, per image and class the STAPLE posterior of the members'
            most probable classes, divided by its sum over the classes.

    Returns:
        (B, C, *spatial) float32 probabilities that sum to 1 over C.

    Raises:
        ValueError: for another ``combine``, a single class, or (STAPLE) more than 62 members.
    """
    if members.dim() < 3 or members.shape[2] < 2:
        raise ValueError(f"members: expected (members, batch, 2 or more classes, ...), got {members.shape}")
    if combine == "mean":
        return _mean(members)
    if combine == "majority":
        return _vote_shares(members)
    if combine == "staple":
        return _staple_classes(members)
    raise ValueError(f"combine: found {combine}, expected one of majority, mean, staple")


def _mean(members: Tensor) -> Tensor:
    """Mean over the members in float32, in their order: a reduction's order would depend on the batch."""
    total = torch.zeros_like(members[0], dtype=torch.float32)
    for member in range(members.shape[0]):
        total += members[member]
    return total / members.shape[0]


def _vote_shares(members: Tensor) -> Tensor:
    """Share of members whose most probable class is c, (B, C, *spatial) float32."""
    votes = torch.zeros_like(members[0], dtype=torch.float32)
    one = torch.ones_like(votes[:, :1])
    for member in range(members.shape[0]):
        votes.scatter_add_(1, members[member].argmax(dim=1, keepdim=True), one)
    return votes / members.shape[0]


def _staple_classes(members: Tensor) -> Tensor:
    """STAPLE per image and class, one class against the rest, (B, C, *spatial) float32."""
    winners = torch.stack([members[member].argmax(dim=1) for member in range(members.shape[0])])
    return staple_classes(winners, members.shape[2])


def staple_classes(winners: Tensor, classes: int) -> Tensor:
    """Fuse what the members of an ensemble say by STAPLE, per image and class, one class against the rest. Scripts.

    Args:
        winners: (M, B, *spatial) class indices, of any integer type; M of 1 to 62.
        classes: number of classes.

    Returns:
        (B, classes, *spatial) float32 probabilities that sum to 1 over the classes.

    Raises:
        ValueError: more than 62 members.
    """
    count, batch = winners.shape[0], winners.shape[1]
    if count > 62:
        raise ValueError(f"STAPLE takes 1 to 62 members, not {count}")
    shape = [batch, classes] + list(winners.shape[2:])
    codes = torch.zeros(shape, dtype=torch.int64, device=winners.device)
    shares = torch.zeros(shape, dtype=torch.float32, device=winners.device)
    for member in range(count):
        winner = winners[member].to(torch.int64).unsqueeze(1)
        # each class's code gets this member's bit where the class wins
        codes.scatter_add_(1, winner, torch.full_like(winner, 1 << member))
        shares.scatter_add_(1, winner, torch.ones_like(winner, dtype=torch.float32))
    posterior = staple_from_codes(codes.reshape(batch * classes, -1), count).reshape(shape)
    total = posterior.sum(dim=1, keepdim=True)
    # every class of a voxel may be improbable to the point of underflow; then the votes decide
    return torch.where(total > 0, posterior / total.clamp_min(1e-30), shares / count)
