"""Normalisation by hand-computed values; resampling and rounding among the entries MONAI Label adds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Resize,
    Resized,
    Spacingd,
)

from shared_components.data.loaders import LoadImageChannelsd
from shared_components.data.transforms import (
    AveragingResized,
    AveragingScaled,
    EnsureVolumed,
    MinMaxScaled,
    PercentileNormalized,
    RandSliceAxisd,
    RoundLabelsd,
    SidecarSafeSpacingd,
    WatchedIntensityRanged,
)
from shared_components.errors import InputError
from tests.data.folders import save, save_picture, some_image, some_picture


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
    assert result[:2].mean(dim=1).abs().max() < 1e-6 and torch.allclose(result[:2].std(dim=1), torch.ones(2), atol=1e-3)


def test_scale_and_one_extreme_voxel_change_next_to_nothing():
    image = torch.as_tensor(some_image(shape=(1, 20, 20, 20)))
    assert torch.allclose(normalise(image * 17000), normalise(image), atol=1e-5)
    extreme = image.clone()
    extreme[0, 3, 3, 3] = 1e30
    changed = (normalise(extreme) - normalise(image)).abs()
    changed[0, 3, 3, 3] = 0
    assert changed.max() < 0.01


def test_a_constant_image_scaled_to_a_range_lies_in_its_middle():
    scale = MinMaxScaled("image", -1.0, 1.0)
    assert scale({"image": torch.tensor([[3.0, 5.0, 4.0]])})["image"].tolist() == [[-1, 1, 0]]
    for value in (0.0, 7.0, -1e6):
        constant = MetaTensor(torch.full((1, 2, 2), value), meta={"note": "kept"})
        scaled = scale({"image": constant})["image"]
        assert scaled.tolist() == [[[0, 0], [0, 0]]] and scaled.meta["note"] == "kept"


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


@pytest.mark.parametrize(("most", "told"), [(1140.0, True), (0.9, True), (255.0, False), (60.0, False), (0.0, False)])
def test_an_image_of_another_range_is_told_once(caplog, most, told):
    scale = WatchedIntensityRanged("image", 0.0, 255.0, 0.0, 1.0, clip=True)
    image = MetaTensor(torch.linspace(0, most, 12).reshape(1, 3, 4), meta={"filename_or_obj": "/data/p0.nii.gz"})
    for _ in range(2):
        assert torch.allclose(scale({"image": image})["image"], (image / 255).clamp(0, 1))
    assert len(caplog.records) == int(told)
    assert not told or f"p0.nii.gz: values 0 to {most:g}, expected 0 to 255" in caplog.text


def test_nonzero_normalises_inside_the_brain_and_leaves_the_background():
    inside = torch.as_tensor(some_image(shape=(2, 5, 6, 7))) + 50
    image = torch.zeros(3, 9, 9, 9)
    image[:2, 2:7, 1:7, 1:8] = inside
    result = normalise(image, nonzero=True)
    assert torch.allclose(result[:2, 2:7, 1:7, 1:8], normalise(inside), atol=1e-5)
    assert torch.equal(result[:2][image[:2] == 0], torch.zeros(int((image[:2] == 0).sum())))
    assert torch.equal(result[2], torch.zeros(9, 9, 9)), "a channel of zeros alone"
    constant = (image[:1] > 0).float() * 7
    assert torch.equal(normalise(constant, nonzero=True), torch.zeros_like(constant))
    assert not torch.allclose(normalise(image)[0, 2:7, 1:7, 1:8], result[0, 2:7, 1:7, 1:8], atol=0.1)


def test_cropping_to_the_foreground_is_undone(tmp_path):
    array = np.zeros((12, 10, 8, 2), np.float32)
    array[3:8, 2:9, 1:5] = some_image(shape=(5, 7, 4, 2))
    affine = np.array([[-2, 0, 0, 5], [0, 1, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1.0]])
    file = save(tmp_path / "a.nii.gz", array, affine)
    forward = Compose(
        [
            LoadImageChannelsd("image", 2),
            CropForegroundd("image", source_key="image", allow_smaller=True),
            PercentileNormalized("image", nonzero=True),
        ]
    )
    data = forward({"image": str(file)})
    assert data["image"].shape == (2, 5, 7, 4)
    data["pred"] = (data["image"] != 0).float()
    back = Invertd("pred", forward, orig_keys="image", nearest_interp=False)(data)["pred"]
    assert np.array_equal(back.numpy(), np.moveaxis(array != 0, -1, 0)) and np.allclose(back.affine, affine)


def test_axes_change_places_as_the_segmenter_shows_them():
    volume = torch.arange(24.0).reshape(1, 2, 3, 4)
    turn = RandSliceAxisd(["image", "label"], [2, 0, 1])
    turn.set_random_state(0)
    seen = [turn({"image": volume, "label": -volume}) for _ in range(60)]
    for data in seen:
        assert torch.equal(data["label"], -data["image"])
    expected = [volume.transpose(axis + 1, 3) for axis in (2, 0, 1)]
    counts = [sum(data["image"].shape == one.shape and data["image"].equal(one) for data in seen) for one in expected]
    assert sum(counts) == 60 and min(counts) > 10
    assert RandSliceAxisd("image", [2])({"image": volume})["image"].equal(volume)
    with pytest.raises(InputError, match=r"one or several of 0, 1, 2, not \[3\]"):
        RandSliceAxisd("image", [3])


def ramp(shape: tuple[int, int]) -> MetaTensor:
    """Return two channels that rise along one axis each."""
    return MetaTensor(torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij")))


def there_and_back(image: MetaTensor, transform, pred=None) -> tuple[torch.Tensor, MetaTensor]:
    data = Compose([transform])({"image": image})
    data["pred"] = data["image"].clone() if pred is None else MetaTensor(pred)
    back = Invertd("pred", Compose([transform]), orig_keys="image", nearest_interp=False)(data)["pred"]
    return data["image"].as_tensor(), back


@pytest.mark.parametrize("shape, size, tolerance", [((30, 44), (64, 64), 1e-4), ((60, 90), (16, 16), 1.5)])
def test_resizing_and_back_gives_the_native_grid_without_a_shift(shape, size, tolerance):
    small, back = there_and_back(ramp(shape), AveragingResized("image", size))
    assert small.shape == (2, *size) and back.shape == (2, *shape)
    assert torch.allclose(back.affine, torch.eye(4, dtype=torch.float64), atol=1e-12)
    difference = (back.as_tensor() - ramp(shape).as_tensor())[:, 6:-6, 6:-6]
    assert difference.abs().max() < tolerance and difference.mean().abs() < 1e-3


@pytest.mark.parametrize("shape, size", [((30, 44), (16, 16)), ((30, 44), (64, 64)), ((20, 20), (20, 20))])
@pytest.mark.parametrize("kind", [Resized, AveragingResized])
def test_probabilities_sum_to_one_on_the_native_grid(shape, size, kind):
    # MONAI's own does it too, for images without a place in space
    pred = torch.softmax(3 * torch.randn(3, *size, generator=torch.Generator().manual_seed(0)), 0)
    options = {"mode": "bilinear"} if kind is Resized else {}
    back = there_and_back(ramp(shape), kind("image", size, **options), pred)[1].as_tensor()
    assert back.shape == (3, *shape) and torch.allclose(back.sum(0), torch.ones(shape), atol=1e-6)
    assert 0 <= back.min() and back.max() <= 1
    if shape == size:
        assert torch.equal(back, pred)


def test_what_the_stock_resize_gets_wrong_and_this_one_does_not():
    constant = MetaTensor(torch.full((1, 64, 64), 200.0))
    assert Resize((16, 16), mode="bilinear", anti_aliasing=True)(constant).min() < 190, "darkens the border"
    assert torch.equal(there_and_back(constant, AveragingResized("image", (16, 16)))[0], torch.full((1, 16, 16), 200.0))
    stripes = MetaTensor((torch.arange(66) % 3 == 1).float().expand(1, 66, 66).contiguous())
    assert Resize((22, 22), mode="bilinear")(stripes).min() == 1, "sees the stripes alone"
    shrunk = there_and_back(stripes, AveragingResized("image", (22, 22)))[0]
    assert torch.allclose(shrunk, torch.full((1, 22, 22), 1 / 3), atol=1e-6)
    step = torch.zeros(1, 8, 8)
    step[:, 4:] = 1
    big = MetaTensor(torch.zeros(1, 32, 32))
    assert set(there_and_back(big, Resized("image", (8, 8)), step)[1].unique().tolist()) == {0, 1}, "blocks"
    profile = there_and_back(big, AveragingResized("image", (8, 8)), step)[1][0, 13:19, 0]
    assert profile.tolist() == [0, 0.125, 0.375, 0.625, 0.875, 1]
    enlarged = AveragingResized("image", (128, 128))({"image": ramp((100, 100))})["image"]
    assert torch.equal(enlarged.as_tensor(), Resize((128, 128), mode="bilinear")(ramp((100, 100))).as_tensor())


def test_sizes_by_the_longest_side_and_label_maps_by_nearest_neighbour():
    transform = AveragingResized(["image", "label"], 32, "longest", mode=["area", "nearest-exact"])
    label = MetaTensor((torch.arange(64 * 48).reshape(1, 64, 48) % 5).float())
    data = transform({"image": ramp((64, 48)), "label": label})
    assert data["image"].shape == (2, 32, 24)
    assert torch.equal(data["label"].as_tensor(), label[:, 1::2, 1::2].as_tensor())
    assert torch.equal(data["image"].as_tensor()[0, :, 0], torch.arange(32.0) * 2 + 0.5)


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
    assert torch.equal(rounded.as_tensor(), torch.tensor([[0.0, 1.0, 2.0]])) and isinstance(rounded, MetaTensor)
    whole = torch.tensor([[0, 3]], dtype=torch.uint8)
    assert torch.equal(RoundLabelsd("label")({"label": whole})["label"], whole)
    for value in (0.37, float("nan")):
        with pytest.raises(InputError, match="mask.nii.gz: non-integer labels"):
            RoundLabelsd("label")({"label": stored * 0 + value})
    assert RoundLabelsd("label", allow_missing_keys=True)({"image": 1}) == {"image": 1}


@pytest.mark.parametrize("shape", [(10, 12, 3), (10, 12), (1, 12), (1, 1, 3)], ids=str)
def test_slices_are_volumes_of_one_slice_and_come_back_as_they_lay(tmp_path, shape):
    path = save_picture(tmp_path / "picture.png", some_picture(1, shape))
    load = LoadImageChannelsd("image")
    ways = Compose([load, EnsureVolumed("image"), AveragingResized("image", (20, 24, -1))])
    item = ways({"image": str(path)})
    assert item["image"].shape[1:] == (20, 24, 1)
    item["pred"] = torch.full_like(item["image"], 7)
    item = Invertd("pred", ways, orig_keys="image", nearest_interp=False, to_tensor=True)(item)
    loaded = load({"image": str(path)})["image"]
    assert torch.allclose(item["pred"].as_tensor(), torch.full(loaded.shape, 7.0))
    assert torch.allclose(item["pred"].affine, loaded.affine)
    ways = Compose([load, EnsureVolumed("image")])
    item = ways({"image": str(path)})
    item["pred"] = item["image"].clone()
    assert torch.equal(Invertd("pred", ways, orig_keys="image")(item)["pred"].as_tensor(), loaded.as_tensor())


def test_volumes_stay_volumes():
    image = MetaTensor(torch.rand(2, 5, 6, 7), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))
    transform = EnsureVolumed("image")
    volume = transform({"image": image, "other": 1})
    assert torch.equal(volume["image"], image) and volume["other"] == 1
    back = transform.inverse(volume)
    assert torch.equal(back["image"], image) and back["image"].applied_operations == []
    assert image.applied_operations == []


def test_a_scale_is_a_factor_for_every_size():
    for size, expected in [((1000, 512), (500, 256)), ((333, 251), (166, 126))]:
        small, back = there_and_back(ramp(size), AveragingScaled("image", 0.5))
        assert small.shape[1:] == expected and back.shape[1:] == size
    # each pixel is the mean of the four it covers, and the inverse of a smooth picture is near it
    image = ramp((64, 48))
    small, back = there_and_back(image, AveragingScaled("image", 0.5))
    expected = torch.nn.functional.avg_pool2d(image.as_tensor()[None], 2)[0]
    torch.testing.assert_close(small, expected)
    torch.testing.assert_close(back.as_tensor()[:, 1:-1, 1:-1], image.as_tensor()[:, 1:-1, 1:-1], atol=1e-3, rtol=0)


def test_a_scale_of_nothing_is_refused():
    with pytest.raises(InputError, match="scale 0: expected a number above 0"):
        AveragingScaled("image", 0)
