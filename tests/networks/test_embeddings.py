"""Values of the timestep embedding."""

from __future__ import annotations

import pytest
import torch

from shared_components.networks.embeddings import sinusoidal_timestep_embedding


def test_known_values():
    narrow = sinusoidal_timestep_embedding(torch.tensor([0, 1, 3]), 32)
    wide = sinusoidal_timestep_embedding(torch.tensor([1]), 128)
    assert narrow.shape == (3, 32) and narrow.dtype == torch.float32
    assert narrow[1, :2].tolist() == pytest.approx([0.841471, 0.515139], abs=1e-6)
    assert narrow[1, 15].item() == pytest.approx(1e-4, abs=1e-9)
    assert narrow[1, 16].item() == pytest.approx(0.540302, abs=1e-6)
    assert narrow[2, 0].item() == pytest.approx(0.141120, abs=1e-6)
    assert narrow[2, 1].item() == pytest.approx(0.998611, abs=1e-6)
    assert wide[0, :2].tolist() == pytest.approx([0.841471, 0.760439], abs=1e-6)


def test_step_zero_is_all_sines_zero_and_cosines_one():
    embedding = sinusoidal_timestep_embedding(torch.tensor([0]), 32)
    assert embedding[0, :16].abs().max() == 0 and torch.all(embedding[0, 16:] == 1)


def test_scripts():
    timesteps = torch.tensor([0, 1, 7])
    scripted = torch.jit.script(sinusoidal_timestep_embedding)
    assert torch.equal(scripted(timesteps, 32), sinusoidal_timestep_embedding(timesteps, 32))
