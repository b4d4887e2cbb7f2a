"""Names, and files that are whole or not there."""

import os

import pytest
from monai.data import MetaTensor

from shared_components.errors import InputError
from shared_components.reporting.files import (
    case_name,
    claim_outputs,
    file_of,
    foreground_names,
    unique_name,
    write_atomically,
)


def test_write_replaces_and_leaves_nothing_else(tmp_path):
    write_atomically(tmp_path / "a.txt", "old")
    assert write_atomically(tmp_path / "a.txt", b"new").read_text(encoding="utf-8") == "new"
    assert os.listdir(tmp_path) == ["a.txt"]
    mask = os.umask(0o022)
    os.umask(mask)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    write_atomically(tmp_path / "a.txt", "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"a\.txt: cannot be written \(No space left"):
        write_atomically(tmp_path / "a.txt", "new")
    assert os.listdir(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text(encoding="utf-8") == "old"


def test_claim_makes_the_folder_and_guards_what_is_there(tmp_path):
    folder = claim_outputs(tmp_path / "a" / "b", ["*.csv"], overwrite=False)
    (folder / "x.csv").write_text("mine", encoding="utf-8")
    claim_outputs(folder, ["*.png"], overwrite=False)
    claim_outputs(folder, ["*.csv"], overwrite=True)
    with pytest.raises(InputError, match=r"x\.csv is there already; .*overwrite"):
        claim_outputs(folder, ["*.csv"], overwrite=False)


def test_claim_refuses_what_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="choose another output_dir"):
        claim_outputs(tmp_path / "file" / "out", [], overwrite=False)


@pytest.mark.parametrize(
    ("file", "name"),
    [("/d/case_1.nii.gz", "case_1"), ("/d/a b.PNG", "a b"), ("s.1.nrrd", "s.1"), ("/dicom/series", "series")],
)
def test_case_names(file, name):
    assert case_name(file) == name


def test_names_of_files_and_labels():
    image = MetaTensor([[1.0]], meta={"filename_or_obj": "x.nii.gz"})
    assert file_of(None, MetaTensor([[1.0]]), image) == "x.nii.gz"
    assert file_of(None, 3) == ""
    assert unique_name("a", {"a": 1, "a_2": 1}) == "a_3"
    expected = {1: "anterior", 2: "posterior"}
    assert foreground_names({"anterior": 1, "posterior": 2}, 3) == expected
    assert foreground_names({"0": "background", "1": "anterior", "2": "posterior"}, 3) == expected
    assert foreground_names({0: "background", 2: "posterior"}, 4) == {
        1: "class_1",
        2: "posterior",
        3: "class_3",
    }
