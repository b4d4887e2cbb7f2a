"""Where gradients of several batches are accumulated, average and learning rate follow the optimiser's steps."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import nn

from shared_components.training import OptimizerStepLrSchedule, WarmedEMAHandler


def trained(accumulation_steps: int, values: list[float], epochs: int = 1, warm_up: bool = False):
    """Train w from 0 on the loss w * value: every optimiser step moves it by minus the mean of its batches' values."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    ema = WarmedEMAHandler(model, momentum=0.1, warm_up=warm_up)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=[torch.tensor([[float(value)]]) for value in values],
        network=model,
        optimizer=optimizer,
        loss_function=lambda output, target: output.sum(),
        prepare_batch=lambda batch, *args, **kwargs: (batch, batch),
        decollate=False,
        accumulation_steps=accumulation_steps,
        train_handlers=[ema, OptimizerStepLrSchedule(schedule)],
    )
    averages: list[float] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: averages.append(ema.ema_model.weight.item()))
    trainer.run()
    return model.weight.item(), averages, schedule.last_epoch


def test_eight_batches_in_fours_are_two_updates():
    weight, averages, steps = trained(4, [1, 2, 3, 4, 5, 6, 7, 8])
    assert weight == pytest.approx(-2.5 - 6.5), "gradients are averaged"
    assert averages[:3] == [0, 0, 0] and averages[3:7] == pytest.approx([-2.5] * 4), "the first step is copied"
    assert averages[7] == pytest.approx(-2.5 + 0.1 * -6.5)
    assert steps == 2


def test_the_last_batches_of_an_epoch_are_a_step_too():
    weight, averages, steps = trained(4, [1, 1, 1, 1, 4, 4], epochs=2, warm_up=True)
    assert weight == pytest.approx(-6.0) and steps == 4, "as MONAI's trainer, which divides by 4 here, too"
    assert averages[5] == pytest.approx(-1 + 10 / 11 * -2)
    assert averages[6:9] == [averages[5]] * 3 and averages[9] != averages[5]


def test_without_accumulation_every_batch_counts():
    weight, averages, steps = trained(1, [1, 2, 3])
    assert (weight, steps) == (-6, 3)
    assert averages == pytest.approx([-1, -1.2, -1.68])
