"""Evaluating 2-D images and multi-channel volumes: pixels instead of millimetres, colours, single objects."""

import csv
import math
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import AsDiscreted, Compose, EnsureChannelFirstd, Invertd, LoadImage, LoadImaged, Resized
from PIL import Image

from shared_components.data.phantoms import make_phantoms
from shared_components.ensembling import calibration_bins, calibration_error, find_instances
from shared_components.errors import InputError
from shared_components.reporting import (
    CaseMetrics,
    InstanceScores,
    ReportHandler,
    SaveOverlays,
    add_instances,
    overlay_figure,
    score_case,
)
from shared_components.reporting.files import case_file, is_picture
from shared_components.reporting.instances import score_instances
from shared_components.reporting.overlays import GAP, PANEL, STRIP
from shared_components.reporting.save_overlays import on_grid_of

HALF_MM = torch.diag(torch.tensor([0.5, 0.5, 1.0, 1.0]))


def run_on(cases, *handlers):
    """Run handlers on cases, one an iteration."""
    engine = Engine(lambda engine, batch: batch)
    for handler in handlers:
        handler.attach(engine)
    engine.run([[case] for case in cases])
    return engine.state


def square_case(file, shift=3, affine=None, shape=(30, 24)):
    """A square and its prediction, moved to the right, on the grid of ``file``."""
    label = torch.zeros(1, *shape)
    label[0, 8:18, 6:16] = 1
    meta = {"filename_or_obj": file}
    prediction = torch.cat([1 - label, label]).roll(shift, 1) * 0.8 + 0.1
    tensors = {"image": torch.rand(3, *shape), "pred": prediction, "label": label}
    return {key: MetaTensor(value, affine=affine, meta=dict(meta)) for key, value in tensors.items()}


@pytest.mark.parametrize("affine", [None, HALF_MM])
def test_a_picture_is_measured_in_pixels_whatever_its_header_says(tmp_path, affine):
    state = run_on([square_case("a.tif", affine=affine)], CaseMetrics(tmp_path, {"lesion": 1}, region_margin=2))
    (row,) = state.case_metrics
    assert list(row) == [
        "case",
        "dice_lesion",
        "dice_mean",
        "hd95_px_lesion",
        "assd_px_lesion",
        "ece_near_foreground",
        "error_auroc_near_foreground",
        "expected_dice",
        "seconds",
    ]
    assert row["hd95_px_lesion"] == 3 and row["dice_lesion"] == pytest.approx(0.7)
    assert state.near_foreground == "Within 2 px of what the prediction or the reference marks."


def test_what_is_no_probability_has_no_expected_dice(tmp_path):
    cases = [square_case(f"{number}.png", shift=number) for number in range(6)]
    state = run_on(cases, CaseMetrics(tmp_path, {"lesion": 1}, expected=False))
    told = {row["metric"] for row in state.case_summary} | {column for row in state.case_metrics for column in row}
    assert "dice_mean" in told and not any(name.startswith("expected") for name in told)


def test_the_band_of_the_uncertainty_is_in_pixels(tmp_path):
    case = square_case("a.png", affine=HALF_MM)
    state = run_on([case], CaseMetrics(tmp_path, {"lesion": 1}, region_margin=2))
    either = np.zeros((30, 24), bool)
    either[8:21, 6:16] = True
    y, x = np.mgrid[:30, :24]
    near = np.zeros_like(either)
    for row, column in np.argwhere(either):
        near |= (y - row) ** 2 + (x - column) ** 2 <= 4
    mask = torch.from_numpy(near)[None, None]
    expected = calibration_error(
        calibration_bins(case["pred"].as_tensor()[None], case["label"].as_tensor()[None].long(), mask=mask)
    )
    assert state.calibration[0].sum() == near.sum()
    assert state.case_metrics[0]["ece_near_foreground"] == pytest.approx(expected)


@pytest.mark.parametrize("file, unit, column, distance", [
    ("a.nii.gz", None, "hd95_mm_lesion", 1.5),
    ("a.png", "mm", "hd95_mm_lesion", 1.5),
    ("a.nii.gz", "px", "hd95_px_lesion", 1.5),
])  # fmt: skip
def test_a_2d_nifti_has_its_spacing_and_a_given_unit_is_kept(tmp_path, file, unit, column, distance):
    handler = CaseMetrics(tmp_path, {"lesion": 1}, distance_unit=unit)
    (row,) = run_on([square_case(file, affine=HALF_MM)], handler).case_metrics
    assert row[column] == distance
    with pytest.raises(InputError, match="distance_unit 'inch': expected one of mm, px"):
        CaseMetrics(tmp_path, distance_unit="inch")


def test_pictures_and_volumes_in_one_run(tmp_path):
    cases = [square_case("a.png"), square_case("b.nii.gz", affine=HALF_MM)]
    handlers = CaseMetrics(tmp_path, {"lesion": 1}), ReportHandler(tmp_path)
    state = run_on(cases, *handlers)
    with open(tmp_path / "metrics_per_case.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["hd95_px_lesion"], row["hd95_mm_lesion"]) for row in rows] == [("3", ""), ("", "1.5")]
    summary = {row["metric"]: row for row in state.case_summary}
    assert (summary["hd95_mm_lesion"]["mean"], summary["hd95_mm_lesion"]["nan"]) == (1.5, 1)
    assert state.near_foreground.startswith("Within 5 mm or px of")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'aria-label="HD95 (mm)"' in page and 'aria-label="HD95 (px)"' in page


def test_iou_is_added_where_asked_for():
    case = square_case("a.png")
    plain, _ = score_case(case["pred"], case["label"], {1: "lesion"}, unit="px")
    scores, _ = score_case(case["pred"], case["label"], {1: "lesion"}, unit="px", iou=True)
    assert {key: value for key, value in scores.items() if not key.startswith("iou_")} == plain
    assert list(scores)[:4] == ["dice_lesion", "dice_mean", "iou_lesion", "iou_mean"]
    assert scores["iou_lesion"] == scores["iou_mean"] == pytest.approx(70 / 130)
    empty = torch.zeros(1, 6, 6)
    both, _ = score_case(empty, empty, {1: "a", 2: "b"}, iou=True)
    one, _ = score_case(empty, empty + 1, {1: "a", 2: "b"}, iou=True)
    assert (both["iou_a"], both["iou_b"], both["iou_mean"]) == (1, 1, 1)
    assert (one["iou_a"], one["iou_b"], one["iou_mean"]) == (0, 1, 0.5)


def test_the_cases_name_is_the_shortest_of_its_files():
    def read(file):
        return MetaTensor(torch.zeros(1, 2, 2), meta={"filename_or_obj": file})

    assert case_file(read("/m/ISIC_1_segmentation.png"), read("/i/ISIC_1.jpg"), 7) == "/i/ISIC_1.jpg"
    assert case_file(read("/l/brain.nii.gz"), read("/i/brain_0000.nii.gz")) == "/l/brain.nii.gz"
    assert case_file(read("/l/a.png"), read("/i/a.png")) == "/l/a.png" and case_file(torch.zeros(1)) == ""
    assert is_picture(read("A.PNG")) and is_picture(read("A.xml")) and not is_picture(read("a.nii"))
    assert not is_picture(MetaTensor(torch.zeros(1, 2, 2, 2), meta={"filename_or_obj": "stack.tif"}))


def panel(figure, column):
    left = GAP + column * (PANEL + GAP)
    return figure[2 * STRIP : 2 * STRIP + PANEL, left : left + PANEL]


@pytest.mark.parametrize("scale", [1.0, 1 / 255])
def test_a_pictures_colours_are_shown_as_they_are(scale):
    image = np.full((3, 12, 12), 120.0)
    image[:, 6:, :] = np.array([200.0, 30.0, 90.0])[:, None, None]
    shown = panel(overlay_figure(image * scale, np.zeros((12, 12), int)), 0)
    assert np.abs(shown[PANEL // 2, PANEL // 4].astype(int) - 120).max() <= 1
    assert np.abs(shown[PANEL // 2, 3 * PANEL // 4].astype(int) - (200, 30, 90)).max() <= 1


def test_normalised_colours_are_stretched_alike():
    image = np.zeros((3, 12, 12))
    image[0, :6], image[1, 6:], image[2] = 2.0, 2.0, -1.0
    left, right = (panel(overlay_figure(image, np.zeros((12, 12), int)), 0)[PANEL // 2, x] for x in (70, 220))
    assert left.tolist() == [255, 85, 0] and right.tolist() == [85, 255, 0]


def test_a_channel_can_be_chosen_and_a_volumes_first_is_shown():
    random = np.random.default_rng(0)
    volume, empty = random.random((3, 10, 12, 8)), np.zeros((10, 12, 8), int)
    for channel in (0, 2):
        expected = overlay_figure(volume[channel], empty)
        assert np.array_equal(overlay_figure(volume, empty, channel=channel), expected)
    assert np.array_equal(overlay_figure(volume, empty), overlay_figure(volume[0], empty))
    picture = random.random((3, 10, 12))
    grey = overlay_figure(picture, empty[..., 0], channel=1)
    assert np.array_equal(grey, overlay_figure(picture[1], empty[..., 0]))
    assert not np.array_equal(grey, overlay_figure(picture, empty[..., 0]))
    with pytest.raises(InputError, match="channel 3: the image has 3 channels"):
        overlay_figure(picture, empty[..., 0], channel=3)


def test_the_handler_draws_the_chosen_channel(tmp_path):
    case = square_case("a.nii.gz", shape=(30, 24, 5))
    for name, options in (("first", {}), ("second", {"channel": 1})):
        run_on([case], SaveOverlays(tmp_path / name, **options))
    pictures = [np.asarray(Image.open(tmp_path / name / "a_overlay.png")) for name in ("first", "second")]
    assert pictures[0].shape == pictures[1].shape and not np.array_equal(*pictures)


def test_a_resized_picture_comes_back_to_the_predictions_pixels(tmp_path):
    """Red above, a blue corner below on the right: so it must lie in the overlay, at the file's own size."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :, 0], pixels[30:, 45:, 2] = 250, 250
    Image.fromarray(pixels).save(tmp_path / "a.png")
    before = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), Resized("image", (32, 32))])
    data = before({"image": str(tmp_path / "a.png")})
    data["pred"] = (data["image"][:1] > 125).float()
    data = Invertd("pred", before, orig_keys="image", nearest_interp=True)(data)
    assert data["pred"].shape == (1, 60, 40)
    image = on_grid_of(data["image"], data["pred"]).numpy()
    difference = np.abs(image - pixels.transpose(2, 1, 0))
    assert image.shape == (3, 60, 40) and (difference > 60).mean() < 0.06
    run_on([data], SaveOverlays(tmp_path / "out"))
    figure = np.asarray(Image.open(tmp_path / "out" / "a_overlay.png"))
    shown = panel(figure, 0)[: PANEL * 40 // 60]
    assert shown[20, 20].argmax() == shown[20, -20].argmax() == 0 and shown[-10, -10].argmax() == 2
    assert shown[-10, 20].max() < 30


class Darkness(torch.nn.Module):
    """Probabilities of background and foreground from the mean of the colours."""

    def forward(self, image):
        dark = torch.sigmoid((150 - image.mean(1, keepdim=True)) / 10)
        return torch.cat([1 - dark, dark], dim=1)


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory):
    """An evaluation of pictures of nuclei as a bundle's would be, and its folder."""
    folder = make_phantoms(tmp_path_factory.mktemp("nuclei") / "set", 4, kind="nuclei")
    cases = [
        {"image": str(folder / "images" / f"phantom_00{n}.png"), "label": str(folder / "masks" / f"phantom_00{n}.png")}
        for n in range(4)
    ]
    keys, out = ["image", "label", "instances"], folder.parent / "out"
    transform = Compose([LoadImaged(keys), EnsureChannelFirstd(keys), AsDiscreted("label", threshold=128)])
    names = {"nucleus": 1}
    handlers = [
        CaseMetrics(out, names, iou=True, instances=InstanceScores()),
        SaveOverlays(out, names),
        ReportHandler(out, "Nuclei"),
    ]
    loader = DataLoader(Dataset(add_instances(cases), transform), batch_size=2)
    evaluator = SupervisedEvaluator(torch.device("cpu"), loader, Darkness(), val_handlers=handlers)
    evaluator.run()
    return out, evaluator.state, cases


def test_an_evaluation_of_pictures(nuclei):
    """Dice and IoU counted from the files themselves, by rows and columns."""
    out, state, cases = nuclei
    for case, row in zip(cases, state.case_metrics):
        found = np.asarray(Image.open(case["image"]), float).mean(axis=-1) < 150
        truth = np.asarray(Image.open(case["label"])) > 0
        shared, marked = (found & truth).sum(), found.sum() + truth.sum()
        assert row["case"] == Path(case["image"]).stem
        assert row["dice_nucleus"] == pytest.approx(2 * shared / marked, abs=2e-3)
        assert row["iou_nucleus"] == pytest.approx(shared / (marked - shared), abs=2e-3)
        assert row["hd95_px_nucleus"] > 1 and 0 < row["ece_near_foreground"] < 1
        numbers = np.asarray(Image.open(Path(case["image"]).parent.parent / "instances" / f"{row['case']}.png"))
        # the engine's pixels run to the right first, and a watershed may break ties by that
        expected = score_instances(find_instances(found.T, min_size=10), numbers.T)
        assert row["instances_reference"] == numbers.max()
        assert [row[name] for name in expected] == pytest.approx(list(expected.values()), abs=0.02)
    assert max(row["aji"] for row in state.case_metrics) > 0.2
    assert len(list(out.glob("*_overlay.png"))) == 4


def test_the_page_speaks_of_pixels_and_objects(nuclei):
    page = (nuclei[0] / "report.html").read_text(encoding="utf-8")
    for phrase in ("HD95 (px), nucleus", "share of correct pixels", "Within 5 px", "IoU, nucleus", "<dt>AJI</dt>"):
        assert phrase in page
    assert "voxel" not in page and "radiological" not in page and "objects in the reference" in page


def test_the_page_of_volumes_is_as_it_was(tmp_path):
    run_on([square_case("a.nii.gz", shape=(30, 24, 5))], CaseMetrics(tmp_path), ReportHandler(tmp_path))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "radiological" not in page  # no pictures were drawn
    assert "share of correct voxels" in page and "pixel" not in page
    terms = ["Dice", "HD95", "ASSD", "ECE near foreground", "Error AUROC near foreground"]
    terms += ["Expected Dice", "Near foreground"]
    assert [part.split("</dt>")[0] for part in page.split("<dt>")[1:]] == terms


def test_a_distance_map_is_all_there_is_to_cut_a_label_map(tmp_path):
    case = square_case("a.png")
    case["pred"] = case["pred"].argmax(0, keepdim=True).float()
    (row,) = run_on([case], CaseMetrics(tmp_path, {"lesion": 1}, instances=InstanceScores())).case_metrics
    assert row["instances_reference"] == row["instances_predicted"] == 1 and row["aji"] == pytest.approx(70 / 130)
    assert math.isfinite(row["pq"])


def test_real_pictures(real_data, tmp_path):
    """DSB 2018 nuclei: the reference is perfect as its own prediction, and cut well by the distance."""
    folder = real_data / "DSB2018_nuclei"
    if not folder.is_dir():
        pytest.skip("needs the 2018 Data Science Bowl's nuclei")
    load, scores = LoadImage(ensure_channel_first=True), []
    for file in sorted((folder / "masks").iterdir())[:6]:
        label = (load(file) > 127).float()
        numbers, image = load(folder / "instances" / file.name), load(folder / "images" / file.name)
        case = {"image": image, "pred": torch.cat([1 - label, label]), "label": label, "instances": numbers}
        handlers = CaseMetrics(tmp_path / file.stem, instances=InstanceScores()), SaveOverlays(tmp_path / file.stem)
        (row,) = run_on([case], *handlers).case_metrics
        assert row["dice_class_1"] == 1 and row["hd95_px_class_1"] == 0
        assert row["instances_reference"] == numbers.max()
        scores.append([row["aji"], row["f1_iou50"]])
    assert (np.mean(scores, axis=0) > 0.8).all()


def test_a_real_skin_lesion_and_a_2d_nifti_of_it(real_data, tmp_path):
    folder = real_data / "ISIC2017"
    if not folder.is_dir():
        pytest.skip("needs ISIC 2017")
    image_file = sorted((folder / "images_384").iterdir())[0]
    label_file = folder / "masks_384" / f"{image_file.stem}_segmentation.png"
    load = LoadImage(ensure_channel_first=True)
    image, label = load(image_file), (load(label_file) > 127).float()
    nibabel.save(nibabel.Nifti1Image(label[0].numpy(), np.diag([0.1, 0.1, 1, 1])), tmp_path / "flat.nii.gz")
    flat = load(tmp_path / "flat.nii.gz")
    rows = []
    for truth in (label, flat):
        case = {"image": image, "pred": truth.clone(), "label": truth}
        case["pred"].copy_(truth.as_tensor().roll(2, 1))
        if truth is flat:
            case.pop("image")
        (row,) = run_on([case], CaseMetrics(tmp_path / str(len(rows)), {"lesion": 1})).case_metrics
        rows.append(row)
    assert [row["case"] for row in rows] == [image_file.stem, "flat"]
    assert rows[1]["hd95_mm_lesion"] == pytest.approx(0.1 * rows[0]["hd95_px_lesion"], rel=1e-5)
    assert 0 < rows[0]["hd95_px_lesion"] <= 2
