"""Do generated pairs help a segmenter? ``benchmarks/added_pairs.py --dataset_dir Task04_Hippocampus --output RUN``.

For 10, 20, 40 and 160 real cases: a synthesiser (``segguided_hippocampus``) that has seen those cases alone, pairs that
it generates from their label maps, deformed, and segmenters trained with and
without those pairs for the same number of steps: ``cdal_hippocampus`` with ``plain.json`` and a small U-Net in place of
its backbone. Mean Dice of the test cases, measured once, after the last step, so
that nothing is chosen on them. Every part is skipped where its result is there already.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import logging
import os
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import monai  # noqa: E402  (after the number of threads is set)
import nibabel  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from monai.bundle import ConfigParser  # noqa: E402
from monai.networks.nets import UNet  # noqa: E402
from monai.transforms import Rand3DElastic  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from shared_components.errors import InputError, install_one_line_errors  # noqa: E402

logger = logging.getLogger(__name__)

BUNDLES = Path(__file__).resolve().parent.parent / "bundles"
SYNTHESISER, SEGMENTER = BUNDLES / "segguided_hippocampus", BUNDLES / "cdal_hippocampus"
BATCH_SIZE = 2
PAD = {"_target_": "SpatialPadd", "keys": ["image", "label"], "spatial_size": [40, 56, 10], "mode": "edge"}
AFFINE = {
    "_target_": "RandAffined",
    "keys": ["image", "label"],
    "prob": 0.9,
    "rotate_range": [0.1, 0.1, 0.1],
    "scale_range": [0.1, 0.1, 0.1],
    "translate_range": [2, 2, 2],
    "mode": ["bilinear", "nearest"],
    "padding_mode": "border",
}
FLIP = {"_target_": "RandFlipd", "keys": ["image", "label"], "prob": 0.5, "spatial_axis": 0}
CROP = {
    "_target_": "RandCropByPosNegLabeld",
    "keys": ["image", "label"],
    "label_key": "label",
    "spatial_size": [40, 56, 10],
    "pos": 4,
    "neg": 1,
    "num_samples": 1,
}
# for minutes of one core: the bundle's data, loss, moving average and evaluation, a network that learns in minutes
RECIPE: dict[str, Any] = {
    "batch_size": BATCH_SIZE,
    "learning_rate": 0.005,
    "ema#momentum": 0.03,
    "random_transforms": [PAD, AFFINE, FLIP, CROP],
    "denoiser": {
        "_target_": "shared_components.networks.plain.PlainConditionBranch",
        "branch": {"_target_": "benchmarks.added_pairs.SmallUNet", "channels": [16, 32, 64, 128]},
        "in_channels": 3,
    },
}
KEPT_HANDLERS = {
    "train": ("EpochSeeder", "shared_handler", "LrScheduleHandler", "StopOnNonFinite", "ValidationHandler"),
    "validate": ("RunProgress",),
}
COLUMNS = ("real", "generated", "seed", "steps", "anterior", "posterior", "mean")


class SmallUNet(nn.Module):
    """MONAI's residual U-Net of three slices, as a branch of `PlainConditionBranch`: class probabilities.

    Args:
        channels: widths of its levels.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.downsampling = 2 ** (len(channels) - 1)
        self.unet = UNet(2, 3, 3, tuple(channels), (2,) * (len(channels) - 1), num_res_units=2)

    def forward(self, condition: Tensor) -> list[Tensor]:
        """Return the probabilities (B, 3, H, W) of slices with their neighbours (B, 3, H, W)."""
        return [self.unet(condition).softmax(dim=1)]


def nested_cases(ids: Iterable[str], count: int) -> list[str]:
    """Return ``count`` of the ids, the first of one fixed random order: smaller choices are part of larger ones."""
    ids = sorted(ids)
    if count > len(ids):
        raise InputError(f"--counts {count}: the data set has {len(ids)} training cases; ask for fewer")
    return sorted(random.Random(0).sample(ids, len(ids))[:count])


def epochs_for(steps: int, cases: int, batch_size: int) -> int:
    """Return the number of whole epochs that is closest to ``steps``."""
    return max(1, round(steps / -(-cases // batch_size)))


def pair(folder: Path, case: str) -> dict[str, str]:
    """Return a case of an MSD folder as an entry of a datalist."""
    return {"image": str(folder / "imagesTr" / f"{case}.nii.gz"), "label": str(folder / "labelsTr" / f"{case}.nii.gz")}


def link_cases(source: Path, target: Path, cases: Sequence[str]) -> Path:
    """Make a folder of links to some cases, all of them training cases; return it."""
    for kind in ("imagesTr", "labelsTr"):
        (target / kind).mkdir(parents=True, exist_ok=True)
        for case in cases:
            link = target / kind / f"{case}.nii.gz"
            if not link.exists():
                link.symlink_to((source / kind / link.name).resolve())
    (target / "split.json").write_text(json.dumps({"train": list(cases), "test": []}), encoding="utf-8")
    return target


def deform_labels(source: Path, target: Path, cases: Sequence[str], count: int) -> Path:
    """Write ``count`` label maps, those of the cases in turn, each deformed by an own elastic and affine map.

    Of each the labelled slices are kept and two on either side, since every slice costs a generation.
    """
    if target.is_dir() and len(list(target.glob("*.nii.gz"))) == count:
        return target
    target.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        label = nibabel.load(source / "labelsTr" / f"{cases[number % len(cases)]}.nii.gz")
        deform = Rand3DElastic(
            sigma_range=(4, 6),
            magnitude_range=(60, 200),
            prob=1.0,
            rotate_range=(0.15,) * 3,
            scale_range=(0.12,) * 3,
            mode="nearest",
            padding_mode="zeros",
        )
        deform.set_random_state(seed=number)
        values = deform(torch.from_numpy(np.asarray(label.dataobj).round().astype(np.float32))[None])[0].numpy()
        labelled = np.flatnonzero(values.any(axis=(0, 1)))
        values = values[:, :, max(labelled[0] - 2, 0) : labelled[-1] + 3]
        nibabel.save(nibabel.Nifti1Image(values.astype(np.uint8), label.affine), target / f"made_{number:03d}.nii.gz")
    return target


def train_synthesiser(folder: Path, output: Path, steps: int, prediction_type: str) -> Path:
    """Train the synthesiser's bundle on a folder; return its weights, those of its best validation."""
    weights = output / "model.pt"
    if not (output / "finished").exists():
        training = len(json.loads((folder / "split.json").read_text(encoding="utf-8"))["train"])
        batch_size = 2
        epochs = epochs_for(steps, training - max(1, training // 8), batch_size)
        monai.bundle.run(
            config_file=str(SYNTHESISER / "configs" / "train.json"),
            bundle_root=str(SYNTHESISER),
            dataset_dir=str(folder),
            output_dir=str(output),
            batch_size=batch_size,
            prediction_type=prediction_type,
            max_epochs=epochs,
            val_interval=max(1, epochs // 2),
            resume=(output / "last.pt").exists(),
            overwrite=True,
            run=["$@train#trainer.run()"],
        )
        (output / "finished").touch()
    return weights


def generate(maps: Path, weights: Path, output: Path, settings: Mapping[str, Any]) -> list[dict[str, str]]:
    """Generate an image for every label map; return the pairs."""
    names = [file.name[: -len(".nii.gz")] + "_01" for file in sorted(maps.glob("*.nii.gz"))]
    pairs = [pair(output, name) for name in names]
    if not all(Path(item[key]).exists() for item in pairs for key in item):
        monai.bundle.run(
            config_file=str(SYNTHESISER / "configs" / "inference.json"),
            bundle_root=str(SYNTHESISER),
            dataset_dir=str(maps),
            output_dir=str(output),
            ckpt_path=str(weights),
            overwrite=True,
            **settings,
        )
    return pairs


def segmenter_config(names: Sequence[str], settings: Mapping[str, Any]) -> ConfigParser:
    """Parse the segmentation bundle's configuration with some of its keys replaced."""
    parser = ConfigParser()
    parser.read_config([str(SEGMENTER / "configs" / f"{name}.json") for name in names])
    for key, value in {"bundle_root": str(SEGMENTER), "overwrite": True, **settings}.items():
        parser[key] = value
    return parser


def train_segmenter(settings: Mapping[str, Any], training: Any, test: Any, seed: int) -> dict[str, float]:
    """Train one segmenter; return its mean Dice on the test cases after the last step."""
    training.seed = seed
    fixed = {
        "seed": seed,
        "val_interval": settings["max_epochs"],
        "train#dataset": training,
        "validate#preprocessing": test.transform,  # the instance itself: predictions are inverted by it
        "validate#dataset": test,
    }
    parser = segmenter_config(("train", "plain"), {**settings, **fixed})
    for part, kept in KEPT_HANDLERS.items():  # of hundreds of short epochs, pages and states would take the longest
        parser[f"{part}#handlers"] = [
            item for item in parser[f"{part}#handlers"] if item["_target_"].rsplit(".", 1)[-1] in kept
        ]
    parser.get_parsed_content("initialize")
    trainer = parser.get_parsed_content("train#trainer")
    trainer.run()
    dice = parser.get_parsed_content("validate#evaluator").state.metric_details["val_mean_dice"]
    anterior, posterior = (float(value) for value in torch.as_tensor(dice).nanmean(dim=0))
    return {
        "steps": trainer.state.iteration,
        "anterior": anterior,
        "posterior": posterior,
        "mean": (anterior + posterior) / 2,
    }


class Table:
    """The results so far, on disk after every segmenter."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @property
    def rows(self) -> list[dict[str, str]]:
        """All rows, those that another process has added included."""
        if not self.file.exists():
            return []
        with self.file.open(encoding="utf-8", newline="") as handle:
            return list(csv.DictReader(handle))

    def has(self, real: int, generated: int, seed: int) -> bool:
        """Whether a segmenter was measured already."""
        key = (str(real), str(generated), str(seed))
        return any((row["real"], row["generated"], row["seed"]) == key for row in self.rows)

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a segmenter and write the file."""
        rows = [*self.rows, {name: str(row[name]) for name in COLUMNS}]
        temporary = self.file.with_suffix(f".{os.getpid()}")
        with temporary.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.file)

    def markdown(self) -> str:
        """The mean over seeds, with the smallest and the largest, one line a number of real cases."""
        lines = ["| real cases | real alone | with generated pairs | difference |", "| --- | --- | --- | --- |"]
        rows = self.rows
        for real in sorted({int(row["real"]) for row in rows}):
            found: dict[bool, list[float]] = {}
            for row in rows:
                if int(row["real"]) == real:
                    found.setdefault(row["generated"] != "0", []).append(float(row["mean"]))
            cells = [
                f"{np.mean(found[key]):.4f} ({min(found[key]):.3f} to {max(found[key]):.3f})" if key in found else "-"
                for key in (False, True)
            ]
            both = len(found) == 2
            change = f"{np.mean(found[True]) - np.mean(found[False]):+.4f}" if both else "-"
            lines.append(f"| {real} | {cells[0]} | {cells[1]} | {change} |")
        return "\n".join(lines)


def real_cases(chosen: argparse.Namespace, count: int) -> list[str]:
    """Return the real cases of a row of the table."""
    split = json.loads((chosen.dataset_dir / "split.json").read_text(encoding="utf-8"))
    return nested_cases(split["train"], count)


def synthesiser(chosen: argparse.Namespace, count: int) -> Path:
    """Return the weights of the synthesiser that saw the real cases of a row alone."""
    split = json.loads((chosen.dataset_dir / "split.json").read_text(encoding="utf-8"))
    if chosen.weights is not None and count == len(split["train"]):
        return chosen.weights
    folder = link_cases(chosen.dataset_dir, chosen.output / f"cases_{count}", real_cases(chosen, count))
    output = chosen.output / f"synthesiser_{count}"
    return train_synthesiser(folder, output, chosen.synthesiser_steps, chosen.prediction_type)


def measure(chosen: argparse.Namespace, table: Table, test: Any, count: int, generated: bool) -> None:
    """Train and measure the segmenters of one cell of the table."""
    source, output = chosen.dataset_dir, chosen.output
    pairs = chosen.pairs if generated else 0
    wanted = [seed for seed in range(chosen.seeds) if not table.has(count, pairs, seed)]
    if not wanted:
        return
    cases = real_cases(chosen, count)
    items = [pair(source, case) for case in cases]
    if generated:
        maps = deform_labels(source, output / f"maps_{count}", cases, pairs)
        items += generate(maps, synthesiser(chosen, count), output / f"generated_{count}", chosen.sampling)
    epochs = epochs_for(chosen.segmenter_steps, len(items), BATCH_SIZE)
    settings = {"dataset_dir": str(source), "output_dir": str(output / "segmenter"), "max_epochs": epochs, **RECIPE}
    training = segmenter_config(("train", "plain"), {**settings, "train#dataset#data": items})
    dataset = training.get_parsed_content("train#dataset")
    for seed in wanted:
        scores = train_segmenter(settings, dataset, test, seed)
        table.add({"real": count, "generated": pairs, "seed": seed, **scores})
        logger.info("%d real, %d generated, seed %d: Dice %.4f", count, pairs, seed, scores["mean"])
        gc.collect()


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True, help="Task04_Hippocampus with its split.json")
    parser.add_argument("--output", type=Path, required=True, help="folder of all results")
    parser.add_argument("--weights", type=Path, help="synthesiser of all training cases; it is trained without")
    parser.add_argument("--counts", default="10,20,40,160", help="numbers of real cases")
    parser.add_argument("--only", choices=["real", "generated", "synthesisers"], help="a part of the work")
    parser.add_argument("--pairs", type=int, default=12, help="generated pairs that are added")
    parser.add_argument("--seeds", type=int, default=3, help="segmenters of every kind")
    parser.add_argument("--synthesiser_steps", type=int, default=300)
    parser.add_argument("--segmenter_steps", type=int, default=600)
    parser.add_argument("--num_inference_steps", type=int, default=10, help="of the generation")
    parser.add_argument("--sampler", default="dpm_solver++", help="of the generation")
    parser.add_argument("--guidance_scale", type=float, default=2.0, help="of the generation")
    parser.add_argument("--prediction_type", default="v_prediction", help="of the synthesisers, that of --weights too")
    chosen = parser.parse_args(argv)
    chosen.counts = [int(item) for item in chosen.counts.split(",")]
    names = ("num_inference_steps", "sampler", "guidance_scale", "prediction_type")
    chosen.sampling = {name: getattr(chosen, name) for name in names}
    chosen.dataset_dir, chosen.output = chosen.dataset_dir.absolute(), chosen.output.absolute()
    if not (chosen.dataset_dir / "split.json").is_file():
        raise InputError(f"{chosen.dataset_dir}: no split.json; give the folder of the data set with its split")
    return chosen


def main(argv: Sequence[str] | None = None) -> None:
    """Fill the table; every finished segmenter is on disk before the next begins."""
    install_one_line_errors()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    chosen = arguments(argv)
    chosen.output.mkdir(parents=True, exist_ok=True)
    if chosen.only == "synthesisers":
        for count in chosen.counts:
            synthesiser(chosen, count)
        return
    table = Table(chosen.output / "dice.csv")
    settings = {"dataset_dir": str(chosen.dataset_dir), "output_dir": str(chosen.output / "segmenter")}
    test = segmenter_config(("train", "plain", "evaluate"), settings).get_parsed_content("validate#dataset")
    for generated in (False, True):
        if chosen.only in (None, "generated" if generated else "real"):
            for count in chosen.counts:
                measure(chosen, table, test, count, generated)
    text = table.markdown()
    (chosen.output / "dice.md").write_text(text + "\n", encoding="utf-8")
    logger.info("%s", text)


if __name__ == "__main__":
    main()
