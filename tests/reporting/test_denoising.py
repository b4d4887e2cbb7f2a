import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator
from monai.networks.schedulers import DDPMScheduler
from PIL import Image
from torch import nn

import shared_components.diffusion.schedules  # noqa: F401  registers the schedule
from shared_components.diffusion.label_coding import LabelCoding
from shared_components.diffusion.segmenter import DiffusionSegmenter
from shared_components.reporting import DenoisingPreview, TrainingReportHandler
from shared_components.reporting.denoising import PICTURE, Chain, ChainRecorder, denoising_strip
from shared_components.reporting.overlays import GAP, label_colour


class Oracle(nn.Module):
    """Finds the foreground where the image is positive, and is shown nothing else."""

    in_channels, latent_dim, downsampling = 2, 0, 1

    def encode_condition(self, condition):
        return [condition]

    def forward(self, noisy, timesteps, condition, latent=None, condition_features=None):
        middle = condition.shape[1] // 2
        inside = (condition[:, middle : middle + 1] > 0).float()
        return torch.cat([1 - inside, inside], dim=1) * 2 - 1


def segmenter(timesteps=4, **options):
    return DiffusionSegmenter(
        Oracle(), DDPMScheduler(timesteps, schedule="vp_few_step"), num_samples=1, **options
    ).eval()


def volume():
    image = -torch.ones(1, 1, 6, 8, 5)
    image[..., 1:3, 1:3, 1] = 1
    image[..., 2:5, 1:7, 3] = 1
    return image


def test_a_chain_is_that_of_the_slice_with_the_most_foreground():
    network = segmenter(num_adjacent_slices=1, max_batch_size=2)
    recorder = ChainRecorder(network, max_steps=10)
    prediction = network(volume())
    recorder.remove()
    chain = recorder.chain
    assert chain.timesteps == [3, 2, 1, 0] and (len(chain.noisy), len(chain.clean)) == (5, 4)
    assert torch.equal(chain.condition[1], volume()[0, 0, :, :, 3])
    assert torch.equal(chain.clean[0][1] > 0, volume()[0, 0, :, :, 3] > 0)
    assert chain.noisy[0].std() > 0.8 and torch.equal(chain.noisy[-1] > 0, chain.clean[-1] > 0)
    torch.testing.assert_close(network(volume()), prediction)  # and nothing listens any more
    assert recorder.chain is chain


def test_of_many_steps_the_first_and_the_last_are_kept():
    network = segmenter(timesteps=20)
    recorder = ChainRecorder(network, max_steps=4)
    network(volume())
    assert len(recorder.chain.timesteps) == 4
    assert recorder.chain.timesteps[0] == 19 and recorder.chain.timesteps[-1] == 0


def test_a_strip_shows_presence_in_the_colour_of_the_class():
    state = torch.full((2, 4, 8), -1.0)
    state[1, :2] = 1.0
    chain = Chain(torch.zeros(1, 4, 8), [7.0], [state, -state], [state])
    strip = denoising_strip(chain, LabelCoding([1], coding="classes"))
    left, top = GAP + PICTURE + GAP, GAP
    # the first axis, of 4, runs to the right, so the picture is half as wide as high
    picture = strip[top : top + PICTURE, left + PICTURE // 4 : left + 3 * PICTURE // 4]
    assert tuple(picture[5, 5]) == label_colour(1) and tuple(picture[5, -5]) == (0, 0, 0)


def validation(network, folder, images):
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"), val_data_loader=[{"image": item, "label": item} for item in images], network=network
    )
    DenoisingPreview(folder, log_dir=folder / "tensorboard").attach(evaluator)
    return evaluator


def test_a_validation_leaves_the_picture_of_its_first_case(tmp_path):
    evaluator = validation(segmenter(), tmp_path, [volume(), -volume()])
    evaluator.run(3)
    first = np.asarray(Image.open(tmp_path / "denoising.png"))
    evaluator.run(4)
    assert np.array_equal(first, np.asarray(Image.open(tmp_path / "denoising.png")))  # the noise is the same
    validation(segmenter(), tmp_path, [-volume()]).run(5)
    assert not np.array_equal(first, np.asarray(Image.open(tmp_path / "denoising.png")))
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_plain_network_leaves_none(tmp_path):
    validation(nn.Conv3d(1, 2, 1), tmp_path, [volume()]).run(1)
    assert list(tmp_path.iterdir()) == []


def test_the_training_page_shows_it_and_a_new_run_removes_it(tmp_path):
    (tmp_path / "denoising.png").write_bytes(b"of an earlier run")
    trainer = Engine(lambda engine, batch: {"loss": torch.tensor(1.0)})
    TrainingReportHandler(tmp_path).attach(trainer)
    trainer.run([0], 1)
    assert "First case" not in (tmp_path / "training.html").read_text(encoding="utf-8")
    (tmp_path / "denoising.png").write_bytes(b"of this run")
    trainer.run([0], 2)
    assert "First case" in (tmp_path / "training.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("coding", ["channels", "nested"])
def test_codings_without_a_background_channel_are_drawn(coding):
    coding = LabelCoding([[1, 2], [2]] if coding == "nested" else [1, 2], coding=coding, value_range="01")
    state = torch.zeros(2, 4, 4)
    state[1] = 1.0
    strip = denoising_strip(Chain(torch.zeros(3, 4, 4), [1.0], [state, state], [state]), coding)
    assert tuple(strip[GAP + 5, 2 * GAP + PICTURE + 5]) == label_colour(2)
