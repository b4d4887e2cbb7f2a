from __future__ import annotations

import copy
import logging
import random
import warnings

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from torch import nn

from shared_components.errors import InputError
from shared_components.training import (
    BestWeights,
    EpochSeeder,
    LoadWeights,
    StopOnNonFinite,
    TrainingState,
    WarmedEMAHandler,
)
from shared_components.training.seeding import epoch_seed


def engine_of(step=lambda engine, batch: {"loss": 0.0}) -> Engine:
    engine = Engine(step)
    engine.state.rank = 0
    return engine


def test_epoch_seeds_differ_and_repeat():
    assert epoch_seed(0, 1) == epoch_seed(0, 1)
    assert len({epoch_seed(s, e, r) for s in range(3) for e in range(3) for r in range(2)}) == 18


def test_seeder_makes_epochs_independent_of_what_came_before():
    def draws(first: int) -> list[float]:
        seen = []
        engine = engine_of(lambda e, b: seen.append(random.random() + np.random.rand() + torch.rand(()).item()))
        EpochSeeder(7).attach(engine)
        engine.add_event_handler(Events.STARTED, lambda e: setattr(e.state, "epoch", first))
        engine.run([0, 1], max_epochs=4)
        return seen

    whole = draws(0)
    assert draws(2) == whole[4:]
    assert len(set(whole)) == 8


def test_published_average_copies_first_then_decays():
    """Weights 0.116667 then 0.016667 with a decay of 0.9 average to 0.116667, 0.106667."""
    model = nn.Linear(1, 1, bias=False)
    handler = WarmedEMAHandler(model, momentum=0.1, warm_up=False)
    values, seen = iter([0.116667, 0.016667]), []
    engine = engine_of(lambda e, b: nn.init.constant_(model.weight, next(values)))
    handler.attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(handler.ema_model.weight.item()))
    engine.run([0, 1])
    assert seen == pytest.approx([0.116667, 0.106667], abs=1e-6)


@pytest.mark.parametrize("steps, share", [(1000, 0.904833), (10_000, 0.367861)])
def test_share_of_the_first_weights_in_the_published_average(steps, share):
    """The first weights are 1, all later ones 0; the decay is 0.9999."""
    model = nn.Linear(1, 1, bias=False).double()
    handler = WarmedEMAHandler(model, momentum=1e-4, warm_up=False)
    engine = engine_of(lambda e, b: nn.init.constant_(model.weight, b))
    handler.attach(engine)
    engine.run([1.0] + [0.0] * steps)
    assert handler.ema_model.weight.item() == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("epochs, told", [(2, True), (3, False)])
def test_a_run_too_short_for_the_published_average_says_so(epochs, told, caplog):
    """Of 20 steps at 0.1, 12 % of the first network are left; of 30, 4 %."""
    handler = WarmedEMAHandler(nn.Linear(1, 1), momentum=0.1, warm_up=False)
    engine = engine_of()
    handler.attach(engine)
    engine.run(range(10), max_epochs=epochs)
    assert ("will be 12 % the network of the first step after 20 steps" in caplog.text) is told
    assert ("train for 22 steps (--max_epochs), or give --ema#warm_up True" in caplog.text) is told


def test_warm_up_forgets_early_weights():
    model = nn.Linear(1, 1, bias=False)
    handler = WarmedEMAHandler(model, momentum=0.01)
    engine = engine_of(lambda e, b: nn.init.constant_(model.weight, b))
    handler.attach(engine)
    engine.run([1.0, 2.0, 6.0])
    second = 1 + 10 / 11 * (2 - 1)
    assert handler.ema_model.weight.item() == pytest.approx(second + 10 / 12 * (6 - second))


def test_average_takes_over_loaded_weights():
    model = nn.Linear(1, 1, bias=False)
    handler = WarmedEMAHandler(model, momentum=0.5)
    nn.init.constant_(model.weight, 4.0)
    engine = engine_of()
    handler.attach(engine)
    seen = []
    engine.add_event_handler(Events.STARTED, lambda e: seen.append(handler.ema_model.weight.item()))
    engine.run([0])
    assert seen == [4.0]


def training(folder, model, epochs: int, stop_after: int | None = None, **options) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

    def step(engine, batch):
        optimizer.zero_grad()
        loss = (model(torch.randn(4, 2)) - 1).pow(2).mean()
        loss.backward()
        optimizer.step()
        return {"loss": loss.item()}

    engine = engine_of(step)
    EpochSeeder(3).attach(engine)
    state = TrainingState(folder, {"model": model, "optimizer": optimizer}, {"width": 2}, **options)
    state.attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: e.terminate() if e.state.epoch == stop_after else None)
    engine.state.max_epochs = epochs
    engine.run([0, 1, 2], max_epochs=epochs)
    state._release(engine)


def test_resumed_run_equals_an_unbroken_one(tmp_path):
    torch.manual_seed(0)
    start = nn.Linear(2, 1)
    whole, broken, resumed = copy.deepcopy(start), copy.deepcopy(start), nn.Linear(2, 1)
    training(tmp_path / "a", whole, 4)
    training(tmp_path / "b", broken, 4, stop_after=2)
    assert not torch.equal(broken.weight, whole.weight)
    training(tmp_path / "b", resumed, 4, resume=True)
    assert torch.equal(resumed.weight, whole.weight) and torch.equal(resumed.bias, whole.bias)


def test_nothing_to_resume_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no saved state to resume"):
        training(tmp_path, nn.Linear(2, 1), 1, resume=True)


def test_earlier_run_is_not_overwritten_unless_asked(tmp_path):
    training(tmp_path, nn.Linear(2, 1), 1)
    with pytest.raises(InputError, match="--resume True.*--overwrite True"):
        training(tmp_path, nn.Linear(2, 1), 1)
    training(tmp_path, nn.Linear(2, 1), 1, overwrite=True)


def test_finished_run_is_left_as_it_is_and_says_what_to_give(tmp_path, caplog):
    finished, again = nn.Linear(2, 1), nn.Linear(2, 1)
    training(tmp_path, finished, 1)
    training(tmp_path, again, 1, resume=True)
    assert torch.equal(again.weight, finished.weight)
    assert "all 1 epochs are done" in caplog.text and f"--ckpt_path {tmp_path / 'model.pt'}" in caplog.text


def test_an_epoch_without_a_step_is_refused(tmp_path):
    """MONAI's trainers do not start without one, so that nothing but attaching is sure to happen."""
    network, state = nn.Linear(2, 1), TrainingState(tmp_path, {})
    options = {"optimizer": torch.optim.SGD(network.parameters()), "loss_function": nn.MSELoss()}
    with pytest.raises(InputError, match="no step in an epoch: .*--batch_size or --drop_last False"):
        SupervisedTrainer("cpu", 1, [], network, **options, train_handlers=[state])


def test_changed_settings_are_listed(tmp_path):
    training(tmp_path, nn.Linear(2, 1), 1)
    state = TrainingState(tmp_path, {"model": nn.Linear(2, 1)}, {"width": 3}, resume=True)
    with pytest.raises(InputError, match="width was 2, is 3; optimizer is only on one side"):
        state.load(engine_of())


def test_best_weights_are_kept(tmp_path):
    model, scores = nn.Linear(1, 1), iter([0.5, 0.7, 0.6])
    saver = BestWeights(tmp_path / "model.pt", model)
    for epoch, score in enumerate(scores, 1):
        nn.init.constant_(model.weight, score)
        engine = engine_of()
        engine.state.epoch, engine.state.key_metric_name = epoch, "dice"
        engine.state.best_metric, engine.state.best_metric_epoch = max(score, 0.7 if epoch > 1 else 0), min(epoch, 2)
        saver(engine)
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    assert saved["weight"].item() == pytest.approx(0.7)


def test_weights_of_another_network_are_listed(tmp_path):
    torch.save(nn.Linear(2, 1).state_dict(), tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"model.pt: weights of another network: give .*labels, .*size mismatch for w"):
        LoadWeights(tmp_path / "model.pt", nn.Linear(3, 1))()
    with pytest.raises(InputError, match="Missing key.*0.weight.*Unexpected key.*weight"):
        LoadWeights(tmp_path / "model.pt", nn.Sequential(nn.Linear(2, 1)))()


def test_nested_checkpoints_are_refused(tmp_path):
    torch.save({"model": nn.Linear(2, 1).state_dict()}, tmp_path / "state.pt")
    with pytest.raises(InputError, match="not a flat state dict"):
        LoadWeights(tmp_path / "state.pt", nn.Linear(2, 1))()


def test_a_loss_with_a_gradient_is_watched_without_a_warning(recwarn):
    always, loss = torch.is_warn_always_enabled(), torch.ones((), requires_grad=True)
    torch.set_warn_always(True)
    try:
        engine = engine_of(lambda e, b: {"loss": loss})
        StopOnNonFinite().attach(engine)
        engine.run([0])
    finally:
        torch.set_warn_always(always)
    assert [str(warning.message) for warning in recwarn if "requires_grad" in str(warning.message)] == []


def test_non_finite_loss_stops_the_run(caplog):
    caplog.set_level(logging.CRITICAL)
    engine = engine_of(lambda e, b: {"loss": float("nan") if e.state.iteration == 3 else 1.0})
    StopOnNonFinite().attach(engine)
    with pytest.raises(InputError, match="loss is nan at epoch 2, iteration 3.*learning_rate"):
        engine.run([0, 1], max_epochs=3)
    assert engine.state.iteration == 3


def test_a_loss_that_carries_its_gradient_is_read_without_a_warning_of_torch():
    loss = (torch.ones(1, requires_grad=True) * 2).sum()
    engine = engine_of(lambda e, b: {"loss": loss})
    StopOnNonFinite().attach(engine)
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            engine.run([0], max_epochs=1)
    finally:
        torch.set_warn_always(False)
    assert engine.state.iteration == 1
