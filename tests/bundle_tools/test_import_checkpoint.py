"""Published checkpoints, imported: names, values, and every way in which a file may not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from shared_components.bundle_tools import import_checkpoint as module
from shared_components.bundle_tools.import_checkpoint import import_checkpoint, read_tensors
from shared_components.bundle_tools.published_cdal import cdal_generator_names
from shared_components.bundle_tools.published_names import convert
from shared_components.errors import InputError
from shared_components.networks.cdal_generator import CDALGenerator
from tests.networks.oracles import (
    GENERATORS,
    assert_generator_values,
    make_generator,
    name_free_fill,
    name_free_values,
    oracle_inputs,
)

PUBLISHED = Path(__file__).parent / "published"
BUNDLES = Path(__file__).parents[2] / "bundles"
BUNDLE = BUNDLES / "cdal_hippocampus"
OVERLAYS = {"hippo": "paper.json", "hippo_sampling": "paper_released.json"}
HIPPO = ["hippo", "hippo_sampling"]
PICTURES = {"lung": "cdal_lung_cxr", "monu": "cdal_monuseg"}

needs_bundle = pytest.mark.skipif(
    not (BUNDLE / "configs" / "paper.json").is_file(), reason="needs the bundle cdal_hippocampus"
)


def published_tensors(name: str, prefix: str = "") -> dict[str, torch.Tensor]:
    """A checkpoint in the published form with weights that depend on shapes alone."""
    entries = json.loads((PUBLISHED / f"cdal_{name}_generator.json").read_text(encoding="utf-8"))
    return {prefix + entry: name_free_values(tuple(shape)) for entry, shape in entries}


def save(tensors: object, folder: Path) -> str:
    path = folder / "published.pth"
    torch.save(tensors, path)
    return str(path)


@pytest.mark.parametrize("name", [*HIPPO, *PICTURES])
def test_names_are_the_published_ones_in_file_order(name):
    entries = json.loads((PUBLISHED / f"cdal_{name}_generator.json").read_text(encoding="utf-8"))
    names = cdal_generator_names(make_generator(name))
    assert list(names.values()) == [entry for entry, _ in entries]


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", HIPPO)
def test_converted_weights_have_the_reference_values(name, prefix):
    denoiser = make_generator(name)
    before = {key: value.clone() for key, value in denoiser.state_dict().items()}
    converted = convert(published_tensors(name, prefix), denoiser)
    assert all(torch.equal(value, before[key]) for key, value in denoiser.state_dict().items())
    denoiser.load_state_dict(converted)
    assert_generator_values(denoiser, name)


def test_attention_maps_are_transposed_and_nothing_else():
    filled = name_free_fill(make_generator("hippo")).state_dict()
    converted = convert(published_tensors("hippo"), make_generator("hippo"))
    assert list(converted) == list(filled)
    assert all(torch.equal(converted[key], filled[key]) for key in filled)


def test_half_precision_becomes_float32():
    tensors = {name: tensor.half() for name, tensor in published_tensors("hippo").items()}
    converted = convert(tensors, make_generator("hippo"))
    assert {value.dtype for value in converted.values()} == {torch.float32}


def test_every_difference_is_listed():
    tensors = published_tensors("hippo", "module.")
    del tensors["module.all_modules.0.bias"], tensors["module.z_transform.7.weight"]
    tensors["module.extra.weight"] = torch.zeros(1)
    tensors["module.all_modules.2.weight"] = torch.zeros(32, 3, 3, 3)
    tensors["module.all_modules.14.NIN_0.W"] = torch.zeros(64, 64, dtype=torch.int64)
    with pytest.raises(InputError) as caught:
        convert(tensors, make_generator("hippo"))
    message = str(caught.value)
    assert "2 missing: all_modules.0.bias, z_transform.7.weight" in message
    assert "1 surplus: extra.weight" in message
    assert "2 of another shape or type: all_modules.14.NIN_0.W (64, 64) torch.int64, expected (64" in message
    assert "all_modules.2.weight (32, 3, 3, 3) torch.float32, expected (32, 1, 3, 3)" in message
    assert "\n" not in message


def test_the_other_configuration_is_refused():
    with pytest.raises(InputError, match="missing: .*surplus|missing: .*another shape"):
        convert(published_tensors("hippo"), make_generator("hippo_sampling"))


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickled_payload_is_refused_and_does_not_run(tmp_path):
    trace = tmp_path / "it_ran"
    source = save({"module.all_modules.0.weight": Payload(trace)}, tmp_path)
    with pytest.raises(InputError, match="nothing in it was run"):
        read_tensors(Path(source))
    assert not trace.exists()


def test_unreadable_sources_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_tensors(tmp_path / "absent.pth")
    whole = Path(save(published_tensors("hippo"), tmp_path))
    whole.write_bytes(whole.read_bytes()[:100_000])
    with pytest.raises(InputError, match="not a readable checkpoint"):
        read_tensors(whole)
    whole.write_bytes(b"")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        read_tensors(whole)
    with pytest.raises(InputError, match="holds list, expected a state dict"):
        read_tensors(Path(save([torch.zeros(1)], tmp_path)))
    with pytest.raises(InputError, match="these are no tensors: epoch, netG"):
        read_tensors(Path(save({"epoch": 3, "netG": {"a": torch.zeros(1)}}, tmp_path)))


class OtherDenoiser(torch.nn.Module):
    """A network that no published code has."""


class FakeSegmenter(torch.nn.Module):
    """What a bundle's network_def looks like to the importer."""

    def __init__(self, steps: int, **arguments) -> None:
        super().__init__()
        self.denoiser = CDALGenerator(**arguments) if arguments else OtherDenoiser()
        self.register_buffer("schedule", torch.linspace(1, 0, steps + 1))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with the overlays of both published forms."""
    configs = tmp_path / "bundle" / "configs"
    configs.mkdir(parents=True)
    contents = {
        "metadata.json": {"version": "0"},
        "inference.json": {"bundle_root": ".", "network_def": None},
    }
    for (name, overlay), steps in zip(OVERLAYS.items(), (4, 2)):
        target = f"{__name__}.FakeSegmenter"
        contents[overlay] = {"network_def": {"_target_": target, "steps": steps, **GENERATORS[name]}}
    for file, content in contents.items():
        (configs / file).write_text(json.dumps(content), encoding="utf-8")
    return configs.parent


@pytest.mark.parametrize(("name", "prefix"), [("hippo", "module."), ("hippo_sampling", "")])
def test_import_writes_the_overlay_network(bundle, tmp_path, name, prefix):
    output = tmp_path / "my models" / "paper.pt"
    sentence = import_checkpoint(str(bundle), save(published_tensors(name, prefix), tmp_path), str(output))
    assert OVERLAYS[name] in sentence and sentence.endswith(f"--ckpt_path '{output}'")  # as a shell takes it
    state = torch.load(output, weights_only=True)
    assert len(state["schedule"]) == {"hippo": 5, "hippo_sampling": 3}[name]
    network = FakeSegmenter(len(state["schedule"]) - 1, **GENERATORS[name])
    network.load_state_dict(state)
    assert_generator_values(network.denoiser, name)
    assert [path.name for path in output.parent.iterdir()] == ["paper.pt"]


def test_an_existing_output_is_kept(bundle, tmp_path):
    output = tmp_path / "paper.pt"
    output.write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="exists; remove it or name another output"):
        import_checkpoint(str(bundle), save(published_tensors("hippo"), tmp_path), str(output))
    assert output.read_text(encoding="utf-8") == "mine"


def test_what_fits_no_overlay_writes_nothing(bundle, tmp_path):
    tensors = published_tensors("hippo_sampling")
    del tensors["z_transform.1.bias"]
    output = tmp_path / "new" / "paper.pt"
    with pytest.raises(InputError, match="fits no overlay of bundle; paper_released.json is nearest: 1 miss"):
        import_checkpoint(str(bundle), save(tensors, tmp_path), str(output))
    assert not output.parent.exists()


def test_a_failure_while_writing_leaves_nothing(bundle, tmp_path, monkeypatch):
    source, output = save(published_tensors("hippo"), tmp_path), tmp_path / "new" / "paper.pt"
    monkeypatch.setattr(module.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(InputError, match=r"paper.pt: cannot be written \(disk full\); free some space"):
        import_checkpoint(str(bundle), source, str(output))
    assert list(output.parent.iterdir()) == []


def test_a_bundle_without_published_forms_is_refused(bundle, tmp_path):
    for file in (bundle / "configs").glob("paper*.json"):
        file.unlink()
    with pytest.raises(InputError, match=r"no configs/paper\*.json"):
        import_checkpoint(str(bundle), save(published_tensors("hippo"), tmp_path), str(tmp_path / "out.pt"))


def test_overlays_without_a_published_form_are_passed_over(bundle, tmp_path):
    other = {"network_def": {"_target_": f"{__name__}.FakeSegmenter", "steps": 4}}
    (bundle / "configs" / "paper.json").write_text(json.dumps(other), encoding="utf-8")
    source = save(published_tensors("hippo"), tmp_path)
    with pytest.raises(InputError, match="paper_released.json is nearest"):
        import_checkpoint(str(bundle), source, str(tmp_path / "out.pt"))
    (bundle / "configs" / "paper_released.json").unlink()
    with pytest.raises(InputError, match="no published form; choose a bundle with one of CDALGenerator, "):
        import_checkpoint(str(bundle), source, str(tmp_path / "out.pt"))


@needs_bundle
@pytest.mark.parametrize("name", HIPPO)
def test_the_hippocampus_bundle_imports_both_forms(name, tmp_path):
    output = tmp_path / "paper.pt"
    sentence = import_checkpoint(str(BUNDLE), save(published_tensors(name, "module."), tmp_path), str(output))
    assert OVERLAYS[name] in sentence
    _, network = module._build_network(BUNDLE / "configs" / "inference.json", BUNDLE / "configs" / OVERLAYS[name], {})
    network.load_state_dict(torch.load(output, weights_only=True))
    assert_generator_values(network.denoiser, name)
    with torch.no_grad():
        probabilities = network.eval()(oracle_inputs(name)[2])
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(4, 32, 32))


@needs_bundle
@pytest.mark.parametrize("name", ["lung", pytest.param("monu", marks=pytest.mark.slow)])
def test_the_bundles_for_pictures_import_the_published_checkpoints(name, tmp_path):
    output, bundle = tmp_path / "paper.pt", BUNDLES / PICTURES[name]
    assert "paper.json" in import_checkpoint(str(bundle), save(published_tensors(name), tmp_path), str(output))
    _, network = module._build_network(bundle / "configs" / "inference.json", bundle / "configs" / "paper.json", {})
    network.load_state_dict(torch.load(output, weights_only=True))
    assert_generator_values(network.denoiser, name)
    assert network.label_coding.inverted == (name == "lung")
    lower = torch.full((1, 1, 2, 2), -1.0)  # lungs are the lower value of the published lung model
    assert network.label_coding.decode(lower).argmax(dim=1).unique().tolist() == [1 if name == "lung" else 0]
