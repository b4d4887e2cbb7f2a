"""Published weights of segmentation-guided diffusion, imported: names, settings, outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from shared_components.bundle_tools.import_checkpoint import import_checkpoint
from shared_components.bundle_tools.published_diffusers import check_config, unet_names
from shared_components.bundle_tools.published_names import compare, convert
from shared_components.errors import InputError
from shared_components.networks.monai_denoiser import MONAIDenoiser
from tests.conftest import REPOSITORY

PUBLISHED = Path(__file__).parent / "published" / "segguided_256_grey_conditional.json"
BUNDLE = REPOSITORY / "bundles" / "segguided_hippocampus"
SMALL = (32, 32, 64, 64, 96, 96)


def small() -> MONAIDenoiser:
    return MONAIDenoiser(channels=SMALL)


def diffusers_network(**options) -> nn.Module:
    """``diffusers.UNet2DModel`` of the small width, with its own initialisation."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    down = ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"]
    up = ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4
    options = {"in_channels": 2, "out_channels": 1, "layers_per_block": 2, "block_out_channels": SMALL, **options}
    made = diffusers.UNet2DModel(64, down_block_types=down, up_block_types=up, **options)
    return made.eval().requires_grad_(False)


def test_every_published_tensor_has_its_place() -> None:
    published = {name: shape for name, shape, _ in json.loads(PUBLISHED.read_text(encoding="utf-8"))["tensors"]}
    assert len(published) == 450
    with torch.device("meta"):
        network = MONAIDenoiser()
        names = unet_names(network)
        assert {names[name]: list(value.shape) for name, value in network.state_dict().items()} == published
        tensors = {name: torch.empty(shape) for name, shape in published.items()}
        assert compare(tensors, network).differences == {}
        del tensors["conv_in.weight"]
        assert "conv_in.weight" in str(compare(tensors, network))


def test_outputs_are_those_of_diffusers() -> None:
    theirs, ours = diffusers_network(), small().eval()
    ours.load_state_dict(convert(theirs.state_dict(), ours))
    check_config(dict(theirs.config), ours, "config.json")
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 2, 64, 64, generator=generator)
    timesteps = torch.tensor([3, 777])
    with torch.no_grad():
        expected = theirs(inputs, timesteps).sample
        found = ours(inputs[:, :1], timesteps, inputs[:, 1:])
    assert expected.abs().mean() > 0.01
    assert (found - expected).abs().max() < 1e-5


def test_a_configuration_of_another_network_is_refused() -> None:
    theirs = diffusers_network()
    for name, value in (("attention_head_dim", 16), ("norm_eps", 1e-6), ("freq_shift", 1), ("_class_name", "UNet3D")):
        with pytest.raises(InputError, match=f"config.json: not this network: {name} is"):
            check_config({**dict(theirs.config), name: value}, small(), "config.json")


@pytest.fixture
def small_bundle(tmp_path: Path) -> Path:
    """The bundle, with a published form of small width."""
    folder = tmp_path / "bundle"
    (folder / "configs").mkdir(parents=True)
    for name in ("inference", "metadata", "train", "paper"):
        content = json.loads((BUNDLE / "configs" / f"{name}.json").read_text(encoding="utf-8"))
        if name == "paper":
            content["denoiser"]["channels"] = SMALL
        (folder / "configs" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_weights_are_imported_as_published(small_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    theirs, source = diffusers_network(), tmp_path / "unet"
    theirs.save_pretrained(source)
    assert sorted(path.name for path in source.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    text = import_checkpoint(str(small_bundle), str(source), str(tmp_path / "model.pt"))
    assert "450 tensors imported for paper.json" in text
    parser = ConfigParser()
    parser.read_config([str(small_bundle / "configs" / f"{name}.json") for name in ("inference", "paper")])
    parser.update({"num_inference_steps": 2, "amp": False})
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    label = torch.randint(3, (1, 1, 64, 64), generator=torch.Generator().manual_seed(1)).float()
    with torch.no_grad():
        condition = network.mask_encoding(label)
        assert torch.equal(condition, label / 255)
        noisy = torch.randn(1, 1, 64, 64)
        expected = theirs(torch.cat([noisy, condition], dim=1), torch.tensor([980])).sample
        assert (network.denoiser(noisy, torch.tensor([980]), condition) - expected).abs().max() < 1e-5
        assert network(label).shape == (1, 1, 64, 64)


def test_a_wrong_source_is_refused_and_leaves_nothing(small_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    theirs, source = diffusers_network(attention_head_dim=32), tmp_path / "unet"
    theirs.save_pretrained(source)
    target = tmp_path / "out" / "model.pt"
    with pytest.raises(InputError, match="config.json: not this network: attention_head_dim is 32, expected 8"):
        import_checkpoint(str(small_bundle), str(source), str(target))
    (source / "diffusion_pytorch_model.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        import_checkpoint(str(small_bundle), str(source / "diffusion_pytorch_model.safetensors"), str(target))
    (source / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match="0 .safetensors files, expected one"):
        import_checkpoint(str(small_bundle), str(source), str(target))
    assert not target.exists()
