"""Public 2-D data sets: what is found in them, and that image and mask lie alike, against an independent reading."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from shared_components.data.datalists import datalist, inference_cases
from shared_components.data.layouts.cases import find_cases
from shared_components.data.layouts.split import sections
from shared_components.data.loaders import LoadImageChannelsd, LoadLabelMapd


class Known(NamedTuple):
    """What is known of a data set: its options, its cases, and a pixel (column, row) of one test case."""

    folder: str
    channels: tuple[str, ...]
    num_channels: int
    label_column: str | None
    labels: tuple[int, ...]
    counts: tuple[int, int, int]
    case: str
    pixel: tuple[int, int]
    value: tuple[int, ...]
    label: int
    mean_inside: float


SETS = [
    Known("ISIC2017", ("image",), 3, None, (1,), (94, 13, 35), "ISIC_0006914", (96, 85), (177, 157, 145), 0, 134.436),
    Known(
        "noncommercial/BRATS2015_slices",
        ("flair", "t1c"),
        2,
        None,
        (1, 2, 3, 4),
        (36, 18, 18),
        "2013_pat0006_z135",
        (136, 117),
        (211, 146),
        2,
        156.394,
    ),
    Known(
        "noncommercial/COVID_CXR",
        ("image",),
        1,
        "mask_lung",
        (1,),
        (20, 4, 6),
        "cavitating_pneumonia_4_day0_PA",
        (128, 167),
        (155,),
        1,
        125.043,
    ),
    Known(
        "noncommercial/MoNuSeg2018",
        ("image",),
        3,
        None,
        (1,),
        (14, 1, 3),
        "TCGA-GL-6846-01A-01-BS1",
        (128, 170),
        (198, 181, 225),
        0,
        102.601,
    ),
    Known(
        "DSB2018_nuclei",
        ("image",),
        3,
        None,
        (1,),
        (53, 7, 18),
        "136000dc18fa6def",
        (80, 85),
        (179, 157, 209),
        0,
        140.965,
    ),
    Known("CHASE_DB1", ("image",), 3, None, (1,), (14, 2, 4), "Image_05L", (249, 320), (241, 57, 3), 0, 92.050),
]
each_set = pytest.mark.parametrize("known", SETS, ids=lambda known: Path(known.folder).name)


def root_of(known: Known, real_data: Path) -> Path:
    root = real_data / known.folder
    if not root.is_dir():
        pytest.skip(f"needs the data set {known.folder}")
    return root


@each_set
def test_cases_and_sections(known, real_data):
    root = root_of(known, real_data)
    folder = find_cases(root, known.channels, known.label_column)
    train, validation, test = known.counts
    assert folder.layout == "manifest" and folder.problems == []
    assert len(folder.cases) == train + validation + test
    assert {section: len(ids) for section, ids in folder.split.items()} == {"train": train + validation, "test": test}
    assert tuple(len(ids) for ids in sections(folder).values()) == known.counts
    for section, ids in folder.split.items():
        rows = list(csv.DictReader((root / "manifest.csv").open()))
        assert ids == sorted(row["id"] for row in rows if row["split"] == section), "the column and split.json agree"


@each_set
def test_the_test_section_is_usable_and_loads_as_an_independent_reader_sees_it(known, real_data):
    root = root_of(known, real_data)
    options = {"channels": known.channels, "label_column": known.label_column, "spatial_dims": 2}
    items = datalist(root, "test", known.labels, num_channels=known.num_channels, **options)
    assert len(items) == known.counts[2]
    (item,) = [item for item in items if Path(item["label"]).stem.startswith(known.case)]
    data = LoadLabelMapd("label", known.labels)(LoadImageChannelsd("image", known.num_channels)(item))
    image, label = data["image"].numpy(), data["label"].numpy()
    assert image.shape[0] == known.num_channels and label.shape == (1, *image.shape[1:])
    paths = item["image"] if isinstance(item["image"], list) else [item["image"]]
    pictures = [np.asarray(Image.open(path)) for path in paths]
    mask = np.asarray(Image.open(item["label"])) > 0
    assert image.shape[1:] == mask.shape[::-1]
    tolerance = 2 if paths[0].endswith(".jpg") else 0  # decoders of JPEG differ by a step or two
    column, row = known.pixel
    assert np.abs(image[:, column, row] - known.value).max() <= tolerance and label[0, column, row] == known.label
    assert np.allclose(image.mean(0)[label[0] > 0].mean(), known.mean_inside, atol=0.1)
    independent = np.mean([picture[mask].mean() for picture in pictures])
    assert np.isclose(image[:, label[0] > 0].mean(), independent, atol=1e-2)
    assert set(np.unique(label)) <= {0, *known.labels} and (label[0] > 0).sum() == mask.sum()


def test_no_patient_of_the_slices_lies_in_two_sections(real_data):
    known = SETS[1]
    folder = find_cases(root_of(known, real_data), known.channels)
    patients = {section: {folder.groups[case] for case in ids} for section, ids in sections(folder).items()}
    assert [len(patients[section]) for section in ("train", "validation", "test")] == [2, 1, 1]
    assert len(set().union(*patients.values())) == 4


def test_images_of_a_labelled_set_can_be_predicted_without_naming_the_labels(real_data):
    good, failures = inference_cases(root_of(SETS[2], real_data), 1, spatial_dims=2)
    assert len(good) == 30 and failures == [] and set(good[0]) == {"image"}
