"""A folder described by a manifest.csv: its columns, its split and its patients."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared_components.data.checks.cases import check_folder
from shared_components.data.datalists import datalist, inference_cases
from shared_components.data.layouts.cases import Case, find_cases
from shared_components.data.layouts.split import find_leaks, sections
from shared_components.errors import InputError
from tests.data.folders import save_picture, some_mask, some_picture


def write(root: Path, *lines: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def kinds(folder) -> list[tuple[str, str, str]]:
    return [(problem.level, problem.case, problem.kind) for problem in folder.problems]


def test_ids_paths_and_split(tmp_path):
    write(tmp_path, "id,split,image,mask", "b,test,pics/b 1.png,m/b.png", 'a,train,"pics/a,0.jpg",m/a.png')
    folder = find_cases(tmp_path)
    assert (folder.layout, folder.channels, folder.label_column, folder.labelled) == (
        "manifest",
        ("image",),
        "mask",
        True,
    )
    assert folder.cases == [
        Case("a", (tmp_path / "pics" / "a,0.jpg",), tmp_path / "m" / "a.png"),
        Case("b", (tmp_path / "pics" / "b 1.png",), tmp_path / "m" / "b.png"),
    ]
    assert folder.split == {"train": ["a"], "test": ["b"]} and folder.problems == [] and not folder.channels_named


def test_one_column_a_channel_in_the_order_asked_for(tmp_path):
    write(tmp_path, "id,flair,t1c,seg,label", "a,f/a.png,t/a.png,s/a.png,tumor", "b,f/b.png,t/b.png,s/b.png,normal")
    folder = find_cases(tmp_path, ["t1c", "flair"])
    assert folder.channels == ("t1c", "flair") and folder.channels_named
    assert folder.cases[0].images == (tmp_path / "t" / "a.png", tmp_path / "f" / "a.png")
    assert folder.label_column == "seg", "the column label holds words, not paths"
    assert folder.cases[0].datalist_item()["image"] == [str(tmp_path / "t" / "a.png"), str(tmp_path / "f" / "a.png")]
    with pytest.raises(InputError, match="no column 'image'; name the image columns with channels .*flair, t1c"):
        find_cases(tmp_path, 2)
    with pytest.raises(InputError, match="no column 't1' for a channel; columns: .*did you mean t1c"):
        find_cases(tmp_path, ["flair", "t1"])


def test_channel_names_of_one_file_are_no_columns(tmp_path):
    write(tmp_path, "id,image,mask", "a,a.png,m.png")
    assert find_cases(tmp_path, ["red", "green", "blue"]).channels == ("red", "green", "blue")
    assert find_cases(tmp_path, 3).cases[0].images == (tmp_path / "a.png",)


def test_the_label_column_can_be_chosen(tmp_path):
    write(tmp_path, "id,image,mask_lung,mask_heart,licence", "a,i/a.png,l/a.png,h/a.png,by.png")
    save_picture(tmp_path / "l" / "a.png", some_mask())
    assert find_cases(tmp_path, label_column="mask_heart").cases[0].label == tmp_path / "h" / "a.png"
    folder = find_cases(tmp_path)
    assert not folder.labelled and folder.cases[0].label is None
    assert kinds(folder) == [("warning", "", "no_label_column")]
    assert "label_column (mask_lung)" in folder.problems[0].message
    with pytest.raises(InputError, match=r"manifest.csv: no labels: has no column label, mask.*label_column"):
        datalist(tmp_path, "train", spatial_dims=2)
    with pytest.raises(InputError, match="no column 'mask_lungs' for label_column.*did you mean mask_lung"):
        find_cases(tmp_path, label_column="mask_lungs")
    with pytest.raises(InputError, match="column 'id' holds no paths of images; those that do: image, mask_lung"):
        find_cases(tmp_path, label_column="id")
    (tmp_path / "manifest.csv").unlink()
    with pytest.raises(InputError, match="label_column 'mask', but there is no manifest.csv"):
        find_cases(tmp_path, label_column="mask")


def test_without_ids_files_name_the_cases_and_separators_and_slashes_may_differ(tmp_path):
    (tmp_path / "manifest.csv").write_bytes(b"\xef\xbb\xbfimage;label;Note\r\nimg\\a.png;seg\\a.png;x\r\n;;\r\n")
    (case,) = find_cases(tmp_path).cases
    assert case == Case("a", (tmp_path / "img" / "a.png",), tmp_path / "seg" / "a.png")


def test_capitals_of_columns_a_home_and_windows_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = find_cases(write(tmp_path, "ID,Image,Label,Patient", "a,~/a.png,.\\masks\\a.png,anna"))
    assert folder.cases == [Case("a", (tmp_path / "home" / "a.png",), tmp_path / "masks" / "a.png")]
    assert folder.groups == {"a": "anna"}
    assert find_cases(tmp_path, label_column="Label").label_column == "label"


def test_empty_cells_and_doubled_ids_are_problems(tmp_path):
    lines = ["a,a.png,b.png,m.png", "a,c.png,d.png,m.png", "b,,,m.png", "c,c.png,,m.png", "d,d.png,e.png,"]
    folder = find_cases(write(tmp_path, "id,flair,t1c,mask", *lines), ["flair", "t1c"])
    assert kinds(folder) == [
        ("error", "a", "duplicate_id"),
        ("error", "b", "no_image"),
        ("error", "c", "missing_channel"),
        ("error", "d", "no_label"),
    ]
    assert "channel 1 (t1c) is missing" in folder.problems[2].message
    assert [len(case.images) for case in folder.cases] == [2, 0, 1, 2]


@pytest.mark.parametrize(
    "lines, phrase",
    [
        (["id,image,mask"], "holds no rows"),
        (["id,image,mask,split", "a,a.png,m.png,training"], "split of a is 'training', expected one of train"),
        (["id,image,mask", "a,a.png,m.png,more"], "row 2 has 4 cells, the header 3"),
        (["id,picture,mask", "a,a.png,m.png"], "no column 'image'"),
        (["id,image,image", "a,a.png,m.png"], "two columns are called 'image'"),
        (["id,image,mask", "site/a,a.png,m.png"], "id 'site/a' of case 1: results are called by it"),
        (["id,image,mask", "..\\a,a.png,m.png"], "without slashes"),
    ],
)
def test_a_broken_manifest_names_file_and_reason(tmp_path, lines, phrase):
    with pytest.raises(InputError) as error:
        find_cases(write(tmp_path, *lines))
    assert phrase in str(error.value) and str(tmp_path / "manifest.csv") in str(error.value)


def test_split_json_comes_before_the_column_and_a_row_without_a_section_is_told(tmp_path):
    write(tmp_path, "id,image,mask,split", "a,a.png,m.png,train", "b,b.png,m.png,val", "c,c.png,m.png,")
    folder = find_cases(tmp_path)
    assert folder.split == {"train": ["a"], "validation": ["b"]} and kinds(folder) == [("warning", "c", "no_section")]
    (tmp_path / "split.json").write_text('{"train": ["a", "c"], "test": ["b"]}', encoding="utf-8")
    folder = find_cases(tmp_path)
    assert folder.split == {"train": ["a", "c"], "test": ["b"]} and folder.problems == []


def test_an_msd_folder_stays_one_and_a_manifest_comes_before_paired_folders(tmp_path):
    write(tmp_path, "id,image,mask", "x,images/a.png,masks/a.png")
    save_picture(tmp_path / "images" / "a.png", some_picture())
    save_picture(tmp_path / "masks" / "a.png", some_mask())
    assert find_cases(tmp_path).cases[0].id == "x"
    save_picture(tmp_path / "imagesTr" / "b.png", some_picture())
    assert find_cases(tmp_path).layout == "msd"


def slices(root: Path, patients: str, column: str = "patient", sections_of: dict[str, str] | None = None) -> Path:
    """Write a manifest of three slices a patient."""
    rows = [f"{p}{z},{p}{z}.png,m.png,{p}," + (sections_of or {}).get(p, "train") for p in patients for z in range(3)]
    return write(root, f"id,image,mask,{column}{',split' if sections_of else ',other'}", *rows)


@pytest.mark.parametrize("column", ["patient", "subject_id"])
def test_the_slices_of_a_patient_stay_together(tmp_path, column):
    parts = sections(find_cases(slices(tmp_path, "abcdefghij", column)))
    patients = {section: sorted({case[0] for case in cases}) for section, cases in parts.items()}
    assert patients == {"train": list("abcdfgh"), "validation": ["i"], "test": ["e", "j"]}
    assert parts["test"] == ["e0", "e1", "e2", "j0", "j1", "j2"]


def test_a_patient_in_two_sections_leaks(tmp_path):
    root = slices(tmp_path, "abc", sections_of={"c": "test"})
    assert find_leaks(find_cases(root)) == []
    assert sections(find_cases(root))["validation"] == ["b0", "b1", "b2"]
    text = (
        (root / "manifest.csv").read_text(encoding="utf-8").replace("a1,a1.png,m.png,a,train", "a1,a1.png,m.png,a,test")
    )
    (root / "manifest.csv").write_text(text, encoding="utf-8")
    (leak,) = find_leaks(find_cases(root))
    assert (leak.level, leak.kind, leak.case) == ("error", "leak", "a1")
    assert "patient a is in 'train' (a0) and in 'test'" in leak.message
    with pytest.raises(InputError, match="patient a is in"):
        datalist(root, "train", [1], spatial_dims=2)


def test_a_file_that_is_not_there_is_an_error_of_its_case_alone(tmp_path):
    write(tmp_path, "id,image,mask", "a,a.png,m.png", "b,b.png,m.png", "c,c.png,n.png")
    for number, name in enumerate("ac"):
        save_picture(tmp_path / f"{name}.png", some_picture(number))
    save_picture(tmp_path / "m.png", some_mask())
    found = [(f.case, Path(f.file).name, f.kind) for f in check_folder(find_cases(tmp_path), [1]) if f.level == "error"]
    assert found == [("b", "b.png", "unreadable"), ("c", "n.png", "unreadable")]
    good, failures = inference_cases(tmp_path, 3, spatial_dims=2)
    assert [Path(item["image"]).name for item in good] == ["a.png", "c.png"]
    assert len(failures) == 1 and failures[0].startswith("b: b.png: cannot be read (No such file")
