from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.networks.schedulers import DDPMScheduler
from monai.transforms import Flip
from torch import nn

import shared_components.diffusion.schedules  # noqa: F401  registers the schedule
from shared_components.diffusion.inferers import SamplingInferer
from shared_components.diffusion.segmenter import DiffusionSegmenter, _chosen
from shared_components.diffusion.slices import volume_to_slices
from shared_components.ensembling import combine_members, weigh_by_expected_dice, weigh_by_threshold
from shared_components.errors import InputError
from shared_components.networks.cdal_generator import CDALGenerator


def scheduler(timesteps: int = 2) -> DDPMScheduler:
    return DDPMScheduler(timesteps, schedule="vp_few_step")


def segmenter(timesteps: int = 2, **options) -> DiffusionSegmenter:
    torch.manual_seed(0)
    reach = options.setdefault("num_adjacent_slices", 1)
    denoiser = CDALGenerator(
        in_channels=3,
        condition_channels=2 * reach + 1,
        channels=(8, 16),
        attention_levels=(False, False),
        num_condition_blocks=1,
        condition_norm_groups=4,
        latent_dim=6,
        latent_embedding_dim=8,
        output_activation="softmax",
    )
    for parameter in denoiser.parameters():  # fresh networks return almost a constant
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=(parameter[0].numel()) ** -0.5)
    return DiffusionSegmenter(denoiser, scheduler(timesteps), **options).eval()


VOLUME = torch.randn(2, 1, 9, 7, 5, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("combine", ["majority", "mean", "staple"])
def test_result_does_not_depend_on_chunks(combine):
    options = {"num_samples": 4, "combine": combine, "mirror_members": True, "slice_axes": (2, 0)}
    whole = segmenter(max_batch_size=1000, **options)(VOLUME)
    for size in (1, 3, 7):
        part = segmenter(max_batch_size=size, **options)(VOLUME)
        torch.testing.assert_close(part, whole, atol=1e-5, rtol=0)


def test_a_member_alone_gets_its_views_features_without_a_copy():
    views = [[torch.randn(2, 3)], [torch.randn(2, 3)]]
    assert _chosen(views, 0, torch.tensor([1])) is views[1][0]
    assert torch.equal(_chosen(views, 0, torch.tensor([1, 0])), torch.cat([views[1][0], views[0][0]]))


def test_staple_fuses_the_members_votes_and_keeps_one_byte_of_each():
    """A float for every class, member and voxel of a volume is gigabytes."""
    network = segmenter(num_samples=4, combine="staple")
    network.keep_members = True
    found = network(VOLUME)
    votes = nn.functional.one_hot(network.member_labels.long(), 3).movedim(-1, 2).float()
    torch.testing.assert_close(found, combine_members(votes, "staple"))
    kept = network._segment_slices(volume_to_slices(VOLUME, 1), VOLUME.shape[4], 0, 1)
    assert kept.numel() * kept.element_size() == 4 * VOLUME.numel()


@pytest.mark.parametrize("combine", ["mean", "staple"])
def test_the_decision_weighs_what_the_members_agreed_on(combine):
    plain = segmenter(num_samples=3, combine=combine)(VOLUME)
    decided = segmenter(num_samples=3, combine=combine, decision="expected_dice")(VOLUME)
    assert not torch.equal(decided, plain) or combine == "staple"
    torch.testing.assert_close(decided, weigh_by_expected_dice(plain))
    decided = segmenter(num_samples=3, combine=combine, threshold=0.65)(VOLUME)
    torch.testing.assert_close(decided, weigh_by_threshold(plain, 0.65))


def test_result_does_not_depend_on_the_batch():
    network = segmenter(num_samples=3, combine="mean")
    whole = network(VOLUME)
    torch.testing.assert_close(network(VOLUME[1:]), whole[1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(network(VOLUME.flip(0)).flip(0), whole, atol=1e-5, rtol=0)


def test_probabilities_sum_to_one_on_the_input_grid():
    for combine in ("majority", "mean", "staple"):
        result = segmenter(combine=combine)(VOLUME)
        assert result.shape == (2, 3, 9, 7, 5) and result.dtype == torch.float32
        torch.testing.assert_close(result.sum(dim=1), torch.ones(2, 9, 7, 5), atol=1e-5, rtol=0)


def test_majority_counts_members():
    result = segmenter(num_samples=4)(VOLUME)
    torch.testing.assert_close(result * 4, (result * 4).round(), atol=1e-5, rtol=0)
    assert 0 < ((result > 0) & (result < 1)).float().mean() < 1


def test_seed_changes_the_members():
    assert not torch.equal(segmenter(seed=0, combine="mean")(VOLUME), segmenter(seed=1, combine="mean")(VOLUME))


def test_more_members_keep_the_first_ones():
    """Twice the mean of two members less the first is the second: probabilities again."""
    one, two = (segmenter(num_samples=n, combine="mean", max_batch_size=1000)(VOLUME) for n in (1, 2))
    second = 2 * two - one
    assert second.min() > -1e-4 and second.max() < 1 + 1e-4
    torch.testing.assert_close(second.sum(dim=1), torch.ones(2, 9, 7, 5), atol=1e-4, rtol=0)


def test_mirrored_members_are_mirrored_back():
    """Two members of a mirrored image are the two of the image with the views exchanged: same mean, if noise agrees."""
    network = segmenter(num_samples=2, combine="mean", mirror_members=True, num_adjacent_slices=0)
    image = VOLUME[:, :, :8, :6, 0]
    network._noise = lambda draw, member, position, channels, size: torch.zeros(len(member), channels, *size)
    torch.testing.assert_close(network(image.flip(2)).flip(2), network(image), atol=1e-5, rtol=0)
    network.mirror_members = False
    assert not torch.allclose(network(image.flip(2)).flip(2), network(image), atol=1e-3)


def without_noise(**options) -> DiffusionSegmenter:
    network = segmenter(combine="mean", **options)
    network._noise = lambda draw, member, position, channels, size: torch.zeros(len(member), channels, *size)
    return network


def test_four_members_are_mirrored_along_both_axes():
    image = VOLUME[:, :, :8, :6, 0]
    both = {"mirror_members": True, "mirror_axes": (0, 1), "num_adjacent_slices": 0}
    alone = without_noise(num_samples=1, num_adjacent_slices=0)
    views = [alone(image.flip(axes)).flip(axes) if axes else alone(image) for axes in ((), (2,), (3,), (2, 3))]
    assert min((a - b).abs().max() for i, a in enumerate(views) for b in views[:i]) > 1e-4
    for count in (1, 2, 3, 4):
        expected = torch.stack(views[:count]).mean(0)
        torch.testing.assert_close(without_noise(num_samples=count, **both)(image), expected, atol=1e-5, rtol=0)


def test_members_along_several_axes():
    """Slicing along the first axis is slicing the volume whose first and last axes changed places."""
    last, first = without_noise(num_samples=1)(VOLUME), without_noise(num_samples=1, slice_axes=(0,))(VOLUME)
    exchanged = without_noise(num_samples=1)(VOLUME.transpose(2, 4)).transpose(2, 4)
    torch.testing.assert_close(first, exchanged, atol=1e-5, rtol=0)
    assert (first - last).abs().max() > 1e-3
    three = without_noise(num_samples=3, slice_axes=(2, 0))(VOLUME)
    torch.testing.assert_close(three, (2 * last + first) / 3, atol=1e-5, rtol=0)
    torch.testing.assert_close(without_noise(num_samples=1, slice_axes=(2, 0))(VOLUME), last, atol=1e-5, rtol=0)


def test_each_axis_has_its_mirrored_members():
    mirror = {"mirror_members": True}
    four = without_noise(num_samples=4, slice_axes=(2, 0), **mirror)(VOLUME)
    pairs = [without_noise(num_samples=2, slice_axes=(axis,), **mirror)(VOLUME) for axis in (2, 0)]
    torch.testing.assert_close(four, (pairs[0] + pairs[1]) / 2, atol=1e-5, rtol=0)


def test_an_image_has_no_other_axis_to_slice_along():
    image = VOLUME[..., 0]
    options = {"num_samples": 3, "num_adjacent_slices": 0, "combine": "mean"}
    assert torch.equal(segmenter(slice_axes=(2, 0), **options)(image), segmenter(**options)(image))


def test_train_mode_draws_fresh_noise_and_eval_does_not():
    network = segmenter(combine="mean")
    assert torch.equal(network(VOLUME), network(VOLUME))
    network.train()
    assert not torch.equal(network(VOLUME), network(VOLUME))


def test_single_step_returns_the_denoiser_at_the_last_timestep():
    network = segmenter(timesteps=4, num_inference_steps=1, num_samples=1, combine="mean", num_adjacent_slices=0)
    image = VOLUME[:, :, :8, :6, 0]
    result = network(image)
    zero = torch.zeros(2, dtype=torch.long)
    noisy = network._noise(0, zero, zero, 3, (8, 6))
    latent = network._noise(1, zero, zero, 6, (1, 1)).flatten(1)
    clean = network.denoiser(noisy, torch.full((2,), 3), image, latent)
    torch.testing.assert_close(result, (clean + 1) / 2, atol=1e-5, rtol=0)


def test_scripted_network_equals_the_eager_one():
    for combine in ("majority", "staple"):
        mirror = {"mirror_members": True, "mirror_axes": (1, 0)}
        options = {"slice_axes": (2, 0), **mirror} if combine == "staple" else {}
        network = segmenter(num_samples=3, combine=combine, **options)
        scripted = torch.jit.script(network)
        torch.testing.assert_close(scripted(VOLUME), network(VOLUME), atol=1e-5, rtol=0)


def test_weights_of_another_schedule_are_refused():
    with pytest.raises(RuntimeError, match="noise schedule of 4 steps .* has 2"):
        segmenter(timesteps=2).load_state_dict(segmenter(timesteps=4).state_dict())


def test_state_does_not_depend_on_how_it_samples():
    few, many = segmenter(timesteps=4, num_inference_steps=1, num_samples=1), segmenter(timesteps=4, combine="mean")
    few.load_state_dict(many.state_dict())
    assert list(few.state_dict()) == list(many.state_dict())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_samples": 0}, "num_samples must be a whole number of at least 1, not 0"),
        ({"num_samples": 2.5}, "not 2.5"),
        ({"mirror_axes": (0, 2)}, r"mirror_axes must be 0, 1 or both, not \[0, 2\]"),
        ({"combine": "vote"}, "majority, mean, staple, not 'vote'"),
        ({"num_inference_steps": 3}, r"1\.\.2 .*, not 3"),
        ({"num_inference_steps": -1}, r"1\.\.2 .*, not -1"),
        ({"sampler": "euler"}, "ddpm, ddim"),
        ({"decision": "best"}, "decision must be one of argmax, expected_dice, not 'best'"),
        ({"threshold": 1.0}, "threshold must be a number above 0 and below 1, not 1.0"),
        ({"slice_axes": (3,)}, r"slice_axes must be one or several of 0, 1, 2, not \[3\]"),
    ],
)
def test_nonsense_is_refused_with_the_choices(options, message):
    with pytest.raises(InputError, match=message):
        segmenter(**options)


def test_sampling_can_be_set_on_a_built_network():
    network = segmenter(timesteps=4, num_samples=1, combine="mean")
    SamplingInferer(3, 2)(VOLUME, network)
    expected = segmenter(timesteps=4, num_samples=3, num_inference_steps=2, combine="mean")(VOLUME)
    torch.testing.assert_close(network(VOLUME), expected, atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="not 0"):
        SamplingInferer(0)(VOLUME, network)
    with pytest.raises(InputError, match=r"1\.\.4 .*, not 5"):
        SamplingInferer(1, 5)(VOLUME, network)


def test_prediction_carries_what_was_done_to_the_image():
    image = Flip(spatial_axis=0)(MetaTensor(VOLUME[0], affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))))
    batch = list_data_collate([{"image": image}])["image"]
    prediction = decollate_batch(segmenter()(batch))[0]
    assert torch.equal(prediction.affine, image.affine)
    assert [step["class"] for step in prediction.applied_operations] == ["Flip"]


def test_bfloat16_changes_little_and_something():
    full, half = segmenter(combine="mean")(VOLUME), segmenter(combine="mean", amp=True)(VOLUME)
    assert half.dtype == torch.float32
    assert 0 < (full - half).abs().max() < 0.2
    assert (full - half).abs().mean() < 0.01


@pytest.mark.parametrize("batch_size", [2, 64])
@pytest.mark.parametrize("options", [{}, {"slice_axes": (2, 0), "mirror_members": True}])
def test_kept_members_are_those_that_voted(options, batch_size):
    network = segmenter(num_samples=4, max_batch_size=batch_size, **options)
    network(VOLUME)
    assert network.member_labels is None
    network.keep_members = True
    for image in (VOLUME, VOLUME[:1]):
        shares = network(image)
        kept = network.member_labels
        assert kept.dtype == torch.uint8 and kept.shape == (4, len(image), 9, 7, 5)
        votes = nn.functional.one_hot(kept.long(), 3).movedim(-1, 2).float().mean(0)
        torch.testing.assert_close(votes, shares, atol=1e-6, rtol=0)


def test_members_of_images_are_kept_whatever_is_made_of_them():
    image = VOLUME[..., 0]
    kept = []
    for combine in ("majority", "mean", "staple"):
        network = segmenter(num_samples=3, combine=combine, num_adjacent_slices=0, decision="expected_dice")
        network.keep_members = True
        network(image)
        kept.append(network.member_labels)
    assert kept[0].shape == (3, 2, 9, 7) and not torch.equal(kept[0][0], kept[0][1])
    assert torch.equal(kept[0], kept[1]) and torch.equal(kept[0], kept[2])


def test_members_are_kept_once_where_the_memory_did_not_do(monkeypatch):
    network, calls = segmenter(num_samples=2, max_batch_size=4), []
    network.keep_members, sample = True, network._members

    def once_too_large(*arguments):
        calls.append(None)
        if len(calls) == 2:
            raise MemoryError
        return sample(*arguments)

    monkeypatch.setattr(network, "_members", once_too_large)
    network(VOLUME)
    assert network.max_batch_size == 2 and network.member_labels.shape == (2, 2, 9, 7, 5)
