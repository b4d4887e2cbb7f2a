"""Published CDM checkpoints, imported: names, values, and both parts in one file of weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shared_components.bundle_tools import import_checkpoint as importing
from shared_components.bundle_tools.published_cdm import classifier_names, unet_names
from shared_components.bundle_tools.published_names import compare, convert
from shared_components.errors import InputError
from shared_components.networks.class_conditioned import ClassConditionedADM
from shared_components.networks.encoder_classifier import EncoderClassifier

PUBLISHED = Path(__file__).parent / "published"
UNET = {"channel_mult": (1, 1, 2, 3, 4), "num_res_blocks": 3, "attention_factors": (8, 16), "num_heads": 4}
UNET_224 = {**UNET, "in_channels": 3, "channel_mult": (1, 1, 2, 2, 4, 4), "attention_factors": ()}
CONDITIONAL = {"learned_variance": True, "num_embeddings": 1000}
SMALL = {"channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_factors": (2,)}


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    entries = json.loads((PUBLISHED / f"cdm_{name}.json").read_text(encoding="utf-8"))
    return {key: tuple(shape) for key, shape in entries}


def on_meta(kind, **options):
    with torch.device("meta"):
        return kind(**options)


@pytest.mark.parametrize(
    ("name", "count", "kind", "options", "names"),
    [
        ("unet", 533, ClassConditionedADM, {**UNET, **CONDITIONAL}, unet_names),
        ("unet_224", 529, ClassConditionedADM, {**UNET_224, **CONDITIONAL}, unet_names),
        ("classifier", 221, EncoderClassifier, {"num_classes": 5}, classifier_names),
    ],
)
def test_every_published_tensor_has_its_place(name, count, kind, options, names):
    shapes, network = shapes_of(name), on_meta(kind, **options)
    assert len(shapes) == count
    mapped = {published: tuple(network.state_dict()[ours].shape) for ours, published in names(network).items()}
    assert mapped == shapes
    empty = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    comparison = compare(empty, network)
    assert (comparison.unsaved, comparison.differences) == ((), {})


def random_checkpoint(network, names) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    state = network.state_dict()
    return {
        published: 0.2 * torch.randn(state[ours].shape, generator=generator)
        + float(published.endswith("weight") and state[ours].ndim == 1)
        for ours, published in names(network).items()
    }


# Networks that look their tensors up by the published names


def layer(tensors: dict[str, Tensor], name: str, x: Tensor, **options) -> Tensor:
    weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    if weight.ndim == 1:
        return F.group_norm(x, 32, weight, bias)
    if weight.ndim == 2:
        return F.linear(x, weight, bias)
    if weight.ndim == 3:
        return F.conv1d(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=weight.shape[2] // 2, **options)


def embedded(tensors: dict[str, Tensor], timesteps: Tensor) -> Tensor:
    half = tensors["time_embed.0.weight"].shape[1] // 2
    angles = timesteps[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
    time = layer(tensors, "time_embed.0", torch.cat([angles.cos(), angles.sin()], dim=1))
    return layer(tensors, "time_embed.2", F.silu(time))


def residual(tensors: dict[str, Tensor], name: str, x: Tensor, time: Tensor, down: bool) -> Tensor:
    hidden = F.silu(layer(tensors, f"{name}.in_layers.0", x))
    if down:
        hidden, x = F.avg_pool2d(hidden, 2), F.avg_pool2d(x, 2)
    hidden = layer(tensors, f"{name}.in_layers.2", hidden)
    scale, shift = layer(tensors, f"{name}.emb_layers.1", F.silu(time))[:, :, None, None].chunk(2, dim=1)
    hidden = layer(tensors, f"{name}.out_layers.0", hidden) * (1 + scale) + shift
    hidden = layer(tensors, f"{name}.out_layers.3", F.silu(hidden))
    return hidden + (layer(tensors, f"{name}.skip_connection", x) if f"{name}.skip_connection.bias" in tensors else x)


def attend(tensors: dict[str, Tensor], name: str, x: Tensor, heads: int) -> Tensor:
    projected = layer(tensors, f"{name}.qkv", layer(tensors, f"{name}.norm", x).flatten(2))
    found = []
    for head in projected.chunk(heads, dim=1):
        query, key, value = head.chunk(3, dim=1)
        weights = torch.softmax(query.transpose(1, 2) @ key / math.sqrt(query.shape[1]), dim=-1)
        found.append(value @ weights.transpose(1, 2))
    return x + layer(tensors, f"{name}.proj_out", torch.cat(found, dim=1)).reshape(x.shape)


def block(tensors, name: str, x: Tensor, time: Tensor, heads: int, down: bool = False) -> Tensor:
    for place in (f"{name}.0", f"{name}.1", f"{name}.2"):
        if f"{place}.in_layers.0.weight" in tensors:
            x = residual(tensors, place, x, time, down)
        elif f"{place}.qkv.weight" in tensors:
            x = attend(tensors, place, x, heads)
        elif f"{place}.op.weight" in tensors:
            x = layer(tensors, f"{place}.op", x, stride=2)
        elif f"{place}.conv.weight" in tensors:
            x = layer(tensors, f"{place}.conv", F.interpolate(x, scale_factor=2))
    return x


def run_unet(tensors: dict[str, Tensor], x: Tensor, timesteps: Tensor, weights: Tensor, heads: int) -> Tensor:
    time = embedded(tensors, timesteps) + weights @ tensors["label_emb.weight"][: weights.shape[1]]
    x = layer(tensors, "input_blocks.0.0", x)
    skips = [x]
    for number in range(1, 4):  # two levels with one residual block: block, way down, block
        x = block(tensors, f"input_blocks.{number}", x, time, heads)
        skips.append(x)
    x = block(tensors, "middle_block", x, time, heads)
    for number in range(4):
        x = block(tensors, f"output_blocks.{number}", torch.cat([x, skips.pop()], dim=1), time, heads)
    return layer(tensors, "out.2", F.silu(layer(tensors, "out.0", x)))


def test_an_imported_network_computes_what_the_published_names_say():
    network = ClassConditionedADM(**SMALL, num_heads=2, learned_variance=True, num_embeddings=7)
    tensors = random_checkpoint(network, unet_names)
    network.load_state_dict(convert({f"module.{key}": value for key, value in tensors.items()}, network))
    x, timesteps = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 399.0])
    weights = torch.tensor([[0.0, 1.0], [0.05, 0.95]])
    with torch.no_grad():
        found, expected = network(x, timesteps, class_weights=weights), run_unet(tensors, x, timesteps, weights, 2)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_an_imported_classifier_computes_what_the_published_names_say():
    network = EncoderClassifier(num_classes=5, image_size=8, num_head_channels=32, **SMALL)
    tensors = random_checkpoint(network, classifier_names)
    network.load_state_dict(convert(tensors, network))
    x, timesteps = torch.randn(2, 1, 8, 8), torch.tensor([0.0, 399.0])
    time = embedded(tensors, timesteps)
    hidden = layer(tensors, "input_blocks.0.0", x)
    hidden = block(tensors, "input_blocks.1", hidden, time, 1)
    hidden = block(tensors, "input_blocks.2", hidden, time, 1, down=True)
    hidden = block(tensors, "input_blocks.3", hidden, time, 2)
    hidden = F.silu(layer(tensors, "out.0", block(tensors, "middle_block", hidden, time, 2))).flatten(2)
    tokens = torch.cat([hidden.mean(2, keepdim=True), hidden], 2) + tensors["out.2.positional_embedding"]
    query, key, value = (
        part.unflatten(1, (2, 32)) for part in layer(tensors, "out.2.qkv_proj", tokens).chunk(3, dim=1)
    )
    weights = torch.einsum("bhc,bhct->bht", query[..., 0], key).div(32**0.5).softmax(-1)
    pooled = torch.einsum("bht,bhct->bhc", weights, value).flatten(1)
    expected = layer(tensors, "out.2.c_proj", pooled[:, :, None])[:, :, 0]
    with torch.no_grad():
        found = network(x, timesteps)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.fixture
def small_bundle(tmp_path) -> Path:
    """A bundle whose ``paper.json`` is a small CDM."""
    folder = tmp_path / "cdm_small"
    (folder / "configs").mkdir(parents=True)
    target = "shared_components.networks."
    inference = {
        "imports": ["$import shared_components.diffusion.schedules as schedules"],
        "scheduler": {"_target_": "monai.networks.schedulers.DDPMScheduler", "schedule": "linear_rescaled"},
        "network_def": {
            "_target_": "shared_components.diffusion.weak_segmenter.WeakSegmenter",
            "denoiser": "@denoiser",
            "classifier": "@classifier",
            "scheduler": "@scheduler",
        },
    }
    sizes = {**SMALL, "channel_mult": [1, 2], "attention_factors": [2]}
    paper = {
        "denoiser": {"_target_": f"{target}class_conditioned.ClassConditionedADM", **sizes, "num_heads": 2},
        "classifier": {
            "_target_": f"{target}encoder_classifier.EncoderClassifier",
            "image_size": 8,
            "num_head_channels": 32,
            **sizes,
        },
    }
    for name, content in (("metadata", {}), ("inference", inference), ("paper", paper)):
        (folder / "configs" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_both_parts_come_into_one_file(small_bundle, tmp_path):
    unet = ClassConditionedADM(**SMALL, num_heads=2)
    classifier = EncoderClassifier(image_size=8, num_head_channels=32, **SMALL)
    sources = {"unet": random_checkpoint(unet, unet_names), "clf": random_checkpoint(classifier, classifier_names)}
    for name, tensors in sources.items():
        torch.save(tensors, tmp_path / f"{name}.pt")
    run = importing.import_checkpoint
    said = run(str(small_bundle), str(tmp_path / "unet.pt"), str(tmp_path / "one.pt"))
    assert "the classifier as in a new network" in said and "--base" in said
    said = run(str(small_bundle), str(tmp_path / "clf.pt"), str(tmp_path / "two.pt"), base=str(tmp_path / "one.pt"))
    assert "as in a new network" not in said
    weights = torch.load(tmp_path / "two.pt", weights_only=True)
    for prefix, network, names, tensors in (
        ("denoiser.", unet, unet_names, sources["unet"]),
        ("classifier.", classifier, classifier_names, sources["clf"]),
    ):
        for ours, published in names(network).items():
            assert torch.equal(weights[prefix + ours], tensors[published])
    assert weights["schedule"].shape == (1000,) and weights["conventions"].tolist() == [1.0, 1.0]
    torch.save({"x": torch.zeros(1)}, tmp_path / "strange.pt")
    with pytest.raises(InputError, match="strange.pt: no weights of paper.json"):
        run(str(small_bundle), str(tmp_path / "clf.pt"), str(tmp_path / "three.pt"), base=str(tmp_path / "strange.pt"))
    with pytest.raises(InputError, match="strange.pt: fits no overlay of cdm_small; paper.json is nearest"):
        run(str(small_bundle), str(tmp_path / "strange.pt"), str(tmp_path / "three.pt"))
    assert not (tmp_path / "three.pt").exists()
