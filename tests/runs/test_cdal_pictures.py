"""The cDAL bundles of pictures, as typed: nuclei in tiles and as single objects, lungs from a manifest."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shared_components.data.phantoms import make_phantoms
from tests.runs.commands import NETWORK, TRAINING, run_bundle
from tests.runs.medsegdiff import config_of

NUCLEI, LUNGS = "cdal_monuseg", "cdal_lung_cxr"
TINY = {NUCLEI: {"tile_size": 32, "crop_size": [32, 32], "crops_per_case": 2}, LUNGS: {"image_size": [32, 32]}}
DISCRIMINATOR = {"discriminator_def#channels": [8, 8, 8, 8, 8]}
PAPER = {
    "discriminator_def#channels": [8] * 7,
    "backbone#channels": [32] * 5,
    "backbone#attention_levels": [False] * 5,
    "backbone#num_condition_blocks": 1,
    "num_samples": 2,
}


def options_of(bundle: str, data: Path, output_dir: Path, **more: Any) -> dict[str, Any]:
    return {**TRAINING, **TINY[bundle], "max_epochs": 1, "dataset_dir": data, "output_dir": output_dir, **more}


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory) -> Path:
    return make_phantoms(tmp_path_factory.mktemp("nuclei") / "phantoms", num_cases=6, seed=2, kind="nuclei")


@pytest.fixture(scope="module")
def lungs(tmp_path_factory) -> Path:
    """Phantoms with a manifest of two columns of masks, one of them the bundle's."""
    source = make_phantoms(tmp_path_factory.mktemp("lungs") / "phantoms", num_cases=6, seed=2, kind="lungs")
    lines = ["id,split,image,mask_lung,mask_other"]
    for number, image in enumerate(sorted((source / "images").iterdir())):
        section = ("train", "train", "train", "train", "validation", "test")[number]
        lines.append(f"{image.stem},{section},images/{image.name},masks/{image.name},masks/{image.name}")
    (source / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return source


def test_nuclei_are_trained_on_crops_and_scored_as_objects_on_the_whole_picture(nuclei, tmp_path):
    options = options_of(NUCLEI, nuclei, tmp_path / "run", scale=0.5)
    run_bundle(*config_of(NUCLEI, "train"), **options).check_done()
    (native,) = rows(tmp_path / "run" / "metrics_per_case.csv")
    assert {"dice_nuclei", "iou_nuclei", "aji", "pq", "f1_iou50", "hd95_px_nuclei"} <= set(native)
    case = next(path for path in (nuclei / "instances").iterdir() if path.stem == native["case"])
    assert float(native["instances_reference"]) == np.asarray(Image.open(case)).max()
    options["ckpt_path"] = tmp_path / "run" / "model.pt"
    for last, folder in (((), "evaluation"), (("evaluate_resized",), "evaluation_resized")):
        run_bundle(*config_of(NUCLEI, "train", "evaluate", *last), **options).check_done()
        (row,) = rows(tmp_path / "run" / folder / "metrics_per_case.csv")
        assert 0 <= float(row["dice_nuclei"]) <= 1 and 0 <= float(row["pq"]) <= 1


def test_nuclei_are_predicted_in_pictures_of_any_size_by_tiles(nuclei, tmp_path):
    run_bundle(*config_of(NUCLEI, "train"), **options_of(NUCLEI, nuclei, tmp_path / "run")).check_done()
    (tmp_path / "in").mkdir()
    picture = Image.open(sorted((nuclei / "images").iterdir())[0])
    sizes = {"tall": (50, 171), "small": (9, 14), "whole": picture.size}
    for name, size in sizes.items():
        picture.resize(size).save(tmp_path / "in" / f"{name}.png")
    options = {**NETWORK, "tile_size": 32, "scale": 1.0, "dataset_dir": tmp_path / "in", "output_dir": tmp_path / "out"}
    ckpt = tmp_path / "run" / "model.pt"
    run_bundle(*config_of(NUCLEI, "inference"), **options, ckpt_path=ckpt).check_done()
    found = {row["case"]: row for row in rows(tmp_path / "out" / "inference_per_case.csv")}
    for name, size in sizes.items():
        mask, numbers = (
            np.asarray(Image.open(tmp_path / "out" / f"{name}_{what}.png")) for what in ("seg", "instances")
        )
        assert mask.shape == numbers.shape == size[::-1]
        assert not numbers[mask == 0].any() and int(found[name]["instances"]) == numbers.max()
        assert np.bincount(numbers.ravel())[1:].min(initial=10) >= 10  # specks are no nuclei
    options = {**options, "output_dir": tmp_path / "mask_only", "save_instances": False}
    run_bundle(*config_of(NUCLEI, "inference"), **options, ckpt_path=ckpt).check_done()
    assert not list((tmp_path / "mask_only").glob("*_instances.png"))
    assert "instances" not in rows(tmp_path / "mask_only" / "inference_per_case.csv")[0]


def test_lungs_are_trained_from_a_manifest_with_several_masks(lungs, tmp_path):
    options = options_of(LUNGS, lungs, tmp_path / "run")
    run_bundle(*config_of(LUNGS, "train"), **options).check_done()
    assert {"dice_lungs", "iou_lungs", "hd95_px_lungs"} <= set(rows(tmp_path / "run" / "metrics_per_case.csv")[0])
    options = {**NETWORK, **TINY[LUNGS], "dataset_dir": lungs, "output_dir": tmp_path / "out"}
    ckpt = tmp_path / "run" / "model.pt"
    run_bundle(*config_of(LUNGS, "inference"), **options, ckpt_path=ckpt).check_done()
    assert len(list((tmp_path / "out").glob("*_seg.png"))) == 6


@pytest.mark.slow
@pytest.mark.parametrize("overlay", ["attention", "plain", "paper"])
@pytest.mark.parametrize("bundle", [NUCLEI, LUNGS])
def test_every_recipe_trains_and_evaluates(nuclei, lungs, tmp_path, bundle, overlay):
    options = options_of(bundle, nuclei if bundle == NUCLEI else lungs, tmp_path)
    if overlay == "attention":
        options.update(DISCRIMINATOR)
    if overlay == "paper":
        options = {key: value for key, value in options.items() if not key.startswith(("backbone#", "tile_size"))}
        options.update(PAPER, **({"crop_size": [64, 64]} if bundle == NUCLEI else {"image_size": [64, 64]}))
    run_bundle(*config_of(bundle, "train", overlay), **options).check_done()
    options["ckpt_path"] = tmp_path / "model.pt"
    run_bundle(*config_of(bundle, "train", overlay, "evaluate"), **options).check_done()
    assert (tmp_path / "evaluation" / "report.html").is_file()
