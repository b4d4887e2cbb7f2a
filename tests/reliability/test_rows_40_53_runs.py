"""Rows 40 to 53 of the table of cases: interruption, checkpoints, reproducibility.

Row 40, a real training that is killed and resumed, takes a training: it is `tests/runs/test_train.py`'s
`test_row_40_killed_and_resumed_equals_uninterrupted`.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader
from monai.metrics import compute_dice
from torch import nn

from shared_components.data.phantoms import phantom_case
from shared_components.diffusion.inferers import SamplingInferer
from shared_components.ensembling.combine import COMBINE_CHOICES, combine_members
from shared_components.ensembling.staple import staple
from shared_components.ensembling.uncertainty import entropy
from shared_components.errors import InputError
from shared_components.training import EpochSeeder, LoadWeights, StopOnNonFinite, TrainingState
from shared_components.training.files import load_safely, save_atomically
from tests.data.folders import save
from tests.data.test_seeded import dataset as augmented
from tests.diffusion.test_segmenter import VOLUME
from tests.diffusion.test_segmenter import segmenter as small_segmenter
from tests.reliability.in_process import run_here
from tests.training.test_handlers import engine_of, training

STATE = {"weight": torch.arange(50_000.0)}


def test_row_41_killed_while_saving(tmp_path):
    """Fifty times, at a moment within the time that a save takes."""
    path = tmp_path / "training_state.pt"
    since = time.perf_counter()
    save_atomically({"version": 0, **STATE}, path)
    window = 3 * (time.perf_counter() - since)
    generator, versions = random.Random(0), set()
    for attempt in range(1, 51):
        child = os.fork()
        if child == 0:
            for step in range(100):
                save_atomically({"version": 100 * attempt + step, **STATE}, path)
            os._exit(0)
        time.sleep(generator.uniform(0, window))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        state = load_safely(path)
        assert torch.equal(state["weight"], STATE["weight"])
        window *= 1.2 if state["version"] in versions else 1  # other work may make a save take longer
        versions.add(state["version"])
    assert len(versions) > 5
    training(tmp_path, nn.Linear(2, 1), 1, overwrite=True)
    assert [file.name for file in tmp_path.iterdir() if file.name != path.name] == []  # what the kills left is gone


def test_row_42_nothing_to_resume(tmp_path):
    with pytest.raises(InputError, match=rf"{tmp_path}/training_state.pt: no saved state to resume"):
        training(tmp_path, nn.Linear(2, 1), 1, resume=True)
    assert list(tmp_path.iterdir()) == [] or [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_row_43_resumed_with_another_configuration(tmp_path):
    training(tmp_path, nn.Linear(2, 1), 1)
    other = {"model": nn.Linear(2, 1), "optimizer": torch.optim.SGD(nn.Linear(2, 1).parameters(), 1.0)}
    with pytest.raises(
        InputError, match=r"training_state.pt: .*other settings \(num_steps was None, is 4; width was 2"
    ):
        TrainingState(tmp_path, other, {"width": 3, "num_steps": 4}, resume=True).load(engine_of())
    other["model"] = nn.Linear(3, 1)
    message = "training_state.pt: the saved model differs from this run's .*size mismatch for weight"
    with pytest.raises(InputError, match=message):
        TrainingState(tmp_path, other, {"width": 2}, resume=True).load(engine_of())


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_row_44_damaged_checkpoint(tmp_path, damage):
    save_atomically(
        {"weight": torch.randn(5000), "progress": {"epoch": 1, "iteration": 1}}, tmp_path / "training_state.pt"
    )
    save_atomically({"weight": torch.randn(5000)}, tmp_path / "model.pt")
    for name in ("training_state.pt", "model.pt"):
        content = bytearray((tmp_path / name).read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / name).write_bytes(content[:4000] if damage == "truncated" else content)
    words = "truncated or corrupt" if damage == "truncated" else r"checksum of its part .*data/0 does not match"
    with pytest.raises(InputError, match=rf"model.pt: .*{words}"):
        LoadWeights(tmp_path / "model.pt", nn.Linear(2, 1))()
    state = TrainingState(tmp_path, {"model": nn.Linear(2, 1)}, resume=True)
    with pytest.raises(InputError, match=rf"training_state.pt: .*{words}.*--ckpt_path {tmp_path}/model.pt"):
        state.load(engine_of())


class _Payload:
    def __reduce__(self):
        return (os.system, ("touch payload-ran",))


def test_row_45_pickled_payload(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": _Payload()}, "evil.pt")
    with pytest.raises(InputError, match="evil.pt: holds more than tensors, .* and was not loaded"):
        LoadWeights("evil.pt", nn.Linear(2, 1))()
    assert not Path("payload-ran").exists()
    torch.load("evil.pt", weights_only=False)
    assert Path("payload-ran").exists()  # so it would have


def test_row_46_weights_of_another_network(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(2, 1).state_dict(), path)
    with pytest.raises(
        InputError, match="model.pt: .*expected those of this Sequential.*Missing key.*0.weight.*Unexpected"
    ):
        LoadWeights(path, nn.Sequential(nn.Linear(2, 1)))()
    with pytest.raises(InputError, match="model.pt: .*size mismatch for weight.*1, 2.*1, 4"):
        LoadWeights(path, nn.Linear(4, 1))()  # of a model of other channels
    torch.save({"model": nn.Linear(2, 1).state_dict()}, path)
    with pytest.raises(InputError, match="model.pt: not a flat state dict"):
        LoadWeights(path, nn.Linear(2, 1))()


def test_row_47_loss_that_is_no_number(tmp_path, caplog):
    caplog.set_level("CRITICAL")
    model = nn.Linear(1, 1)
    engine = engine_of(lambda e, b: {"loss": float("nan") if e.state.iteration == 3 else 1.0})
    StopOnNonFinite().attach(engine)
    TrainingState(tmp_path, {"model": model}).attach(engine)
    image = torch.ones(1)
    image.meta = {"filename_or_obj": ["a/case_07.nii.gz"]}
    with pytest.raises(
        InputError, match=r"loss is nan at epoch 2, iteration 3 \(images a/case_07.nii.gz\).*--learning_rate"
    ):
        engine.run([{"image": image}, {"image": image}], max_epochs=3)
    assert load_safely(tmp_path / "training_state.pt")["progress"] == {"epoch": 1, "iteration": 2}


def trained_on(num_workers: int, seed: int) -> dict[str, torch.Tensor]:
    """Weights of a training of two epochs on augmented images."""
    torch.manual_seed(seed)
    network, source = nn.Linear(8, 1), augmented(seed=seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)

    def step(engine: Engine, batch: dict) -> dict:
        optimizer.zero_grad()
        loss = (network(batch["image"].as_tensor()) - torch.rand(1)).pow(2).mean()
        loss.backward()
        optimizer.step()
        return {"loss": loss.item()}

    engine = engine_of(step)
    EpochSeeder(seed, source).attach(engine)
    engine.run(DataLoader(source, batch_size=2, shuffle=True, num_workers=num_workers), max_epochs=2)
    return network.state_dict()


def test_row_48_the_same_seed_twice():
    first = trained_on(0, seed=3)
    for num_workers in (0, 2):
        again = trained_on(num_workers, seed=3)
        assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.equal(small_segmenter(seed=1)(VOLUME), small_segmenter(seed=1)(VOLUME))


def test_row_49_another_seed():
    assert not torch.equal(trained_on(0, seed=3)["weight"], trained_on(0, seed=4)["weight"])
    one, other = (small_segmenter(seed=seed, combine="mean")(VOLUME) for seed in (0, 1))
    assert (one - other).abs().mean() > 1e-4


def test_row_50_batches_and_chunks():
    options = {"num_samples": 4, "combine": "mean", "mirror_members": True, "slice_axes": (2, 0)}
    whole = small_segmenter(max_batch_size=1000, **options)(VOLUME)
    for size in (3, 7):
        torch.testing.assert_close(small_segmenter(max_batch_size=size, **options)(VOLUME), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(small_segmenter(**options)(VOLUME[1:]), whole[1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("combine", COMBINE_CHOICES)
def test_row_51_odd_ensembles(combine):
    members = torch.rand(4, 2, 3, 6, 5, generator=torch.Generator().manual_seed(0)).softmax(2)
    hard = torch.nn.functional.one_hot(members.argmax(2), 3).movedim(-1, 2).float()
    for chosen in (hard[:1], hard[:1].expand(4, *hard.shape[1:])):  # one, and all of them alike
        found = combine_members(chosen, combine)
        assert torch.equal(found, hard[0]) and float(entropy(found).abs().max()) == 0
    even = combine_members(members, combine)
    assert torch.isfinite(even).all() and torch.allclose(even.sum(1), torch.ones(2, 6, 5), atol=1e-6)
    empty = torch.zeros(3, 1, 2, 5, 5)
    empty[:, :, 0] = 1
    assert torch.equal(combine_members(empty, combine), empty[0])
    assert torch.isfinite(staple(torch.stack([torch.ones(4), torch.zeros(4)]))).all()  # two that never agree


def test_row_52_number_of_steps():
    network = small_segmenter(timesteps=4, num_samples=1)
    for steps in (1, 4):
        network.set_sampling(1, steps)
        assert network.num_inference_steps == steps and torch.isfinite(network(VOLUME)).all()
    for steps in (5, 0, -1):
        with pytest.raises(InputError, match=rf"1\.\.4 .*not {steps}"):
            SamplingInferer(1, steps)(VOLUME, network)


@pytest.mark.slow
def test_row_53_bfloat16(tmp_path):
    """The shipped weights on a phantom: Dice of bfloat16's label map and of float32's within 0.005."""
    image, label, *_ = phantom_case(11, 1)
    save(tmp_path / "images" / "a.nii.gz", image.astype(np.float32))
    scores = {}
    for amp in (False, True):
        options = {"dataset_dir": str(tmp_path / "images"), "output_dir": str(tmp_path / str(amp)), "amp": amp}
        run_here("inference", **options, num_samples=1, device="cpu")
        found = torch.from_numpy(np.asarray(nibabel.load(tmp_path / str(amp) / "a_seg.nii.gz").dataobj)).long()
        hot = [nn.functional.one_hot(part, 3).movedim(-1, 0)[None] for part in (found, torch.from_numpy(label).long())]
        scores[amp] = compute_dice(*hot, include_background=False).mean().item()
    assert scores[False] > 0.5 and abs(scores[True] - scores[False]) < 0.005
