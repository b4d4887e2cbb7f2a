"""The handlers in MONAI's engines, configured as a bundle configures them, on volumes written to disk."""

import base64
import csv
import io
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.metrics import DiceMetric, HausdorffDistanceMetric, SurfaceDistanceMetric
from monai.transforms import LoadImage
from PIL import Image

from shared_components.ensembling import score_members
from shared_components.errors import InputError
from shared_components.reporting import CaseMetrics, MemberScores, ReportHandler, SaveOverlays
from shared_components.reporting.report import weights_and_sampling
from shared_components.reporting.report_handler import choose_cases
from shared_components.reporting.save_overlays import on_grid_of

NAMES = {"core": 1, "shell": 2}
AFFINE = np.array([[-0.8, 0, 0, 10], [0, 0, 1.5, -4], [0, 1.0, 0, 3], [0, 0, 0, 1]])


class Brightness(torch.nn.Module):
    """Probabilities of three classes from how near the grey value is to 0, 1 and 2."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        levels = torch.arange(3.0).reshape(1, 3, *[1] * (image.ndim - 2))
        return (-4 * (image - levels).abs()).softmax(1)


class Ensemble(Brightness):
    """Two members that disagree about the grey value, which a `DiffusionSegmenter` would keep likewise."""

    num_samples = 2
    keep_members = False
    member_labels = None

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        members = torch.stack([super(Ensemble, self).forward(image + shift) for shift in (-0.2, 0.3)])
        if self.keep_members:
            self.member_labels = members.argmax(2).to(torch.uint8)
        return members.mean(0)


def write_case(folder, name, noise, seed):
    random = np.random.default_rng(seed)
    label = np.zeros((14, 12, 10), dtype=np.uint8)
    label[3:11, 3:9, 2:8] = 2
    label[5:9, 4:8, 3:7] = 1
    image = label + random.normal(0, noise, label.shape)
    for kind, array in (("image", image.astype(np.float32)), ("label", label)):
        (folder / kind).mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(array, AFFINE), folder / kind / f"{name}.nii.gz")
    return {kind: str(folder / kind / f"{name}.nii.gz") for kind in ("image", "label")}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    return [write_case(folder, f"case_{n}", noise, n) for n, noise in enumerate((0.6, 0.2, 0.4, 0.3, 0.5, 0.1))]


def evaluator_of(cases, output_dir, keys=("image", "label"), handlers=None, network=None, **settings):
    """The evaluator of a bundle: image reoriented and padded, prediction inverted, label as it was stored."""
    shared = {"output_dir": str(output_dir), **settings}
    part = "shared_components.reporting."
    config = {
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": list(keys)},
                {"_target_": "EnsureChannelFirstd", "keys": list(keys)},
                {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
                {"_target_": "SpatialPadd", "keys": "image", "spatial_size": [16, 16, 16]},
            ],
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                },
                {"_target_": "shared_components.ensembling.PredictiveEntropyd", "keys": "pred"},
            ],
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "cpu",
            "val_data_loader": {
                "_target_": "DataLoader",
                "dataset": {"_target_": "Dataset", "data": cases, "transform": "@preprocessing"},
                "batch_size": 2,
            },
            "network": network or Brightness(),
            "postprocessing": "@postprocessing",
            "val_handlers": handlers
            or [
                {"_target_": part + "CaseMetrics", "label_names": NAMES, **shared},
                {"_target_": part + "SaveOverlays", "label_names": NAMES, **shared},
                {
                    "_target_": part + "ReportHandler",
                    "title": "Brightness & <friends>",
                    "settings": {"seed": 7, "network": {"levels": 3}},
                    **shared,
                },
            ],
        },
    }
    return ConfigParser(config).get_parsed_content("evaluator")


@pytest.fixture(scope="module")
def evaluation(cases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation") / "out"
    evaluator = evaluator_of(cases, folder)
    evaluator.run()
    return folder, evaluator


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_tables_equal_monai(cases, evaluation):
    """Threshold and score each case without the pipeline, in the voxel order of the file."""
    rows = table(evaluation[0] / "metrics_per_case.csv")
    assert [row["case"] for row in rows] == [f"case_{n}" for n in range(6)]
    spacing = [0.8, 1.0, 1.5]
    for case, row in zip(cases, rows):
        image, label = (torch.from_numpy(nib.load(case[key]).get_fdata())[None, None] for key in ("image", "label"))
        predicted = Brightness()(image).argmax(1, keepdim=True)
        hot = [torch.nn.functional.one_hot(x[:, 0].long(), 3).movedim(-1, 1) for x in (predicted, label)]
        dice = DiceMetric(include_background=False)(*hot)[0]
        hd95 = HausdorffDistanceMetric(percentile=95)(*hot, spacing=spacing)[0]
        assd = SurfaceDistanceMetric(symmetric=True)(*hot, spacing=spacing)[0]
        for column, values in (("dice", dice), ("hd95_mm", hd95), ("assd_mm", assd)):
            for name, value in zip(NAMES, values):
                assert float(row[f"{column}_{name}"]) == pytest.approx(float(value), abs=1e-5)
        assert 0 < float(row["seconds"]) < 60


def test_summary_describes_the_table(evaluation):
    rows = table(evaluation[0] / "metrics_per_case.csv")
    summary = {row["metric"]: row for row in table(evaluation[0] / "metrics_summary.csv")}
    for column in ("dice_core", "hd95_mm_shell", "ece_near_foreground", "error_auroc_near_foreground"):
        values = np.array([float(row[column]) for row in rows])
        assert float(summary[column]["mean"]) == pytest.approx(np.nanmean(values), rel=1e-4)
        assert float(summary[column]["median"]) == pytest.approx(np.nanmedian(values), rel=1e-4)
        assert int(summary[column]["nan"]) == np.isnan(values).sum() and summary[column]["cases"] == "6"


def test_members_are_scored_on_the_grid_of_the_label(cases, tmp_path):
    """Score each member's labels without the pipeline, in the voxel order of the file."""
    members = {"_target_": "shared_components.reporting.MemberScores", "postprocessing": "@postprocessing"}
    metrics = {"_target_": "shared_components.reporting.CaseMetrics", "label_names": NAMES, "members": members}
    handlers = [{**metrics, "output_dir": str(tmp_path)}]
    evaluator_of(cases[:3], tmp_path, handlers=handlers, network=Ensemble()).run()
    rows = table(tmp_path / "metrics_per_case.csv")
    for case, row in zip(cases, rows, strict=False):
        image, label = (torch.from_numpy(nib.load(case[key]).get_fdata()) for key in ("image", "label"))
        labels = torch.cat([Brightness()(image[None, None] + shift).argmax(1) for shift in (-0.2, 0.3)])
        for column, value in score_members(labels, label, 3).items():
            assert float(row[column]) == pytest.approx(value, abs=1e-5)
    assert len({row["ged"] for row in rows}) == 3


@pytest.mark.parametrize("network", [Brightness(), Ensemble()])
def test_without_members_there_are_no_scores_of_them(network, cases, tmp_path):
    network.num_samples = 1
    handler = CaseMetrics(tmp_path, NAMES, members=MemberScores())
    evaluator_of(cases[:2], tmp_path, handlers=[handler], network=network).run()
    assert "ged" not in table(tmp_path / "metrics_per_case.csv")[0]


def test_every_case_has_a_picture(evaluation):
    for n in range(6):
        with Image.open(evaluation[0] / f"case_{n}_overlay.png") as picture:
            assert picture.format == "PNG" and picture.size[0] > 1000
    assert not [path for path in evaluation[0].iterdir() if path.name.startswith(".") and path.name != ".lock"]


def test_page_holds_everything_itself(evaluation):
    page = (evaluation[0] / "report.html").read_text(encoding="utf-8")
    assert "Brightness &amp; &lt;friends&gt;" in page and "<friends>" not in page
    body = page.split("<h2>All cases</h2>")[1]
    assert all(f">case_{n}</" in body for n in range(6))
    assert "<td>network.levels</td><td>3</td>" in page and f"<td>{torch.__version__}</td>" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "http" not in page
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 5
    for picture in pictures:
        Image.open(io.BytesIO(base64.b64decode(picture))).verify()


def test_page_shows_worst_median_and_best(evaluation):
    page = (evaluation[0] / "report.html").read_text(encoding="utf-8")
    shown = re.findall(r"<b>(\w+) case</b> (case_\d)", page)
    rows = table(evaluation[0] / "metrics_per_case.csv")
    ranked = [row["case"] for row in sorted(rows, key=lambda row: float(row["dice_mean"]))]
    expected = list(zip(["Worst", "Worst", "Median", "Best", "Best"], [*ranked[:3], *ranked[4:]]))
    assert shown == expected and ranked[0] == "case_0" and ranked[-1] == "case_5"


def test_the_state_keeps_the_results(evaluation):
    state = evaluation[1].state
    assert len(state.case_metrics) == 6 and state.case_metrics[0]["case"] == "case_0"
    assert state.calibration.shape == (3, 20) and state.calibration[0].sum() > 0
    assert state.near_foreground == "Within 5 mm of what the prediction or the reference marks."


def test_an_earlier_run_is_not_overwritten(cases, evaluation):
    with pytest.raises(InputError, match="metrics_per_case.csv is there already"):
        evaluator_of(cases[:1], evaluation[0]).run()
    for kind, name in ((SaveOverlays, "case_0_overlay.png"), (ReportHandler, "report.html")):
        engine = Engine(lambda *_: None)
        kind(evaluation[0]).attach(engine)
        with pytest.raises(InputError, match=f"{name} is there already"):
            engine.run([0])


def test_a_validation_may_repeat(cases, tmp_path):
    """An evaluator within a training runs every epoch; its own tables are replaced."""
    evaluator = evaluator_of(cases[:1], tmp_path)
    evaluator.run()
    evaluator.run()
    assert len(table(tmp_path / "metrics_per_case.csv")) == 1
    evaluator_of(cases[1:3], tmp_path, overwrite=True).run()
    assert [row["case"] for row in table(tmp_path / "metrics_per_case.csv")] == ["case_1", "case_2"]


def test_inference_draws_without_labels(cases, tmp_path):
    handler = SaveOverlays(tmp_path, NAMES)
    evaluator = evaluator_of([{"image": cases[1]["image"]}], tmp_path, keys=("image",), handlers=[handler])
    evaluator.run()
    with Image.open(tmp_path / "case_1_overlay.png") as picture:
        assert picture.size[0] < 1000


def run_on(outputs, *handlers):
    """Run handlers on given outputs, one list of cases per iteration."""
    engine = Engine(lambda engine, batch: batch)
    for handler in handlers:
        handler.attach(engine)
    engine.run(outputs)
    return engine.state


def flat_case(file=None, shift=0):
    label = torch.zeros(1, 12, 12)
    label[:, 3:8, 3:8] = 1
    hot = torch.cat([1 - label, label]).roll(shift, 1)
    meta = {} if file is None else {"filename_or_obj": file}
    return {"image": label + 1, "pred": hot, "label": MetaTensor(label, meta=meta)}


def test_pictures_without_a_size_are_measured_in_pixels(tmp_path):
    state = run_on([[flat_case("a.png", 1)]], CaseMetrics(tmp_path, {"nucleus": 1}, distance_unit="px"))
    (row,) = state.case_metrics
    assert row["hd95_px_nucleus"] == 1 and row["dice_nucleus"] == pytest.approx(0.8)


def test_equal_names_stay_apart(tmp_path):
    """Files of one name in two folders, several patches of one file, and cases without a file."""
    cases = [flat_case("x/a.png"), flat_case("y/a.png", 1), flat_case("y/a.png", 2), flat_case(), flat_case()]
    handlers = [CaseMetrics(tmp_path), SaveOverlays(tmp_path), ReportHandler(tmp_path, pictures_per_end=5)]
    state = run_on([cases[:2], cases[2:]], *handlers)
    dice = {row["case"]: row["dice_class_1"] for row in state.case_metrics}
    assert dice == pytest.approx({"a": 1, "a_2": 0.8, "a_3": 0.6, "case_004": 1, "case_005": 1})
    assert len(list(tmp_path.glob("*_overlay.png"))) == 5
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("data:image/png") == 5


def test_mistakes_are_named(tmp_path):
    case = flat_case("a.png")
    case["label"][0, 0, 0] = 3
    with pytest.raises(InputError, match="a.png: label: found values 0 to 3"):
        run_on([[case]], CaseMetrics(tmp_path / "a"))
    with pytest.raises(InputError, match="put CaseMetrics before it"):
        run_on([[flat_case()]], ReportHandler(tmp_path / "b"))


def test_a_run_tells_how_its_network_decides():
    engine = Engine(lambda *_: None)
    engine.network = torch.nn.Linear(3, 2)
    engine.network.decision, engine.network.num_samples = "expected_dice", 4
    model = weights_and_sampling(engine)["model"]
    assert model == {"class": "Linear", "parameters": 8, "decision": "expected_dice", "num_samples": 4}


def test_choice_of_cases():
    rows = [{"case": str(n), "dice_mean": n / 10} for n in range(7)]
    assert [(kind, row["case"]) for kind, row in choose_cases(rows, 1)] == [
        ("Worst", "0"),
        ("Median", "3"),
        ("Best", "6"),
    ]
    assert [kind for kind, _ in choose_cases(rows[:2], 2)] == ["Median", "Worst"]
    assert [kind for kind, _ in choose_cases(rows[:1], 2)] == ["Median"]


def test_image_comes_to_the_predictions_grid():
    generator = torch.Generator().manual_seed(0)
    image = MetaTensor(torch.rand(1, 6, 5, 4, generator=generator), affine=torch.eye(4))
    affine = torch.diag(torch.tensor([-1.0, 1, 1, 1]))
    affine[0, 3] = 5
    flipped = MetaTensor(torch.zeros(2, 6, 5, 4), affine=affine)
    assert torch.allclose(on_grid_of(image, flipped).as_tensor(), image.as_tensor().flip(1), atol=1e-5)
    assert on_grid_of(image, image) is image
    with pytest.raises(InputError, match="without their affines"):
        on_grid_of(torch.zeros(1, 3, 3), torch.zeros(1, 4, 4))


def two_processes(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    shares = [["a.png", "c.png"], ["b.png", "a.png"]]  # a sampler repeats the first case to fill up
    handlers = [CaseMetrics(folder / "out"), SaveOverlays(folder / "out"), ReportHandler(folder / "out")]
    state = run_on([[flat_case(name)] for name in shares[rank]], *handlers)
    assert [row["case"] for row in state.case_metrics] == ["a", "b", "c"]
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_write_one_table(tmp_path):
    torch.multiprocessing.spawn(two_processes, (tmp_path,), nprocs=2)
    assert [row["case"] for row in table(tmp_path / "out" / "metrics_per_case.csv")] == ["a", "b", "c"]
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8").count("data:image/png") == 3


def test_real_case(real_data, tmp_path):
    """MSD Task04 Hippocampus: the reference is perfect as its own prediction, and shifted one voxel off."""
    name = "hippocampus_001.nii.gz"
    folder = real_data / "Task04_Hippocampus"
    if not (folder / "imagesTr" / name).exists():
        pytest.skip(f"needs {name} of MSD Task04 Hippocampus")
    load = LoadImage(ensure_channel_first=True)
    image, label = load(folder / "imagesTr" / name), load(folder / "labelsTr" / name)
    for shift, dice in ((0, 1.0), (1, 0.9)):
        prediction = label.clone()
        prediction.copy_(label.as_tensor().roll(shift, 2))
        case = {"image": image, "pred": prediction, "label": label}
        out = tmp_path / str(shift)
        names = {"anterior": 1, "posterior": 2}
        state = run_on([[case]], CaseMetrics(out, names), SaveOverlays(out, names), ReportHandler(out))
        (row,) = state.case_metrics
        assert row["case"] == "hippocampus_001" and row["hd95_mm_anterior"] == row["hd95_mm_posterior"] == shift
        assert row["dice_mean"] == pytest.approx(dice, abs=0.06)
        assert (out / "hippocampus_001_overlay.png").stat().st_size > 20_000


def test_handlers_keep_no_volumes(evaluation):
    """What a long evaluation leaves in memory is scores and paths."""
    state = evaluation[1].state
    assert all(isinstance(value, (str, float)) for row in state.case_metrics for value in row.values())
    assert all(path.exists() for path in state.overlays.values())
