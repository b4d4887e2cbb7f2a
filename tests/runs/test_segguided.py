"""The bundles that generate images, as typed: training, resuming, generating, evaluating, training on the result."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from shared_components.data.phantoms import make_phantoms
from tests.runs.commands import Run, bundle_command, check_refused, files_below, run_bundle
from tests.runs.medsegdiff import bundle_folder, config_of
from tests.runs.test_train import check_same_training, history, kill_in_second_epoch

VOLUMES, PICTURES = "segguided_hippocampus", "segguided_breast_mri"
TINY = {
    "denoiser#channels": [8, 8, 8, 8],
    "denoiser#norm_num_groups": 8,
    "denoiser#num_head_channels": 8,
    "num_inference_steps": 2,
    "amp": False,
    "device": "cpu",
}
TRAINING = {**TINY, "max_epochs": 2, "val_interval": 1, "batch_size": 2, "segmenter_bundle": "$None"}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    return make_phantoms(tmp_path_factory.mktemp("volumes") / "phantoms", 6)


@pytest.fixture(scope="module")
def trained(phantoms, tmp_path_factory) -> tuple[Run, Path]:
    output_dir = tmp_path_factory.mktemp("trained") / "run"
    before = files_below(bundle_folder(VOLUMES)), files_below(phantoms)
    run = run_bundle(*config_of(VOLUMES, "train"), **TRAINING, dataset_dir=phantoms, output_dir=output_dir)
    run.check_done()
    assert (files_below(bundle_folder(VOLUMES)), files_below(phantoms)) == before
    return run, output_dir


def table(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as content:
        return list(csv.DictReader(content))


def generate(weights: Path, bundle: str = VOLUMES, *overlays: str, **options) -> Run:
    return run_bundle(*config_of(bundle, "inference", *overlays), **{**TINY, "ckpt_path": weights, **options})


def test_a_training_leaves_weights_previews_tables_and_pages(trained):
    _, output_dir = trained
    rows = history(output_dir)
    first, second = (float(row["loss"]) for row in rows)
    assert 0.4 < second < first < 0.7  # of the velocity, whose mean square is below that of the noise
    assert all(-1 < float(row["validation val_explained"]) < 1 for row in rows)
    expected = {"model.pt", "previews/epoch_0001.png", "previews/epoch_0002.png", "synthesis.html", "training.html"}
    assert expected <= set(files_below(output_dir))
    names = {row["metric"] for row in table(output_dir / "synthesis_summary.csv")}
    assert any("nearest training image" in name for name in names) and "FID" in names


def test_a_training_killed_in_its_second_epoch_goes_on_to_the_same_end(trained, phantoms, tmp_path):
    configs, options = config_of(VOLUMES, "train"), {**TRAINING, "dataset_dir": phantoms}
    kill_in_second_epoch(bundle_command(*configs, **options, output_dir=tmp_path / "run"), tmp_path / "run")
    run_bundle(*configs, **options, output_dir=tmp_path / "run", resume=True).check_done()
    check_same_training(trained[1], tmp_path / "run")


def test_exactly_as_many_labelled_volumes_as_asked_for(trained, phantoms, tmp_path):
    weights, out = trained[1] / "model.pt", tmp_path / "out"
    options = {"dataset_dir": phantoms, "num_images": 3, "section": "train", "seed": 5}
    generate(weights, output_dir=out, **options).check_done()
    rows = table(out / "synthesis.csv")
    assert [row["seed"] for row in rows] == ["5", "6", "7"]
    for row in rows:
        image, label, source = (
            nibabel.load(file) for file in (out / row["image"], out / row["label"], row["label_map"])
        )
        assert image.shape == label.shape == source.shape and np.allclose(image.affine, source.affine)
        assert np.array_equal(label.dataobj, source.dataobj)
        values = np.asarray(image.dataobj)
        assert image.get_data_dtype() == np.int16 and 0 <= values.min() < values.max() <= 1000
    check_refused(generate(weights, output_dir=out, **options), "is there already", "overwrite")
    again = tmp_path / "again"  # one image, alone, by its map and seed
    (again / "maps").mkdir(parents=True)
    (again / "maps" / "one.nii.gz").write_bytes(Path(rows[1]["label_map"]).read_bytes())
    generate(weights, output_dir=again / "out", dataset_dir=again / "maps", seed=6, batch_size=7).check_done()
    first, second = (
        nibabel.load(f).get_fdata() for f in (out / rows[1]["image"], again / "out/imagesTr/one_01.nii.gz")
    )
    assert np.abs(first - second).max() <= 1


def test_a_generation_that_left_failures_goes_on_and_keeps_what_it_has(trained, phantoms, tmp_path):
    maps, out = tmp_path / "maps", tmp_path / "out"
    maps.mkdir()
    for number, file in enumerate(sorted((phantoms / "labelsTr").iterdir())[:3]):
        (maps / f"m{number}.nii.gz").write_bytes(file.read_bytes())
    whole = (maps / "m1.nii.gz").read_bytes()
    (maps / "m1.nii.gz").write_bytes(whole[:100])
    weights, options = trained[1] / "model.pt", {"dataset_dir": maps, "output_dir": out}
    check_refused(generate(weights, **options), "m1.nii.gz", "1 case could not be processed")
    before = files_below(out / "imagesTr")
    (maps / "m1.nii.gz").write_bytes(whole)
    check_refused(generate(weights, **options, resume=True, seed=3), "seed 0, now 3")
    generate(weights, **options, resume=True).check_done()
    assert [row["seed"] for row in table(out / "synthesis.csv")] == ["0", "1", "2"]
    after = files_below(out / "imagesTr")
    assert len(before) == 2 and len(after) == 3 and before.items() <= after.items()
    check_refused(generate(weights, **options, resume=True), "nothing to resume")


@pytest.mark.parametrize("mode", ["remove_classes", "translate", "interpolate"])
def test_other_ways_to_generate(trained, phantoms, tmp_path, mode):
    options = {
        "dataset_dir": phantoms,
        "num_images": 1,
        "mode": mode,
        "section": "test",
        "output_dir": tmp_path / "out",
    }
    generate(trained[1] / "model.pt", **options).check_done()
    rows = table(tmp_path / "out" / "synthesis.csv")
    assert len(rows) == (4 if mode == "remove_classes" else 1)
    assert {row["mode"] for row in rows} == {mode}
    assert len(list((tmp_path / "out" / "previews").iterdir())) == 1


def test_the_result_is_a_training_set_for_a_segmentation_bundle(trained, phantoms, tmp_path):
    out = tmp_path / "generated"
    generate(trained[1] / "model.pt", output_dir=out, dataset_dir=phantoms, num_images=6).check_done()
    tiny = {"backbone#channels": [8, 16], "backbone#attention_levels": [False, False]}
    tiny |= {"backbone#condition_norm_groups": 4, "num_samples": 1, "device": "cpu", "max_epochs": 1, "val_interval": 1}
    run_bundle(
        *config_of("cdal_hippocampus", "train"), **tiny, dataset_dir=out, output_dir=tmp_path / "run"
    ).check_done()


def test_an_evaluation_compares_with_real_images_by_a_segmenter(trained, phantoms, tmp_path):
    segmenter = {"segmenter_bundle": str(bundle_folder("cdal_hippocampus"))}
    options = {**TRAINING, **segmenter, "dataset_dir": phantoms, "ckpt_path": trained[1] / "model.pt"}
    run_bundle(*config_of(VOLUMES, "train", "evaluate"), **options, output_dir=tmp_path).check_done()
    rows = {row["metric"]: row for row in table(tmp_path / "evaluation" / "synthesis_summary.csv")}
    assert {"Dice anterior", "Dice posterior", "Dice mean", "FID", "MMD"} <= set(rows)
    assert float(rows["Dice mean"]["real"]) > float(rows["Dice mean"]["generated"])
    assert "cdal_hippocampus" in (tmp_path / "evaluation" / "synthesis.html").read_text(encoding="utf-8")


def test_pictures_without_any_condition(tmp_path):
    phantoms = make_phantoms(tmp_path / "phantoms", 6, kind="breast")
    tiny = {**TINY, "denoiser#channels": [8, 8], "denoiser#attention_levels": [False, True]}
    tiny |= {"image_size": [32, 32], "conditional": False}
    run = {**TRAINING, **tiny, "dataset_dir": phantoms, "output_dir": tmp_path / "run"}
    run_bundle(*config_of(PICTURES, "train"), **run).check_done()
    options = {**tiny, "blank_size": [40, 30], "num_images": 5, "output_dir": tmp_path / "out"}
    run_bundle(*config_of(PICTURES, "inference"), **options, ckpt_path=tmp_path / "run" / "model.pt").check_done()
    pictures = sorted((tmp_path / "out" / "imagesTr").iterdir())
    assert len(pictures) == 5 and all(Image.open(file).size == (40, 30) for file in pictures)
    assert len({file.read_bytes() for file in pictures}) == 5
