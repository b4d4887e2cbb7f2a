from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from shared_components.diffusion.deep_ensemble import DeepEnsemble, of_trainings
from shared_components.ensembling import combine_members, weigh_by_expected_dice, weigh_by_threshold
from shared_components.errors import InputError
from shared_components.training import LoadWeights
from tests.diffusion.test_segmenter import VOLUME, segmenter


def other_weights(seed: int) -> dict:
    """Of a training of its own."""
    network = segmenter()
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
    return network.state_dict()


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{name}.pt" for name in ("first", "second", "third")]
    for seed, path in enumerate(paths):
        torch.save(other_weights(seed), path)
    return [str(path) for path in paths]


def members_of(files: list[str], num_samples: int = 2) -> torch.Tensor:
    """(M, B, classes, *spatial): every member alone, by a segmenter without an ensemble."""
    found = []
    for index, file in enumerate(files):
        for count in range(1, num_samples + 1):
            network = segmenter(num_samples=count, combine="mean", seed=index)
            LoadWeights(file, network)()
            found.append(count * network(VOLUME) - (sum(found[-count + 1 :]) if count > 1 else 0))
    return torch.stack(found)


@pytest.mark.parametrize("combine", ["mean", "majority", "staple"])
def test_all_members_of_all_trainings_are_combined_at_once(files, combine):
    network = of_trainings(segmenter(num_samples=2, combine=combine), files).eval()
    LoadWeights(files, network)()
    torch.testing.assert_close(network(VOLUME), combine_members(members_of(files), combine), atol=1e-4, rtol=0)
    assert (network.num_networks, network.num_samples) == (3, 6)


def test_the_decision_is_taken_once_and_of_all(files):
    networks = [
        of_trainings(segmenter(num_samples=1, combine="mean", **options), files).eval()
        for options in ({}, {"threshold": 0.65}, {"decision": "expected_dice"})
    ]
    for network in networks:
        LoadWeights(files, network)()
    plain, above, expected = [network(VOLUME) for network in networks]
    torch.testing.assert_close(above, weigh_by_threshold(plain, 0.65))
    torch.testing.assert_close(expected, weigh_by_expected_dice(plain))


@pytest.mark.parametrize("combine", ["mean", "staple"])
def test_members_are_kept_on_demand_and_in_order(files, combine):
    network = of_trainings(segmenter(num_samples=2, combine=combine), files).eval()
    LoadWeights(files, network)()
    network(VOLUME)
    assert network.member_labels is None
    network.keep_members = True
    network(VOLUME)
    assert torch.equal(network.member_labels, members_of(files).argmax(dim=2).to(torch.uint8))


def test_metadata_and_sampling_reach_the_ensemble(files):
    network = of_trainings(segmenter(num_samples=2), files).eval()
    image = MetaTensor(VOLUME, meta={"filename_or_obj": "x.nii"})
    assert network(image).meta["filename_or_obj"] == "x.nii"
    network.set_sampling(3, 1)
    assert (network.num_samples, network.num_inference_steps) == (9, 1)


def test_one_file_is_the_segmenter_itself(files):
    network = segmenter()
    assert of_trainings(network, files[0]) is network and of_trainings(network, files[:1]) is network
    LoadWeights(files[:1], network)()
    assert torch.equal(network.state_dict()["schedule"], other_weights(0)["schedule"])


def test_nonsense_ends_in_a_line(files, tmp_path):
    with pytest.raises(InputError, match="2 files, and DiffusionSegmenter takes the weights of 1; .* starts from one"):
        LoadWeights(files[:2], segmenter())
    with pytest.raises(InputError, match="expected at least 2"):
        DeepEnsemble(segmenter(), 1)
    with pytest.raises(InputError, match="62 members at most, and 2 networks make 64; give a smaller --num_samples"):
        DeepEnsemble(segmenter(num_samples=32, combine="staple"), 2)
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "other.pt")
    network = of_trainings(segmenter(), [files[0], str(tmp_path / "other.pt")])
    with pytest.raises(InputError, match="other.pt: weights of another network"):
        LoadWeights([files[0], str(tmp_path / "other.pt")], network)()
