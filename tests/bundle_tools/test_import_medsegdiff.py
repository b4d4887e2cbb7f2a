"""Published MedSegDiff checkpoints, imported: names, values, and what their revisions cannot hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared_components.__main__ import main
from shared_components.bundle_tools.import_checkpoint import import_checkpoint
from shared_components.bundle_tools.published_medsegdiff import medsegdiff_names
from shared_components.bundle_tools.published_names import compare, convert
from shared_components.errors import InputError, one_line
from shared_components.networks.medsegdiff import MedSegDiffV1, MedSegDiffV2
from tests.bundle_tools.medsegdiff_reference import (
    empty_tensors,
    formula_values,
    published_shapes,
    random_tensors,
    run_published,
    small_shapes,
)
from tests.networks.medsegdiff_oracles import assert_values, fill, input_values
from tests.networks.test_medsegdiff import REFERENCE
from tests.runs.commands import REPOSITORY

NETWORKS = {"v1": MedSegDiffV1, "v1_early": MedSegDiffV1, "v2": MedSegDiffV2}
SMALL: dict[str, Any] = {"channels": 32, "highway_channels": 8, "num_heads": 2}
BOTTLENECK = ["bottleneck_projection.weight", "bottleneck_projection.bias"]
GATES = [
    f"gates.{d}.{part}.{kind}" for d in range(4) for part in ("projection", "spatial") for kind in ("weight", "bias")
]
UNSAVED = {"v1": BOTTLENECK, "v1_early": GATES + BOTTLENECK, "v2": []}
OVERLAYS = {"v1": "paper.json", "v1_early": "paper.json", "v2": "paper_v2.json"}


def build(revision: str, device: str = "cpu", **options: Any) -> nn.Module:
    if NETWORKS[revision] is MedSegDiffV1:
        options.setdefault("image_size", 64)
    torch.manual_seed(1)
    with torch.device(device):
        return NETWORKS[revision](**options)


@pytest.mark.parametrize("revision", NETWORKS)
def test_every_tensor_of_the_published_b_configuration_has_its_place(revision):
    shapes = published_shapes(revision)
    assert len(shapes) == {"v1": 601, "v1_early": 585, "v2": 581}[revision]
    network = build(revision, "meta", **({} if revision == "v2" else {"image_size": 256}))
    names, state = medsegdiff_names(network), network.state_dict()
    unsaved = UNSAVED[revision]
    assert {names[name]: tuple(tensor.shape) for name, tensor in state.items() if name not in unsaved} == shapes
    comparison = compare({f"module.{name}": tensor for name, tensor in empty_tensors(shapes).items()}, network)
    assert (comparison.unsaved, comparison.differences) == (tuple(unsaved), {})


def test_names_of_other_configurations():
    options = {**SMALL, "channel_mult": (1, 2, 2, 2), "attention_factors": (2,), "num_classes": 2}
    network = build("v2", "meta", resblock_updown=True, **options)
    names = medsegdiff_names(network)
    assert len(set(names.values())) == len(names) == len(network.state_dict())
    for ours, published in {
        "unet.time_embedding.label_embedding.weight": "label_emb.weight",
        "unet.down_levels.0.downsample.residual.conv1.weight": "input_blocks.3.0.in_layers.2.weight",
        "unet.down_levels.1.steps.1.attention.output.bias": "input_blocks.5.1.proj_out.bias",
        "unet.up_levels.0.upsample.residual.conv2.weight": "output_blocks.2.1.out_layers.3.weight",
        "unet.up_levels.2.upsample.residual.norm1.weight": "output_blocks.8.2.in_layers.0.weight",
        "unet.up_levels.3.steps.2.residual.shortcut.weight": "output_blocks.11.0.skip_connection.weight",
    }.items():
        assert names[ours] == published


def assert_reference_outputs(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Hold a network to the outputs of the reference network that runs on the published tensors themselves."""
    state = network.state_dict()
    published = dict(tensors)
    for name, later in medsegdiff_names(network).items():
        published.setdefault(later, state[name])
    published.update((name.replace("_projection", ""), state[name]) for name in BOTTLENECK if name in state)
    noisy, image = input_values(2, 1, 64, 64), input_values(2, 3, 64, 64).flip(0, 3)
    timesteps = torch.tensor([3, 700])
    with torch.no_grad():
        expected = run_published(published, image, noisy, timesteps, SMALL["num_heads"])
        output = network.eval()(noisy, timesteps, image)
    assert min(expected[:, channel].std() for channel in range(3)) > 0.01
    torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-3 * expected.std().item())


@pytest.mark.parametrize("revision", NETWORKS)
def test_converted_weights_compute_what_the_published_tensors_do(revision):
    network = build(revision, **SMALL)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    tensors = random_tensors(small_shapes(revision))
    converted = convert({f"module.{name}": tensor for name, tensor in tensors.items()}, network)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    names = medsegdiff_names(network)
    assert list(converted) == list(before)
    for name, tensor in converted.items():
        expected = before[name] if name in UNSAVED[revision] else tensors[names[name]]
        assert torch.equal(tensor, expected) and tensor.dtype == expected.dtype
    network.load_state_dict(converted)
    assert_reference_outputs(network, tensors)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("revision", NETWORKS)
def test_converted_weights_have_the_reference_values(revision):
    network = build(revision, "meta", attention_factors=(4,), num_heads=2).to_empty(device="cpu")
    names, state = medsegdiff_names(network), network.state_dict()
    tensors = {
        published: formula_values(published, tuple(state[name].shape))
        for name, published in names.items()
        if name not in UNSAVED[revision]
    }
    network.load_state_dict(convert(tensors, network), assign=True)
    del tensors, state
    for name in {name.rpartition(".")[0] for name in UNSAVED[revision]}:
        fill(network.get_submodule(name))
    both = input_values(1, 4, 64, 64)
    output = network.eval()(both[:, 3:], torch.tensor([250]), both[:, :3])
    for channel, values in REFERENCE[revision[:2], False].items():
        assert_values(output[:, channel], *values, tolerance=1e-3)


def make_bundle(folder: Path, **overlays: dict[str, Any]) -> Path:
    """A bundle with an overlay for each denoiser."""
    configs = folder / "bundle" / "configs"
    configs.mkdir(parents=True)
    inference = {
        "imports": ["$import shared_components.diffusion.schedules as schedules"],
        "bundle_root": ".",
        "scheduler": {
            "_target_": "monai.networks.schedulers.DDPMScheduler",
            "num_train_timesteps": 1000,
            "schedule": "linear_rescaled",
        },
        "label_coding": {
            "_target_": "shared_components.diffusion.label_coding.LabelCoding",
            "label_values": [1],
            "coding": "channels",
            "value_range": "01",
        },
        "denoiser": None,
        "network_def": {
            "_target_": "shared_components.diffusion.segmenter.DiffusionSegmenter",
            "denoiser": "@denoiser",
            "scheduler": "@scheduler",
            "label_coding": "@label_coding",
        },
    }
    contents = {"metadata": {"version": "0"}, "inference": inference}
    contents.update((name, {"denoiser": arguments}) for name, arguments in overlays.items())
    for name, content in contents.items():
        (configs / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return configs.parent


def denoiser(version: int, **options: Any) -> dict[str, Any]:
    if version == 1:
        options.setdefault("image_size", 64)
    return {"_target_": f"shared_components.networks.medsegdiff.MedSegDiffV{version}", **SMALL, **options}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path, paper=denoiser(1), paper_v2=denoiser(2))


def save(tensors: dict[str, Tensor], folder: Path, prefix: str = "") -> str:
    path = folder / "emasavedmodel_0.9999_100000.pt"
    torch.save({prefix + name: tensor for name, tensor in tensors.items()}, path)
    return str(path)


@pytest.mark.parametrize(("revision", "prefix"), [("v1", "module."), ("v1_early", ""), ("v2", "module.")])
def test_import_writes_the_overlay_network(bundle, tmp_path, revision, prefix):
    tensors, states = random_tensors(small_shapes(revision)), []
    source = save(tensors, tmp_path, prefix)
    for seed in (3, 4):
        torch.manual_seed(seed)
        expected_next = torch.rand(1)
        torch.manual_seed(seed)
        output = tmp_path / "models" / f"{seed}.pt"
        sentence = import_checkpoint(str(bundle), source, str(output), allow_missing_projections=revision != "v2")
        assert torch.equal(torch.rand(1), expected_next)
        states.append(torch.load(output, weights_only=True))
    assert f"{len(tensors)} tensors imported for {OVERLAYS[revision]}; " in sentence and "\n" not in sentence
    unsaved = ", ".join(UNSAVED[revision])
    assert (f"cannot hold ({unsaved}) are newly initialised and need fine-tuning" in sentence) == (revision != "v2")
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert len(states[0]["schedule"]) == 1000
    network = build(revision, **SMALL)
    ours = {name: tensor for name, tensor in states[0].items() if name.startswith("denoiser.")}
    network.load_state_dict({name.removeprefix("denoiser."): tensor for name, tensor in ours.items()})
    assert_reference_outputs(network, tensors)


@pytest.mark.parametrize("revision", ["v1", "v1_early"])
def test_what_a_revision_cannot_hold_is_initialised_on_request_only(bundle, tmp_path, revision, capsys):
    source, output = save(random_tensors(small_shapes(revision)), tmp_path), tmp_path / "new" / "model.pt"
    arguments = ["import_checkpoint", "--bundle", str(bundle), "--source", source, "--output", str(output)]
    with pytest.raises(InputError) as caught:
        main(arguments)
    message = str(caught.value)
    assert f"fits paper.json but for {len(UNSAVED[revision])} tensors" in message and "\n" not in message
    assert f"cannot hold ({', '.join(UNSAVED[revision])}); they would be initialised and need fine-tuning" in message
    assert "--allow_missing_projections true" in message
    assert not output.parent.exists()
    with pytest.raises(InputError, match="found 'perhaps', expected true or false"):
        main([*arguments, "--allow_missing_projections", "perhaps"])
    main([*arguments, "--allow_missing_projections", "true"])
    assert output.is_file() and "need fine-tuning" in capsys.readouterr().out


def test_every_difference_is_listed_and_nothing_written(bundle, tmp_path):
    tensors = random_tensors(small_shapes("v1"))
    del tensors["hwm.conv_trans_blocks_a.1.weight"], tensors["out.2.bias"]
    tensors["hwm.conv_trans_blocks_a.4.weight"] = torch.zeros(128, 120, 1, 1)
    tensors["hwm.ffparser.0.complex_weight"] = torch.zeros(8, 128, 65, 2)
    tracked = "hwm.conv_blocks_context.0.blocks.0.instnorm.num_batches_tracked"
    tensors[tracked] = torch.tensor(5.0)
    output = tmp_path / "new" / "model.pt"
    with pytest.raises(InputError) as caught:
        import_checkpoint(str(bundle), save(tensors, tmp_path), str(output), allow_missing_projections=True)
    message = str(caught.value)
    assert "fits no overlay of bundle; paper.json is nearest: 2 missing: " in message and "\n" not in message
    assert "2 missing: hwm.conv_trans_blocks_a.1.weight, out.2.bias; " in message
    assert "1 surplus: hwm.conv_trans_blocks_a.4.weight; " in message
    assert f"2 of another shape or type: {tracked} () torch.float32, expected () torch.int64, " in message
    assert "hwm.ffparser.0.complex_weight (8, 128, 65, 2) torch.float32, expected (8, 32, 17, 2)" in message
    assert not output.parent.exists()


@pytest.mark.parametrize(
    ("revision", "network", "options", "differences"),
    [
        ("v2", "v1", {}, "4 missing: hwm.ffparser.0.complex_weight"),
        ("v1_early", "v2", {}, "4 surplus: hwm.ffparser.0.complex_weight"),
        ("v1", "v2", {}, "20 surplus: hwm.conv_trans_blocks_a.0.bias"),
        ("v2", "v2", {"condition_channels": 4}, "2 of another shape or type: hwm.conv_blocks_context.0.blocks.0.conv."),
        ("v2", "v2", {"highway_norm": "instance"}, "surplus: hwm.conv_blocks_context.0.blocks.0.instnorm.num_batches"),
        ("v2", "v2", {"num_classes": 2}, "1 missing: label_emb.weight"),
        (
            "v2",
            "v2",
            {"channels": 64},
            "2 of the network that published files never hold: anchor_projection.bias, anchor_projection.weight",
        ),
    ],
)
def test_other_networks_do_not_fit(revision, network, options, differences):
    found = build(network, "meta", **{**SMALL, **options})
    assert differences in str(compare(empty_tensors(small_shapes(revision)), found))


def test_what_no_tensor_shows_is_said_and_can_be_changed(bundle, tmp_path, capsys):
    source = save(random_tensors(small_shapes("v2")), tmp_path)
    sentence = import_checkpoint(str(bundle), source, str(tmp_path / "first.pt"))
    assert "num_heads 2, use_new_attention_order False, schedule linear_rescaled of 1000 steps" in sentence
    assert "prediction_type sample" in sentence and "--overrides" in sentence
    overrides = (
        '{"denoiser#num_heads": 4, "denoiser#use_new_attention_order": true, "scheduler#schedule": "cosine_double"}'
    )
    arguments = ["import_checkpoint", "--bundle", str(bundle), "--source", source]
    main([*arguments, "--output", str(tmp_path / "second.pt"), "--overrides", overrides])
    sentence = capsys.readouterr().out
    assert "num_heads 4, use_new_attention_order True, schedule cosine_double of 1000 steps" in sentence
    assert (
        "--denoiser#num_heads 4 --denoiser#use_new_attention_order True --scheduler#schedule cosine_double" in sentence
    )
    schedules = [torch.load(tmp_path / f"{name}.pt", weights_only=True)["schedule"] for name in ("first", "second")]
    assert not torch.equal(*schedules)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ('{"num_chanels": 4}', "'num_chanels' is no key"),
        ('{"denoiser#num_headz": 4}', "num_headz"),
        ('{"denoiser#num_heads": 5}', "5 attention heads"),
        ('{"num_channels": 4', "expected JSON"),
        ("nowhere.json", "nowhere.json"),
    ],
)
def test_overrides_that_make_no_network_are_refused_in_one_line(bundle, tmp_path, overrides, words):
    source, output = save(random_tensors(small_shapes("v2")), tmp_path), tmp_path / "model.pt"
    with pytest.raises(Exception) as caught:
        import_checkpoint(str(bundle), source, str(output), overrides=overrides)
    line = one_line(caught.value)
    assert words in line and "\n" not in line and not output.exists()


def test_a_file_of_four_sequences_fits_the_tumour_bundle(tmp_path):
    """The published BRATS files: four sequences and the noisy mask; here of the published code's small network."""
    tensors = random_tensors(small_shapes("v1"))
    for name, tensor in tensors.items():
        if tensor.dim() == 4 and name in ("input_blocks.0.0.weight", "hwm.conv_blocks_context.0.blocks.0.conv.weight"):
            tensors[name] = torch.cat([tensor, tensor[:, -1:]], dim=1)
    source, brats = save(tensors, tmp_path), str(REPOSITORY / "bundles" / "medsegdiff_brats")
    small = {f"denoiser#{key}": value for key, value in {**SMALL, "image_size": 64}.items()}
    with pytest.raises(InputError, match=r"--overrides '\{\"num_channels\": 4\}'"):
        import_checkpoint(brats, source, str(tmp_path / "a.pt"), True, overrides=small)
    sentence = import_checkpoint(brats, source, str(tmp_path / "b.pt"), True, overrides={**small, "num_channels": 4})
    assert "--num_channels 4 --ckpt_path" in sentence
    weights = torch.load(tmp_path / "b.pt", weights_only=True)
    assert torch.equal(weights["denoiser.unet.stem.weight"], tensors["input_blocks.0.0.weight"])
