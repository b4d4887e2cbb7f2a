"""The mask of the greatest expected Dice."""

from __future__ import annotations

import pytest
import torch

from shared_components.ensembling import weigh_by_expected_dice, weigh_by_threshold


def two_classes(foreground: torch.Tensor) -> torch.Tensor:
    return torch.stack([1 - foreground, foreground], dim=1)


def expected_dice(foreground: torch.Tensor, mask: torch.Tensor) -> float:
    return float(2 * foreground[mask].sum() / (foreground.sum() + mask.sum()))


def blurred_disc(seed: int = 0) -> torch.Tensor:
    rows, columns = torch.meshgrid(*[torch.linspace(-1, 1, 48)] * 2, indexing="ij")
    noise = 0.6 * torch.randn(48, 48, generator=torch.Generator().manual_seed(seed))
    return torch.sigmoid(8 * (0.35 - (rows**2 + columns**2).sqrt()) + noise)


def test_the_mask_is_the_best_of_all_thresholds():
    foreground = blurred_disc()
    weighed = weigh_by_expected_dice(two_classes(foreground[None]))[0]
    torch.testing.assert_close(weighed.sum(0), torch.ones(48, 48))
    mask = weighed.argmax(0) == 1
    scores = {t: expected_dice(foreground, foreground > t) for t in torch.arange(0.1, 0.51, 0.025).tolist()}
    best = max(scores, key=scores.get)
    assert 0.3 < best < 0.5 and torch.equal(mask, foreground > best)
    assert expected_dice(foreground, mask) > expected_dice(foreground, foreground > 0.5) + 0.005
    # half the greatest expected Dice is the threshold that reaches it (Lipton et al. 2014, theorem 1)
    assert best == pytest.approx(max(scores.values()) / 2, abs=0.025)


def test_a_calibrated_network_scores_better_so():
    """Labels drawn with these very probabilities: the Dice gained is the one expected."""
    foreground = torch.stack([blurred_disc(seed) for seed in range(40)])
    labels = torch.rand(foreground.shape, generator=torch.Generator().manual_seed(1)) < foreground
    weighed = weigh_by_expected_dice(two_classes(foreground)).argmax(1) == 1

    def dice(mask: torch.Tensor) -> torch.Tensor:
        return 2 * (mask & labels).sum((1, 2)) / (mask.sum((1, 2)) + labels.sum((1, 2)))

    gain = dice(weighed) - dice(foreground > 0.5)
    assert gain.mean() > 0.005 and (gain > 0).float().mean() > 0.8


def test_certain_and_absent_objects_stay_as_they_are():
    certain = torch.zeros(1, 16, 16)
    certain[:, 4:9, 4:9] = 1
    assert torch.equal(weigh_by_expected_dice(two_classes(certain)), two_classes(certain))
    absent = torch.full((1, 16, 16), 0.3)
    torch.testing.assert_close(weigh_by_expected_dice(two_classes(absent)), two_classes(absent))


def test_images_and_classes_are_decided_by_themselves_and_it_scripts():
    foreground = torch.stack([blurred_disc(0), blurred_disc(1).roll(9, 0)])
    other = 0.5 * blurred_disc(2).roll(20, 1)[None] * (1 - foreground)
    members = torch.cat([two_classes(foreground), other[:, None]], dim=1)
    members[:, 0] -= other
    together = weigh_by_expected_dice(members)
    alone = torch.cat([weigh_by_expected_dice(members[i : i + 1]) for i in range(2)])
    assert torch.equal(together, alone)
    assert torch.equal(torch.jit.script(weigh_by_expected_dice)(members), together)
    swapped = weigh_by_expected_dice(members[:, [0, 2, 1]])
    torch.testing.assert_close(swapped[:, [0, 2, 1]], together)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.65, 0.9])
def test_the_foreground_is_what_exceeds_the_threshold(threshold):
    foreground = blurred_disc()
    weighed = weigh_by_threshold(two_classes(foreground[None]), threshold)[0]
    torch.testing.assert_close(weighed.sum(0), torch.ones(48, 48))
    assert torch.equal(weighed[1] > 0.5, foreground > threshold)
    torch.testing.assert_close(weighed[1] / weighed[0], foreground / (1 - foreground) * (1 - threshold) / threshold)


def test_of_several_classes_a_threshold_leaves_the_order_of_the_foreground():
    probabilities = torch.tensor([0.3, 0.4, 0.3]).reshape(1, 3, 1)
    weighed = weigh_by_threshold(probabilities, 0.65)[0, :, 0]
    assert weighed.argmax() == 0 and weighed[1] > weighed[2]
    torch.testing.assert_close(weighed[1] / weighed[2], torch.tensor(4 / 3))
