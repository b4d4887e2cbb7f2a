"""The bundles of pictures and of several sequences, as typed: training, resuming, evaluating, predicting."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from shared_components.data.phantoms import make_phantoms
from tests.runs.commands import Run, bundle_command, check_refused, files_below, run_bundle, run_python
from tests.runs.medsegdiff import TINY_NETWORK, TINY_TRAINING, bundle_folder, config_of, network_of
from tests.runs.test_multi_process import TORCHRUN
from tests.runs.test_train import check_same_training, history, kill_in_second_epoch, load

PICTURES, SEQUENCES = "medsegdiff_isic", "medsegdiff_brats"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Six to train on, one to validate on, one to test on."""
    return make_phantoms(tmp_path_factory.mktemp("pictures") / "phantoms", num_cases=6, seed=2, kind="lesion")


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory) -> tuple[Run, Path]:
    """An uninterrupted training of two epochs, started from the repository's root."""
    output_dir = tmp_path_factory.mktemp("trained_pictures") / "run"
    before = files_below(bundle_folder(PICTURES)), files_below(pictures)
    run = run_bundle(*config_of(PICTURES, "train"), **TINY_TRAINING, dataset_dir=pictures, output_dir=output_dir)
    run.check_done()
    assert (files_below(bundle_folder(PICTURES)), files_below(pictures)) == before
    return run, output_dir


@pytest.fixture(scope="module")
def lively(trained) -> Path:
    """Weights that see something, somewhere, which those of a training of seconds may not."""
    weights, generator = load(trained[1] / "model.pt"), torch.Generator().manual_seed(0)
    for name, value in weights.items():
        if name != "schedule":
            value += 0.05 * torch.randn(value.shape, generator=generator)
    torch.save(weights, trained[1].parent / "lively.pt")
    return trained[1].parent / "lively.pt"


def test_a_training_on_pictures_leaves_weights_tables_and_pages(trained):
    run, output_dir = trained
    network_of(PICTURES).load_state_dict(load(output_dir / "model.pt"), strict=True)
    for row in history(output_dir):
        assert 0 < float(row["loss"]) < 20 and 0 <= float(row["validation val_mean_dice"]) <= 1
    with open(output_dir / "metrics_per_case.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert {"dice_lesion", "iou_lesion", "hd95_px_lesion", "error_auroc_near_foreground"} <= set(row)
    assert {"ged", "member_dice", "volume_cv"} <= set(row)
    assert (output_dir / "overlays" / f"{row['case']}_overlay.png").is_file()
    assert row["case"] in (output_dir / "report.html").read_text(encoding="utf-8")
    assert "no InvertibleTransform applied" not in run.stderr


def test_the_loss_of_every_step_is_in_tensorboard(trained):
    curves = EventAccumulator(str(trained[1] / "tensorboard"))
    curves.Reload()
    losses = [event.value for event in curves.Scalars("train_loss")]
    assert len(losses) == 4 and all(0 < loss < 20 for loss in losses)


@pytest.mark.parametrize("bundle", [PICTURES, "medsegdiff_v2_isic"])
def test_weights_of_small_phantoms_start_a_training_of_larger_pictures(bundle, pictures, tmp_path):
    small = network_of(bundle).state_dict()
    torch.save(small, tmp_path / "small.pt")
    options = {**TINY_TRAINING, "max_epochs": 1, "image_size": [48, 64], "learning_rate": 1e-9}
    options |= {"dataset_dir": pictures, "output_dir": tmp_path / "run", "ckpt_path": tmp_path / "small.pt"}
    run_bundle(*config_of(bundle, "train"), **options).check_done()
    weights = load(tmp_path / "run" / "model.pt")
    assert weights.keys() == small.keys()
    for name, value in small.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-6)


def test_killed_and_resumed_equals_uninterrupted(trained, pictures, tmp_path):
    output_dir = tmp_path / "run"
    options = {**TINY_TRAINING, "dataset_dir": pictures, "output_dir": output_dir}
    kill_in_second_epoch(bundle_command(*config_of(PICTURES, "train"), **options), output_dir)
    run_bundle(*config_of(PICTURES, "train"), **options, resume=True).check_done()
    check_same_training(trained[1], output_dir)
    assert (output_dir / "report.html").is_file()


def write_odd_pictures(folder: Path, source: Path) -> dict[str, tuple[int, int]]:
    """Pictures of several sizes and kinds, two that cannot be read; the (width, height) of the good ones."""
    folder.mkdir()
    picture = Image.open(sorted((source / "images").iterdir())[0]).convert("RGB")
    picture.save(folder / "own.png")
    picture.resize((70, 41)).save(folder / "wide.jpg", quality=95)
    picture.convert("L").resize((33, 90)).save(folder / "grey.png")
    picture.convert("RGBA").crop((3, 5, 60, 52)).save(folder / "alpha.tif")
    Image.new("RGB", (9, 8), (120, 90, 60)).save(folder / "small and flat.bmp")
    good = {path.stem: Image.open(path).size for path in folder.iterdir()}
    whole = (folder / "own.png").read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    (folder / "page.jpg").write_text("<html></html>", encoding="utf-8")
    return good


def test_pictures_of_any_size_are_predicted_and_broken_ones_reported(pictures, lively, tmp_path):
    sizes = write_odd_pictures(tmp_path / "in", pictures)
    options = {**TINY_NETWORK, "dataset_dir": tmp_path / "in", "output_dir": tmp_path / "out", "ckpt_path": lively}
    run = run_bundle(*config_of(PICTURES, "inference"), **options)
    check_refused(run, "2 cases could not be processed", "half.png", "page.jpg")
    endings = ("_seg.png", "_uncertainty.png", "_overlay.png")
    reports = {"report.html", "inference_per_case.csv", ".inference.jsonl"}
    assert set(files_below(tmp_path / "out")) == {case + ending for case in sizes for ending in endings} | reports
    assert "half.png" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    marked = 0
    for case, size in sizes.items():
        labels, uncertainty = (Image.open(tmp_path / "out" / f"{case}_{kind}.png") for kind in ("seg", "uncertainty"))
        assert labels.size == uncertainty.size == size
        assert set(np.unique(np.asarray(labels))) <= {0, 1}
        assert np.asarray(uncertainty).max() <= 65535
        marked += int(np.asarray(labels).sum())
    assert marked > 0
    check_refused(run_bundle(*config_of(PICTURES, "inference"), **options), str(tmp_path / "out"), "overwrite")


def brats_slices(source: Path, folder: Path) -> Path:
    """Middle slices of phantoms as pictures, a column a sequence in ``manifest.csv``."""
    folder.mkdir()
    sections = ["train", "train", "val", "test"]
    rows = ["id,split,flair,t1c,seg,patient"]
    for number, section in enumerate(sections):
        names = [f"imagesTr/phantom_{number:03d}_{channel:04d}" for channel in (0, 1)]
        for column, name in zip(("flair", "t1c", "seg"), (*names, f"labelsTr/phantom_{number:03d}")):
            volume = np.asarray(nibabel.load(source / f"{name}.nii.gz").dataobj, float)
            middle = volume[:, :, volume.shape[2] // 2]
            pixels = middle if column == "seg" else 255 * middle / middle.max()
            Image.fromarray(pixels.T.astype(np.uint8)).save(folder / f"{column}_{number}.png")
        rows.append(f"s{number},{section},flair_{number}.png,t1c_{number}.png,seg_{number}.png,p{number}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Path:
    return make_phantoms(tmp_path_factory.mktemp("volumes") / "phantoms", num_cases=4, seed=1, kind="tumour")


def test_one_configuration_trains_on_volumes_and_on_slices(volumes, tmp_path):
    """The nested regions on volumes with neighbouring slices, the whole tumour on slices."""
    options = {**TINY_TRAINING, "max_epochs": 1, "slices_per_case": 2}
    regions = {"label_values": [[1, 2, 3], [2, 3], [3]], "num_adjacent_slices": 1}
    files = config_of(SEQUENCES, "train", "regions")
    run_bundle(*files, **options, **regions, dataset_dir=volumes, output_dir=tmp_path / "volumes").check_done()
    slices = brats_slices(volumes, tmp_path / "data")
    run_bundle(
        *config_of(SEQUENCES, "train"), **options, dataset_dir=slices, output_dir=tmp_path / "slices"
    ).check_done()
    columns = {}
    for kind in ("volumes", "slices"):
        with open(tmp_path / kind / "metrics_per_case.csv", newline="", encoding="utf-8") as file:
            columns[kind] = set(next(csv.DictReader(file)))
    assert {"dice_oedema", "dice_whole_tumour", "hd95_mm_tumour_core", "dice_enhancing_tumour"} <= columns["volumes"]
    assert {"dice_tumour", "hd95_px_tumour"} <= columns["slices"]
    weights = load(tmp_path / "volumes" / "model.pt")
    network_of(SEQUENCES, "regions", **regions).load_state_dict(weights, strict=True)


@pytest.mark.slow
def test_slices_and_volumes_are_predicted_on_their_own_grids(volumes, tmp_path):
    torch.manual_seed(0)
    torch.save(network_of(SEQUENCES).state_dict(), tmp_path / "random.pt")
    slices = brats_slices(volumes, tmp_path / "data")
    for name, folder in (("volumes", volumes), ("slices", slices)):
        options = {**TINY_NETWORK, "dataset_dir": folder, "output_dir": tmp_path / name}
        files = config_of(SEQUENCES, "inference")
        run_bundle(*files, **options, ckpt_path=tmp_path / "random.pt").check_done()
    found = nibabel.load(tmp_path / "volumes" / "phantom_000_0000_seg.nii.gz")
    image = nibabel.load(volumes / "imagesTr" / "phantom_000_0000.nii.gz")
    assert found.shape == image.shape and np.allclose(found.affine, image.affine)
    assert Image.open(tmp_path / "slices" / "flair_0_seg.png").size == Image.open(slices / "flair_0.png").size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bundle", "overlays"),
    [
        (PICTURES, ("paper",)),
        (PICTURES, ("plain",)),
        (PICTURES, ("plain_backbone",)),
        ("medsegdiff_v2_isic", ()),
        ("medsegdiff_v2_isic", ("paper",)),
        ("medsegdiff_v2_isic", ("plain",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "default",
)
def test_every_recipe_trains_and_evaluates(pictures, tmp_path, bundle, overlays):
    options = {**TINY_TRAINING, "dataset_dir": pictures, "output_dir": tmp_path, "max_epochs": 1}
    if "paper" in overlays:
        options.update({"denoiser#channels": 32, "denoiser#num_res_blocks": 1, "validation_steps": 2})
    if "plain_backbone" in overlays:
        options = {key.replace("denoiser#", "denoiser#denoiser#"): value for key, value in options.items()}
    if "plain" in overlays:
        options = {key: value for key, value in options.items() if not key.startswith("denoiser")}
    run_bundle(*config_of(bundle, "train", *overlays), **options).check_done()
    options["ckpt_path"] = tmp_path / "model.pt"
    more = ("paper_dpm",) if "paper" in overlays else ()
    run_bundle(*config_of(bundle, "train", *overlays, *more, "evaluate"), **options).check_done()
    assert (tmp_path / "evaluation" / "report.html").is_file()


@pytest.mark.slow
def test_published_flags_as_typed(pictures, tmp_path):
    """Many of the keys of docs/medsegdiff.md in one command line, where values are what its parser makes of them."""
    linear = {"_target_": "torch.optim.lr_scheduler.LinearLR", "optimizer": "@optimizer", "total_iters": 100}
    options = {
        **TINY_TRAINING, "dataset_dir": pictures, "output_dir": tmp_path, "max_epochs": 1, "denoiser#channels": 32,
        "denoiser#num_res_blocks": 1, "denoiser#use_checkpoint": True, "denoiser#dropout": 0.1, "spacing": "'3'",
        "denoiser#timestep_scale": "$1000 / @num_train_timesteps", "num_train_timesteps": 500, "clip": "$None",
        "num_inference_steps": "$None", "validation_steps": "$None", "train#trainer#accumulation_steps": 2,
        "lr_scheduler": linear, "prediction_loss#objective": "hybrid_rescaled", "ema#momentum": 0.001,
        "timestep_sampler#_target_": "shared_components.diffusion.timestep_samplers.LossSecondMomentTimestepSampler",
        "train#handlers#7#iteration_log": 100, "optimizer#weight_decay": 0.01, "combine": "staple",
    }  # fmt: skip
    run_bundle(*config_of(PICTURES, "train", "paper"), **options).check_done()
    state = load(tmp_path / "training_state.pt")
    assert state["lr_scheduler"]["total_iters"] == 100 and state["timestep_sampler"]["counts"].sum() > 0
    refused = run_bundle(*config_of(PICTURES, "train", "paper"), **{**options, "clip": "None"})
    check_refused(refused, "--clip", "'$None'")


@pytest.mark.slow
def test_two_processes_train_evaluate_and_report(pictures, tmp_path):
    options = {**TINY_TRAINING, "dataset_dir": pictures, "output_dir": tmp_path}
    command = bundle_command(*config_of(PICTURES, "train", "multi_gpu_train"), **options)
    run = run_python(*TORCHRUN, *command).check_done()
    assert "Traceback" not in run.stderr
    network_of(PICTURES).load_state_dict(load(tmp_path / "model.pt"), strict=True)
    assert load(tmp_path / "training_state.pt")["progress"]["epoch"] == 2
    assert (tmp_path / "report.html").is_file()


@pytest.mark.slow
def test_an_exported_bundle_of_pictures_runs_alone(trained, pictures, tmp_path):
    """Without this repository on the path, on a copy of the bundle with weights of the tiny network."""
    source = Path(shutil.copytree(bundle_folder(PICTURES), tmp_path / "source" / PICTURES))
    (source / "models").mkdir(exist_ok=True)
    shutil.copy(trained[1] / "model.pt", source / "models" / "model.pt")
    run_python("-m", "shared_components", "export_bundle", "--bundle", str(source), "--output", str(tmp_path / "alone"))
    alone = tmp_path / "alone"
    carried = {path.name for path in next(alone.glob("shared_components_*")).rglob("*.py")}
    assert {"medsegdiff.py", "highway.py", "ff_parser.py", "label_coding.py", "hybrid_loss.py"} <= carried
    assert not {"cdal_generator.py", "trainer.py"} & carried
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, runpy\n"
        "sys.modules['shared_components'] = None  # so that its import fails\n"
        "runpy.run_module('monai.bundle', run_name='__main__')\n"
    )
    options = {**TINY_NETWORK, "dataset_dir": pictures / "images", "output_dir": tmp_path / "out"}
    command = bundle_command("configs/inference.json", **options)
    run_python(str(script), *command[2:], cwd=alone).check_done()
    assert len(list((tmp_path / "out").glob("*_seg.png"))) == 6


def write_manifest_of_classes(folder: Path, source: Path, told: str) -> Path:
    """The phantoms with a manifest that says the class of each; ``told`` is that of the test case."""
    shutil.copytree(source, folder)
    split = json.loads((folder / "split.json").read_text(encoding="utf-8"))
    section = {case: name for name, cases in split.items() for case in cases}
    rows = ["id,image,mask,split,class_label"]
    for index, image in enumerate(sorted((folder / "images").iterdir())):
        value = told if section[image.stem] == "test" else index % 2
        rows.append(f"{image.stem},images/{image.name},masks/{image.name},{section[image.stem]},{value}")
    (folder / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder


def test_a_network_is_told_the_class_that_the_manifest_holds(pictures, tmp_path):
    folder = write_manifest_of_classes(tmp_path / "data", pictures, "1")
    options = {**TINY_TRAINING, "dataset_dir": folder, "output_dir": tmp_path / "run", "num_classes": 2}
    run_bundle(*config_of(PICTURES, "train"), **options).check_done()
    weights = load(tmp_path / "run" / "model.pt")
    (name,) = [name for name in weights if name.endswith("label_embedding.weight")]
    assert weights[name].shape[0] == 2
    (row,) = csv.DictReader((tmp_path / "run" / "metrics_per_case.csv").read_text(encoding="utf-8").splitlines())
    assert (tmp_path / "run" / "overlays" / f"{row['case']}_overlay.png").is_file()

    weights[name] += torch.tensor([[10.0], [-10.0]])
    torch.save(weights, tmp_path / "lively.pt")
    shares = {}
    for told in ("0", "1"):
        images = write_manifest_of_classes(tmp_path / f"told_{told}", pictures, told)
        options = {**TINY_NETWORK, "dataset_dir": images, "output_dir": tmp_path / f"out_{told}", "num_classes": 2}
        run_bundle(*config_of(PICTURES, "inference"), **options, ckpt_path=tmp_path / "lively.pt").check_done()
        cases = sorted((tmp_path / f"out_{told}").glob("*_uncertainty.png"))
        shares[told] = {case.name: case.read_bytes() for case in cases}
    differing = [name for name in shares["0"] if shares["0"][name] != shares["1"][name]]
    split = json.loads((pictures / "split.json").read_text(encoding="utf-8"))
    assert differing == [f"{case}_uncertainty.png" for case in split["test"]]
