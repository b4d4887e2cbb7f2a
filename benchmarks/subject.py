"""What is benchmarked: the bundle's own configuration, its weights and its cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from monai.transforms import Compose
from torch import Tensor, nn

from benchmarks.report import MANY_CALLS
from shared_components.data.phantoms import make_phantoms
from shared_components.training.checkpoints import LoadWeights

BUNDLES = Path(__file__).resolve().parent.parent / "bundles"
PHANTOMS = {
    "cdal_hippocampus": "hippocampus",
    "cdal_monuseg": "nuclei",
    "cdal_lung_cxr": "lungs",
    "medsegdiff_isic": "lesion",
    "medsegdiff_v2_isic": "lesion",
    "cdm_brats": "tumour_slices",
}


@dataclass(eq=False)
class Subject:
    """The default configuration of a bundle with weights and data.

    Attributes:
        work_dir: for phantoms, which stand in for an absent data set.
        bundle: name of the bundle, one of `PHANTOMS`, which has the kind of phantoms for each.
        weights: of the network; random ones (under which no Dice gate can pass) where the file is absent.
        dataset_dir: in a layout that the bundle reads; phantoms where ``None``.
        device: ``cpu`` or ``cuda``.
        pairs: interleaved pairs to time.
        volumes: how many test cases the timings of whole volumes use.
        steps: training steps in a timing of training.
        image_steps: of the image in row f.
        many_calls: of the opponent in rows b3 and b3b.
        seed: of random weights and of the training step's draws.
        compile: also measure `torch.compile`, which takes minutes to compile.
        num_phantoms: how many to make; 160 have the 40 test cases that the Dice gate asks for.
        overrides: of the training configuration, for tests.
    """

    work_dir: Path
    bundle: str = "cdal_hippocampus"
    weights: Path | None = None
    dataset_dir: Path | None = None
    device: str = "cpu"
    pairs: int = 3
    volumes: int = 2
    steps: int = 4
    image_steps: int = 25
    many_calls: int = MANY_CALLS
    seed: int = 0
    compile: bool = False
    num_phantoms: int = 160
    overrides: dict[str, Any] = field(default_factory=dict)

    def config(self, **overrides: Any) -> ConfigParser:
        """Parse the training configuration afresh: every call makes new networks and optimisers.

        Of cDAL it is the one with the discriminator, whose step is the method's whole training step.
        """
        return self._parse(("train", "attention"), overrides)

    def _parse(self, names: Sequence[str], overrides: Mapping[str, Any]) -> ConfigParser:
        """Parse those of the configuration files that the bundle has."""
        bundle = BUNDLES / self.bundle
        files = [bundle / "configs" / f"{name}.json" for name in names]
        parser = ConfigParser()
        parser.read_config([str(file) for file in files if file.is_file()])
        settings = {
            "bundle_root": str(bundle),
            "dataset_dir": str(self.data_folder),
            "output_dir": str(self.work_dir),
            "device": self.device,
            "seed": self.seed,
        }
        if self.dataset_dir is None and "label_column" in parser:
            settings["label_column"] = None  # phantoms have one kind of mask
        for name, value in {**settings, **self.overrides, **overrides}.items():
            parser[name] = value
        return parser

    @cached_property
    def data_folder(self) -> Path:
        """Folder of the cases."""
        if self.dataset_dir is not None:
            return Path(self.dataset_dir).absolute()
        folder = self.work_dir / f"phantoms_{self.bundle}"
        return make_phantoms(folder, num_cases=self.num_phantoms, kind=PHANTOMS[self.bundle])

    @property
    def data_name(self) -> str:
        """What the cases are, for the table."""
        return "phantoms: no data set was given" if self.dataset_dir is None else self.data_folder.name

    @property
    def has_weights(self) -> bool:
        """Whether trained weights were given and exist."""
        return self.weights is not None and Path(self.weights).is_file()

    def segmenter(self, **settings: Any) -> nn.Module:
        """The bundle's network in eval mode, in fp32, with ``settings`` of `DiffusionSegmenter` replaced."""
        settings = {"amp": False, **settings}
        parser = self.config(**{f"network_def#{name}": value for name, value in settings.items()})
        torch.manual_seed(self.seed)
        network = parser.get_parsed_content("network")
        if self.has_weights:
            LoadWeights(self.weights, network)()
        else:
            randomise(network)
        return network.eval()

    def batches(self, count: int) -> list[dict[str, Tensor]]:
        """The first training batches, augmented, as the trainer gets them."""
        size = int(self.config().get_parsed_content("batch_size"))
        dataset = self.training_data(count * size)
        return [
            {key: batch[key].as_tensor() for key in ("image", "label")}
            for batch in islice(DataLoader(dataset, batch_size=size, shuffle=False), count)
        ]

    def training_data(self, cases: int) -> Dataset:
        """The configuration's training dataset of the first ``cases`` cases, of all if there are fewer."""
        chosen = self.config().get_parsed_content("train#dataset#data")[:cases]
        return self.config(**{"train#dataset#data": chosen}).get_parsed_content("train#dataset")

    @cached_property
    def test_items(self) -> list[dict[str, str]]:
        """Image and label files of the test section."""
        return self._parse(("train", "attention", "evaluate"), {}).get_parsed_content("validate#dataset#data")

    def volume(self, index: int, label: bool = False) -> tuple[Tensor, Tensor | None]:
        """One preprocessed test image (1, K, H, W[, D]) and, if asked for, its label map (1, H, W[, D])."""
        keys = ["image", "label"] if label else ["image"]
        item = self._preprocessing({key: self.test_items[index][key] for key in ("image", "label")})
        values = [item[key].as_tensor().to(self.device) for key in keys]
        return values[0][None].float(), values[1] if label else None

    @cached_property
    def _preprocessing(self) -> Compose:
        """What precedes the random transforms; the bundles of pictures normalise among or after those."""
        parser = self.config()
        transforms = list(parser.get_parsed_content("train#deterministic_transforms"))
        if "@normalisation" in parser["random_transforms"]:
            transforms.append(parser.get_parsed_content("normalisation"))
        return Compose(transforms)


def randomise(network: nn.Module) -> None:
    """Draw weights of normal size: those of a new network are almost zero, which would hide differences."""
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
