"""Training on image-level labels: what is drawn, what is compared, and the choice of the epoch without masks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from monai.handlers import ROCAUC
from torch import nn

from shared_components.diffusion.hybrid_loss import DenoisingLoss, HybridLoss
from shared_components.diffusion.label_training import (
    ImageClassPrepareBatch,
    ImageLabelLoss,
    ImageLabelPrepareBatch,
    ImageLabelTraining,
    LabelGain,
    NoisyLooks,
    gate_accuracy,
    label_gain,
)
from shared_components.diffusion.timestep_samplers import UniformTimestepSampler
from shared_components.errors import InputError
from tests.diffusion.class_stubs import StubDenoiser, scheduler


def batch(count: int = 6) -> dict:
    generator = torch.Generator().manual_seed(0)
    return {"image": torch.rand(count, 1, 8, 8, generator=generator) * 2 - 1, "class": torch.arange(count) % 2}


def test_a_batch_becomes_noisy_images_and_labels():
    torch.manual_seed(0)
    noisy, targets, (timesteps,), said = ImageLabelPrepareBatch(scheduler(1000))(batch(), "cpu")
    level = scheduler(1000).alphas_cumprod[timesteps].float().view(-1, 1, 1, 1)
    expected = level.sqrt() * batch()["image"] + (1 - level).sqrt() * targets["target"]
    assert torch.allclose(noisy, expected, atol=1e-5)
    assert torch.equal(said["class_weights"], F.one_hot(batch()["class"], 2).float())
    assert torch.equal(said["clean"], batch()["image"]) and torch.equal(targets["classes"], batch()["class"])


def test_labels_are_dropped_for_the_null_class():
    torch.manual_seed(0)
    prepare = ImageLabelPrepareBatch(scheduler(1000), label_dropout=0.25)
    weights = prepare({"image": torch.zeros(4000, 1, 1, 1), "class": torch.ones(4000)}, "cpu")[3]["class_weights"]
    assert weights.shape == (4000, 3) and torch.equal(weights.sum(1), torch.ones(4000))
    assert float(weights[:, 2].mean()) == pytest.approx(0.25, abs=0.03)
    assert weights[:, 0].max() == 0
    with pytest.raises(InputError, match="label_dropout must be at least 0 and below 1, not 1"):
        ImageLabelPrepareBatch(scheduler(1000), label_dropout=1)
    with pytest.raises(InputError, match="num_train_timesteps 10, the scheduler 1000"):
        ImageLabelPrepareBatch(scheduler(1000), timestep_sampler=UniformTimestepSampler(10))


def test_the_loss_of_a_new_network_with_variance():
    """Zeros for noise and variance head, on the published schedule: squared error plus bound in bits."""
    clean = torch.linspace(0, 1, 8192).reshape(2, 1, 64, 64)
    noise = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(9))
    timesteps = torch.tensor([0, 2000])
    targets = {"target": noise, "clean": clean, "timesteps": timesteps, "weights": torch.ones(2)}
    squares = (noise**2).flatten(1).mean(1)
    assert squares.tolist() == pytest.approx([0.96702677, 0.98698431], rel=1e-5)
    for objective, expected in (("hybrid", (2.3407931, 0.98893160)), ("hybrid_rescaled", (6.4620924, 0.99477345))):
        loss = HybridLoss(scheduler(4000), objective=objective)
        _, each = loss(torch.zeros(2, 2, 64, 64), noise, clean, timesteps)
        assert each.tolist() == pytest.approx(expected, rel=1e-5)
        both = ImageLabelLoss(DenoisingLoss(loss))({"denoised": torch.zeros(2, 2, 64, 64)}, targets)
        assert float(both) == pytest.approx(sum(expected) / 2, rel=1e-5)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 2)

    def forward(self, x, timesteps=None):
        return self.linear(x.mean(dim=(1, 2, 3)).unsqueeze(1))


def test_networks_are_trained_together_as_alone():
    table = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    denoiser, classifier, gate = StubDenoiser(table), Classifier(), Classifier()
    torch.manual_seed(0)
    noisy, targets, arguments, said = ImageLabelPrepareBatch(scheduler(1000))(batch(), "cpu")
    loss = ImageLabelLoss(DenoisingLoss(HybridLoss(scheduler(1000), learned_variance=False)))
    together = loss(ImageLabelTraining(denoiser, classifier, gate)(noisy, *arguments, **said), targets)
    parts = [
        ((table[batch()["class"]] - targets["target"]) ** 2).mean(),
        F.cross_entropy(classifier(noisy), batch()["class"]),
        F.cross_entropy(gate(batch()["image"]), batch()["class"]),
    ]
    assert float(together) == pytest.approx(float(sum(parts)), rel=1e-5)
    alone = loss(ImageLabelTraining(gate=gate)(noisy, *arguments, **said), targets)
    assert float(alone) == pytest.approx(float(parts[2]), rel=1e-6)


class RightLabelHelps(StubDenoiser):
    """Predicts the noise of images of its class exactly, half of it for the others; the class is the image's sign."""

    def forward(self, noisy, timesteps, class_weights=None):
        level = scheduler(1000).alphas_cumprod[timesteps.long()].float().view(-1, 1, 1, 1)
        clean = noisy.new_tensor([1.0]) * self.sign.view(-1, 1, 1, 1)
        noise = (noisy - level.sqrt() * clean) / (1 - level).sqrt()
        right = class_weights[torch.arange(len(noisy)), (self.sign > 0).long()].view(-1, 1, 1, 1)
        return noise * (0.5 + 0.5 * right)


def test_the_gain_of_the_right_label_needs_no_masks():
    denoiser = RightLabelHelps(torch.zeros(2, 1, 8, 8))
    denoiser.sign = torch.tensor([1.0, -1.0])
    network = LabelGain(denoiser, scheduler(1000), Classifier())
    images = denoiser.sign.view(2, 1, 1, 1).expand(2, 1, 8, 8)
    found = network(images)
    assert set(found) == {"errors", "positive"} and found["positive"].shape == (2,)
    assert torch.equal(found["errors"], network(images)["errors"])
    right, wrong = found["errors"][[0, 1], [1, 0]], found["errors"][[0, 1], [0, 1]]
    assert right.max() < 1e-6 and wrong.tolist() == pytest.approx([0.25, 0.25], rel=0.2)
    cases = [{"pred": {"errors": row}, "label": label} for row, label in zip(found["errors"], (1, 0))]
    assert label_gain(cases) == pytest.approx(200, rel=1e-3)
    assert label_gain([{**case, "label": 1 - case["label"]} for case in cases]) == pytest.approx(-200, rel=1e-3)
    told = [{"pred": {"positive": p}, "label": label} for p, label in ((0.9, 1), (0.2, 1), (0.3, 0), (0.6, 0))]
    assert gate_accuracy(told) == 0.5
    image, classes = ImageClassPrepareBatch()(batch(), "cpu")
    assert torch.equal(image, batch()["image"]) and torch.equal(classes, batch()["class"])


class KnowsUntil(nn.Module):
    """Tells the sign of an image up to a timestep, and the same of every image from there on."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last, self.timesteps = last, []

    def forward(self, noisy, timesteps):
        self.timesteps.append(int(timesteps[0]))
        logit = noisy.mean(dim=(1, 2, 3)) * (timesteps <= self.last)
        return torch.stack([-logit, logit], 1)


def test_the_classifier_is_validated_in_every_quarter_of_the_timesteps():
    """With MONAI's evaluator and metrics, as the bundles' configurations have it."""
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])
    items = [{"image": sign * torch.ones(1, 8, 8), "class": int(sign > 0)} for sign in signs]
    classifier = KnowsUntil(499)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(items, batch_size=2),
        network=LabelGain(StubDenoiser(torch.zeros(2, 1, 8, 8)), scheduler(1000), classifier=classifier),
        prepare_batch=ImageClassPrepareBatch(),
        key_val_metric={f"q{quarter}": ROCAUC(output_transform=NoisyLooks(quarter)) for quarter in (1, 2, 3, 4)},
    )
    evaluator.run()
    assert [evaluator.state.metrics[f"q{quarter}"] for quarter in (1, 2, 3, 4)] == pytest.approx([1, 1, 0.5, 0.5])
    assert classifier.timesteps[:16] == [int((look + 0.5) * 1000 / 16) for look in range(16)]
    with pytest.raises(InputError, match=r"quarter must be a whole number in 1\.\.4, not 0"):
        NoisyLooks(0)


def test_a_classifier_of_more_classes_is_asked_about_two():
    class Five(KnowsUntil):
        def forward(self, noisy, timesteps):
            return torch.cat([super().forward(noisy, timesteps), torch.full((len(noisy), 3), 9.0)], 1)

    network = LabelGain(StubDenoiser(torch.zeros(2, 1, 8, 8)), scheduler(1000), classifier=Five(999), num_looks=1)
    found = network(torch.ones(2, 1, 8, 8))["noisy_positive"]
    assert found.shape == (2, 4, 1) and (found[:, 0] > 0.7).all()
