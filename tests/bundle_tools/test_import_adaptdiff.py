"""Published AdaptDiff checkpoints, imported: names, values, the right configuration for each."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from shared_components.bundle_tools.import_checkpoint import import_checkpoint
from shared_components.bundle_tools.published_adaptdiff import denoiser_names, segmenter_names
from shared_components.bundle_tools.published_names import compare, find_form
from shared_components.errors import InputError
from shared_components.networks.residual_unet import ResidualUNet
from shared_components.networks.spade_denoiser import SpadeDenoiser
from tests.networks.adaptdiff_oracles import ramps

PUBLISHED = Path(__file__).parent / "published"
BUNDLE = Path(__file__).parents[2] / "bundles" / "adaptdiff_octa"
NETWORKS = {
    "denoiser": (SpadeDenoiser, denoiser_names, "generate.json"),
    "segmenter": (ResidualUNet, segmenter_names, "inference.json"),
}


def entries(kind: str) -> list[list]:
    return json.loads((PUBLISHED / f"adaptdiff_{kind}.json").read_text(encoding="utf-8"))


def is_transposed(name: str) -> bool:
    return name.startswith(("decoder_up_sample", "tu."))


def published_tensors(kind: str) -> dict[str, Tensor]:
    """A checkpoint in the published form, filled by the formula of the reference values."""
    tensors = {}
    shapes = {name: tuple(shape) for name, shape, _ in entries(kind)}
    for name, shape in shapes.items():
        stem, _, part = name.rpartition(".")
        index = torch.arange(math.prod(shape), dtype=torch.float64)
        is_norm = f"{stem}.running_mean" in shapes
        if part == "num_batches_tracked":
            tensors[name] = torch.tensor(0)
        elif is_norm:
            tensors[name] = torch.full(shape, 1.0 if part in ("weight", "running_var") else 0.0)
        elif part == "bias":
            tensors[name] = (0.1 * torch.sin(index)).float()
        else:
            fan = (shape[0] if is_transposed(name) else shape[1]) * math.prod(shape[2:])
            tensors[name] = (torch.cos(1.3 * index) / math.sqrt(fan)).reshape(shape).float()
    return tensors


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_published_tensor_has_its_place(kind):
    build, names_of, _ = NETWORKS[kind]
    with torch.device("meta"):
        network = build()
    names, state = names_of(network), network.state_dict()
    found = {names[name]: (list(tensor.shape), str(tensor.dtype)[6:]) for name, tensor in state.items()}
    assert found == {name: (shape, dtype) for name, shape, dtype in entries(kind)}
    assert compare(published_tensors(kind), build()).differences == {}


def imported(kind: str, folder: Path) -> nn.Module:
    """The bundle's network with imported weights, in the configuration that the message names."""
    torch.save(published_tensors(kind), folder / "published.pt")
    message = import_checkpoint(str(BUNDLE), str(folder / "published.pt"), str(folder / "model.pt"))
    base = NETWORKS[kind][2]
    assert f"configs/{base}" in message and "configs/paper.json" in message
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / base), str(BUNDLE / "configs" / "paper.json")])
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    parts = (getattr(network, name, None) for name in ("denoiser", "network"))
    return next(part for part in parts if part is not None and find_form(part) is not None).eval()


@torch.inference_mode()
def test_an_imported_denoiser_gives_the_reference_values(tmp_path):
    network, (image, mask) = imported("denoiser", tmp_path), ramps(64, 64)
    assert isinstance(network, SpadeDenoiser) and network.encoder[0].main[2].__class__.__name__ == "ImageBatchNorm2d"
    running = SpadeDenoiser().eval()  # the values are of running statistics
    running.load_state_dict(network.state_dict())
    output = running(image, torch.tensor([150]), mask)
    found = [float(value) for value in (output.mean(), output.std(), output[0, 0, 0, 0], output[0, 0, 31, 40])]
    assert found == pytest.approx((-0.0886056, 0.336352, -1.11647, -0.230235), abs=1e-4)


@torch.inference_mode()
def test_an_imported_segmenter_gives_the_reference_values(tmp_path):
    network, (image, _) = imported("segmenter", tmp_path), ramps(64, 64)
    logits = network(image)
    assert isinstance(network, ResidualUNet)
    assert [float(v) for v in (logits.mean(), logits.std(), logits.min())] == pytest.approx(
        [0.111153, 0.12661, 0], abs=1e-5
    )


def test_what_does_not_fit_is_listed(tmp_path):
    tensors = published_tensors("segmenter")
    tensors.pop("td.0.0.bias")
    torch.save(tensors, tmp_path / "published.pt")
    with pytest.raises(InputError, match="1 missing: td.0.0.bias"):
        import_checkpoint(str(BUNDLE), str(tmp_path / "published.pt"), str(tmp_path / "model.pt"))
    assert not (tmp_path / "model.pt").exists()
