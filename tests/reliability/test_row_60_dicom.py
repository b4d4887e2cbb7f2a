"""Row 60 of the table of cases: DICOM series with a slice missing, or two in one folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shared_components.data.checks.cases import check_folder
from shared_components.data.datalists import inference_cases
from shared_components.data.layouts.cases import find_cases

ROOT = "1.2.826.0.1.3680043.8.498"


def write_series(folder: Path, number: int, count: int = 8, step: float = 2.5) -> list[Path]:
    """Write a series of axial CT slices; return its files in the order of their positions."""
    import itk

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index in range(count):
        values = np.random.default_rng(100 * number + index).integers(-500, 500, (1, 12, 10)).astype(np.int16)
        image = itk.image_from_array(values)
        image.SetOrigin([-50.0, -60.0, 30.0 + step * index])
        image.SetSpacing([0.8, 0.8, step])
        tags = {
            "0008|0060": "CT",
            "0020|000d": f"{ROOT}.1",
            "0020|000e": f"{ROOT}.2.{number}",
            "0008|0018": f"{ROOT}.3.{number}.{index + 1}",
            "0020|0013": str(index + 1),
        }
        for tag, value in tags.items():
            image.GetMetaDataDictionary()[tag] = value
        writer = itk.GDCMImageIO.New()
        writer.KeepOriginalUIDOn()
        files.append(folder / f"series{number}_{index:03d}.dcm")
        itk.imwrite(image, str(files[-1]), imageio=writer)
    return files


def test_row_60_missing_slice(tmp_path):
    files = write_series(tmp_path / "patient", 1)
    assert [f for f in check_folder(find_cases(tmp_path)) if f.level == "error"] == []
    files[3].unlink()
    (error,) = [f for f in check_folder(find_cases(tmp_path)) if f.level == "error"]
    assert "gap between the slices at 35 and 40 mm, which otherwise lie 2.5 mm apart: about 1 missing" in error.message
    cases, failures = inference_cases(tmp_path)
    assert cases == [] and len(failures) == 1 and "patient" in failures[0]


def test_row_60_mixed_series(tmp_path):
    write_series(tmp_path / "patient", 1)
    write_series(tmp_path / "patient", 2, count=5)
    (error,) = [f for f in check_folder(find_cases(tmp_path)) if f.level == "error"]
    assert "2 DICOM series in one folder (8, 5 files)" in error.message or "(5, 8 files)" in error.message
    assert error.kind == "mixed_series" and "patient" in error.file
