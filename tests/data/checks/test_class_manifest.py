"""The data check of a manifest with a column of class words: what it counts, and what other columns do not change."""

from __future__ import annotations

import json
from pathlib import Path

from shared_components.data.checks.check_data import check_data
from shared_components.data.datalists import datalist
from shared_components.data.image_labels import slice_list
from tests.data.checks.test_class_folders import told
from tests.data.test_image_labels import mask, picture

WORDS = ("normal", "Tumor", "tumor")


def manifest(root: Path, columns: str, masks: bool = True, num_patients: int = 6) -> Path:
    """Three slices a patient, the first without the object, in a folder with a manifest of these columns."""
    rows = [columns]
    for number in range(3 * num_patients):
        present, name = number % 3, f"s{number:02d}"
        picture(root / "images" / f"{name}.png", number + 2)
        if masks:
            mask(root / "masks" / f"{name}.png", 20 if present else 0)
        section = ("train", "val", "test", "train", "train", "train")[number // 3]
        cells = {"id": name, "image": f"images/{name}.png", "seg": f"masks/{name}.png", "class": WORDS[present]}
        cells |= {"label": WORDS[present], "patient": f"p{number // 3}", "split": section, "flair": cells["image"]}
        rows.append(",".join(cells[column] for column in columns.split(",")))
    (root / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
    return root


def test_classes_outlines_and_patients_are_counted_as_in_folders_a_class(tmp_path, capsys):
    root = manifest(tmp_path / "set", "id,image,seg,class,patient,split")
    findings, table, text = told(capsys, root, report=tmp_path / "r.json")
    assert {finding.level for finding in findings} <= {"note"}  # empty masks of normal slices are right
    assert table["classes"] == "object absent: normal 6; present: tumor 12"
    assert table["sections"] == "absent + present: train 4 + 8, validation 1 + 2, test 1 + 2"
    assert table["outlines"] == "train 8 of 8, validation 2 of 2, test 2 of 2 slices with the object"
    assert table["patients"] == "6 (the manifest's column of patients)"
    assert "of whom   6 have slices of both classes, 0 with it absent only, 0 with it present only\n" in text
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert report["classes"]["train"] == {"absent": 4, "present": 8, "outlined": 8}


def test_a_manifest_of_labels_alone_lacks_nothing(tmp_path, capsys):
    root = manifest(tmp_path, "id,flair,label,patient,split", masks=False)
    findings, table, text = told(capsys, root, channels=["flair"])
    assert findings == [] and "0 errors, 0 warnings" in text
    assert "label in  column label, for whole images; no column of masks" in text
    assert table["split"] == "train 12, validation 3, test 3 (manifest.csv)" and table["patients"].startswith("6 (")
    assert table["classes"] == "object absent: normal 6; present: tumor 12"


def test_what_contradicts_the_class_or_lies_in_two_sections_is_told(tmp_path, capsys):
    root = manifest(tmp_path, "id,image,seg,class,patient,split")
    mask(root / "masks" / "s00.png", 5)
    mask(root / "masks" / "s01.png", 0)
    text = told(capsys, root)[2]
    assert "warning  s00: masks/s00.png: outline of a slice labelled normal, expected none; empty it, or" in text
    assert "warning  s01: masks/s01.png: empty mask of a slice labelled tumor; outline the object, or correct" in text
    table = (root / "manifest.csv").read_text(encoding="utf-8")
    (root / "manifest.csv").write_text(table.replace("p0,train", "p1,train", 1), encoding="utf-8")
    assert "patient p1 is in 'train' (s00) and in 'validation'" in told(capsys, root)[2]
    alone = manifest(tmp_path / "alone", "id,image,label,patient,split", masks=False)
    table = (alone / "manifest.csv").read_text(encoding="utf-8")
    (alone / "manifest.csv").write_text(table.replace("p0,train", "p1,train", 1), encoding="utf-8")
    assert "patient p1 is in 'train' (s00) and in 'validation'" in told(capsys, alone)[2]


def test_one_class_alone_is_an_error_where_there_is_nothing_else_to_learn_from(tmp_path, capsys):
    for name, columns, level in (("alone", "id,image,label", "error"), ("masks", "id,image,seg,label", "note")):
        root = manifest(tmp_path / name, columns)
        rows = (root / "manifest.csv").read_text(encoding="utf-8").splitlines()
        (root / "manifest.csv").write_text("\n".join(row for row in rows if "normal" not in row), encoding="utf-8")
        findings = [finding for finding in told(capsys, root)[0] if finding.kind == "one_class"]
        assert [finding.level for finding in findings] == [level] and "0 slices without the obj" in findings[0].message


def test_a_slice_without_a_mask_is_no_error_if_it_has_a_label(tmp_path, capsys):
    root = manifest(tmp_path, "id,image,seg,class,patient,split")
    table = (root / "manifest.csv").read_text(encoding="utf-8")
    for number in (0, 3):
        table = table.replace(f"masks/s{number:02d}.png", "")
    (root / "manifest.csv").write_text(table, encoding="utf-8")
    findings, table, text = told(capsys, root)
    assert [finding.kind for finding in findings if finding.level != "note"] == ["no_mask"]
    assert "2 images, such as s00, have a label and no mask: only bundles that learn from image-level labels" in text
    assert "18 cases checked, 18 usable" in text


def test_the_usable_folder_keeps_labels_sections_and_patients(tmp_path, capsys):
    root = manifest(tmp_path / "set", "id,flair,seg,class,patient,split")
    (root / "images" / "s04.png").write_bytes(b"broken")
    check_data(root, channels=["flair"], skip_bad=tmp_path / "usable")
    capsys.readouterr()
    options = {"channels": ["flair"], "masks": True}
    for section in ("train", "validation", "test"):
        before = slice_list(root, section, skip_bad=True, **options)
        after = slice_list(tmp_path / "usable", section, **options)
        assert [item["patient"] for item in after] == [item["patient"] for item in before]
        assert [item["class"] for item in after] == [item["class"] for item in before]
        for key in ("image", "label"):
            assert [Path(item[key]).resolve() for item in after] == [Path(item[key]).resolve() for item in before]
    assert len(datalist(tmp_path / "usable", "train", {"tumour": 1}, channels=["flair"], spatial_dims=2)) == 12
    alone = manifest(tmp_path / "alone", "id,image,label,patient", masks=False)
    check_data(alone, skip_bad=tmp_path / "kept")
    assert [item["class"] for item in slice_list(tmp_path / "kept", "test")] == [0, 1, 1]


def test_words_that_are_no_class_are_told_of(tmp_path, capsys):
    for name, columns, level in (("alone", "id,image,label", "warning"), ("masks", "id,image,seg,class", "note")):
        root = manifest(tmp_path / name, columns)
        table = (root / "manifest.csv").read_text(encoding="utf-8")
        (root / "manifest.csv").write_text(table.replace("Tumor", "cyst"), encoding="utf-8")
        (finding,) = [finding for finding in told(capsys, root)[0] if finding.kind == "class_words"]
        assert finding.level == level and "holds cyst, expected normal, healthy" in finding.message
