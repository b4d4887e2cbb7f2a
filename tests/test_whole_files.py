"""Files and folders that appear whole, or not at all."""

from __future__ import annotations

import pytest

from shared_components.whole_files import whole_file, whole_folder


def test_a_file_appears_with_its_content_and_an_earlier_one_stays_until_then(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_text("before")
    with whole_file(path) as temporary:
        assert temporary.parent == tmp_path and temporary.name.endswith("-a.nii.gz")
        temporary.write_text("after")
        assert path.read_text() == "before"
    assert [file.read_text() for file in tmp_path.iterdir()] == ["after"]


def test_an_error_leaves_the_earlier_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert [file.read_text() for file in tmp_path.iterdir()] == ["before"]


def test_a_folder_appears_with_all_that_is_in_it(tmp_path):
    path = tmp_path / "new" / "set"
    with whole_folder(path) as folder:
        (folder / "a").write_text("1")
        assert not path.exists()
    assert [file.name for file in path.parent.iterdir()] == ["set"] and (path / "a").read_text() == "1"
    assert path.stat().st_mode & 0o777 == tmp_path.joinpath("new").stat().st_mode & 0o777  # not the scratch folder's


def test_a_folder_with_files_is_replaced_only_when_asked_and_only_by_a_whole_one(tmp_path):
    path = tmp_path / "set"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(OSError), whole_folder(path):
        pass
    with pytest.raises(ValueError), whole_folder(path, replace=True):
        raise ValueError
    assert [file.name for file in tmp_path.rglob("*")] == ["set", "old"]
    with whole_folder(path, replace=True) as folder:
        (folder / "new").touch()
    assert [file.name for file in tmp_path.rglob("*")] == ["set", "new"]
