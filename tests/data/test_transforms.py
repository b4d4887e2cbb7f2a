"""Normalisation by hand-computed values; resampling and rounding among the entries MONAI Label adds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImaged, Spacingd

from shared_components.data.transforms import PercentileNormalized, RoundLabelsd, SidecarSafeSpacingd
from shared_components.errors import InputError
from tests.data.folders import save, some_image


def normalise(image: torch.Tensor, **options) -> torch.Tensor:
    return PercentileNormalized("image", **options)({"image": image})["image"]


def test_values_by_hand():
    image = torch.tensor([[[0.0, 1.0, 2.0, 3.0, 100.0]]])
    # the 0th and 75th percentile are 0 and 3, so 100 becomes 3: mean 9/5, variance 23/5 - 81/25 = 34/25
    expected = (torch.tensor([0, 1, 2, 3, 3]) - 1.8) / np.sqrt(1.36)
    assert torch.allclose(normalise(image, lower=0, upper=75)[0, 0], expected.float(), atol=1e-6)


def test_each_channel_is_normalised_alone_and_a_constant_one_is_zero():
    image = torch.stack([torch.arange(1000.0), 1e6 * torch.arange(1000.0) + 3, torch.full((1000,), 7.0)])
    result = normalise(image)
    assert torch.allclose(result[0], result[1], atol=1e-6)
    assert torch.equal(result[2], torch.zeros(1000))
    assert result[:2].mean(dim=1).abs().max() < 1e-6 and torch.allclose(
        result[:2].std(dim=1), torch.ones(2), atol=1e-3
    )


def test_scale_and_one_extreme_voxel_change_next_to_nothing():
    image = torch.as_tensor(some_image(shape=(1, 20, 20, 20)))
    assert torch.allclose(normalise(image * 17000), normalise(image), atol=1e-5)
    extreme = image.clone()
    extreme[0, 3, 3, 3] = 1e30
    changed = (normalise(extreme) - normalise(image)).abs()
    changed[0, 3, 3, 3] = 0
    assert changed.max() < 0.01


def test_integers_arrays_and_metadata():
    assert normalise(torch.arange(100, dtype=torch.uint8)[None]).dtype == torch.float32
    assert torch.is_tensor(normalise(np.arange(100.0)[None]))
    image = MetaTensor(
        torch.rand(1, 4, 4), affine=torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0])), meta={"note": "kept"}
    )
    image.push_applied_operation({"class": "some"})
    result = normalise(image)
    assert isinstance(result, MetaTensor) and result.meta["note"] == "kept"
    assert torch.equal(result.affine, image.affine) and result.applied_operations == [{"class": "some"}]


def test_what_normalisation_refuses(tmp_path):
    image = torch.rand(1, 4, 4)
    image[0, 1, 1] = float("nan")
    with pytest.raises(InputError, match="scan.nii.gz: NaN or infinite"):
        normalise(MetaTensor(image, meta={"filename_or_obj": "scan.nii.gz"}))
    with pytest.raises(InputError, match="lower < upper"):
        PercentileNormalized("image", lower=5, upper=5)


def test_spacing_leaves_neighbouring_entries_alone_and_can_be_inverted(tmp_path):
    file = save(tmp_path / "a.nii.gz", some_image(shape=(12, 10, 8)), np.diag([1, 1, 2, 1]))
    load = [LoadImaged("image"), EnsureChannelFirstd("image")]
    forward = Compose([*load, SidecarSafeSpacingd("image", pixdim=(2, 2, 2)), PercentileNormalized("image")])
    stock = Compose([*load, Spacingd("image", pixdim=(2, 2, 2)), PercentileNormalized("image")])
    data = forward({"image": str(file), "image_path": str(file), 5: "number"})
    assert torch.equal(data["image"], stock({"image": str(file)})["image"]) and data["image"].shape[1] == 6
    assert (data["image_path"], data[5]) == (str(file), "number")
    data["pred"] = MetaTensor(data["image"].as_tensor(), meta=dict(data["image"].meta))
    back = Invertd("pred", forward, orig_keys="image", nearest_interp=False)(data)["pred"]
    assert back.shape == (1, 12, 10, 8)
    assert torch.allclose(back.affine, torch.diag(torch.tensor([1.0, 1, 2, 1], dtype=back.affine.dtype)))


def test_labels_are_rounded_and_fractions_refused():
    stored = MetaTensor(torch.tensor([[0.0, 0.99999, 2.00001]]), meta={"filename_or_obj": "mask.nii.gz"})
    rounded = RoundLabelsd("label")({"label": stored})["label"]
    assert torch.equal(rounded.as_tensor(), torch.tensor([[0.0, 1.0, 2.0]])) and isinstance(
        rounded, MetaTensor
    )
    whole = torch.tensor([[0, 3]], dtype=torch.uint8)
    assert torch.equal(RoundLabelsd("label")({"label": whole})["label"], whole)
    for value in (0.37, float("nan")):
        with pytest.raises(InputError, match="mask.nii.gz: non-integer labels"):
            RoundLabelsd("label")({"label": stored * 0 + value})
    assert RoundLabelsd("label", allow_missing_keys=True)({"image": 1}) == {"image": 1}
