import logging

import pytest
import torch
from ignite.engine import Engine

from shared_components.reporting.blind_guess import METRIC, BlindGuess, blind_guess_dice, shares_on_grid


def label_with(top, bottom, value=1):
    label = torch.zeros(1, 8, 8)
    label[:, top:bottom] = value
    return label


def guess_of(*labels, classes=2):
    return blind_guess_dice([shares_on_grid(label, classes, size=8) for label in labels])


def test_a_structure_at_the_same_place_is_guessed_from_the_other_cases():
    assert guess_of(label_with(2, 4), label_with(2, 4), label_with(2, 4)) == pytest.approx(1.0)


def test_no_case_is_guessed_from_itself():
    # at every place the other case has the other class, so marking everything is the best guess: 2 * 0.5 / 1.5
    assert guess_of(label_with(0, 4), label_with(4, 8)) == pytest.approx(2 / 3)


def test_one_case_is_guessed_as_one_class_everywhere():
    assert guess_of(label_with(0, 2)) == pytest.approx(2 * 0.25 / 1.25)


def test_classes_are_averaged_and_absent_ones_left_out():
    one, both = label_with(0, 4), label_with(0, 4) + label_with(4, 8, value=2)
    # from the other case: Dice 1 and 0 in the first, 1 in the second, which has no other class
    assert guess_of(both, one, classes=3) == pytest.approx(((1 + 0) / 2 + 1) / 2)


def test_cases_without_foreground_score_nothing():
    assert guess_of(label_with(0, 0), label_with(0, 0)) == 0.0


def test_shares_of_any_size_lie_on_one_grid_and_sum_to_one():
    shares = shares_on_grid(torch.ones(1, 50, 31, 7), 3)
    assert shares.shape == (3, 32, 32, 32)
    assert torch.allclose(shares.sum(dim=0), torch.ones(32, 32, 32))


def validated(dice, epoch, max_epochs=10):
    evaluator = Engine(lambda engine, batch: [{"label": batch}])
    handler = BlindGuess(classes=2, max_epochs=max_epochs)
    handler.attach(evaluator)
    for number in range(1, epoch + 1):
        evaluator.state.metrics = {"val_mean_dice": dice}
        evaluator.state.max_epochs, evaluator.state.epoch, evaluator.state.iteration = number, number - 1, 0
        evaluator.run([label_with(2, 6), label_with(2, 6)], max_epochs=number)
    return evaluator


@pytest.mark.parametrize("dice, epoch, warned", [(0.9, 6, True), (0.9, 4, False), (1.01, 6, False)])
def test_from_the_middle_of_a_training_on_a_useless_network_is_named(caplog, dice, epoch, warned):
    with caplog.at_level(logging.WARNING):
        evaluator = validated(dice, epoch)
    assert evaluator.state.metrics[METRIC] == pytest.approx(1.0)
    lines = [line for line in caplog.messages if "guess without an image" in line]
    assert bool(lines) is warned
    assert all("0.900" in line and "1.000" in line for line in lines)
