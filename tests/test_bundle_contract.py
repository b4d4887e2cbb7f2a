"""What every bundle keeps, checked on its files and the objects it builds, without data or training."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import decollate_batch, list_data_collate
from nibabel.orientations import axcodes2ornt, ornt_transform
from PIL import ExifTags, Image

from shared_components.bundle_tools.settings import _RULES
from shared_components.errors import find_input_error
from tests.zoo_procedure import LARGEST_FILE, REQUIRED_FILES, config_sets, unresolved, wrong_ids

REPOSITORY = Path(__file__).resolve().parent.parent
BUNDLES = sorted(path.parent.parent for path in REPOSITORY.glob("bundles/*/configs/metadata.json"))

CONFIGS = ("train", "inference", "evaluate", "multi_gpu_train", "metadata")
RUN_KEYS = (
    "dataset_dir", "output_dir", "ckpt_path", "device", "amp", "seed", "batch_size", "num_workers",
    "num_samples", "num_inference_steps", "combine",
)  # fmt: skip
TRAIN_KEYS = (*RUN_KEYS, "max_epochs", "learning_rate", "val_interval", "resume")
# What git ignores: a bundle that was used in place has them.
GENERATED = ("output", "eval", "__pycache__")
# Words in a folder's name from which MONAI Label takes another type than segmentation.
OTHER_TYPES = ("detection", "deepedit", "deepgrow", "classification")


@pytest.fixture(params=BUNDLES, ids=lambda path: path.name)
def bundle(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle's folder; the test runs in the repository's root, as a user would."""
    monkeypatch.chdir(REPOSITORY)
    return request.param


def generates(bundle: Path) -> bool:
    """Whether the bundle's network maps label maps to images, and not images to probabilities."""
    return read(bundle, "metadata")["network_data_format"]["outputs"]["pred"]["type"] == "image"


@pytest.fixture
def segmenter(bundle: Path) -> Path:
    """A bundle that segments; what bundles that generate images keep instead is in test_synthesis_bundles.py."""
    if generates(bundle):
        pytest.skip(f"{bundle.name} generates images")
    return bundle


def own_files(bundle: Path) -> list[Path]:
    files = [path for path in bundle.rglob("*") if path.is_file()]
    return [path for path in files if not set(path.relative_to(bundle).parts) & set(GENERATED)]


def read(bundle: Path, name: str) -> dict[str, Any]:
    return json.loads((bundle / "configs" / f"{name}.json").read_text(encoding="utf-8"))


def parser(bundle: Path, *names: str, **override: Any) -> ConfigParser:
    """The configurations as ``monai.bundle run`` reads them, with ``--key value`` overrides."""
    made = ConfigParser()
    made.read_config([str(bundle / "configs" / f"{name}.json") for name in names])
    made.read_meta(str(bundle / "configs" / "metadata.json"))
    made.update(override)
    return made


def input_error(made: ConfigParser, *names: str) -> str:
    """The one-line message with which building the named things, in their order, ends."""
    with pytest.raises(Exception) as raised:
        for name in names:
            made.get_parsed_content(name)
    mistake = find_input_error(raised.value)
    assert mistake is not None, f"expected an InputError, got {raised.value!r}"
    return str(mistake)


def contains_target(content: Any, names: tuple[str, ...]) -> bool:
    if isinstance(content, dict):
        return content.get("_target_") in names or any(contains_target(value, names) for value in content.values())
    return isinstance(content, list) and any(contains_target(value, names) for value in content)


# Files


def test_files_are_there_and_nothing_else_is(bundle: Path) -> None:
    required = {*REQUIRED_FILES, *(f"configs/{name}.json" for name in CONFIGS), "docs/data_license.txt"}
    required.discard("models/model.pt")  # has a test of its own
    assert [name for name in sorted(required) if not (bundle / name).is_file()] == []
    assert [path.name for path in own_files(bundle) if path.suffix in (".py", ".pyc", ".ipynb")] == []
    assert [path.name for path in own_files(bundle) if path.stat().st_size > LARGEST_FILE] == []
    for text in ("LICENSE", "docs/data_license.txt", "docs/README.md"):
        assert (bundle / text).read_text(encoding="utf-8").strip()


def test_only_model_pt_lies_in_models(bundle: Path) -> None:
    """MONAI Label loads the weights file of the shortest name, whatever the configuration says."""
    assert {path.name for path in (bundle / "models").glob("*.pt")} <= {"model.pt"}


def test_configurations_are_json_without_personal_paths(bundle: Path) -> None:
    for path in (bundle / "configs").glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert isinstance(json.loads(text), dict)
        assert re.findall(r"/(?:home|Users|root|work|tmp)/", text) == []


def test_the_folder_name_says_segmentation_to_monai_label(bundle: Path) -> None:
    assert [word for word in OTHER_TYPES if word in bundle.name.lower()] == []


# metadata.json


def test_metadata_versions_are_consistent(bundle: Path) -> None:
    metadata = read(bundle, "metadata")
    assert metadata["version"] in metadata["changelog"]
    assert metadata["schema"].endswith("meta_schema_20240725.json")
    # The zoo installs every entry by pip, and the package is not published.
    packages = {**metadata["required_packages_version"], **metadata.get("optional_packages_version", {})}
    assert [name for name in packages if name.replace("-", "_") == "shared_components"] == []


def test_metadata_declares_image_and_pred_first(bundle: Path) -> None:
    formats = read(bundle, "metadata")["network_data_format"]
    assert next(iter(formats["inputs"])) == "image"
    assert next(iter(formats["outputs"])) == "pred"
    channels = formats["outputs"]["pred"]["channel_def"]
    assert [int(key) for key in channels] == list(range(formats["outputs"]["pred"]["num_channels"]))
    assert generates(bundle) or channels["0"] == "background"


def test_metadata_keeps_the_schema(bundle: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((REPOSITORY / "tests" / "schema" / "meta_schema_20240725.json").read_text(encoding="utf-8"))
    jsonschema.validate(read(bundle, "metadata"), schema)


# Presets of sampling


def test_fast_json_asks_for_fewer_calls_of_the_same_network_and_for_nothing_else(segmenter: Path) -> None:
    if not (segmenter / "configs" / "fast.json").is_file():
        assert not {"num_train_timesteps", "mirror_members"} <= set(read(segmenter, "inference")), "it has members"
        return
    assert set(read(segmenter, "fast")) == {"num_samples", "num_inference_steps"}
    usual, fast = (parser(segmenter, *names, device="cpu") for names in (("inference",), ("inference", "fast")))
    made, quick = (item.get_parsed_content("network_def") for item in (usual, fast))
    calls, fewer = (network.num_samples * network.num_inference_steps for network in (made, quick))
    assert 4 * fewer <= calls
    assert quick.num_samples >= len(getattr(quick, "slice_axes", [0])), "each axis has a member"
    evaluated = parser(segmenter, "train", "evaluate", "fast", device="cpu").get_parsed_content("network_def")
    assert (evaluated.num_samples, evaluated.num_inference_steps) == (quick.num_samples, quick.num_inference_steps)


# Identifiers, references, keys


def test_every_target_import_and_reference_resolves(bundle: Path) -> None:
    metadata = str(bundle / "configs" / "metadata.json")
    assert {name: unresolved(files, metadata) for name, files in config_sets(bundle).items()} == dict.fromkeys(
        config_sets(bundle), []
    )


def test_an_overlay_that_imports_keeps_what_the_configuration_before_it_imports(bundle: Path) -> None:
    """Its list replaces the other's, whose expressions would then find names missing, in some cases only at the end."""
    kept = [set(read(bundle, name)["imports"]) for name in ("train", "inference")]
    for file in sorted((bundle / "configs").glob("*.json")):
        overlay = read(bundle, file.stem)
        if "imports" in overlay and "network_def" not in overlay:
            lacking = [names - set(overlay["imports"]) for names in kept]
            assert set() in lacking, f"{file.name}: {min(lacking, key=len)}"


def test_properties_have_the_ids_of_the_bundle_specification(bundle: Path) -> None:
    train, evaluate, inference = (f"{bundle}/configs/{name}.json" for name in ("train", "evaluate", "inference"))
    metadata = str(bundle / "configs" / "metadata.json")
    assert wrong_ids([train], metadata, "train") == []
    assert wrong_ids([train, evaluate], metadata, "train") == []
    assert wrong_ids([inference], metadata, "infer") == []


def test_override_keys_are_the_same_everywhere(bundle: Path) -> None:
    unused = {"combine"} if generates(bundle) else set()  # images are not combined
    assert [key for key in TRAIN_KEYS if key not in read(bundle, "train")] == sorted(unused)
    assert [key for key in RUN_KEYS if key not in read(bundle, "inference")] == sorted(unused)


def test_what_monai_label_needs_of_the_configurations(segmenter: Path) -> None:
    bundle = segmenter
    train, inference = read(bundle, "train"), read(bundle, "inference")
    handlers = train["train"]["handlers"]  # the server looks for a checkpoint loader in each
    assert isinstance(handlers, list) and [item for item in handlers if not isinstance(item, dict)] == []
    assert "displayable_configs" not in train  # a train request that lacks one of its keys is an error
    assert {"num_samples", "num_inference_steps"} <= set(inference["displayable_configs"])
    assert "@_meta_" not in json.dumps(inference)  # the server reads inference.json without the metadata
    for name in ("train", "inference", "evaluate"):
        assert re.findall(r"@device\.", json.dumps(read(bundle, name))) == []  # the server makes it a string
    assert contains_target(inference["preprocessing"], ("Compose", "monai.transforms.Compose"))
    assert contains_target(inference["postprocessing"], ("Invertd", "monai.transforms.Invertd"))
    stock = ("Spacingd", "SpacingD", "SpacingDict", "monai.transforms.Spacingd")
    assert not contains_target(inference["preprocessing"], stock)  # raises beside Label's image_path


# Where things lie


@pytest.mark.parametrize("name", ["train", "inference"])
def test_the_bundle_root_is_found_from_the_repository_and_from_inside(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for folder in (REPOSITORY, bundle):
        monkeypatch.chdir(folder)
        assert Path(parser(bundle, name).get_parsed_content("bundle_root")).resolve() == bundle.resolve()


@pytest.mark.parametrize("given", ["--config_file={0}/train.json", "['{0}/train.json','{0}/evaluate.json']"])
def test_the_bundle_root_is_that_of_the_configuration_that_was_named(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """From anywhere, inside another bundle too: an exported copy is not mistaken for the bundle it was made from."""
    shutil.copytree(bundle / "configs", tmp_path / bundle.name / "configs")
    monkeypatch.setattr("sys.argv", ["python", given.format(tmp_path / bundle.name / "configs")])
    for folder in (REPOSITORY, REPOSITORY / "bundles" / "cdal_hippocampus", tmp_path):
        monkeypatch.chdir(folder)
        found = Path(parser(bundle, "train").get_parsed_content("bundle_root"))
        assert found.resolve() == (tmp_path / bundle.name).resolve()


@pytest.mark.parametrize("name", ["train", "inference"])
def test_an_overridden_bundle_root_moves_everything(bundle: Path, tmp_path: Path, name: str) -> None:
    made = parser(bundle, name, bundle_root=str(tmp_path))
    assert Path(made.get_parsed_content("output_dir")).is_relative_to(tmp_path)
    weights = made.get_parsed_content("ckpt_path")
    assert Path(weights or tmp_path).is_relative_to(tmp_path)  # a training may start from no weights


# The network


def test_one_network_in_training_inference_and_on_disk(bundle: Path) -> None:
    train, inference = (parser(bundle, name).get_parsed_content("network_def") for name in ("train", "inference"))
    shapes = {name: tuple(value.shape) for name, value in inference.state_dict().items()}
    assert {name: tuple(value.shape) for name, value in train.state_dict().items()} == shapes
    weights = bundle / "models" / "model.pt"
    if not weights.is_file():  # those that it would have are small enough
        assert sum(value.numel() * value.element_size() for value in inference.state_dict().values()) < LARGEST_FILE
        pytest.xfail(f"{bundle.name} has no trained models/model.pt yet")
    state = torch.load(weights, map_location="cpu", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    inference.load_state_dict(state, strict=True)
    assert weights.stat().st_size < LARGEST_FILE


@pytest.mark.parametrize(
    ("key", "value", "listed"),
    [
        ("combine", "median", ["combine", "median", "majority", "mean", "staple"]),
        ("num_samples", 0, ["num_samples", "0"]),
        ("num_inference_steps", 0, ["num_inference_steps", "0"]),
        ("num_inference_steps", -2, ["num_inference_steps", "-2"]),
        ("num_inference_steps", 100000, ["num_inference_steps", "100000"]),
    ],
)
def test_a_wrong_value_is_refused_where_it_arrives(bundle: Path, key: str, value: Any, listed: list[str]) -> None:
    if key == "combine" and generates(bundle):
        pytest.skip("images are not combined")
    for name in ("train", "inference"):
        message = input_error(parser(bundle, name, **{key: value}), "network_def", "initialize")
        assert "\n" not in message
        assert [part for part in listed if part not in message] == []


def test_labels_that_are_no_class_numbers_are_refused_before_anything_is_trained_on_them(bundle: Path) -> None:
    for name in ("train", "inference"):
        assert read(bundle, name)["labels"]
        message = input_error(parser(bundle, name, labels={"first": 3, "second": 6}), "initialize")
        assert "labels is {'first': 3, 'second': 6}; expected" in message and "adapt_bundle" in message


def test_the_configurations_keep_the_rules_for_what_a_user_gives(bundle: Path) -> None:
    for name in sorted(path.stem for path in (bundle / "configs").glob("*.json")):
        for key, value in read(bundle, name).items():
            expected, holds = _RULES.get(key, ("", lambda v: True))
            assert str(value).startswith("$") or holds(value), f"{name}.json: {key} is {value!r}; expected {expected}"


def test_a_dataset_dir_that_does_not_exist_is_an_error_and_never_phantoms(bundle: Path, tmp_path: Path) -> None:
    missing = str(tmp_path / "no_such_folder")
    assert "no_such_folder" in input_error(parser(bundle, "train", dataset_dir=missing), "train#dataset#data")
    assert "no_such_folder" in input_error(parser(bundle, "inference", dataset_dir=missing), "dataset#data")
    assert list(tmp_path.iterdir()) == []


def takes_pictures(bundle: Path) -> bool:
    return len(read(bundle, "metadata")["network_data_format"]["inputs"]["image"]["spatial_shape"]) == 2


def some_image(bundle: Path) -> np.ndarray:
    """An image of the bundle's kind: volume (x, y, z[, channels]) float32, or picture (rows, columns[, 3]) uint8."""
    channels = read(bundle, "metadata")["network_data_format"]["inputs"]["image"]["num_channels"]
    shape = (24, 36) if takes_pictures(bundle) else (16, 24, 8)
    image = np.random.default_rng(0).uniform(20, 60, shape if channels == 1 else (*shape, channels))
    return image.astype(np.uint8 if takes_pictures(bundle) else np.float32)


def stored_in_two_ways(bundle: Path, folder: Path) -> tuple[Path, Path]:
    """One image as it lies, and with other rows and columns and a header that says so: voxel order, or EXIF."""
    image = some_image(bundle)
    if takes_pictures(bundle):
        straight, turned = folder / "straight.png", folder / "turned.png"
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6  # turn clockwise to see it
        Image.fromarray(image).save(straight)
        Image.fromarray(np.ascontiguousarray(np.rot90(image))).save(turned, exif=exif)
        return straight, turned
    straight, turned = folder / "straight.nii.gz", folder / "turned.nii.gz"
    volume = nib.Nifti1Image(image, np.diag([1.0, 1.0, 1.0, 1.0]))
    nib.save(volume, straight)
    nib.save(volume.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt("PSL"))), turned)
    return straight, turned


def segment(made: ConfigParser, file: Path, network: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    """A finished case by the configuration's own transforms, as an evaluator puts them together, and its files."""
    preprocessing, postprocessing = (made.get_parsed_content(f"{name}processing") for name in ("pre", "post"))
    batch = list_data_collate([preprocessing({"image": str(file)})])
    with torch.no_grad():
        batch["pred"] = network(batch["image"])
    (case,) = decollate_batch(batch)
    return postprocessing(case)


def label_map(folder: Path, file: Path) -> np.ndarray:
    """What was written for a file: (rows, columns) of a picture, (x, y, z) of a volume in RAS order."""
    (written,) = folder.glob(f"{file.name.split('.')[0]}_seg.*")
    if written.suffix == ".png":
        return np.asarray(Image.open(written))
    stored, source = nib.load(written), nib.load(file)
    assert stored.shape == source.shape[:3]
    assert np.allclose(stored.affine, source.affine)
    return np.asarray(nib.as_closest_canonical(stored).dataobj)


def test_the_prediction_lies_in_the_images_own_voxel_order(segmenter: Path, tmp_path: Path) -> None:
    """Two ways to store an image give one answer, bit for bit: MONAI only warns of a skipped inversion."""
    bundle, answers = segmenter, []
    options = {"num_samples": 1, "device": "cpu", "amp": False, "output_dir": str(tmp_path / "out")}
    if "max_hole_size" in read(bundle, "inference"):  # what random weights make of a small picture is all holes
        options["max_hole_size"] = None
    for file in stored_in_two_ways(bundle, tmp_path):
        torch.manual_seed(0)  # the same random weights
        made = parser(bundle, "inference", **options)
        network = made.get_parsed_content("network_def").eval()
        for parameter in network.parameters():  # so that what starts at zero has a say
            parameter.data += 0.05 * torch.randn(parameter.shape)
        segment(made, file, network)
        answers.append(label_map(tmp_path / "out", file))
    assert 0 < answers[0].mean() and (answers[0] == 0).any()
    assert np.array_equal(*answers)


def test_what_is_marked_in_the_image_is_marked_in_the_same_place(segmenter: Path, tmp_path: Path) -> None:
    """A corner of the image is bright, the stand-in for the network finds what is bright, the file has that corner."""
    bundle = segmenter
    image, corner = some_image(bundle), (slice(2, 10), slice(4, 20))
    image[corner] += 150
    file = tmp_path / ("corner.png" if takes_pictures(bundle) else "corner.nii.gz")
    if takes_pictures(bundle):
        Image.fromarray(image).save(file)
    else:
        nib.save(nib.Nifti1Image(image, np.diag([1.0, 1.0, 1.0, 1.0])), file)
    plain = {"clip_limit": 0} if "clip_limit" in read(bundle, "inference") else {}  # equalised, noise is as bright
    made = parser(bundle, "inference", device="cpu", output_dir=str(tmp_path / "out"), **plain)
    classes = read(bundle, "metadata")["network_data_format"]["outputs"]["pred"]["num_channels"]

    def bright(seen: torch.Tensor) -> torch.Tensor:
        middle = (seen.amin() + seen.amax()) / 2
        found = (seen[:, :1] > middle).float()
        return torch.cat([1 - found, found, *[torch.zeros_like(found)] * (classes - 2)], dim=1)

    segment(made, file, bright)
    found = label_map(tmp_path / "out", file) == 1
    expected = np.zeros(found.shape, bool)
    expected[corner] = True
    assert found.shape == image.shape[: found.ndim]
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.9


def test_the_loss_of_every_step_goes_to_tensorboard(bundle: Path) -> None:
    """MONAI's handler leaves out what is no number, a tuple of one number among it, with no more than a warning."""
    configs = [read(bundle, path.stem) for path in (bundle / "configs").glob("train*.json")]
    handlers = [handler for config in configs if "train" in config for handler in config["train"].get("handlers", [])]
    transforms = [handler["output_transform"] for handler in handlers if "tag_name" in handler]
    assert transforms
    for transform in transforms:
        parser = ConfigParser({"imports": ["$from monai.handlers import from_engine"], "written": transform})
        written = parser.get_parsed_content("written")({"loss": torch.tensor(2.5)})
        values = list(written.values()) if isinstance(written, dict) else [written]
        assert [float(value) for value in values if not isinstance(value, tuple)] == [2.5], transform


# The model card


def test_the_model_card_names_every_command_and_figure(bundle: Path) -> None:
    card = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    configs = [path.name for path in (bundle / "configs").glob("*.json") if path.name != "metadata.json"]
    assert [name for name in configs if name not in card] == []
    commands = ("monai.bundle run", "torchrun", "monai.bundle ckpt_export", "export_bundle")
    commands += () if generates(bundle) else ("monailabel",)
    assert [command for command in commands if command not in card] == []
    keys = ("--dataset_dir", "--bundle_root", "--resume")
    assert [key for key in keys if key not in card] == []
    assert [path.name for path in (bundle / "docs").glob("*.png") if path.name not in card] == []


def test_the_model_card_has_its_chapters(bundle: Path) -> None:
    card = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    headings = " ".join(re.findall(r"(?m)^#+\s*(.+)$", card)).lower()
    chapters = (
        "overview",
        "data",
        "training",
        "input",
        "output",
        "performance",
        "commands",
        "references",
        "license",
    )
    spelt = headings.replace("licence", "license")
    assert [chapter for chapter in chapters if chapter not in spelt] == []
    # calibration and error detection stand beside the diffusion result; beside images what says if they are of use
    numbers = ("FID", "MS-SSIM", "nearest", "real") if generates(bundle) else ("ECE", "AUROC")
    assert [number for number in numbers if number not in card] == []
