from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from skimage.color import rgb2hed

from shared_components.diffusion.tiles import TiledDenoiser
from shared_components.errors import InputError
from shared_components.networks.cdal_generator import CDALGenerator
from shared_components.networks.stain_channels import LEAST_RANGE, StainConditioned, stain_conditioned

REPOSITORY = Path(__file__).resolve().parents[2]


def generator(condition_channels: int = 2) -> CDALGenerator:
    torch.manual_seed(0)
    denoiser = CDALGenerator(
        in_channels=2,
        condition_channels=condition_channels,
        channels=[8, 16],
        num_res_blocks=1,
        attention_levels=[False, False],
        num_condition_blocks=1,
        condition_norm_groups=8,
    ).eval()
    for parameter in denoiser.parameters():  # a fresh one predicts zeros, which tell nothing
        torch.nn.init.normal_(parameter, std=0.2)
    return denoiser


def pictures(count: int = 2, side: int = 48) -> torch.Tensor:
    """Pictures of tissue: light between 0.15 and 0.95 in each colour, in [-1, 1]."""
    light = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.15
    return light * 2 - 1


def test_stains_are_those_of_scikit_image_between_their_percentiles() -> None:
    picture = pictures(1)
    amounts = np.moveaxis(rgb2hed(np.moveaxis(((picture[0] + 1) / 2).double().numpy(), 0, -1)), -1, 0)[:2]
    expected = []
    for amount in amounts:
        low, high = np.percentile(amount, [1, 99], method="nearest")
        expected.append(np.clip((amount - low) / (high - low), 0, 1) * 2 - 1)
    stains = StainConditioned(generator()).stains(picture)
    assert stains.shape == (1, 2, 48, 48)
    np.testing.assert_allclose(stains[0].numpy(), np.stack(expected), atol=1e-4)


@pytest.mark.parametrize("strength", [0.6, 1.5])
def test_a_slide_stained_more_or_less_strongly_has_the_same_stains(strength: float) -> None:
    picture = pictures()
    other = ((picture + 1) / 2) ** strength * 2 - 1  # light falls exponentially with the dye
    assert (other - picture).abs().max() > 0.1
    stains = StainConditioned(generator()).stains
    torch.testing.assert_close(stains(other), stains(picture), atol=1e-4, rtol=0)


def test_a_dark_blue_nucleus_is_haematoxylin_and_pink_tissue_eosin() -> None:
    picture = torch.tensor([230.0, 225.0, 235.0]).reshape(1, 3, 1, 1).repeat(1, 1, 20, 20)
    picture[0, :, :8, :8] = torch.tensor([70.0, 55.0, 130.0]).reshape(3, 1, 1)
    picture[0, :, 12:, 12:] = torch.tensor([235.0, 110.0, 190.0]).reshape(3, 1, 1)
    haematoxylin, eosin = StainConditioned(generator()).stains(picture / 127.5 - 1)[0]
    assert haematoxylin[:8, :8].min() == 1 and haematoxylin[12:, 12:].max() < -0.5 and haematoxylin[10, 10] < -0.5
    assert eosin[12:, 12:].min() == 1 and eosin[10, 10] < -0.5


@pytest.mark.parametrize("noise", [1.0, 2.0, 4.0])
def test_empty_glass_is_no_tissue_however_noisy(noise: float) -> None:
    """Between its own percentiles alone the noise would fill the whole range from -1 to 1."""
    levels = 240 + noise * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    levels = levels.round().clamp(0, 255)
    stains = StainConditioned(generator()).stains(levels / 127.5 - 1)[0]
    amounts = np.moveaxis(rgb2hed(np.moveaxis(levels[0].double().numpy() / 255, 0, -1)), -1, 0)[:2] * -np.log(1e-6)
    for stain, amount, least in zip(stains, amounts, LEAST_RANGE, strict=True):
        low, high = np.percentile(amount, [1, 99], method="nearest")
        assert high - low < least
        assert float(stain.max()) == pytest.approx(2 * ((high - low) / least) ** 2 - 1, abs=1e-3)
    assert stains.max() < -0.5


def test_the_shipped_weights_leave_empty_glass_empty() -> None:
    bundle = REPOSITORY / "bundles" / "cdal_monuseg"
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.update({"device": "cpu", "amp": False, "num_samples": 1, "num_inference_steps": 1})
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    levels = 240 + 1.5 * torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        marked = network(levels.round() / 127.5 - 1).argmax(1)
    assert marked.float().mean() < 0.01  # a third of it, were the noise stretched


def test_pictures_that_are_no_light_are_refused() -> None:
    standardised = pictures() * 3
    with pytest.raises(InputError, match=r"normalisation: .* -?[\d.]+ to [\d.]+, .* from -1 to 1; .* --stains False"):
        StainConditioned(generator()).encode_condition(standardised)


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_a_picture_of_one_colour_has_no_stain_and_is_finite(value: float) -> None:
    assert StainConditioned(generator()).stains(torch.full((1, 3, 16, 16), value)).eq(-1).all()


def test_pictures_do_not_change_each_others_stains() -> None:
    both, stains = pictures(), StainConditioned(generator()).stains
    torch.testing.assert_close(stains(both)[1:], stains(both[1:]), atol=0, rtol=0)


def test_autocast_rounds_no_stain() -> None:
    stains = StainConditioned(generator()).stains
    with torch.autocast("cpu", torch.bfloat16):
        rounded = stains(pictures())
    torch.testing.assert_close(rounded, stains(pictures()), atol=1e-6, rtol=0)


def test_the_denoiser_sees_the_stains_with_features_or_without() -> None:
    denoiser, stained, picture = generator(), StainConditioned(generator()), pictures()
    noisy, timesteps = torch.randn(2, 2, 48, 48), torch.tensor([0, 1])
    expected = denoiser(noisy, timesteps, stained.stains(picture))
    torch.testing.assert_close(stained(noisy, timesteps, picture), expected)
    features = stained.encode_condition(picture)
    torch.testing.assert_close(stained(noisy, timesteps, picture, None, features), expected)
    unstained = denoiser(noisy, timesteps, -torch.ones(2, 2, 48, 48))
    assert (expected - unstained).abs().max() > 0.01


def test_tiles_have_the_stains_of_the_whole_picture() -> None:
    picture = pictures(1)
    picture[:, :, :24] = picture[:, :, :24] * 0.2 + 0.7  # pale above
    stained = StainConditioned(TiledDenoiser(generator(), tile_size=32))
    tiles = stained.denoiser
    noisy, timesteps = torch.randn(1, 2, 48, 48), torch.tensor([1])
    expected = tiles(noisy, timesteps, stained.stains(picture))
    torch.testing.assert_close(stained(noisy, timesteps, picture), expected)


def test_scripted_it_does_the_same_and_keeps_no_weights_of_its_own() -> None:
    stained, picture = StainConditioned(generator()), pictures()
    noisy, timesteps = torch.randn(2, 2, 48, 48), torch.tensor([0, 1])
    scripted = torch.jit.script(stained)
    torch.testing.assert_close(scripted(noisy, timesteps, picture), stained(noisy, timesteps, picture))
    assert [name.removeprefix("denoiser.") for name in stained.state_dict()] == list(generator().state_dict())


def test_without_stains_the_denoiser_is_left_as_it_is() -> None:
    denoiser = generator(3)
    assert stain_conditioned(denoiser, False) is denoiser
    assert isinstance(stain_conditioned(generator(), True), StainConditioned)
