"""The lists, pictures and scores of generated images."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, MetaTensor
from PIL import Image
from torch import Tensor

from shared_components.data.layouts.cases import find_cases
from shared_components.diffusion.image_batch import SynthesisPrepareBatch
from shared_components.diffusion.inferers import SynthesisInferer
from shared_components.errors import InputError
from shared_components.reporting import unfinished_cases
from shared_components.reporting.grids import Tile, contact_sheet
from shared_components.reporting.synthesis_metrics import SynthesisMetrics, mean_similarity, nearest_distances
from shared_components.reporting.synthetic_set import SynthesisPreview, SyntheticSet
from shared_components.training import CaseEvaluator

LABELS = {"inner": 1, "outer": 2}


def disc(size: int = 32, depth: int = 0, shift: int = 0) -> Tensor:
    """A label map (1, size, size[, depth]) of a disc in a ring."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    radius = ((rows - size // 2 - shift) ** 2 + (columns - size // 2) ** 2).float().sqrt()
    label = torch.where(radius < 5, 1.0, torch.where(radius < 10, 2.0, 0.0))[None]
    return label if not depth else label[..., None].expand(-1, -1, -1, depth).contiguous()


def painted(label: Tensor, noise: float = 0.0, seed: int = 0) -> Tensor:
    grey = 0.1 + 0.4 * label
    return (grey + noise * torch.randn(label.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)


def thresholds(image: Tensor) -> Tensor:
    """A segmenter of such images."""
    found = torch.bucketize(image[:, 0], torch.tensor([0.3, 0.7]))
    return torch.nn.functional.one_hot(found, 3).movedim(-1, 1).float()


def run(handler, cases: list[dict], batch: list[dict] | None = None) -> Engine:
    """Run a handler over iterations of one case, as an evaluator leaves them."""
    engine = Engine(lambda engine, index: None)

    def step(engine: Engine, index: int) -> list[dict]:
        engine.state.batch = [(batch or cases)[index]]
        return [cases[index]]

    engine = Engine(step)
    handler.attach(engine)
    engine.run(range(len(cases)))
    return engine


def requests(folder: Path, count: int) -> tuple[list[dict], list[dict]]:
    cases, batch = [], []
    for index in range(count):
        label = MetaTensor(disc(depth=3), meta={"filename_or_obj": f"/maps/map_{index}.nii.gz"})
        pred = MetaTensor(painted(disc(depth=3)), meta={"filename_or_obj": f"s{index}.nii.gz"})
        cases.append({"image": label, "label": label, "pred": pred})
        batch.append({"name": f"s{index}", "seed": torch.tensor(5 + index), "dropped": "", "series": "map"})
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir(parents=True, exist_ok=True)
            (folder / part / f"s{index}.nii.gz").write_bytes(b"")
    return cases, batch


def test_the_folder_of_a_run_is_a_data_set(tmp_path: Path) -> None:
    cases, batch = requests(tmp_path / "out", 3)
    run(SyntheticSet(tmp_path / "out", LABELS, options={"mode": "generate"}, overwrite=True), cases, batch)
    folder = find_cases(tmp_path / "out")
    assert folder.layout == "msd" and folder.label_names == LABELS and folder.problems == []
    assert [case.id for case in folder.cases] == ["s0", "s1", "s2"] and all(case.label for case in folder.cases)
    with open(tmp_path / "out" / "synthesis.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[1] == {
        "image": "imagesTr/s1.nii.gz", "label": "labelsTr/s1.nii.gz", "label_map": "/maps/map_1.nii.gz", "source": "",
        "seed": "6", "dropped": "", "mode": "generate",
    }  # fmt: skip
    assert json.loads((tmp_path / "out" / "dataset.json").read_text(encoding="utf-8"))["numTraining"] == 3
    assert [path.name for path in (tmp_path / "out" / "previews").iterdir()] == ["grid_01.png"]
    with pytest.raises(InputError, match="is there already"):
        run(SyntheticSet(tmp_path / "out", LABELS), cases, batch)


def test_a_smaller_set_in_the_place_of_a_larger_one_leaves_none_of_its_images(tmp_path: Path) -> None:
    run(SyntheticSet(tmp_path, LABELS, as_series=True, overwrite=True), *requests(tmp_path, 3))
    (tmp_path / "imagesTr" / "own.nii.gz").write_bytes(b"")  # in no list of ours
    cases, batch = requests(tmp_path, 3)
    run(SyntheticSet(tmp_path, LABELS, overwrite=True), cases[:2], batch[:2])
    assert sorted(file.name for file in (tmp_path / "imagesTr").iterdir()) == ["own.nii.gz", "s0.nii.gz", "s1.nii.gz"]
    assert sorted(file.name for file in (tmp_path / "labelsTr").iterdir()) == ["s0.nii.gz", "s1.nii.gz"]
    assert [file.name for file in (tmp_path / "previews").iterdir()] == ["grid_01.png"]


class Painter(torch.nn.Module):
    """Paints label maps; fails on the seeds that it is told to fail on."""

    def __init__(self, fails_on: dict[int, str] | None = None, guidance_scale: float = 1.0) -> None:
        super().__init__()
        self.guidance_scale = guidance_scale
        self._fails_on, self._seen = fails_on or {}, []

    def forward(self, label: Tensor, seeds: Tensor) -> Tensor:
        seed = int(seeds)
        self._seen.append(seed)
        if seed in self._fails_on:
            raise KeyboardInterrupt if self._fails_on[seed] == "stop" else ValueError("no such image")
        return painted(label) + 0.01 * seed


WANTED = [
    {"image": f"/maps/map_{n // 2}.nii.gz", "name": f"m_{n}", "seed": n, "dropped": "", "series": f"map_{n // 2}"}
    for n in range(5)
]


def generated(folder: Path, network: Painter, resume: bool = False, wanted: list[dict] = WANTED, **options) -> Painter:
    """Generate as an inference does, into ``folder``."""

    def load(item: dict) -> dict:
        label = MetaTensor(disc(depth=3), meta={"filename_or_obj": item["image"]})
        return {**item, "image": label, "label": label}

    def write(case: dict) -> dict:
        for key, part in (("pred", "imagesTr"), ("label", "labelsTr")):
            (folder / part).mkdir(parents=True, exist_ok=True)
            values = np.asarray(case[key].as_tensor()[0], np.float32)
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / part / f"m_{network._seen[-1]}.nii.gz")
        return case

    left, _ = unfinished_cases((wanted, []), folder, resume)
    evaluator = CaseEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(left, load), batch_size=1),
        network=network,
        inferer=SynthesisInferer(),
        prepare_batch=SynthesisPrepareBatch(),
        postprocessing=write,
    )
    options = {"requests": wanted, "overwrite": resume, "resume": resume, **options}
    SyntheticSet(folder, LABELS, **options).attach(evaluator)
    evaluator.run()
    return network


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything but the page, which has the time, and the name of the folder."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in ("report.html", ".lock")]
    return {str(f.relative_to(folder)): f.read_bytes().replace(folder.name.encode(), b"") for f in files}


def interrupted(folder: Path, **options) -> None:
    with pytest.raises(KeyboardInterrupt):
        generated(folder, Painter({3: "stop"}), **options)
    assert not (folder / "dataset.json").exists()


@pytest.mark.parametrize("options", [{}, {"as_series": True}, {"previews": 4}])
def test_a_generation_that_was_interrupted_goes_on_to_the_same_set(tmp_path: Path, options: dict) -> None:
    generated(tmp_path / "whole", Painter(), **options)
    interrupted(tmp_path / "parts", **options)
    assert generated(tmp_path / "parts", Painter(), True, **options)._seen == [3, 4]
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole") and len(files_of(tmp_path / "whole")) > 12


def test_an_earlier_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A file that a power failure has emptied ended every resumed generation in a traceback, after all its work."""
    generated(tmp_path / "whole", Painter())
    interrupted(tmp_path / "parts")
    broken = sorted((tmp_path / "parts" / "imagesTr").iterdir())[0]
    broken.write_bytes(b"")
    with pytest.raises(
        InputError, match=f"imagesTr/{broken.name} or labelsTr/{broken.name}, .* cannot be read; remove"
    ):
        generated(tmp_path / "parts", Painter(), True)
    broken.unlink()
    (tmp_path / "parts" / "labelsTr" / broken.name).unlink()
    generated(tmp_path / "parts", Painter(), True)
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def test_images_that_failed_or_are_gone_are_made_and_those_of_no_request_are_removed(tmp_path: Path) -> None:
    generated(tmp_path / "whole", Painter())
    generated(tmp_path / "parts", Painter({1: "fails"}))
    (tmp_path / "parts" / "labelsTr" / "m_2.nii.gz").unlink()
    assert generated(tmp_path / "parts", Painter(), True)._seen == [1, 2]
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")
    interrupted(tmp_path / "fewer")
    assert generated(tmp_path / "fewer", Painter(), True, WANTED[1:])._seen == [3, 4]
    kept = sorted(file.name for file in (tmp_path / "fewer" / "imagesTr").iterdir())
    assert kept == [f"m_{n}.nii.gz" for n in (1, 2, 3, 4)]


def test_a_set_of_which_the_rest_fails_again_is_complete_but_for_that(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        generated(tmp_path, Painter({1: "fails", 4: "stop"}))
    assert generated(tmp_path, Painter({1: "fails", 4: "fails"}), True)._seen == [1, 4]
    assert json.loads((tmp_path / "dataset.json").read_text(encoding="utf-8"))["numTraining"] == 3
    assert generated(tmp_path, Painter(), True)._seen == [1, 4]


@pytest.mark.parametrize("change", ["option", "setting", "network"])
def test_a_set_is_not_gone_on_with_by_other_settings(tmp_path: Path, change: str) -> None:
    interrupted(tmp_path)
    network = Painter(guidance_scale=2.0 if change == "network" else 1.0)
    options = {"settings": {"seed": 4}} if change == "setting" else {}
    options |= {"options": {"mode": "translate"}} if change == "option" else {}
    with pytest.raises(InputError, match="other weights or settings"):
        generated(tmp_path, network, True, **options)
    assert network._seen == [] and len(list((tmp_path / "imagesTr").iterdir())) == 3


def test_volumes_do_not_wait_in_memory_for_the_sheet(tmp_path: Path) -> None:
    handler = SyntheticSet(tmp_path, LABELS, overwrite=True)
    run(handler, *requests(tmp_path, 3))
    assert {type(picture) for picture in handler._drawn.values()} == {Image.Image}


def test_a_series_has_a_sheet_of_its_own(tmp_path: Path) -> None:
    cases, batch = requests(tmp_path, 3)
    run(SyntheticSet(tmp_path, LABELS, as_series=True, overwrite=True), cases, batch)
    assert Image.open(tmp_path / "previews" / "map.png").width > 3 * 160


def test_a_sheet_shows_images_beside_their_label_maps() -> None:
    tile = Tile("a", painted(disc()).numpy(), disc()[0].int().numpy())
    sheet = contact_sheet([tile] * 5, columns=2)
    assert sheet.dtype == np.uint8 and sheet.shape == (3 * (178 + 6) + 6, 2 * (326 + 6) + 6, 3)
    colours = np.ptp(sheet.astype(int), axis=2)
    assert colours[:160, :160].max() == 0 < colours[:160, 172:332].max()  # grey, then with coloured labels


def test_previews_of_a_training(tmp_path: Path) -> None:
    network = torch.nn.Identity()
    network.forward = lambda label, seeds: painted(label)
    dataset = [{"label": disc(depth=6)}, {"label": disc()}]
    handler = SynthesisPreview(tmp_path, network.train(), dataset, 4, 2, tmp_path / "board", epoch=lambda _: 7)
    handler(SimpleNamespace(state=SimpleNamespace(epoch=1)))
    assert (tmp_path / "previews" / "epoch_0007.png").is_file() and list((tmp_path / "board").iterdir())
    assert network.training


def scored(tmp_path: Path, images: list[Tensor], depth: int = 0, **options) -> dict[str, dict]:
    cases = [
        {"image": disc(depth=depth, shift=i), "label": painted(disc(depth=depth, shift=i), 0.05, i), "pred": image}
        for i, image in enumerate(images)
    ]
    handler = SynthesisMetrics(tmp_path, LABELS, thresholds, overwrite=True, **options)
    return {row["metric"]: row for row in run(handler, cases).state.synthesis_summary}


@pytest.mark.parametrize("depth", [0, 4])
def test_faithful_images_score_like_real_ones_and_others_do_not(tmp_path: Path, depth: int) -> None:
    shifts = range(4)
    good = scored(tmp_path / "a", [painted(disc(depth=depth, shift=i), 0.05, 9 + i) for i in shifts], depth)
    bad = scored(tmp_path / "b", [painted(disc(depth=depth, shift=i + 8), 0.05, 9 + i) for i in shifts], depth)
    assert good["Dice mean"]["generated"] > 0.95 and good["Dice inner"]["n"] == 4
    assert bad["Dice mean"]["generated"] < 0.6 and bad["Dice mean"]["real"] == good["Dice mean"]["real"] > 0.95
    for name in ("synthesis_per_case.csv", "synthesis_summary.csv", "synthesis.html", "synthesis_grid.png"):
        assert (tmp_path / "a" / name).is_file()


def features(image: Tensor) -> Tensor:
    slices = image.movedim(-1, 1).flatten(0, 1) if image.ndim == 5 else image
    return torch.stack([slices.mean(dim=(1, 2, 3)), slices.std(dim=(1, 2, 3))], dim=1)


def test_a_class_is_its_value_in_whatever_order_the_names_are_given(tmp_path: Path) -> None:
    handler = SynthesisMetrics(tmp_path, {"outer": 2, "inner": 1}, thresholds)
    label = disc()
    case = {"image": label, "pred": painted(torch.where(label == 1, 0.0, label))}  # nothing inside the ring
    rows = {row["metric"]: row for row in run(handler, [case]).state.synthesis_summary}
    assert rows["Dice outer"]["generated"] == 1 and rows["Dice inner"]["generated"] == 0


def test_realistic_images_lie_nearer_to_real_ones(tmp_path: Path) -> None:
    options = {"features": features, "feature_name": "mean and deviation"}
    near = scored(tmp_path, [painted(disc(shift=i), 0.05, 9 + i) for i in range(6)], **options)
    far = scored(tmp_path, [painted(disc(shift=i), 0.4, 9 + i) for i in range(6)], **options)
    assert near["FID"]["generated"] < 0.01 * far["FID"]["generated"] and near["FID"]["n"] == 6
    assert near["MMD"]["generated"] < 0.1 * far["MMD"]["generated"]
    assert near["FID"]["real"] < far["FID"]["generated"]
    assert "mean and deviation" in (tmp_path / "synthesis.html").read_text(encoding="utf-8")


def test_a_single_picture_has_no_distribution(tmp_path: Path) -> None:
    assert "FID" not in scored(tmp_path, [painted(disc(), 0.05)], features=features)


def test_copies_are_found(tmp_path: Path) -> None:
    training = [{"image": painted(disc(shift=i), 0.05, 100 + i), "label": disc(shift=i)} for i in range(8)]
    copies = scored(tmp_path, [training[i]["image"] for i in range(4)], training_data=training)
    own = scored(tmp_path, [painted(disc(shift=i), 0.05, 9 + i) for i in range(4)], training_data=training)
    name = "least distance to the nearest training image"
    assert copies[name]["generated"] < 1e-3 < 0.02 < own[name]["generated"]
    assert own[name]["real"] == copies[name]["real"] > 0.02


def test_images_that_are_alike_are_found() -> None:
    pictures = torch.rand(5, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    assert mean_similarity(pictures[:1].expand(5, -1, -1, -1), 100) == pytest.approx(1, abs=1e-4)
    assert mean_similarity(pictures, 100) < 0.5


def test_distances_are_per_pixel() -> None:
    known = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    found = nearest_distances(torch.tensor([[0.1, 0.1], [0.6, 1.0]]), known)
    assert torch.allclose(found, torch.tensor([0.1, 0.2828]), atol=1e-3)


def test_a_feature_that_all_real_images_share_does_not_count(tmp_path: Path) -> None:
    def features(image: Tensor) -> Tensor:
        values = image[:, 0].flatten(1)[:, 500:503]
        return torch.cat([values, (values[:, :1] > 2).float()], dim=1)

    cases = [
        {"image": disc(), "label": painted(disc(), 0.05, seed), "pred": painted(disc(), 0.05, seed + 50)}
        for seed in range(6)
    ]
    for case in cases[:3]:
        case["pred"] = case["pred"] + 2  # the last feature is 1 here, 0 on every real image
    engine = run(SynthesisMetrics(tmp_path, LABELS, features=features), cases)
    found = {row["metric"]: row["generated"] for row in engine.state.synthesis_summary}
    assert 0 < found["FID"] < 1e5 and 0 <= found["MMD"] < 1e5
