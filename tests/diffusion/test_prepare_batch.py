from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer
from monai.inferers import SimpleInferer
from monai.networks.schedulers import DDPMScheduler
from torch import nn

import shared_components.diffusion.schedules  # noqa: F401  registers the schedules
from shared_components.diffusion.hybrid_loss import CalibrationLoss, DenoisingLoss, HybridLoss
from shared_components.diffusion.label_coding import LabelCoding
from shared_components.diffusion.prepare_batch import LabelDiffusionPrepareBatch, NoisePredictionPrepareBatch
from shared_components.diffusion.timestep_samplers import LossSecondMomentTimestepSampler, UniformTimestepSampler
from shared_components.errors import InputError

CODING = LabelCoding([1, [2, 3]], value_range="01")


def scheduler(timesteps: int = 100) -> DDPMScheduler:
    return DDPMScheduler(timesteps, schedule="linear_rescaled")


def images(batch: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "image": MetaTensor(torch.rand(batch, 3, 8, 8, generator=generator)),
        "label": MetaTensor(torch.randint(4, (batch, 1, 8, 8), generator=generator).float()),
    }


def volumes() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(2, 1, 8, 8, 5, generator=generator),
        "label": torch.randint(4, (2, 1, 8, 8, 5), generator=generator),
    }


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_what_a_step_on_images_gets(prediction_type):
    data, used = images(), scheduler()
    prepare = NoisePredictionPrepareBatch(CODING, used, prediction_type=prediction_type)
    noisy, targets, (timesteps, condition), kwargs = prepare(data, "cpu")
    assert not kwargs and type(noisy) is type(condition) is torch.Tensor
    assert torch.equal(condition, data["image"].as_tensor())
    assert torch.equal(targets["clean"], CODING.encode(data["label"].as_tensor()))
    assert timesteps.shape == (3,) and timesteps.min() >= 0 and timesteps.max() < 100
    assert torch.equal(targets["timesteps"], timesteps) and torch.equal(targets["weights"], torch.ones(3))
    abar = used.alphas_cumprod[timesteps].float().reshape(-1, 1, 1, 1)
    noise = (noisy - abar.sqrt() * targets["clean"]) / (1 - abar).sqrt()
    expected = {
        "epsilon": noise,
        "sample": targets["clean"],
        "v_prediction": abar.sqrt() * noise - (1 - abar).sqrt() * targets["clean"],
    }
    torch.testing.assert_close(targets["target"], expected[prediction_type], atol=1e-4, rtol=1e-4)
    assert used.alphas_cumprod.dtype == torch.float64


def test_presence_is_the_map_between_zero_and_one():
    data = images()
    for value_range in ("01", "pm1"):
        coding = LabelCoding([1, [2, 3]], value_range=value_range)
        _, targets, _, _ = NoisePredictionPrepareBatch(coding, scheduler())(data)
        assert torch.equal(targets["presence"], CODING.encode(data["label"].as_tensor()))


def test_all_labels_of_a_structure_are_alike():
    data = images()
    merged = {**data, "label": data["label"].where(data["label"] != 3, 2)}
    prepare = NoisePredictionPrepareBatch(CODING, scheduler())
    torch.manual_seed(0)
    noisy, targets, _, _ = prepare(data)
    torch.manual_seed(0)
    again, merged_targets, _, _ = prepare(merged)
    assert torch.equal(noisy, again) and torch.equal(targets["clean"], merged_targets["clean"])


def test_crops_become_slices_as_for_the_other_denoisers():
    data = volumes()
    condition, clean = LabelDiffusionPrepareBatch(LabelCoding(list(range(1, 4)), "classes"), 1)(data)
    coding = LabelCoding([1, 2, 3], "classes")
    _, targets, (timesteps, seen), _ = NoisePredictionPrepareBatch(coding, scheduler(), None, 1)(data)
    assert seen.shape == (6, 3, 8, 8) and timesteps.shape == (6,)
    assert torch.equal(seen, condition) and torch.equal(targets["clean"], clean)


def test_a_crop_without_neighbours_repeats_its_outermost_slices():
    data = {name: item[..., :2] for name, item in volumes().items()}
    condition, clean = LabelDiffusionPrepareBatch(LabelCoding([1, 2, 3], "classes"), 1)(data)
    image = data["image"][:1, 0]
    assert condition.shape == (2 * len(data["image"]), 3, 8, 8) and len(clean) == len(condition)
    assert torch.equal(condition[0], torch.cat([image[..., 0], image[..., 0], image[..., 1]]))


def test_draws_are_fresh_and_follow_the_global_generator():
    data, prepare = images(), NoisePredictionPrepareBatch(CODING, scheduler())
    torch.manual_seed(5)
    first, second = prepare(data), prepare(data)
    torch.manual_seed(5)
    again = prepare(data)
    assert torch.equal(first[0], again[0]) and torch.equal(first[2][0], again[2][0])
    assert not torch.equal(first[0], second[0]) and not torch.equal(first[1]["target"], second[1]["target"])


def test_weights_come_with_the_timesteps():
    sampler = LossSecondMomentTimestepSampler(100, history=1)
    sampler.update(torch.arange(100), torch.linspace(1, 2, 100))
    _, targets, (timesteps, _), _ = NoisePredictionPrepareBatch(CODING, scheduler(), sampler)(images(20))
    expected = 1 / (100 * sampler.probabilities()[timesteps])
    torch.testing.assert_close(targets["weights"], expected.float())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"prediction_type": "x0"}, "sample, epsilon, v_prediction, not 'x0'"),
        ({"timestep_sampler": UniformTimestepSampler(50)}, "num_train_timesteps 50, the scheduler 100"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        NoisePredictionPrepareBatch(CODING, scheduler(), **options)


class Denoiser(nn.Module):
    """One convolution to a prediction, a variance head and a calibration map of two structures each."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(5, 6, 3, padding=1)

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        output = self.convolution(torch.cat([noisy, condition], dim=1) + timesteps.reshape(-1, 1, 1, 1) / 1000)
        return torch.cat([output[:, :4], output[:, 4:].sigmoid()], dim=1)


def test_monais_trainer_runs_on_it_as_it_is():
    torch.manual_seed(0)
    network, sampler = Denoiser(), LossSecondMomentTimestepSampler(100)
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=2,
        train_data_loader=[images(), images(1)],
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), 1e-2),
        loss_function=DenoisingLoss(HybridLoss(scheduler()), CalibrationLoss(), sampler),
        inferer=SimpleInferer(),
        prepare_batch=NoisePredictionPrepareBatch(CODING, scheduler(), sampler),
    )
    before = network.convolution.weight.detach().clone()
    trainer.run()
    assert torch.isfinite(torch.as_tensor(trainer.state.output[0]["loss"]))
    assert not torch.equal(network.convolution.weight, before)
    assert sampler.state_dict()["counts"].sum() == 2 * (3 + 1)
