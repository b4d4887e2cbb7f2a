"""A bundle made over for other data keeps the contract of all bundles, and says why it is what it is."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from monai.bundle import ConfigParser
from PIL import Image

from shared_components.__main__ import main
from shared_components.bundle_tools.adapt_bundle import adapt_bundle
from shared_components.errors import InputError
from tests import test_bundle_contract as contract
from tests.data.folders import save, some_mask, some_picture

REPOSITORY = Path(__file__).resolve().parents[2]
VALUES = (3, 7)


def volume_folder(root: Path, num_cases: int = 6) -> Path:
    """Pairs of CT volumes of 4 mm coronal slices, with two stored values, not in MSD's form."""
    rng = np.random.default_rng(0)
    for number in range(num_cases):
        label = np.zeros((20, 6, 24), np.uint8)
        label[4:9, 1:4, 5:12], label[12:16, 2:5, 10:20] = VALUES
        image = np.where(label > 0, 40, -1000) + rng.normal(0, 5, label.shape)
        affine = np.diag([1.0, 4.0, 1.0, 1.0])
        save(root / "images" / f"p{number}.nii.gz", image.astype(np.int16), affine)
        save(root / "labels" / f"p{number}.nii.gz", label, affine)
    return root


def picture_folder(root: Path, num_cases: int = 6, colour: bool = False) -> Path:
    for number in range(num_cases):
        for part, array in (("images", some_picture(number)), ("masks", some_mask())):
            (root / part).mkdir(parents=True, exist_ok=True)
            array = array if part == "masks" or colour else array[..., 0]
            Image.fromarray(array).save(root / part / f"p{number}.png")
    return root


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return volume_folder(tmp_path_factory.mktemp("volumes") / "data")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return picture_folder(tmp_path_factory.mktemp("pictures") / "data", colour=True)


MADE = {
    "cdal_hippocampus": "volumes",
    "medsegdiff_brats": "volumes",
    "cdal_monuseg": "pictures",
    "cdal_lung_cxr": "pictures",
    "medsegdiff_isic": "pictures",
    "medsegdiff_v2_isic": "pictures",
}


@pytest.fixture(scope="module", params=MADE)
def adapted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = request.getfixturevalue(MADE[request.param])
    target = tmp_path_factory.mktemp("made") / f"my_{request.param}"
    labels = {"organ": 3, "lesion": 7} if MADE[request.param] == "volumes" else {"lesion": 1}
    return Path(adapt_bundle(str(REPOSITORY / "bundles" / request.param), str(data), target.name, str(target), labels))


def read(bundle: Path, name: str) -> dict:
    return json.loads((bundle / "configs" / f"{name}.json").read_text(encoding="utf-8"))


def test_it_keeps_the_contract_of_all_bundles(adapted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(adapted)
    for check in (
        contract.test_only_model_pt_lies_in_models,
        contract.test_configurations_are_json_without_personal_paths,
        contract.test_the_folder_name_says_segmentation_to_monai_label,
        contract.test_metadata_versions_are_consistent,
        contract.test_metadata_declares_image_and_pred_first,
        contract.test_metadata_keeps_the_schema,
        contract.test_every_target_import_and_reference_resolves,
        contract.test_properties_have_the_ids_of_the_bundle_specification,
        contract.test_override_keys_are_the_same_everywhere,
        contract.test_what_monai_label_needs_of_the_configurations,
        contract.test_the_model_card_names_every_command_and_figure,
        contract.test_the_model_card_has_its_chapters,
    ):
        check(adapted)


def test_training_and_inference_have_one_network_of_the_datas_channels_and_classes(adapted: Path) -> None:
    networks = [contract.parser(adapted, name).get_parsed_content("network_def") for name in ("train", "inference")]
    shapes = [{name: tuple(value.shape) for name, value in net.state_dict().items()} for net in networks]
    assert shapes[0] == shapes[1]
    metadata = read(adapted, "metadata")["network_data_format"]
    assert networks[0].num_classes == metadata["outputs"]["pred"]["num_channels"]
    of_volumes = "hippo" in adapted.name or "brats" in adapted.name
    assert metadata["outputs"]["pred"]["channel_def"]["1"] == ("organ" if of_volumes else "lesion")


def test_a_case_comes_out_of_the_preparation_as_the_plan_says(adapted: Path, volumes: Path, pictures: Path) -> None:
    is_volume = "hippo" in adapted.name or "brats" in adapted.name
    made = contract.parser(adapted, "train", dataset_dir=str(volumes if is_volume else pictures))
    items = made.get_parsed_content("train#dataset#data")
    assert len(items) == 4  # of six one is tested and one validates
    case = made.get_parsed_content("validate#preprocessing")(items[0])
    assert sorted(np.unique(np.asarray(case["label"])).tolist()) == ([0, 1, 2] if is_volume else [0, 1])
    assert np.isfinite(np.asarray(case["image"])).all()
    if "hippo" in adapted.name:
        assert case["image"].shape == (1, 24, 20, 6)  # coronal slices last
        assert abs(float(case["image"][case["image"] > -2].mean())) < 0.5  # the foreground, about standardised


def test_fewer_calls_are_an_overlay_here_too(adapted: Path) -> None:
    usual, fast = (
        contract.parser(adapted, *names).get_parsed_content("network_def")
        for names in (("inference",), ("inference", "fast"))
    )
    calls = [network.num_samples * network.num_inference_steps for network in (usual, fast)]
    assert calls[1] < calls[0]
    assert "`fast.json`" in (adapted / "docs" / "README.md").read_text(encoding="utf-8")


def test_the_plan_the_fingerprint_and_the_note_on_the_licence_are_saved(adapted: Path) -> None:
    page = (adapted / "docs" / "plan.md").read_text(encoding="utf-8")
    train = read(adapted, "train")
    assert f"| `max_epochs` | `{train['max_epochs']}` |" in page
    content = json.loads((adapted / "docs" / "fingerprint.json").read_text(encoding="utf-8"))
    assert content["num_cases"] == 6
    assert sorted(case for ids in content["sections"].values() for case in ids) == [f"p{n}" for n in range(6)]
    assert "states a licence" in (adapted / "docs" / "data_license.txt").read_text(encoding="utf-8")
    assert "phantom" not in json.dumps(train) and not list((adapted / "models").iterdir())


def test_it_is_found_by_the_configurations_path_from_anywhere(
    adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listed = str([str(adapted / "configs" / f"{name}.json") for name in ("train", "evaluate")])
    for argument in (listed, str(adapted / "configs" / "train.json")):
        monkeypatch.setattr("sys.argv", ["monai.bundle", "run", "--config_file", argument])
        made = ConfigParser(read(adapted, "train"))
        assert Path(made.get_parsed_content("bundle_root")) == adapted
    made = ConfigParser(read(adapted, "inference"))
    with pytest.raises(Exception, match="own_data"):  # and there are no phantoms to fall back on
        made.get_parsed_content("cases")


@pytest.mark.parametrize(
    ("bundle", "data", "said"),
    [
        (
            "cdal_hippocampus",
            "pictures",
            "segments volumes, the folder holds pictures; adapt one of cdal_lung_cxr, cdal_m",
        ),
        (
            "cdal_monuseg",
            "volumes",
            "segments pictures, the folder holds volumes; adapt one of cdal_hippocampus, medsegd",
        ),
        ("cdm_brats", "pictures", "learns from image-level labels"),
        ("adaptdiff_octa", "pictures", "run_stages"),
        ("segguided_breast_mri", "pictures", "makes images of label maps"),
    ],
)
def test_a_bundle_that_does_not_fit_is_refused_with_those_that_do(
    bundle: str, data: str, said: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(data)
    with pytest.raises(InputError) as raised:
        adapt_bundle(str(REPOSITORY / "bundles" / bundle), str(folder), "mine", str(tmp_path / "mine"))
    assert said in str(raised.value) and "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_bad_names_labels_and_cases_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    bundle, data = str(REPOSITORY / "bundles" / "cdal_hippocampus"), volume_folder(tmp_path / "data")
    target = str(tmp_path / "made")
    with pytest.raises(InputError, match="name 'my detection'"):
        adapt_bundle(bundle, str(data), "my detection", target)
    with pytest.raises(InputError, match="no label 'liver' in the data; there are label 3 3, label 7 7"):
        adapt_bundle(bundle, str(data), "mine", target, "liver")
    with pytest.raises(InputError, match=r"no voxel has the value \[9\]"):
        adapt_bundle(bundle, str(data), "mine", target, {"liver": [3, 9]})
    (data / "images" / "p1.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match="1 cases cannot be used .p1: empty file"):
        adapt_bundle(bundle, str(data), "mine", target)
    assert not Path(target).exists()
    adapt_bundle(bundle, str(data), "mine", target, skip_bad=True)
    assert read(Path(target), "train")["skip_bad"] is True
    with pytest.raises(InputError, match="exists"):
        adapt_bundle(bundle, str(data), "mine", target)


def test_the_command_shows_the_folder_and_the_place_of_the_bundle(
    volumes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([
        "adapt_bundle", "--from", str(REPOSITORY / "bundles" / "cdal_hippocampus"), "--dataset_dir", str(volumes),
        "--name", "mine", "--output", str(tmp_path / "mine"), "--labels", "7", "--fold=1", "--patient_pattern", r"p\d",
    ])  # fmt: skip
    out = capsys.readouterr().out
    assert "split     train 4, validation 1, test 1 (by sorted patient; validation: fold 1 of 5)" in out
    assert "patients  6 (case ids, by p" in out
    assert out.splitlines()[-1] == str(tmp_path / "mine")
    train = read(tmp_path / "mine", "train")
    assert (train["labels"], train["fold"], train["patient_pattern"]) == ({"label 7": 1}, 1, r"p\d")
    assert nibabel.load(volumes / "labels" / "p0.nii.gz").get_fdata().max() == 7  # the data are as they were
    with pytest.raises(InputError, match="--from is missing"):
        main(["adapt_bundle", "--dataset_dir", str(volumes), "--name", "mine"])


SPLITTING = [
    path.parent.parent
    for path in sorted(REPOSITORY.glob("bundles/*/configs/train.json"))
    if path.parts[-3] != "adaptdiff_octa"  # its stages must share their sections
]


@pytest.mark.parametrize("bundle", SPLITTING, ids=lambda path: path.name)
def test_every_training_can_validate_on_another_part_of_the_patients(bundle: Path) -> None:
    train = read(bundle, "train")
    assert (train["fold"], train["num_folds"], train["patient_pattern"]) == (None, 5, None)
    for name in ("train", "evaluate"):
        text = (bundle / "configs" / f"{name}.json").read_text(encoding="utf-8")
        calls = text.count("make_datalist(") + text.count("slice_list(")
        assert calls and text.count("**@split)") == calls
