"""DICOM series in place of image files."""

from __future__ import annotations

from pathlib import Path

import itk
import numpy as np
import pytest
from monai.transforms import SaveImaged

from shared_components.data.datalists import inference_cases
from shared_components.data.formats.volumes import open_volume
from shared_components.data.layouts.cases import find_cases
from shared_components.data.loaders import LoadImageChannelsd
from shared_components.errors import InputError

SPACING = (1.0, 1.5, 3.0)
UID = "1.2.826.0.1.3680043.2.1125"


def write_series(folder: Path, volume: np.ndarray, leave_out: tuple[int, ...] = (), series: int = 1) -> Path:
    """Write a volume (x, y, z) as a DICOM series, a file a slice, in an order that is not that of the names."""
    folder.mkdir(parents=True, exist_ok=True)
    io = itk.GDCMImageIO.New()
    io.KeepOriginalUIDOn()
    for z in sorted(set(range(volume.shape[2])) - set(leave_out)):
        image = itk.image_from_array(np.ascontiguousarray(volume[:, :, z].T[None]).astype(np.int16))
        place = (10.0, -20.0, 5.0 + z * SPACING[2])
        image.SetSpacing(SPACING)
        image.SetOrigin(place)
        tags = {
            "0020|000d": f"{UID}.{series}",
            "0020|000e": f"{UID}.{series}.2",
            "0008|0018": f"{UID}.{series}.3.{z}",
            "0020|0013": str(z),
            "0020|0032": "\\".join(map(str, place)),
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0008|0060": "CT",
        }
        for tag, value in tags.items():
            image.GetMetaDataDictionary()[tag] = value
        file = str(folder / f"{series}_{(7 * z) % 11:02d}.dcm")
        writer = itk.ImageFileWriter[type(image)].New(Input=image, FileName=file)
        writer.SetImageIO(io)
        writer.Update()
    return folder


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1000, (8, 7, 5))


def test_a_series_is_read_as_the_volume_that_it_is(tmp_path, volume):
    write_series(tmp_path / "patient_1", volume)
    (case,) = find_cases(tmp_path).cases
    assert case.id == "patient_1"
    with open_volume(case.images[0]) as opened:
        assert opened.grid.shape == volume.shape
        assert opened.grid.spacing == pytest.approx(SPACING)
        (block,) = list(opened.blocks())
    assert np.array_equal(block[2].reshape(volume.shape, order="F"), volume)
    (item,), failures = inference_cases(tmp_path)
    image = LoadImageChannelsd("image", 1)(item)["image"]
    assert failures == []
    assert np.array_equal(np.asarray(image)[0], volume)
    assert np.allclose(np.diag(np.asarray(image.affine)), [-1.0, -1.5, 3.0, 1.0])


def test_the_folder_of_a_series_is_itself_a_data_folder(tmp_path, volume):
    assert [case.id for case in find_cases(write_series(tmp_path / "patient_1", volume)).cases] == ["patient_1"]


@pytest.mark.parametrize("case", [None, "anna_1.2.840.2"], ids=["by its folder", "by its id"])
def test_series_in_folders_of_their_numbers_keep_results_apart(tmp_path, volume, case):
    for number in (1, 2):
        item = {"image": str(write_series(tmp_path / "in" / f"1.2.840.{number}", volume, series=number))}
        item |= {"case": case} if case and number == 2 else {}
        SaveImaged("image", output_dir=tmp_path / "out", output_postfix="seg", separate_folder=False)(
            LoadImageChannelsd("image", 1)(item)
        )
    found = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert found == ["1.2.840.1_seg.nii.gz", f"{case or '1.2.840.2'}_seg.nii.gz"]


def test_what_windows_and_archives_leave_beside_the_slices(tmp_path, volume):
    folder = write_series(tmp_path / "patient_1", volume)
    for file in ("0_README", "Thumbs.db", "desktop.ini"):
        (folder / file).write_bytes(b"no image" * 40)
    (item,), failures = inference_cases(tmp_path)
    assert failures == [] and LoadImageChannelsd("image", 1)(item)["image"].shape[1:] == volume.shape


def test_a_series_that_lies_deeper_is_pointed_at(tmp_path, volume):
    folder = write_series(tmp_path / "patient" / "study" / "series", volume)
    with pytest.raises(InputError, match=f"no images found; .*; images lie deeper, in {folder}: list"):
        find_cases(tmp_path)


def test_a_missing_slice_and_a_second_series_are_named(tmp_path, volume):
    write_series(tmp_path / "gap", volume, leave_out=(2,))
    write_series(tmp_path / "mixed", volume)
    write_series(tmp_path / "mixed", volume, series=2)
    write_series(tmp_path / "whole", volume)
    cases, failures = inference_cases(tmp_path)
    assert [Path(str(item["image"])).name for item in cases] == ["whole"]
    assert ["gap between the slices at 8 and 14 mm" in line for line in failures] == [True, False]
    assert "2 DICOM series in one folder" in failures[1]
