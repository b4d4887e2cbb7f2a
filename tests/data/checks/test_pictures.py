"""Checking 2-D cases: each kind of odd or broken picture gets its finding, good ones get none."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared_components.data.checks.cases import check_case, check_folder, usual_spatial_dims
from shared_components.data.checks.check_data import check_data
from shared_components.data.datalists import datalist, inference_cases
from shared_components.data.layouts.cases import Case, find_cases
from shared_components.errors import InputError
from tests.data.folders import (
    msd_folder,
    picture_folder,
    save,
    save_deep_png,
    save_picture,
    some_image,
    some_mask,
    some_picture,
)

WHITE = ("note", "full_scale_mask", "mask.png")


def check(tmp_path: Path, image=None, mask=None, num_channels=3, labels=(1,), name="image.png", mask_name="mask.png"):
    """Check a case of the given arrays, (rows, columns[, channels])."""
    image = save_picture(tmp_path / name, some_picture() if image is None else image)
    label = save_picture(tmp_path / mask_name, some_mask() if mask is None else mask)
    return check_case(Case("a", (image,), label), labels, num_channels, spatial_dims=2)


def told(found: list) -> list[tuple[str, str, str]]:
    return [(finding.level, finding.kind, Path(finding.file).name) for finding in found]


def message(found: list, kind: str) -> str:
    (text,) = [finding.message for finding in found if finding.kind == kind]
    return text


def test_a_good_case_and_what_white_means(tmp_path):
    assert told(check(tmp_path, mask=some_mask() // 255)) == []
    found = check(tmp_path)
    assert told(found) == [WHITE] and found[0].message == "mask of 0 and 255: 255 is read as label 1"
    assert "read as label 4" in check(tmp_path, labels=[4])[0].message
    assert told(check(tmp_path, labels=None)) == [WHITE]
    assert told(check(tmp_path, mask=some_mask().astype(np.uint16) * 257)) == [WHITE]
    assert told(check(tmp_path, mask=np.stack([some_mask()] * 3, axis=-1))) == [WHITE]
    assert "255 (24 voxels); expected 0, 1, 2" in message(check(tmp_path, labels=[1, 2]), "label_values")


def test_sizes_must_agree_within_a_case_and_may_differ_between_cases(tmp_path):
    found = check(tmp_path, mask=some_mask((10, 13)))
    assert "label on another grid than the image: 13x10 pixels, image.png has 12x10 pixels" == found[0].message
    assert found[0].kind == "label_grid"
    assert "rows and columns are swapped" in message(check(tmp_path, mask=some_mask().T), "label_grid")
    for number, shape in enumerate([(10, 12), (16, 9), (30, 30), (11, 8), (12, 12)]):
        save_picture(tmp_path / "set" / "images" / f"{number}.png", some_picture(number, (*shape, 3)))
        save_picture(tmp_path / "set" / "masks" / f"{number}.png", some_mask(shape) // 255)
    assert check_folder(find_cases(tmp_path / "set")) == []


def test_channels_wanted_and_found(tmp_path):
    grey, colour = some_picture(shape=(10, 12)), some_picture()
    assert told(check(tmp_path, grey, num_channels=3)) == [("warning", "grey_for_colour", "image.png"), WHITE]
    assert check(tmp_path, grey)[0].message == "grey picture, model takes 3 channels here: repeated"
    assert "colour picture, model takes 1 channel here" in check(tmp_path, colour, num_channels=1)[0].message
    for found in (check(tmp_path, colour, num_channels=2), check(tmp_path, grey, num_channels=4)):
        assert told(found) == [("error", "channels", "image.png"), WHITE]
    assert told(check(tmp_path, colour, num_channels=None)) == [WHITE]


def test_one_file_a_channel(tmp_path):
    files = tuple(save_picture(tmp_path / f"{i}.png", some_picture(i, (10, 12))) for i in range(2))
    assert check_case(Case("a", files), None, 2, spatial_dims=2) == []
    assert told(check_case(Case("a", files), None, 3, spatial_dims=2)) == [("error", "channels", "0.png")]
    save_picture(files[1], some_picture())
    assert told(check_case(Case("a", files), None, 2, spatial_dims=2)) == [("warning", "colour_for_grey", "1.png")]
    save_picture(files[1], some_picture(shape=(10, 11)))
    found = check_case(Case("a", files), None, 2, spatial_dims=2)
    assert told(found) == [("error", "channel_grid", "1.png")] and "11x10 pixels, 0.png has 12x10" in found[0].message


def test_a_constant_colour_is_fine_and_a_constant_picture_a_warning(tmp_path):
    picture = some_picture()
    picture[..., 2] = 0
    assert told(check(tmp_path, picture)) == [WHITE]
    picture[...] = 7
    assert [kind for _, kind, _ in told(check(tmp_path, picture))] == ["constant_image"] * 3 + ["full_scale_mask"]


def test_jpeg_masks_are_a_warning_with_one_label_and_an_error_with_more(tmp_path):
    mask = np.kron(some_mask(), np.ones((4, 4), np.uint8))
    image = some_picture(shape=(40, 48, 3))
    found = check(tmp_path, image, mask, mask_name="mask.jpg")
    assert told(found) == [("warning", "jpeg_mask", "mask.jpg"), ("note", "full_scale_mask", "mask.jpg")]
    assert "pixels between 0 and 255, cut at half" in found[0].message
    found = check(tmp_path, image, mask, labels=[1, 2], mask_name="mask.jpg")
    assert told(found) == [("warning", "jpeg_mask", "mask.jpg"), ("error", "label_values", "mask.jpg")]
    found = check(tmp_path, image, mask // 255, mask_name="mask.jpg")
    assert told(found) == [("error", "label_jpeg", "mask.jpg")]


def test_masks_with_values_between_colours_or_nothing(tmp_path):
    smooth = some_mask()
    smooth[1, 1] = 37
    assert "37 (1 voxels), 255 (24 voxels); expected 0, 1" in message(check(tmp_path, mask=smooth), "label_values")
    assert told(check(tmp_path, mask=some_picture())) == [("error", "label_colour", "mask.png")]
    assert told(check(tmp_path, mask=some_mask() * 0)) == [("warning", "empty_mask", "mask.png")]


def test_alpha_depth_and_orientation_are_told(tmp_path):
    rgba = np.concatenate([some_picture(), some_picture(1)[..., :1]], axis=-1)
    assert told(check(tmp_path, rgba)) == [("warning", "alpha", "image.png"), WHITE]
    deep = save_deep_png(tmp_path / "deep.png", some_picture().astype(np.uint16) * 16)
    assert told(check_case(Case("a", (deep,)), None, 3, spatial_dims=2)) == [("warning", "bit_depth", "deep.png")]
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = save_picture(tmp_path / "turned.jpg", some_picture(), exif=exif)
    upright = save_picture(tmp_path / "upright.png", some_mask((12, 10)))
    found = check_case(Case("a", (turned,), upright), [1], 3, spatial_dims=2)
    assert [finding.kind for finding in found] == ["exif", "full_scale_mask"]
    assert check_case(Case("a", (turned,)), None, 3, spatial_dims=2) == []
    lying = save_picture(tmp_path / "lying.png", some_mask())
    assert "label_grid" in [f.kind for f in check_case(Case("a", (turned,), lying), [1], 3, spatial_dims=2)]


def test_unreadable_and_animated_files_are_errors_of_their_case(tmp_path):
    root = picture_folder(tmp_path, 5)
    (root / "images" / "case_00.png").write_bytes(b"")
    whole = (root / "images" / "case_01.png").read_bytes()
    (root / "images" / "case_01.png").write_bytes(whole[: len(whole) // 2])
    (root / "masks" / "case_02.png").write_bytes(b"<html>")
    frames = [Image.fromarray(some_picture(number)) for number in range(2)]
    frames[0].save(root / "images" / "case_03.png", save_all=True, append_images=frames[1:])
    found = [finding for finding in check_folder(find_cases(root)) if finding.level == "error"]
    assert [(finding.case, finding.kind) for finding in found] == [
        ("case_00", "unreadable"),
        ("case_01", "unreadable"),
        ("case_02", "unreadable"),
        ("case_03", "animated"),
    ]


def test_rank_against_the_model(tmp_path):
    picture = save_picture(tmp_path / "a.png", some_picture())
    found = check_case(Case("a", (picture,)), None, 3)
    assert told(found) == [("error", "rank", "a.png")] and "the model takes 3-D volumes" in found[0].message
    volume = save(tmp_path / "a.nii.gz", some_image())
    found = check_case(Case("a", (volume,)), spatial_dims=2)
    assert found[0].message == "3-D image of shape (6, 5, 4), the model takes 2-D images"
    flat = save(tmp_path / "flat.nii.gz", some_image(shape=(12, 10)))
    assert check_case(Case("a", (flat,), picture.with_name("m.png")), [1], 1, spatial_dims=2)[0].kind == "unreadable"
    mask = save_picture(tmp_path / "m.png", some_mask() // 255)
    assert check_case(Case("a", (flat,), mask), [1], 1, spatial_dims=2) == []


def test_other_formats_in_two_dimensions(tmp_path):
    itk = pytest.importorskip("itk")
    itk.imwrite(itk.image_from_array(some_image(shape=(10, 12))), str(tmp_path / "a.mha"))
    flat = save(tmp_path / "a.nii.gz", some_image(shape=(12, 10)).astype(np.uint8) % 3)
    assert check_case(Case("a", (tmp_path / "a.mha",)), spatial_dims=2) == []
    itk.imwrite(itk.image_from_array(some_image(shape=(10, 12, 2)), is_vector=True), str(tmp_path / "v.nrrd"))
    assert check_case(Case("a", (tmp_path / "v.nrrd",)), None, 2, spatial_dims=2) == []
    assert "12x10 voxels of 1x1 mm" in message(
        check_case(Case("a", (tmp_path / "a.mha",), save(flat, some_image(shape=(12, 9)) * 0)), spatial_dims=2),
        "label_grid",
    )


def test_what_most_cases_are(tmp_path):
    pictures = [Case(str(i), (Path(f"{i}.png"),)) for i in range(2)]
    volumes = [Case(str(i), (Path(f"{i}.nii.gz"),)) for i in range(3)]
    assert (usual_spatial_dims(pictures), usual_spatial_dims(pictures + volumes), usual_spatial_dims([])) == (2, 3, 3)
    msd_folder(tmp_path, ["a", "b", "c"])
    save_picture(tmp_path / "imagesTs" / "stray.png", some_picture())
    assert [finding.kind for finding in check_folder(find_cases(tmp_path))] == ["rank"]


def test_what_many_cases_have_is_said_once(tmp_path, capsys):
    root = picture_folder(tmp_path / "set", 6)
    found = check_data(root, labels=[1], num_channels=1, report=tmp_path / "report.json")
    assert [(finding.level, finding.case, finding.kind) for finding in found] == [
        ("warning", "", "colour_for_grey"),
        ("note", "", "full_scale_mask"),
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "6 cases checked, 6 usable: 0 errors, 1 warnings"
    assert "note     6 cases, such as case_00.png: mask of 0 and 255: 255 is read as label 1" in lines
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["num_warnings"] == 1


def test_check_data_takes_a_manifests_columns(tmp_path, capsys):
    root = picture_folder(tmp_path, 5)
    rows = [f"case_{i:02d},images/case_{i:02d}.png,masks/case_{i:02d}.png,p{i // 2}" for i in range(5)]
    (root / "manifest.csv").write_text("\n".join(["id,image,mask_lung,patient", *rows]), encoding="utf-8")
    check_data(root, label_column="mask_lung")
    out = capsys.readouterr().out
    assert "layout    manifest\n" in out and "label in  column mask_lung\n" in out
    assert "split     train 2, validation 2, test 1 (by sorted patient)\n" in out


def test_datalists_of_pictures(tmp_path, caplog):
    root = picture_folder(tmp_path, 10, mask_suffix="_segmentation")
    with caplog.at_level(logging.WARNING):
        items = datalist(root, "test", {"lesion": 1}, num_channels=1, spatial_dims=2)
    assert [Path(item["label"]).name for item in items] == ["case_04_segmentation.png", "case_09_segmentation.png"]
    assert "2 of 2 test cases are colour pictures, whose luminance is used" in caplog.text
    with pytest.raises(InputError, match="case_04.png: 2-D image of shape"):
        datalist(root, "test", {"lesion": 1}, num_channels=3)
    (root / "images" / "case_07.png").write_bytes(b"GIF")
    good, failures = inference_cases(root, 3, spatial_dims=2)
    assert len(good) == 9 and failures[0].startswith("case_07: images/case_07.png: truncated/corrupt")


def test_the_channels_named_are_the_number_the_model_takes(tmp_path):
    for number, case in enumerate("abc"):
        for channel in ("flair", "t1c"):
            save_picture(tmp_path / channel / f"{case}.png", some_picture(number + 9 * (channel == "t1c"), (10, 12)))
        save_picture(tmp_path / "seg" / f"{case}.png", some_mask() // 64)
    rows = [f"{case},flair/{case}.png,t1c/{case}.png,seg/{case}.png" for case in "abc"]
    (tmp_path / "manifest.csv").write_text("\n".join(["id,flair,t1c,seg", *rows]), encoding="utf-8")
    (item,) = datalist(tmp_path, "train", [1, 2, 3], channels=["t1c", "flair"], spatial_dims=2)
    assert [Path(path).parent.name for path in item["image"]] == ["t1c", "flair"]
    good, failures = inference_cases(tmp_path, channels=["t1c"], spatial_dims=2)
    assert [Path(entry["image"]).parent.name for entry in good] == ["t1c"] * 3 and failures == []
    with pytest.raises(InputError, match="2 channels, model takes 3"):
        datalist(tmp_path, "train", [1, 2, 3], num_channels=3, channels=["t1c", "flair"], spatial_dims=2)
