from __future__ import annotations

import torch

from shared_components.diffusion.noise import addressed_noise

MEMBER, POSITION = torch.arange(6).repeat_interleave(20), torch.arange(20).repeat(6)
NOISE = addressed_noise(0, 0, MEMBER, POSITION, 3, 24, 16)


def test_moments_are_those_of_a_normal_distribution():
    assert abs(NOISE.mean().item()) < 0.01
    assert abs(NOISE.std().item() - 1) < 0.01
    assert abs((NOISE**4).mean().item() - 3) < 0.06
    assert abs((NOISE > 1.959964).float().mean().item() - 0.025) < 0.002


def test_neighbours_draws_members_and_slices_are_uncorrelated():
    other_draw = addressed_noise(0, 1, MEMBER, POSITION, 3, 24, 16)
    other_seed = addressed_noise(1, 0, MEMBER, POSITION, 3, 24, 16)
    pairs = [
        (NOISE, other_draw),
        (NOISE, other_seed),
        (NOISE[1:], NOISE[:-1]),
        (NOISE[20:], NOISE[:-20]),
        (NOISE[..., 1:], NOISE[..., :-1]),
        (NOISE[:, :, 1:], NOISE[:, :, :-1]),
        (NOISE[:, 1:], NOISE[:, :-1]),
    ]
    assert max(abs((a * b).mean().item()) for a, b in pairs) < 0.015


def test_value_depends_on_its_address_alone():
    picked = addressed_noise(0, 0, MEMBER[[77, 3]], POSITION[[77, 3]], 2, 30, 10)
    assert torch.equal(picked[:, :, :24], NOISE[[77, 3], :2, :, :10])


def test_scripts():
    scripted = torch.jit.script(addressed_noise)
    assert torch.equal(scripted(0, 0, MEMBER, POSITION, 3, 24, 16), NOISE)
