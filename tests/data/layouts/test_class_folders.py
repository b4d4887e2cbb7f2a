"""Names of slices in folders a class: what they tell of patients, and equal ones in several folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared_components.data.image_labels import find_labelled_slices, slice_list
from shared_components.errors import InputError
from tests.data.test_image_labels import mask, picture

SECTIONS = ("train", "validation", "test")


def named(root: Path, pattern: str, parts: bool, count: int = 12) -> Path:
    """As many normal slices as tumours, called by ``{part}``, ``{kind}`` and ``{number}``."""
    for number in range(count):
        part = ("training" if number < 8 else "validation") if parts else ""
        for place, kind in enumerate(("normal", "tumor")):
            name = pattern.format(part=part, kind=kind, number=number)
            picture(root / part / kind / f"{name}.png", 2 * number + place)
    return root


@pytest.mark.parametrize("parts", [True, False])
@pytest.mark.parametrize(
    "pattern",
    ["{kind}_{number:03d}", "{kind} ({number})", "T1 {kind}{number}", "{part}-{kind}_{number}", "{number:03d}"],
)
def test_names_that_tell_the_class_tell_no_patient(tmp_path, caplog, pattern: str, parts: bool) -> None:
    root = named(tmp_path, pattern, parts)
    items = {section: slice_list(root, section) for section in SECTIONS}
    assert all({item["class"] for item in items[section]} == {0, 1} for section in SECTIONS)
    assert len({item["patient"] for part in items.values() for item in part}) == 24
    assert len({item["image"] for part in items.values() for item in part}) == 24
    if parts:
        assert all(("validation" in item["image"]) == (name == "test") for name in SECTIONS for item in items[name])
    told = [record.message for record in caplog.records if "tell no patient" in record.message]
    assert told == [] if "(" in pattern else len(told) == 1 and "--patient_pattern" in told[0]


def test_a_patient_of_one_class_stays_in_one_section(tmp_path) -> None:
    for number in range(24):
        kind = "normal" if number % 8 < 4 else "tumor"
        picture(tmp_path / kind / f"{'HV' if kind == 'normal' else 'P'}{number // 4}_{number}.png", number)
    patients = [{item["patient"] for item in slice_list(tmp_path, section)} for section in SECTIONS]
    assert patients == [{"HV0", "HV2", "HV4", "P1"}, {"P5"}, {"P3"}]
    assert len(find_labelled_slices(tmp_path).folder.groups) == 24


def test_images_of_one_name_have_ids_of_their_own(tmp_path) -> None:
    root = named(tmp_path, "{number:03d}", parts=True)
    picture(root / "validation" / "normal" / "000.png", 99)  # the number starts anew
    picture(root / "validation" / "tumor" / "p1_7.png", 98)
    mask(root / "validation" / "seg" / "p1_7.png", 20)
    folder = find_labelled_slices(root).folder
    ids = {case.id for case in folder.cases}
    assert {"training_normal_000", "validation_normal_000", "tumor_000", "normal_009", "p1_7"} <= ids
    assert len(ids) == 26 and folder.groups == {"p1_7": "p1"}
    mask(root / "validation" / "seg" / "000.png", 20)  # one image in this part, so nothing is ambiguous
    label = next(case.label for case in find_labelled_slices(root).folder.cases if case.id == "validation_normal_000")
    assert label == root / "validation" / "seg" / "000.png"
    mask(root / "validation" / "seg" / "009.png", 20)
    with pytest.raises(InputError, match=r"seg/009\.png: two images of different folders have its name; rename one"):
        find_labelled_slices(root)


def test_messages_about_patients_name_the_key_for_them(tmp_path) -> None:
    picture(tmp_path / "training" / "normal" / "P1_1.png", 1)
    picture(tmp_path / "training" / "tumor" / "P2_2.png", 2)
    picture(tmp_path / "validation" / "tumor" / "P1_3.png", 3)
    with pytest.raises(InputError, match="patient P1 is in .*--patient_pattern") as leak:
        slice_list(tmp_path, "train")
    assert "split.json" not in str(leak.value)
    assert [item["class"] for item in slice_list(tmp_path, "test", patient_pattern=".+")] == [1]
    for number in range(4):
        picture(tmp_path / "few" / "normal" / f"P1_{number}.png", 10 + number)
    picture(tmp_path / "few" / "tumor" / "P2_1.png", 20)
    picture(tmp_path / "few" / "tumor" / "P3_1.png", 21)
    with pytest.raises(InputError, match="positive ones of .*--patient_pattern says"):
        slice_list(tmp_path / "few", "train")
