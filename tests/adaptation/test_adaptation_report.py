"""What the report says: of the gap that adaptation is to close, and of the width of vessels."""

from __future__ import annotations

import html
import io
import math
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared_components.adaptation import adaptation_report as module
from shared_components.adaptation.adaptation_report import _gap, write_adaptation_report
from shared_components.adaptation.scale import folder_width, mask_width, target_sheet
from shared_components.adaptation.stages import Data, plan
from shared_components.data.phantoms import make_phantoms

BUNDLE = Path(__file__).parents[2] / "bundles" / "adaptdiff_octa"


@pytest.mark.parametrize(
    ("dice", "said"),
    [
        ((0.5, 0.65, 0.8), "closes 50 % of the gap"),
        ((0.673, 0.618, 0.754), "does harm here: Dice falls from 0.673 to 0.618; 0.754 is possible"),
        ((0.8, 0.9, 0.7), "no gap to close"),
    ],
)
def test_the_gap_in_words(dice, said):
    names = ("segmenter", "adapted", "ceiling")
    scores = {f"target_{name}": {"dice_vessel": value} for name, value in zip(names, dice)}
    assert said in _gap(scores, "target", "vessel")
    assert _gap(scores, "source", "vessel") == ""


def test_width_is_area_by_length(tmp_path):
    mask = np.zeros((40, 60), np.uint8)
    mask[10:15, 5:55] = 255
    assert mask_width([mask]) == pytest.approx(5, abs=0.6)  # the skeleton is a little shorter than the vessel
    thin = np.zeros_like(mask)
    thin[30, :] = 1
    assert mask_width([thin]) == 1
    assert 1 < mask_width([mask, thin]) < 5
    assert math.isnan(mask_width([np.zeros_like(mask)])) and math.isnan(folder_width(tmp_path))


def test_the_sheet_shows_where_most_is_labelled(tmp_path):
    label = np.zeros((50, 70), np.uint8)
    label[33:43, 41:51] = 255
    Image.fromarray(label).save(tmp_path / "a.png")
    Image.fromarray(label[:8, :9]).save(tmp_path / "b.png")
    images = {"a.png": 200.0 * (label > 0), "b.png": np.full((8, 9), 90.0)}
    shown = np.asarray(Image.open(io.BytesIO(target_sheet(images, tmp_path, (10, 12)))))[..., 0]
    assert shown.shape == (20, 24)
    assert (shown[:10, :12] == 200).sum() == (shown[10:, :12] == 255).sum() == 100
    assert (shown[:8, 12:21] == 90).all() and shown[8:10].max() == 200 and not shown[10:, 12:].any()


@pytest.mark.parametrize("labelled", [True, False])
def test_the_settings_of_all_stages_hold_for_the_report(tmp_path, monkeypatch, labelled):
    """Another name of the label, other contrast, other patients, and a broken picture that is left out."""
    target, output = make_phantoms(tmp_path / "octa", 8, kind="octa"), tmp_path / "run"
    pictures = sorted((target / "images").iterdir())
    for file, name in zip(pictures, ("p1_L", "p1_R", "p2_L", "p2_R", "p3_L", "p3_R", "p4_L", "p4_R")):
        for each in (file, target / "masks" / file.name):
            each.rename(each.with_name(f"{name}.png"))
    (target / "split.json").unlink(missing_ok=True)
    (target / "images" / "p4_L.png").write_bytes(b"broken")
    settings = {
        "labels": {"artery": 1}, "clip_limit": 0.0, "patient_pattern": r"(p\d)_", "skip_bad": True, "amp": False,
    }  # fmt: skip
    data = Data(str(tmp_path / "fundus"), str(target), "dark", "bright", None)
    stages = plan(data, labelled, {"all": settings})
    for stage in stages:
        (output / stage.folder).mkdir(parents=True)
        if stage.config == "evaluate":
            table = "metric,mean\ndice_artery,0.5\n" if "segm" in stage.folder else "metric,mean\ndice_artery,0.7\n"
            (output / stage.folder / "metrics_summary.csv").write_text(table, encoding="utf-8")
    for folder in (output / "pairs" / "masks", output / "diffusion" / "pseudo_labels" / "train"):
        folder.mkdir(parents=True)
        for file in (target / "masks").iterdir():
            Image.open(file).save(folder / file.name)
    (output / "pairs" / "pairs.png").write_bytes(b"sheet")
    seen: list[tuple[dict, list[str]]] = []

    def segment(bundle, keys, overlay, weights, items):
        seen.append((keys, [Path(item["image"]).stem for item in items]))
        return [(np.zeros((9, 9)), np.zeros((9, 9)))] * len(items)

    monkeypatch.setattr(module, "segment", segment)
    text = write_adaptation_report(BUNDLE, output, data, stages).read_text(encoding="utf-8")
    scores = text.rpartition("Images of the target, segmented")[0]
    assert "artery" in scores and ("closes 100 % of the gap" in scores) == labelled
    assert [names for _, names in seen] == [["p4_R"]] * 2  # the last of four patients, not a part of each
    assert all(keys["clip_limit"] == 0 and keys["dataset_dir"] == str(target) for keys, _ in seen)
    assert not any(str(value).startswith("@") for keys, _ in seen for value in keys.values())
    use = html.unescape(text.rpartition("Segmenting other pictures of the target</h2>")[2].partition("</code>")[0])
    options = shlex.split(use.removeprefix("<p><code>"))
    assert options[:4] == ["python", "-m", "monai.bundle", "run"] and Path(options[5]).name == "inference.json"
    given = dict(zip(options[6::2], options[7::2]))
    assert given["--ckpt_path"] == str(output / "adapted" / "model.pt") and given["--longest_side"] == "$None"
    assert given["--vessel_polarity"] == "bright" and given["--clip_limit"] == "0.0" and "--skip_bad" not in given
