"""Aperio annotations: what of the polygons is drawn, what is refused, and that they stand in for masks everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from shared_components.data.checks.cases import check_case, check_folder
from shared_components.data.checks.check_data import check_data
from shared_components.data.datalists import datalist, inference_cases
from shared_components.data.formats.aperio import draw_regions, is_annotation, read_annotation, read_regions
from shared_components.data.formats.files import UnusableImage
from shared_components.data.formats.pictures import picture_size, read_picture
from shared_components.data.layouts.cases import Case, find_cases
from shared_components.data.loaders import LoadImageChannelsd, LoadInstancesd, LoadLabelMapd
from shared_components.errors import InputError
from shared_components.reporting.instances import add_instances
from tests.data.folders import save_picture, some_mask, some_picture

SQUARE = [(2, 1), (8, 1), (8, 5), (2, 5)]
"""The pixels of `some_mask`: columns 2 to 7, rows 1 to 4."""
OTHER = [(9, 6), (12, 6), (12, 10), (9, 10)]


def region(vertices, number: int = 1, **attributes: object) -> str:
    named = "".join(f' {name}="{value}"' for name, value in attributes.items())
    points = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in vertices)
    return f'<Region Id="{number}" Type="0"{named}><Attributes/><Vertices>{points}</Vertices></Region>'


def xml(*layers: str) -> str:
    each = (f'<Annotation Id="{n}"><Regions>{layer}</Regions><Plots/></Annotation>' for n, layer in enumerate(layers))
    return f'<Annotations MicronsPerPixel="0.252">{"".join(each)}</Annotations>'


def save_xml(path: Path, *layers: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(xml(*layers), encoding="utf-8")
    return path


def tile(path: Path, number: int = 0) -> Path:
    """Write an LZW-compressed TIFF of 12 columns and 10 rows, as the challenge's tiles are."""
    return save_picture(path, some_picture(number), compression="tiff_lzw")


def challenge_folder(root: Path, images: str = "Tissue Images", annotations: str = "Annotations") -> Path:
    for number, name in enumerate("abc"):
        tile(root / images / f"{name}.tif", number)
        save_xml(root / annotations / f"{name}.xml", region(SQUARE) + region(OTHER, 2))
    return root


def two_numbers() -> np.ndarray:
    """Return `SQUARE` as 1 and `OTHER` as 2, (rows, columns)."""
    numbers = (some_mask() > 0).astype(int)
    numbers[6:, 9:] = 2
    return numbers


def drawn(path: Path, size: tuple[int, int] = (12, 10)) -> np.ndarray:
    return draw_regions(read_regions(path), size)


def kinds(findings) -> list[tuple[str, str, str]]:
    return [(finding.level, finding.case, finding.kind) for finding in findings]


def test_a_pixel_is_inside_where_its_centre_is(tmp_path):
    file = save_xml(tmp_path / "a.xml", region(SQUARE) + region(OTHER, 2))
    assert np.array_equal(drawn(file), two_numbers())
    moved = [(x + 0.4, y - 0.4) for x, y in SQUARE]
    assert np.array_equal(drawn(save_xml(tmp_path / "b.xml", region(moved))) > 0, some_mask() > 0)
    pushed = [(x + 0.6, y) for x, y in SQUARE]
    assert np.array_equal(drawn(save_xml(tmp_path / "c.xml", region(pushed))) > 0, np.roll(some_mask() > 0, 1, axis=1))


def test_a_disc_has_as_many_pixels_as_its_area(tmp_path):
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    disc = np.stack([50.3 + 20 * np.cos(angle), 49.8 + 20 * np.sin(angle)], axis=1).round(4)
    numbers = drawn(save_xml(tmp_path / "a.xml", region(disc)), (100, 100))
    assert numbers.sum() == pytest.approx(np.pi * 400, rel=0.01)
    assert np.argwhere(numbers).mean(axis=0) + 0.5 == pytest.approx([49.8, 50.3], abs=0.1)


def test_what_lies_outside_the_image_is_cut_off(tmp_path):
    across = [(-5, -3), (3, -3), (3, 4), (-5, 4)]
    beyond = [(10, 8), (1000, 8), (1000, 2000), (10, 2000)]
    numbers = drawn(save_xml(tmp_path / "a.xml", region(across) + region(beyond, 2)))
    expected = np.zeros((10, 12), int)
    expected[:4, :3], expected[8:, 10:] = 1, 2
    assert np.array_equal(numbers, expected)


def test_overlaps_and_holes(tmp_path):
    inner, half = [(3, 2), (5, 2), (5, 4), (3, 4)], [(5, 1), (11, 1), (11, 5), (5, 5)]
    expected = two_numbers()
    expected[2:4, 3:5] = 0
    expected[1:5, 8:11] = 3
    hole, everything = region(inner, 9, NegativeROA="1"), region(SQUARE) + region(OTHER, 2) + region(half, 3)
    for order in (hole + everything, everything + hole):
        assert np.array_equal(drawn(save_xml(tmp_path / "a.xml", order)) > 0, expected > 0)
    picture = read_annotation(tmp_path / "a.xml", tile(tmp_path / "a.tif"), numbered=True)
    assert np.array_equal(picture.pixels[..., 0].T, expected) and picture.notes == ()
    other_layer = drawn(save_xml(tmp_path / "b.xml", everything, hole))
    assert (other_layer[2:4, 3:5] == 1).all(), "a hole belongs to its own layer"


def test_layers_and_regions_without_a_pixel(tmp_path):
    tile(tmp_path / "a.tif")
    bad = [[], [(1, 1)], [(1.5, 1.5), (9.5, 1.5)], [(1.5, 1.5), (5.5, 5.5), (9.5, 9.5)], [(1.6, 1), (1.9, 1), (1.9, 9)]]
    bad += [[(20, 20), (30, 20), (30, 30)], SQUARE]
    first = region(SQUARE, 1) + "".join(region(vertices, number) for number, vertices in enumerate(bad, 2))
    file = save_xml(tmp_path / "a.xml", first, "", region(OTHER, 1))
    picture = read_annotation(file, numbered=True)
    assert np.array_equal(picture.pixels[..., 0].T, two_numbers()), "numbers have no gaps"
    assert picture.pixels.dtype == np.int32 and picture.file_format == "Aperio XML"
    (layers, layers_text), (without, without_text) = picture.notes
    assert (layers, without) == ("annotation_layers", "region_without_pixels")
    assert "2 annotation layers" in layers_text and "7 of 9 regions leave no pixel (Id 2, 3, 4, ...)" in without_text
    binary = read_annotation(file)
    assert np.array_equal(binary.pixels[..., 0].T, two_numbers() > 0) and binary.pixels.dtype == np.uint8


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "no XML or a truncated one"),
        (xml(region(SQUARE))[:-20], "no XML or a truncated one"),
        ("<annotation><object/></annotation>", "root element is <annotation>, expected <Annotations>"),
        (xml(region([(1, "x"), (2, 2)], 7)), "region 7 has a vertex with Y 'x', expected a number"),
        (xml(region([(1, "nan")])), "Y 'nan'"),
        (xml(region([("1e300", 1)])), "X '1e300'"),
        (xml("<Region><Vertices><Vertex Y='1'/></Vertices></Region>"), "region 1 has a vertex with no X"),
        ("<?xml version='1.0' encoding='nonsense'?><Annotations/>", "cannot be read|no XML"),
        (xml(region([(50, 50), (60, 50), (60, 60)])), "none of its 1 regions lies in a.tif of 12x10 pixels"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, content, message):
    tile(tmp_path / "a.tif")
    (tmp_path / "a.xml").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=f"a.xml: .*{message}"):
        LoadLabelMapd("label")({"label": tmp_path / "a.xml"})
    (finding,) = check_case(Case("a", (tmp_path / "a.tif",), tmp_path / "a.xml"), [1], 3, spatial_dims=2)
    assert finding.level == "error" and finding.file == str(tmp_path / "a.xml")


def test_nothing_is_fetched_or_expanded(tmp_path):
    (tmp_path / "secret").write_text("5", encoding="utf-8")
    tile(tmp_path / "a.tif")
    bomb = "".join(f'<!ENTITY b{n} "{f"&b{n - 1};" * 10}">' for n in range(1, 12))
    types = [
        f'<!DOCTYPE Annotations [<!ENTITY s SYSTEM "{tmp_path / "secret"}">]>',
        f'<!DOCTYPE Annotations SYSTEM "{tmp_path / "secret"}">',
        f'<!DOCTYPE Annotations [<!ENTITY b0 "5">{bomb}]>',
    ]
    for doctype, entity in zip(types, ("s", "", "b11")):
        text = doctype + xml(region(SQUARE).replace("</Region>", f"{f'&{entity};' if entity else ''}</Region>"))
        for encoding in ("utf-8", "utf-16"):
            (tmp_path / "a.xml").write_text(text, encoding=encoding)
            with pytest.raises(UnusableImage, match="document type declaration"):
                read_regions(tmp_path / "a.xml")


def test_an_annotation_of_nothing_is_an_empty_mask(tmp_path):
    picture = read_annotation(save_xml(tmp_path / "a.xml", ""), tile(tmp_path / "a.tif"))
    assert picture.pixels.shape == (12, 10, 1) and picture.pixels.max() == 0
    found = check_case(Case("a", (tmp_path / "a.tif",), tmp_path / "a.xml"), [1], 3, spatial_dims=2)
    assert kinds(found) == [("warning", "a", "empty_mask")]


def test_the_size_comes_from_the_image(tmp_path):
    file = save_xml(tmp_path / "Annotations" / "a.xml", region(SQUARE))
    with pytest.raises(UnusableImage, match=r"no picture a.tif, .png, ... beside it or in images/, img/, Tissue"):
        read_annotation(file)
    tile(tmp_path / "Tissue Images" / "a.tif")
    assert read_annotation(file).pixels.shape == (12, 10, 1)
    save_picture(tmp_path / "Annotations" / "a.png", some_mask((30, 40)))
    assert read_annotation(file).pixels.shape == (40, 30, 1), "what lies beside it comes first"
    save_picture(tmp_path / "Annotations" / "a.bmp", some_mask((31, 40)))
    with pytest.raises(UnusableImage, match="a.bmp and a.png differ in size"):
        read_annotation(file)
    assert read_annotation(file, tmp_path / "Tissue Images" / "a.tif").pixels.shape == (12, 10, 1)
    (tmp_path / "broken.tif").write_bytes(b"II*\0")
    with pytest.raises(UnusableImage, match="the size of its image broken.tif is not known: "):
        read_annotation(file, tmp_path / "broken.tif")


@pytest.mark.parametrize("orientation", [None, 3, 6])
def test_the_size_is_that_of_the_picture_as_it_is_read(tmp_path, orientation):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    file = save_picture(tmp_path / "a.jpg", some_picture(), exif=exif)
    assert picture_size(file) == read_picture(file).pixels.shape[:2]


def test_loading_draws_in_the_size_of_the_entrys_image(tmp_path):
    label = save_xml(tmp_path / "labels" / "drawn.xml", region(SQUARE) + region(OTHER, 2))
    item = {"image": str(tile(tmp_path / "elsewhere" / "a.tif")), "label": str(label), "instances": str(label)}
    load_both = [LoadImageChannelsd("image", 3), LoadLabelMapd("label", {"nucleus": 1}), LoadInstancesd()]
    for order in (load_both, load_both[::-1]):
        data = item
        for transform in order:
            data = transform(data)
        assert np.array_equal(data["label"][0].numpy().T, two_numbers() > 0)
        assert np.array_equal(data["instances"][0].numpy().T, two_numbers())
        assert data["label"].shape == (1, 12, 10) and data["label"].dtype == torch.float32
        assert torch.equal(data["label"].affine, data["image"].affine)
        assert data["label"].meta["filename_or_obj"] == str(label)
    several = LoadLabelMapd("label")({"image": [item["image"]] * 3, "label": label})
    assert np.array_equal(several["label"][0].numpy().T, two_numbers() > 0)
    assert np.array_equal(
        LoadLabelMapd("label", image_key="x")({"x": item["image"], "label": label})["label"].sum(), 36
    )
    with pytest.raises(InputError, match="drawn.xml: the size of its image is not known"):
        LoadLabelMapd("label")({"label": str(label)})


def test_numbered_maps_of_other_kinds(tmp_path):
    numbers = two_numbers().astype(np.uint16) * 255
    numbers[numbers == 510] = 0
    file = save_picture(tmp_path / "a.png", numbers)
    assert np.array_equal(LoadInstancesd()({"instances": str(file)})["instances"][0].numpy().T, numbers)
    assert LoadInstancesd()({"image": "a.tif"}) == {"image": "a.tif"}


@pytest.mark.parametrize("images", ["Tissue Images", "images", "img"])
@pytest.mark.parametrize("annotations", ["Annotations", "annotations", "labels", "masks"])
def test_annotations_in_a_folder_of_their_own(tmp_path, images, annotations):
    folder = find_cases(challenge_folder(tmp_path, images, annotations))
    assert (folder.layout, folder.problems, folder.labelled) == ("paired", [], True)
    assert folder.cases[1] == Case("b", (tmp_path / images / "b.tif",), tmp_path / annotations / "b.xml")
    assert check_folder(folder, [1]) == []


@pytest.mark.parametrize("place", ["", "images"])
def test_annotations_beside_the_images(tmp_path, place):
    folder = find_cases(challenge_folder(tmp_path, place, place))
    assert (folder.layout, folder.problems) == ("paired", []) and len(folder.cases) == 3
    assert folder.cases[0].label == tmp_path / place / "a.xml" and check_folder(folder, [1]) == []
    (tmp_path / place / "c.xml").unlink()
    tile(tmp_path / place / "d.tif", 3)
    save_xml(tmp_path / place / "e.xml", region(SQUARE))
    found = check_folder(find_cases(tmp_path), [1])
    assert kinds(found) == [("error", "c", "no_label"), ("error", "d", "no_label"), ("error", "e", "no_image")]


def test_xml_files_of_another_kind_are_no_labels(tmp_path):
    for folder in ("images", "annotations"):
        tile(tmp_path / "set" / "images" / "a.tif")
        other = tmp_path / "set" / folder / "a.xml"
        other.parent.mkdir(exist_ok=True)
        other.write_text("<annotation><filename>a.tif</filename></annotation>", encoding="utf-8")
        assert find_cases(tmp_path / "set").layout == "images"


def test_masks_come_before_annotations(tmp_path):
    challenge_folder(tmp_path, "images")
    save_picture(tmp_path / "masks" / "a_mask.png", some_mask())
    for name in ("a", "b", "catalogue"):
        save_xml(tmp_path / "masks" / f"{name}.xml", region(SQUARE))
    labels = {case.id: case.label and case.label.relative_to(tmp_path) for case in find_cases(tmp_path).cases}
    assert labels == {"a": Path("masks/a_mask.png"), "b": Path("masks/b.xml"), "c": None}


def test_other_layouts(tmp_path):
    challenge_folder(tmp_path / "msd", "imagesTr", "labelsTr")
    folder = find_cases(tmp_path / "msd")
    assert (folder.layout, [case.label.name for case in folder.cases]) == ("msd", ["a.xml", "b.xml", "c.xml"])
    challenge_folder(tmp_path / "manifest")
    rows = [f"{name},Tissue Images/{name}.tif,Annotations/{name}.xml,test" for name in "abc"]
    for header, column in (("id,image,label,split", None), ("id,image,polygons,split", "polygons")):
        (tmp_path / "manifest" / "manifest.csv").write_text("\n".join([header, *rows]), encoding="utf-8")
        folder = find_cases(tmp_path / "manifest", label_column=column)
        assert folder.layout == "manifest" and folder.problems == []
        assert folder.cases[2].label == tmp_path / "manifest" / "Annotations" / "c.xml"
        items = datalist(tmp_path / "manifest", "test", [1], num_channels=3, label_column=column, spatial_dims=2)
        assert len(items) == 3 and all(is_annotation(item["label"]) for item in items)


def test_the_check_and_the_datalists(tmp_path, capsys, caplog):
    challenge_folder(tmp_path)
    save_xml(tmp_path / "Annotations" / "a.xml", region(SQUARE), region(OTHER) + region([(1, 1)], 2))
    (tmp_path / "Annotations" / "b.xml").write_text("<Annotations>", encoding="utf-8")
    findings = check_data(tmp_path, labels={"nucleus": 1})
    assert kinds(findings) == [
        ("warning", "a", "annotation_layers"),
        ("warning", "a", "region_without_pixels"),
        ("error", "b", "unreadable"),
    ]
    out = capsys.readouterr().out
    assert "layout    paired" in out and "error    b: Annotations/b.xml: no XML or a truncated one" in out
    assert "3 cases checked, 2 usable: 1 errors, 2 warnings" in out
    good, failures = inference_cases(tmp_path, 3, spatial_dims=2)
    assert len(good) == 3 and failures == [], "labels are not looked at"
    save_xml(tmp_path / "Annotations" / "b.xml", "")
    (tmp_path / "split.json").write_text('{"train": ["a", "b", "c"], "validation": []}', encoding="utf-8")
    items = datalist(tmp_path, "train", {"nucleus": 1}, num_channels=3, spatial_dims=2)
    assert [Path(item["label"]).name for item in items] == ["a.xml", "b.xml", "c.xml"]
    assert "1 of 3 train cases have an annotation of several layers" in caplog.text
    (tmp_path / "Tissue Images" / "c.tif").unlink()
    assert ("error", "c", "no_image") in kinds(check_folder(find_cases(tmp_path), [1]))


def test_the_challenges_own_tile(real_data, tmp_path):
    """The mask shipped beside it was drawn with its outlines as pixels, 11 % more than the areas in the XML."""
    source = real_data / "noncommercial" / "MoNuSeg2018" / "original_format" / "TCGA-B0-5698-01Z-00-DX1"
    if not source.with_suffix(".xml").is_file():
        pytest.skip("needs the data set MoNuSeg2018 with a tile in its original format")
    for suffix, folder in ((".tif", "Tissue Images"), (".xml", "Annotations")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / source.name).with_suffix(suffix).symlink_to(source.with_suffix(suffix))
    assert check_folder(find_cases(tmp_path), {"nucleus": 1}) == []
    (case,) = find_cases(tmp_path).cases
    (item,) = add_instances([case.datalist_item()])
    loaded = LoadInstancesd()(LoadLabelMapd("label", [1])(LoadImageChannelsd("image", 3)(item)))
    mask, numbers = (loaded[key][0].numpy().T for key in ("label", "instances"))
    assert loaded["image"].shape == (3, 1000, 1000) and mask.shape == (1000, 1000)
    assert np.array_equal(mask > 0, numbers > 0) and np.unique(numbers).tolist() == list(range(358))
    assert mask.sum() == pytest.approx(113378.7, rel=0.002), "the sum of the regions' Area in the file"
    shipped = np.asarray(Image.open(source.with_suffix(".png"))) > 0
    outlined = Image.new("1", (1000, 1000))
    for each in read_regions(source.with_suffix(".xml")):
        ImageDraw.Draw(outlined).polygon([tuple(point) for point in each.vertices.astype(int).tolist()], 1, 1)
    assert (np.asarray(outlined) != shipped).sum() < 50, "drawn like that, the polygons are the shipped mask"
    inside = shipped & (mask > 0)
    assert 2 * inside.sum() / (shipped.sum() + mask.sum()) == pytest.approx(0.947, abs=0.002)
    assert inside.sum() / mask.sum() > 0.999, "what is drawn lies within the shipped mask"
    grey = loaded["image"].mean(0).numpy().T
    assert grey[mask > 0].mean() < grey[shipped & (mask == 0)].mean() - 20, "the rims are brighter than the nuclei"


def test_images_of_equal_names_have_annotations_of_their_own(tmp_path):
    lines = ["id,image,label"]
    for number in range(5):
        tile(tmp_path / f"p{number}" / "img.tif", number)
        save_xml(tmp_path / f"p{number}" / "img.xml", region([(2, 2), (6, 2), (6, 6), (2, 6)]))
        lines.append(f"p{number},p{number}/img.tif,p{number}/img.xml")
    (tmp_path / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
    item = datalist(tmp_path, "train", {"nuclei": 1}, num_channels=3, spatial_dims=2)[0]
    assert item["case"] == "p0"
    loaded = LoadLabelMapd("label", {"nuclei": 1})(LoadImageChannelsd("image", 3)(item))
    assert loaded["label"].shape[1:] == loaded["image"].shape[1:] and loaded["label"].sum() == 16
