"""A segmentation bundle's network as the judge of generated images."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from shared_components.bundle_tools.bundle_segmenter import feature_network, load_segmenter, sibling_bundle
from shared_components.bundle_tools.export import export_bundle
from shared_components.errors import InputError
from shared_components.networks.random_features import RandomFeatures
from tests.conftest import REPOSITORY

BUNDLE = REPOSITORY / "bundles" / "cdal_hippocampus"


def test_the_hippocampus_bundle_judges_images_of_any_scale(real_data: Path) -> None:
    import nibabel

    folder = real_data / "Task04_Hippocampus"
    case = sorted((folder / "imagesTr").glob("hippocampus_*.nii.gz"))[4].name
    image, label = (
        torch.from_numpy(np.asarray(nibabel.load(folder / part / case).dataobj, np.float32))[None, None]
        for part in ("imagesTr", "labelsTr")
    )
    segmenter = load_segmenter(BUNDLE)
    with torch.no_grad():
        found = segmenter(image).argmax(1, keepdim=True)
        assert torch.equal(segmenter(image / image.max()).argmax(1, keepdim=True), found)
        assert segmenter.features(image).shape[0] == image.shape[4]
    overlap = 2 * ((found > 0) & (label > 0)).sum() / ((found > 0).sum() + (label > 0).sum())
    assert overlap > 0.8


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    assert load_segmenter(None) is None
    with pytest.raises(InputError, match="segmenter_bundle .*inference.json is missing"):
        load_segmenter(tmp_path)
    assert sibling_bundle(REPOSITORY / "bundles" / "medsegdiff_isic", "cdal_hippocampus") == str(BUNDLE)
    assert sibling_bundle(REPOSITORY / "bundles" / "medsegdiff_isic", "no_such") is None


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"labels": {"hippocampus": 1}}, "its network has 2 classes, the images to judge 1"),
        ({"labels": {"a": 1, "b": 2}, "num_channels": 3}, "its network has 1 image channels, the images to judge 3"),
    ],
)
def test_a_segmenter_of_other_images_is_refused_before_anything_starts(options: dict, found: str) -> None:
    with pytest.raises(InputError, match=f"segmenter_bundle .*cdal_hippocampus: {found}; .*--segmenter_bundle"):
        load_segmenter(BUNDLE, **options)


def test_weights_of_another_network_are_told_in_a_line(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="other.pt: weights of another network"):
        load_segmenter(BUNDLE, ckpt_path=tmp_path / "other.pt")
    (tmp_path / "broken.pt").write_bytes(b"no")
    with pytest.raises(InputError, match="broken.pt"):
        load_segmenter(BUNDLE, ckpt_path=tmp_path / "broken.pt")


def test_the_bundle_beside_judges_its_own_classes_alone(caplog: pytest.LogCaptureFixture) -> None:
    beside = REPOSITORY / "bundles" / "segguided_hippocampus"
    fitting = {"labels": {"posterior": 2, "anterior": 1}, "num_channels": 1}
    assert sibling_bundle(beside, "cdal_hippocampus", **fitting) == str(BUNDLE) and not caplog.records
    for other in ({"labels": {"left": 1, "right": 2}}, {"num_channels": 2}):
        assert sibling_bundle(beside, "cdal_hippocampus", **{**fitting, **other}) is None
    assert "segments anterior and posterior in images of 1 channels" in caplog.text


def test_features_are_declared_and_those_without_training_are_always_the_same(tmp_path: Path) -> None:
    network, name = feature_network(None, None, RandomFeatures())
    again, _ = feature_network(None, None, RandomFeatures())
    image = torch.rand(2, 1, 20, 24, 3, generator=torch.Generator().manual_seed(0))
    assert "RandomFeatures" in name and network(image).shape == (6, 192)
    assert torch.equal(network(image), again(image))
    assert torch.allclose(network(image)[1], network(image[:1, ..., 1])[0], atol=1e-5)
    torch.jit.script(torch.nn.Flatten()).save(str(tmp_path / "own.pt"))
    own, name = feature_network(None, tmp_path / "own.pt", RandomFeatures())
    assert name == "own.pt" and own(image).shape == (6, 480)
    (tmp_path / "broken.pt").write_bytes(b"no")
    with pytest.raises(InputError, match="broken.pt: not a readable TorchScript"):
        feature_network(None, tmp_path / "broken.pt", RandomFeatures())


def test_a_bundle_that_stands_alone_judges_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside an exported generator lies an exported segmenter, with a package of its own: it ended in a traceback."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    export_bundle(str(BUNDLE), str(tmp_path / "cdal_hippocampus"))
    folder = sibling_bundle(tmp_path / "segguided_hippocampus", "cdal_hippocampus")
    network = load_segmenter(folder).network
    assert type(network).__module__.startswith("shared_components_")
    image, expected = torch.rand(1, 1, 16, 16, 2), load_segmenter(BUNDLE).network
    with torch.no_grad():
        assert torch.equal(network(image), expected(image))
