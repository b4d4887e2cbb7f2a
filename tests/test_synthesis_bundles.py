"""What every bundle that generates images keeps, beside the contract of all bundles."""

from __future__ import annotations

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

from tests.test_bundle_contract import BUNDLES, REPOSITORY, generates, input_error, parser, read, takes_pictures

GENERATORS = [bundle for bundle in BUNDLES if generates(bundle)]


@pytest.fixture(params=GENERATORS, ids=lambda path: path.name)
def bundle(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle's folder; the test runs in the repository's root, as a user would."""
    monkeypatch.chdir(REPOSITORY)
    return request.param


def some_labels(bundle: Path) -> np.ndarray:
    """A label map, (x, y, z) or (rows, columns), with every class of the bundle."""
    values = [0, *read(bundle, "inference")["labels"].values()]
    blocks = np.random.default_rng(0).integers(0, len(values), (4, 6) if takes_pictures(bundle) else (4, 6, 2))
    return np.asarray(values, np.uint8)[np.kron(blocks, np.ones((4,) * blocks.ndim, int))]


def stored_in_two_ways(bundle: Path, folder: Path) -> tuple[Path, Path]:
    """One label map as it lies, and with other rows and columns and a header that says so: voxel order, or EXIF."""
    labels = some_labels(bundle)
    if takes_pictures(bundle):
        straight, turned, exif = folder / "straight.png", folder / "turned.png", Image.Exif()
        exif[ExifTags.Base.Orientation] = 6  # turn clockwise to see it
        Image.fromarray(labels).save(straight)
        Image.fromarray(np.ascontiguousarray(np.rot90(labels))).save(turned, exif=exif)
        return straight, turned
    straight, turned = folder / "straight.nii.gz", folder / "turned.nii.gz"
    volume = nib.Nifti1Image(labels, np.diag([*inference(bundle).get_parsed_content("voxel_size"), 1.0]))
    nib.save(volume, straight)
    nib.save(volume.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt("PSL"))), turned)
    return straight, turned


def inference(bundle: Path, **override: Any) -> ConfigParser:
    return parser(bundle, "inference", device="cpu", amp=False, num_inference_steps=2, **override)


def generate(made: ConfigParser, file: Path, network: Any, name: str = "made", dropped: str = "") -> dict[str, Any]:
    """A finished case by the configuration's own transforms, as an evaluator puts them together, and its files."""
    preprocessing, postprocessing = (made.get_parsed_content(f"{part}processing") for part in ("pre", "post"))
    request = {"image": str(file), "name": name, "dropped": dropped, "seed": 0}
    batch = list_data_collate([preprocessing(request)])
    with torch.no_grad():
        batch["pred"] = network(batch["image"])
    (case,) = decollate_batch(batch)
    return postprocessing(case)


def pixels(folder: Path) -> np.ndarray:
    """The one image of a folder: (rows, columns) of a picture, (x, y, z) of a volume in RAS order."""
    (file,) = folder.iterdir()
    if file.suffix == ".png":
        return np.asarray(Image.open(file))
    return np.asarray(nib.as_closest_canonical(nib.load(file)).dataobj)


def test_the_image_lies_in_its_label_maps_own_voxel_order(bundle: Path, tmp_path: Path) -> None:
    """Two ways to store a label map give one image, bit for bit, on the map's own grid, with the map beside it."""
    answers = []
    for file in stored_in_two_ways(bundle, tmp_path):
        torch.manual_seed(0)  # the same random weights
        made = inference(bundle, output_dir=str(tmp_path / file.name.split(".")[0]))
        network = made.get_parsed_content("network_def").eval()
        for parameter in network.parameters():  # so that what starts at zero has a say
            parameter.data += 0.05 * torch.randn(parameter.shape)
        generate(made, file, network)
        image, label = (tmp_path / file.name.split(".")[0] / part for part in ("imagesTr", "labelsTr"))
        if not takes_pictures(bundle):
            source = nib.load(file)
            for written in (image / "made.nii.gz", label / "made.nii.gz"):
                assert nib.load(written).shape == source.shape and np.allclose(nib.load(written).affine, source.affine)
        assert np.array_equal(pixels(label), some_labels(bundle))
        answers.append(pixels(image))
    assert answers[0].std() > 0
    assert np.array_equal(*answers)


def test_a_stand_in_that_paints_the_map_paints_it_in_its_place(bundle: Path, tmp_path: Path) -> None:
    made = inference(bundle, output_dir=str(tmp_path / "out"))
    low, high = made.get_parsed_content("stored_range")
    file = stored_in_two_ways(bundle, tmp_path)[1]
    generate(made, file, lambda label: (label > 0).float())
    image, expected = pixels(tmp_path / "out" / "imagesTr"), np.where(some_labels(bundle) > 0, high, low)
    assert image.shape == expected.shape
    assert np.mean(np.abs(image - expected) < 0.4 * (high - low)) > (0.95 if takes_pictures(bundle) else 0.999)


def test_a_class_that_is_dropped_is_in_neither_the_input_nor_the_label_map(bundle: Path, tmp_path: Path) -> None:
    made = inference(bundle, output_dir=str(tmp_path / "out"))
    name, value = next(iter(made.get_parsed_content("labels").items()))
    seen = []
    generate(
        made, stored_in_two_ways(bundle, tmp_path)[0], lambda label: seen.append(label) or label / 100, dropped=name
    )
    assert value not in torch.unique(seen[0])
    written = np.unique(pixels(tmp_path / "out" / "labelsTr"))
    assert value not in written and len(written) == len(read(bundle, "inference")["labels"])


def test_a_blank_map_is_of_the_size_asked_for_in_the_voxels_of_patients(bundle: Path, tmp_path: Path) -> None:
    size = [16, 24] if takes_pictures(bundle) else [16, 24, 4]
    made = inference(bundle, blank_size=size, output_dir=str(tmp_path), num_images=1)
    ((request,), _) = made.get_parsed_content("requests")
    label = made.get_parsed_content("preprocessing")(request)["image"]
    assert list(label.shape[1:]) == size and not label.any()
    if not takes_pictures(bundle):
        patients = inference(bundle, dataset_dir=str(tmp_path)).get_parsed_content("voxel_size")
        assert label.pixdim.tolist() == patients


def test_an_image_is_stored_in_the_window_that_it_was_trained_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    made = inference(REPOSITORY / "bundles" / "segguided_ct_organs", hu_window=[-1000, 600])
    scaled = made.get_parsed_content("postprocessing").transforms[1]({"pred": torch.tensor([0.0, 0.5, 1.0])})
    assert scaled["pred"].tolist() == [-1000, -200, 600]


def test_classes_are_encoded_by_their_values_in_whatever_order_they_are_named(bundle: Path) -> None:
    labels = dict(reversed(read(bundle, "inference")["labels"].items()))
    for config in ("train", "inference"):
        assert parser(bundle, config, labels=labels).get_parsed_content("mask_encoder").label_values == sorted(
            labels.values()
        )


def test_the_demonstration_predicts_the_clean_image_and_an_evaluation_what_the_shipped_weights_do(bundle: Path) -> None:
    assert parser(bundle, "train").get_parsed_content("prediction_type") == "sample"
    network = parser(bundle, "train", "evaluate").get_parsed_content("network_def")
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    trained = parser(bundle, "train", dataset_dir="own").get_parsed_content("prediction_type")
    assert trained == parser(bundle, "inference").get_parsed_content("prediction_type")


def test_a_resumed_training_keeps_its_cases_and_how_they_are_seen(bundle: Path) -> None:
    seen = {"image_size": [32, 32]} if takes_pictures(bundle) else {"voxel_size": [2.0, 2.0, 2.0]}
    changed = {"fold": 2, "patient_pattern": "p(.)", **seen}
    if "hu_window" in read(bundle, "train"):
        changed["hu_window"] = [-100, 100]
    stated = parser(bundle, "train", **changed).get_parsed_content("stated")
    assert {name: stated[name] for name in changed} == changed


def test_a_segmenter_of_patients_does_not_judge_phantoms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(REPOSITORY)
    bundle = REPOSITORY / "bundles" / "segguided_hippocampus"
    assert parser(bundle, "train").get_parsed_content("segmenter_bundle") is None
    judge = parser(bundle, "train", dataset_dir=str(tmp_path)).get_parsed_content("segmenter_bundle")
    assert Path(judge).name == "cdal_hippocampus"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ({"mode": "dream"}, ["mode", "dream", "generate", "remove_classes", "translate", "interpolate"]),
        ({"num_images": 0}, ["num_images", "0"]),
        ({"drop_classes": ["spleen of a dragon"]}, ["drop_classes", "spleen of a dragon"]),
        ({"section": "holdout"}, ["section", "holdout", "train, validation, test"]),
    ],
)
def test_a_wrong_request_is_refused(bundle: Path, tmp_path: Path, override: dict, parts: list[str]) -> None:
    (tmp_path / "maps").mkdir()
    stored_in_two_ways(bundle, tmp_path / "maps")
    made = inference(bundle, dataset_dir=str(tmp_path / "maps"), output_dir=str(tmp_path / "out"), **override)
    message = input_error(made, "dataset#data")
    assert [part for part in parts if part not in message] == []


def test_networks_of_other_modes_of_training_are_built(bundle: Path) -> None:
    for override, channels in (
        ({"conditional": False}, 1),
        ({"mask_encoding": "legacy255", "num_adjacent_slices": 0}, 2),
    ):
        train = parser(bundle, "train", **override).get_parsed_content("network_def").state_dict()
        found = parser(bundle, "inference", **override).get_parsed_content("network_def").state_dict()
        assert {name: value.shape for name, value in train.items()} == {name: v.shape for name, v in found.items()}
        assert train["denoiser.unet.conv_in.conv.weight"].shape[1] == channels


def test_the_published_network_and_recipe_are_a_preset(bundle: Path) -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in parser(bundle, "train", "paper").get_parsed_content("denoiser").parameters())
    assert count == 113_669_761
    made = parser(bundle, "inference", "paper")
    assert (
        made.get_parsed_content("mask_encoding") == "legacy255"
        and made.get_parsed_content("prediction_type") == "epsilon"
    )
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1e-4)
    schedule = parser(bundle, "train", "paper", optimizer=optimizer, num_steps=2500).get_parsed_content("lr_scheduler")
    rates = {0: schedule.get_last_lr()[0]}
    for step in range(1, 2501):
        optimizer.step()
        schedule.step()
        rates[step] = schedule.get_last_lr()[0]
    expected = {0: 0.0, 1: 2e-7, 250: 5e-5, 500: 1e-4, 1000: 8.53553e-5, 1500: 5e-5, 2500: 0.0}
    assert {step: rates[step] for step in expected} == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_pictures_are_stored_in_8_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published mapping: (x / 2 + 0.5, clamped to [0, 1]) times 255, rounded half to even."""
    monkeypatch.chdir(REPOSITORY)
    made = inference(GENERATORS[0], stored_range=[0, 255])
    scale = made.get_parsed_content("postprocessing").transforms[1]
    values = torch.tensor([[-1.2, -1, 0, 0.5, 1, 2]])
    assert scale({"pred": (values / 2 + 0.5).clamp(0, 1)})["pred"].tolist() == [[0, 0, 128, 191, 255, 255]]
