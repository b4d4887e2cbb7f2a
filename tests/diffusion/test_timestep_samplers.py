from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from shared_components.diffusion.timestep_samplers import LossSecondMomentTimestepSampler, UniformTimestepSampler


def filled(losses: list[float], history: int = 10) -> LossSecondMomentTimestepSampler:
    """A sampler whose timesteps had the same loss again and again."""
    sampler = LossSecondMomentTimestepSampler(len(losses), history)
    for _ in range(history):
        sampler.update(torch.arange(len(losses)), torch.tensor(losses))
    return sampler


def test_uniform_draws():
    torch.manual_seed(0)
    timesteps, weights = UniformTimestepSampler(4).sample(4000)
    assert timesteps.dtype == torch.int64 and torch.equal(weights, torch.ones(4000))
    torch.testing.assert_close(timesteps.bincount() / 4000, torch.full((4,), 0.25), atol=0.03, rtol=0)


@pytest.mark.parametrize("sampler", [UniformTimestepSampler(50), filled([1.0] * 50)])
def test_draws_follow_the_global_generator(sampler):
    torch.manual_seed(3)
    first = sampler.sample(20)[0]
    again = sampler.sample(20)[0]
    torch.manual_seed(3)
    assert torch.equal(sampler.sample(20)[0], first) and not torch.equal(first, again)


def test_uniform_until_every_timestep_has_its_history():
    sampler = LossSecondMomentTimestepSampler(3)
    for step in range(10):
        assert sampler.probabilities().tolist() == pytest.approx([1 / 3] * 3), step
        assert sampler.sample(5)[1].tolist() == pytest.approx([1] * 5)
        sampler.update(torch.tensor([0, 1, 2]), torch.tensor([1.0, 2.0, 5.0]))
    assert sampler.probabilities()[2] > 0.6


def test_probabilities_are_root_mean_squares_with_a_uniform_share():
    sampler = filled([1.0, 3.0])
    assert sampler.probabilities().tolist() == pytest.approx([0.999 * 0.25 + 0.0005, 0.999 * 0.75 + 0.0005])
    sampler.update(torch.tensor([1]), torch.tensor([30.0]))
    moment = ((9 * 9 + 900) / 10) ** 0.5
    assert sampler.probabilities()[1].item() == pytest.approx(0.999 * moment / (1 + moment) + 0.0005)


def test_only_the_last_losses_count():
    sampler = filled([1.0, 3.0])
    for _ in range(5):  # twice in one step
        sampler.update(torch.tensor([1, 1]), torch.tensor([1.0, 1.0]))
    assert sampler.probabilities().tolist() == pytest.approx([0.5, 0.5])


def test_weights_undo_the_frequencies():
    torch.manual_seed(0)
    sampler, losses = filled([1.0, 2.0, 5.0]), torch.tensor([1.0, 2.0, 5.0])
    timesteps, weights = sampler.sample(20000)
    expected = 1 / (3 * sampler.probabilities()[timesteps])
    torch.testing.assert_close(weights, expected.float())
    assert (weights * losses[timesteps]).mean().item() == pytest.approx(losses.mean().item(), rel=0.02)


def test_losses_of_zero_leave_it_uniform():
    assert filled([0.0, 0.0]).probabilities().tolist() == pytest.approx([0.5, 0.5])


def test_state_goes_through_a_file(tmp_path):
    sampler = filled([1.0, 3.0, 2.0])
    torch.save(sampler.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = LossSecondMomentTimestepSampler(3)
    resumed.load_state_dict(state)
    for item in (sampler, resumed):
        item.update(torch.tensor([2]), torch.tensor([7.0]))
    assert torch.equal(resumed.probabilities(), sampler.probabilities())
    with pytest.raises(ValueError, match=r"losses \(3, 10\) .* this sampler \(5, 10\)"):
        LossSecondMomentTimestepSampler(5).load_state_dict(state)
    UniformTimestepSampler(3).load_state_dict(UniformTimestepSampler(3).state_dict())


def _process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    sampler = LossSecondMomentTimestepSampler(3, history=1)
    # batches of different sizes
    timesteps, losses = ([0, 1], [1.0, 2.0]) if rank == 0 else ([2], [5.0])
    sampler.update(torch.tensor(timesteps), torch.tensor(losses))
    torch.save(sampler.probabilities(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_share_their_losses(tmp_path):
    multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first, second)
    assert first.tolist() == pytest.approx([0.999 * loss / 8 + 0.001 / 3 for loss in (1, 2, 5)])
