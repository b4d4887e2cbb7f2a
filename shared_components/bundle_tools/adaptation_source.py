"""The bundle that is made over for other data: its configurations, and which bundles can be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from shared_components.bundle_tools.adaptation_plan import Template
from shared_components.data.formats.files import read_json_object
from shared_components.errors import InputError


@dataclass(frozen=True)
class Source:
    """The bundle that is adapted, its configurations and what its training is."""

    folder: Path
    train: dict[str, Any]
    inference: dict[str, Any]
    metadata: dict[str, Any]
    template: Template

    @property
    def method(self) -> str:
        """The method's name, as the training report's title begins."""
        return str(self.train["report"]["title"]).split(",")[0]


def read_source(bundle: Path) -> Source:
    """Read the bundle to adapt.

    Raises:
        InputError: it is of a kind that has nothing to adapt; the message says what to do instead.
    """
    train, inference, meta = (
        read_json_object(bundle / "configs" / f"{name}.json") for name in ("train", "inference", "metadata")
    )
    if "stored_values" not in train:
        raise InputError(_why_not(bundle, meta))
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "train.json"))
    parser.update({"dataset_dir": "data"})  # not the demonstration's settings
    shape = meta["network_data_format"]["inputs"]["image"]["spatial_shape"]
    multiple = math.gcd(*(int(str(side).split("*")[0]) for side in shape[:2]))
    return Source(bundle, train, inference, meta, _template(parser, train, multiple))


def _template(parser: ConfigParser, train: Mapping[str, Any], multiple: int) -> Template:
    batch = parser.get_parsed_content("batch_size")
    if "pixdim" in train:
        return Template("volumes", batch, math.prod(train["patch_size"]), None, multiple)
    if "crop_size" in train:
        crop, crops = (parser.get_parsed_content(key) for key in ("crop_size", "crops_per_case"))
        return Template("tiles", batch, math.prod(crop) * crops, tuple(crop), multiple, crops)
    plane = tuple(parser.get_parsed_content("image_size"))
    if "axcodes" in train:
        slices = train["slices_per_case"]
        return Template("either", batch, math.prod(plane) * slices, plane, multiple, slices)
    return Template("pictures", batch, math.prod(plane), plane, multiple)


def _why_not(bundle: Path, meta: Mapping[str, Any]) -> str:
    configs = bundle / "configs"
    fit = f"bundles that can be adapted: {', '.join(adaptable(bundle))}"
    if (configs / "train_classifier.json").is_file():
        return (
            f"{bundle.name} learns from image-level labels, present or absent, and has no classes to adapt: give your "
            f"folder to its train.json as --dataset_dir; {fit}"
        )
    if (configs / "train_segmenter.json").is_file():
        return (
            f"{bundle.name} brings labels from one modality to another and adapts by itself: "
            f"python -m shared_components run_stages --bundle {bundle.name} --source_dir A --target_dir B; {fit}"
        )
    if meta["network_data_format"]["outputs"]["pred"].get("type") == "image":
        return (
            f"{bundle.name} makes images of label maps and segments nothing: give its train.json your folder as "
            f"--dataset_dir, with --labels and --num_channels; {fit}"
        )
    return f"{bundle}: no bundle that can be adapted, its train.json has no key stored_values; {fit}"


def adaptable(bundle: Path, pictures: bool | None = None) -> list[str]:
    """Return the names of the bundles beside one that can be adapted, to pictures or to volumes if that is said."""
    names = []
    for file in sorted(bundle.parent.glob("*/configs/train.json")):
        train = read_json_object(file)
        kinds = {True: "pixdim" not in train, False: "axcodes" in train}
        if "stored_values" in train and (pictures is None or kinds[pictures]):
            names.append(file.parts[-3])
    return names
