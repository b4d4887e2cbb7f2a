"""The phantoms of every kind: laid out as stated, the same for the same seed, neither trivial nor impossible."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.networks.nets import BasicUNet
from PIL import Image
from scipy.ndimage import zoom
from skimage.filters import threshold_otsu
from skimage.measure import label as components

from shared_components.data.checks.cases import check_folder
from shared_components.data.layouts.cases import find_cases
from shared_components.data.phantoms import KINDS, demonstration_data, make_phantoms, phantom_case
from shared_components.errors import InputError

PICTURES = ("lesion", "lungs", "nuclei")
SLICES = ("tumour_slices", "kidney_slices")  # half of their masks are empty


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * (first & second).sum() / (first.sum() + second.sum())


def grey_and_truth(case: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Grey values whose low end the structure is at, and the foreground."""
    if len(case) == 3 and case[0].ndim == 3 and case[0].shape == case[1].shape:
        return -case[0].astype(float), case[2] > 0
    return np.asarray(Image.fromarray(case[0]).convert("L"), float), case[1] > 0


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    return {kind: make_phantoms(tmp_path_factory.mktemp("sets") / kind, 4, 1, kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_depends_on_seed_and_number_alone(kind, sets, tmp_path):
    first = digests(sets[kind])
    again = digests(make_phantoms(tmp_path / "again", 5, seed=1, kind=kind))
    images = [name for name in first if "/" in name]
    assert len(images) == 4 * len(KINDS[kind].files)
    assert all(again[name] == first[name] for name in images)
    assert len({first[name] for name in images if name.startswith("images")}) == 4 * (1 + (kind == "tumour"))
    other = phantom_case(2, 0, kind)[0]
    assert other.shape != phantom_case(1, 0, kind)[0].shape or (other != phantom_case(1, 0, kind)[0]).any()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in SLICES])
def test_the_check_of_data_finds_nothing(kind, sets):
    assert all(finding.level == "note" for finding in check_folder(find_cases(sets[kind])))


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_lie_beside_their_masks(kind, sets):
    folder = find_cases(sets[kind])
    assert folder.layout == "paired" and [case.id for case in folder.cases] == [f"phantom_00{n}" for n in range(4)]
    assert folder.split == {
        "train": ["phantom_000", "phantom_001"],
        "validation": ["phantom_002"],
        "test": ["phantom_003"],
    }
    for case in folder.cases:
        image, mask = Image.open(case.images[0]), np.asarray(Image.open(case.label))
        assert image.mode == ("L" if kind == "lungs" else "RGB") and mask.dtype == np.uint8
        assert mask.shape == image.size[::-1] and sorted(np.unique(mask)) == [0, 255]
        low, high = {"lesion": (0.04, 0.4), "lungs": (0.12, 0.5), "nuclei": (0.08, 0.5)}[kind]
        assert low < (mask > 0).mean() < high


def test_sizes_differ_except_among_tiles():
    shapes = {kind: {phantom_case(0, index, kind)[0].shape[:2] for index in range(6)} for kind in PICTURES}
    assert len(shapes["lesion"]) > 3 and len(shapes["lungs"]) > 3 and shapes["nuclei"] == {(128, 128)}
    assert all(112 <= rows <= 144 and 128 <= columns <= 160 for rows, columns in shapes["lesion"])


def test_lesions_are_one_piece_and_lungs_are_two():
    for index in range(8):
        assert components(phantom_case(0, index, "lesion")[1]).max() == 1
        mask = phantom_case(0, index, "lungs")[1]
        parts = components(mask)
        sizes = np.bincount(parts.flat)[1:]
        assert len(sizes) == 2 and sizes.min() > 0.04 * mask.size
        centres = [np.argwhere(parts == number).mean(axis=0)[1] / mask.shape[1] for number in (1, 2)]
        assert min(centres) < 0.45 and max(centres) > 0.55


def test_many_nuclei_touch_and_are_numbered_without_gaps():
    for index in range(4):
        _, mask, instances = phantom_case(0, index, "nuclei")
        assert instances.dtype == np.uint16 and np.array_equal(instances > 0, mask > 0)
        numbers = np.unique(instances)
        assert np.array_equal(numbers, np.arange(len(numbers))) and len(numbers) > 20
        assert components(mask, connectivity=1).max() < 0.75 * (len(numbers) - 1)
        assert np.bincount(instances.flat).min() >= 8


def test_instances_are_stored_in_16_bit(sets):
    image = Image.open(sets["nuclei"] / "instances" / "phantom_000.png")
    assert image.mode.startswith("I")
    assert np.array_equal(np.asarray(image), phantom_case(1, 0, "nuclei")[2])


def test_tumours_are_nested_in_an_nnunet_folder(sets):
    folder = find_cases(sets["tumour"])
    assert folder.layout == "nnunet" and folder.channels == ("FLAIR", "T1ce") and folder.problems == []
    assert folder.label_names == {"oedema": 1, "core": 2, "enhancing": 3}
    for case in folder.cases:
        *channels, label = (nibabel.load(path) for path in (*case.images, case.label))
        assert len(channels) == 2 and {image.shape for image in channels} == {label.shape}
        assert all(low <= size <= high for size, low, high in zip(label.shape, (44, 48, 10), (52, 56, 14)))
        assert np.array_equal(label.affine, np.eye(4)) and label.get_data_dtype() == np.uint8
        values, brain = np.asarray(label.dataobj), channels[0].get_fdata() > 0
        counts = np.bincount(values.flat, minlength=4)
        assert len(counts) == 4 and counts[1] > counts[3] > 20 and counts[2] > 5
        assert brain[values > 0].mean() > 0.99 and 0.3 < brain.mean() < 0.9
    assert channels[0].get_data_dtype() == np.int16


def test_the_core_is_dark_and_its_rim_bright_in_t1_and_oedema_bright_in_flair():
    for index in range(4):
        flair, t1, label = phantom_case(0, index, "tumour")
        healthy = (label == 0) & (flair > 0)
        assert np.median(t1[label == 3]) > 1.2 * np.median(t1[healthy]) > 1.2 * np.median(t1[label == 2])
        assert np.median(flair[label == 1]) > 1.2 * np.median(flair[healthy])


@pytest.mark.parametrize("kind", [*PICTURES, "tumour"])
def test_no_threshold_finds_the_structure(kind):
    found = []
    for index in range(10):
        grey, truth = grey_and_truth(phantom_case(0, index, kind))
        part = grey < 0 if kind == "tumour" else np.ones_like(truth)
        found.append(dice((grey < threshold_otsu(grey[part])) & part, truth))
    assert np.mean(found) < 0.83


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "hippocampus"])
def test_a_default_set_takes_seconds(kind, tmp_path):
    start = time.process_time()
    make_phantoms(tmp_path / "set", kind=kind)
    assert time.process_time() - start < 20


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_is_not_taken_for_another(kind, sets):
    before = digests(sets[kind])
    other = "lungs" if kind == "lesion" else "lesion"
    with pytest.raises(InputError, match="holds something other"):
        make_phantoms(sets[kind], 4, 1, other)
    with pytest.raises(InputError, match="holds something other"):
        make_phantoms(sets[kind], 4, 2, kind)
    assert make_phantoms(sets[kind], 4, 1, kind) == sets[kind] and digests(sets[kind]) == before


def test_organs_have_the_values_of_ct_and_all_classes():
    for index in range(3):
        image, label = phantom_case(0, index, "organs")
        assert image.dtype == np.int16 and image.min() < -900 and set(np.unique(label)) == set(range(6))
        medians = [np.median(image[label == value]) for value in range(1, 6)]
        assert 60 < medians[0] < medians[2] < medians[3] < medians[4] and medians[4] > 350
        assert (label == 1)[:32].sum() > 3 * (label == 1)[32:].sum()  # the liver is on the right


def test_breasts_hold_vessels_and_fibroglandular_tissue():
    for index in range(3):
        image, label = phantom_case(0, index, "breast")
        assert image.shape == label.shape == (64, 64) and set(np.unique(label)) == {0, 1, 2, 3}
        dark, fat, bright = (np.median(image[label == value]) for value in (3, 1, 2))
        assert dark < 0.8 * fat < 0.8 * 0.8 * bright / 0.8


@pytest.mark.parametrize("kind", SLICES)
def test_half_of_the_slices_show_a_bright_object(kind, sets):
    findings = check_folder(find_cases(sets[kind]))
    assert {finding.kind for finding in findings if finding.level != "note"} <= {"empty_mask"}
    shown = 0
    for index in range(40):
        image, mask = phantom_case(0, index, kind)
        assert image.shape == mask.shape == (64, 64) and set(np.unique(mask)) <= {0, 255}
        if mask.any():
            shown += 1
            around = (mask == 0) & (image > 0)
            assert 0.01 < (mask > 0).mean() < 0.12
            assert np.median(image[mask > 0]) > 1.3 * np.median(image[around])
    assert 12 <= shown <= 28


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match="kind must be one of .*hippocampus, lesion, lungs, nuclei.* not 'kidney'"):
        make_phantoms(tmp_path / "set", kind="kidney")
    with pytest.raises(InputError, match="not 'kidney'"):
        phantom_case(0, 0, "kidney")
    assert not (tmp_path / "set").exists()


def test_demonstration_data_makes_the_kind(tmp_path, caplog):
    folder = Path(demonstration_data(None, tmp_path, kind="lungs"))
    assert folder == tmp_path / "phantoms" and len(find_cases(folder).cases) == 24
    assert json.loads((folder / "phantoms.json").read_text(encoding="utf-8"))["phantoms"]["kind"] == "lungs"
    assert "demonstration on synthetic phantoms" in caplog.text


def picture(index: int, kind: str, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """One case as a small square: channels standardised each by itself, and the foreground."""
    *images, truth = phantom_case(0, index, kind)[: 3 if kind == "tumour" else 2]
    if kind == "tumour":
        slices = int((truth > 0).sum(axis=(0, 1)).argmax())
        images, truth = [image[..., slices] for image in images], truth[..., slices]
    else:
        images = list(np.moveaxis(np.atleast_3d(images[0]), -1, 0))
    if kind == "nuclei":  # shrunk, they would be too small
        images, truth = [image[:size, :size] for image in images], truth[:size, :size]
    channels = [zoom(image.astype(float), np.divide(size, image.shape), order=1) for image in images]
    channels = [(channel - channel.mean()) / channel.std() for channel in channels]
    mask = zoom((truth > 0).astype(float), np.divide(size, truth.shape), order=1) > 0.5
    return torch.tensor(np.stack(channels), dtype=torch.float32), torch.tensor(mask)[None].float()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*PICTURES, "tumour"])
def test_a_small_network_learns_it_in_a_minute(kind):
    torch.manual_seed(0)
    images, truths = (torch.stack(part) for part in zip(*[picture(index, kind) for index in range(24)]))
    network = BasicUNet(2, images.shape[1], 1, features=(16, 16, 32, 32, 64, 16))
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(60):
        chosen = torch.randperm(18)[:6]
        scores, truth = network(images[chosen]), truths[chosen]
        overlap = 2 * (scores.sigmoid() * truth).sum() / (scores.sigmoid().sum() + truth.sum())
        loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, truth) + 1 - overlap
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = network.eval()(images[18:]) > 0
    assert np.mean([dice(a.numpy(), b.numpy() > 0) for a, b in zip(found, truths[18:])]) > 0.8


def test_the_hippocampus_set_is_what_it_was():
    """Published scores of the demonstration refer to these volumes."""
    image, label = phantom_case(0, 3)
    assert image.shape == label.shape == (38, 55, 40)
    assert np.bincount(label.flat).tolist() == [80680, 1698, 1222]
    assert float(image.mean()) == pytest.approx(52018.94, rel=1e-3)


@pytest.mark.parametrize(("kind", "last"), [("hippocampus", {"2": "posterior"}), ("organs", {"5": "bones"})])
def test_volumes_are_described_as_in_the_decathlon(kind, last, tmp_path):
    described = json.loads((make_phantoms(tmp_path / "set", 3, 0, kind) / "dataset.json").read_text(encoding="utf-8"))
    labels = described["labels"]
    assert labels["0"] == "background" and dict([list(labels.items())[-1]]) == last
    assert described["numTraining"] == len(described["training"]) == 3
