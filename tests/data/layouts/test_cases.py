"""What find_cases understands of a folder, and what it says of one that it does not."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from shared_components.data.checks.check_data import check_data
from shared_components.data.datalists import datalist, inference_cases
from shared_components.data.layouts.cases import Case, find_cases
from shared_components.data.loaders import LoadImageChannelsd
from shared_components.errors import InputError
from tests.data.folders import case_names, msd_folder, save, some_image, some_label


def kinds(folder) -> list[tuple[str, str, str]]:
    return [(problem.level, problem.case, problem.kind) for problem in folder.problems]


def touch(root: Path, *names: str) -> Path:
    """Make empty files: the layout is understood from names alone."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_msd_layout_with_names_labels_and_split(tmp_path):
    msd_folder(tmp_path, case_names(3))
    (tmp_path / "split.json").write_text('{"train": ["case_01", "case_00"], "test": ["case_02"]}', encoding="utf-8")
    save(tmp_path / "imagesTs" / "new.nii.gz", some_image())
    folder = find_cases(tmp_path)
    assert (folder.layout, folder.channels) == ("msd", ("MRI",))
    assert folder.label_names == {"anterior": 1, "posterior": 2}
    assert folder.split == {"train": ["case_00", "case_01"], "test": ["case_02"]}
    label = tmp_path / "labelsTr" / "case_01.nii.gz"
    assert folder.cases[1] == Case("case_01", (tmp_path / "imagesTr" / "case_01.nii.gz",), label)
    assert folder.unlabelled == [Case("new", (tmp_path / "imagesTs" / "new.nii.gz",))]
    assert folder.problems == []


def test_msd_layout_without_dataset_json(tmp_path):
    touch(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii")
    folder = find_cases(tmp_path)
    assert (folder.layout, folder.channels, folder.label_names) == ("msd", ("image",), {})
    assert folder.cases[0].label == tmp_path / "labelsTr" / "a.nii"


def test_the_list_of_dataset_json_decides_which_files_are_cases(tmp_path):
    listed = [{"image": "./imagesTr/a_img.nii.gz", "label": "./labelsTr/a_seg.nii.gz"}]
    touch(tmp_path, "imagesTr/a_img.nii.gz", "labelsTr/a_seg.nii.gz", "imagesTr/b.nii.gz", "labelsTr/b.nii.gz")
    touch(tmp_path, "imagesTr/c.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"training": listed}), encoding="utf-8")
    folder = find_cases(tmp_path)
    assert [case.id for case in folder.cases] == ["a_img"]
    assert folder.cases[0].label == tmp_path / "labelsTr" / "a_seg.nii.gz"
    assert kinds(folder) == [("warning", "b", "not_listed"), ("error", "c", "no_label")]


def test_a_split_brings_in_files_that_the_list_leaves_out(tmp_path):
    touch(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "imagesTr/b.nii.gz", "labelsTr/b.nii.gz")
    listed = [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": listed}), encoding="utf-8")
    (tmp_path / "split.json").write_text('{"Train": ["images/a.nii.gz"], "test": ["b.nii.gz"]}', encoding="utf-8")
    folder = find_cases(tmp_path)
    assert [case.id for case in folder.cases] == ["a", "b"]
    assert folder.problems == []


def test_listed_files_that_do_not_exist_are_problems(tmp_path):
    touch(tmp_path, "imagesTr/a.nii.gz", "labelsTr/b.nii.gz")
    listed = [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in "ab"]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": listed}), encoding="utf-8")
    folder = find_cases(tmp_path)
    assert kinds(folder) == [("error", "a", "no_label"), ("error", "b", "no_image")]
    assert folder.problems[0].file == str(tmp_path / "labelsTr" / "a.nii.gz")


def test_nnunet_layout_of_two_channels(tmp_path):
    meta = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "tumour": 1},
        "file_ending": ".nii.gz",
    }
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz")
    touch(
        tmp_path,
        "imagesTr/b_0000.nii.gz",
        "labelsTr/b.nii.gz",
        "imagesTs/c_0000.nii.gz",
        "imagesTs/c_0001.nii.gz",
    )
    (tmp_path / "dataset.json").write_text(json.dumps(meta), encoding="utf-8")
    folder = find_cases(tmp_path)
    assert (folder.layout, folder.channels, folder.label_names) == ("nnunet", ("T1", "T2"), {"tumour": 1})
    assert [path.name for path in folder.cases[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert [path.name for path in folder.unlabelled[0].images] == ["c_0000.nii.gz", "c_0001.nii.gz"]
    (problem,) = folder.problems
    assert (problem.case, problem.kind) == ("b", "missing_channel")
    assert "channel 1 (T2) is missing" in problem.message and problem.file.endswith("b_0001.nii.gz")


def test_nnunet_version_1_with_modality_and_a_training_list(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    listed = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "CT"}, "training": listed}), encoding="utf-8")
    folder = find_cases(tmp_path)
    assert (folder.layout, folder.cases[0].id, folder.problems) == ("nnunet", "a", [])


def test_four_digits_that_belong_to_the_id_are_no_channel(tmp_path):
    touch(tmp_path, "imagesTr/spleen_0001.nii.gz", "labelsTr/spleen_0001.nii.gz", "imagesTr/spleen_0002.nii.gz")
    folder = find_cases(tmp_path)
    assert folder.layout == "msd"
    assert [case.id for case in folder.cases] == ["spleen_0001", "spleen_0002"]


@pytest.mark.parametrize("label_dir", ["labels", "masks"])
def test_paired_folders_of_any_format(tmp_path, label_dir):
    touch(tmp_path, "images/a.nii.gz", "images/b.mha", "images/c.nrrd", "images/d.png", "images/notes.txt")
    touch(tmp_path, *(f"{label_dir}/{name}.nii.gz" for name in "abcd"))
    folder = find_cases(tmp_path)
    assert folder.layout == "paired"
    assert [(case.id, case.label.parent.name) for case in folder.cases] == [(name, label_dir) for name in "abcd"]


@pytest.mark.parametrize("image_dir", ["images", "img"])
@pytest.mark.parametrize("label_dir", ["labels", "masks", "mask"])
def test_paired_folders_by_other_names(tmp_path, image_dir, label_dir):
    touch(tmp_path, f"{image_dir}/a.jpg", f"{label_dir}/a.png")
    folder = find_cases(tmp_path)
    assert folder.layout == "paired" and folder.problems == [] and not folder.channels_named
    assert folder.cases == [Case("a", (tmp_path / image_dir / "a.jpg",), tmp_path / label_dir / "a.png")]


@pytest.mark.parametrize("suffix", ["_segmentation", "_Segmentation", "_mask", "_seg", "_label", "_gt"])
def test_a_label_may_carry_a_suffix(tmp_path, suffix):
    touch(tmp_path, "images/ISIC_0000000.jpg", f"masks/ISIC_0000000{suffix}.png", "images/b.jpg", "masks/b.png")
    touch(tmp_path, f"masks/c{suffix}.png")
    folder = find_cases(tmp_path)
    assert [case.id for case in folder.cases] == ["ISIC_0000000", "b", f"c{suffix}"]
    assert folder.cases[0].label == tmp_path / "masks" / f"ISIC_0000000{suffix}.png"
    assert kinds(folder) == [("error", f"c{suffix}", "no_image")]


def test_a_suffix_that_belongs_to_the_id_or_doubles_a_label(tmp_path):
    touch(tmp_path, "images/a_seg.png", "masks/a_seg.png", "images/b.png", "masks/b.png", "masks/b_mask.png")
    folder = find_cases(tmp_path)
    assert [case.label.name for case in folder.cases] == ["a_seg.png", "b.png"]
    assert kinds(folder) == [("error", "b", "duplicate_id")]


def test_label_suffixes_beside_channel_suffixes(tmp_path):
    touch(tmp_path, "images/a_0000.png", "images/a_0001.png", "masks/a_seg.png")
    (case,) = find_cases(tmp_path).cases
    assert (case.id, len(case.images), case.label.name) == ("a", 2, "a_seg.png")


def test_colour_pictures_of_nnunet_are_one_file_of_three_channels(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.png", "imagesTr/b_0000.png", "labelsTr/a.png", "labelsTr/b.png")
    (tmp_path / "dataset.json").write_text('{"channel_names": {"0": "R", "1": "G", "2": "B"}}', encoding="utf-8")
    folder = find_cases(tmp_path)
    assert (folder.layout, folder.channels, folder.problems) == ("nnunet", ("R", "G", "B"), [])
    touch(tmp_path, "imagesTr/a_0001.png", "imagesTr/a_0002.png")
    assert [kind for _, _, kind in kinds(find_cases(tmp_path))] == ["missing_channel"] * 2


def test_numbered_pictures_for_a_colour_model_are_no_channels(tmp_path):
    touch(tmp_path, *(f"frame_{number:04d}.png" for number in range(5)))
    assert len(find_cases(tmp_path, 3).cases) == 5


def test_labels_beside_masks_are_ambiguous(tmp_path):
    touch(tmp_path, "images/a.nii", "labels/a.nii", "masks/a.nii")
    with pytest.raises(InputError, match="both labels/ and masks/"):
        find_cases(tmp_path)


def test_images_alone(tmp_path):
    touch(tmp_path, "b.nii.gz", "a.tiff", "sub/c.nii.gz")
    folder = find_cases(tmp_path)
    assert folder.layout == "images"
    assert [(case.id, case.label) for case in folder.cases] == [("a", None), ("b", None)]


def test_images_alone_one_folder_down(tmp_path):
    touch(tmp_path, "patient 1/scan.nii.gz", "patient 2/scan.nii.gz", ".hidden/scan.nii.gz", "x/y/scan.nii.gz")
    assert [case.id for case in find_cases(tmp_path).cases] == ["patient 1_scan", "patient 2_scan"]


def test_images_alone_with_channel_suffixes(tmp_path):
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz")
    assert [case.id for case in find_cases(tmp_path, 2).cases] == ["a", "b"]
    assert [case.id for case in find_cases(tmp_path, 1).cases] == ["a_0000", "a_0001", "b_0000", "b_0001"]


def test_hidden_files_are_left_out_and_links_and_odd_names_are_fine(tmp_path):
    root = tmp_path / "Daten für später"
    touch(root, "imagesTr/._é à.nii.gz", "imagesTr/.DS_Store", "labelsTr/é à.nii.gz")
    save(tmp_path / "elsewhere.nii.gz", some_image())
    (root / "imagesTr" / "é à.nii.gz").symlink_to(tmp_path / "elsewhere.nii.gz")
    folder = find_cases(root)
    assert [case.id for case in folder.cases] == ["é à"]
    assert folder.cases[0].images[0].parent == root / "imagesTr"


def test_an_image_or_a_label_alone_and_a_doubled_id_are_problems(tmp_path):
    touch(
        tmp_path,
        "imagesTr/a.nii.gz",
        "imagesTr/a.nii",
        "labelsTr/a.nii.gz",
        "imagesTr/b.nii",
        "labelsTr/c.nii",
    )
    folder = find_cases(tmp_path)
    assert kinds(folder) == [
        ("error", "a", "duplicate_id"),
        ("error", "b", "no_label"),
        ("error", "c", "no_image"),
    ]
    assert [len(case.images) for case in folder.cases] == [1, 1, 0]


def test_an_id_of_the_split_without_a_case_is_a_problem(tmp_path):
    msd_folder(tmp_path, ["a"])
    (tmp_path / "split.json").write_text('{"train": ["a", "z"]}', encoding="utf-8")
    (problem,) = find_cases(tmp_path).problems
    assert (problem.case, problem.kind, Path(problem.file).name) == ("z", "no_such_case", "split.json")


def test_channels_given_by_the_user_come_first(tmp_path):
    msd_folder(tmp_path, ["a"])
    assert find_cases(tmp_path, ["FLAIR"]).channels == ("FLAIR",)
    assert find_cases(tmp_path, 1).channels == ("MRI",)
    assert find_cases(tmp_path, 2).channels == ("channel 0", "channel 1")


@pytest.mark.parametrize(
    "name, text, phrase",
    [
        ("dataset.json", "{", "not valid JSON"),
        ("dataset.json", "[]", "expected an object"),
        ("dataset.json", '{"labels": ["a"]}', '"labels" must be an object'),
        ("dataset.json", '{"labels": {"background": 0, "whole": [1, "x"]}}', "region 'whole' is 'x'"),
        ("dataset.json", '{"channel_names": {"first": "T1"}}', "a channel number is 'first'"),
        ("dataset.json", '{"training": ["a.nii.gz"]}', '"training" entry 0'),
        ("dataset.json", '{"labels": {"a": 1, "b": 1}}', "the labels 'a' and 'b' both have the value 1"),
        ("dataset.json", '{"labels": {"1": "a", "2": "a"}}', "two labels are called 'a'"),
        ("split.json", '{"trian": []}', "unknown section 'trian'"),
        ("split.json", '{"train": "a"}', "must be a list"),
        ("split.json", "{}", "names no case"),
    ],
)
def test_broken_json_names_file_and_reason(tmp_path, name, text, phrase):
    msd_folder(tmp_path, ["a"])
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        find_cases(tmp_path)
    assert phrase in str(error.value) and str(tmp_path / name) in str(error.value)


def test_regions_of_nnunet_name_no_single_value(tmp_path):
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    msd_folder(tmp_path, case_names(5), labels=labels, regions_class_order=[1, 2])
    assert find_cases(tmp_path).label_names == {}
    assert len(datalist(tmp_path, "train", [1, 2])) == 3


def two_channels(root: Path) -> Path:
    for case in "ab":
        touch(root, f"imagesTr/{case}_0000.nii.gz", f"imagesTr/{case}_0001.nii.gz", f"labelsTr/{case}.nii.gz")
    text = '{"channel_names": {"0": "T1c", "1": "FLAIR"}, "labels": {"background": 0, "tumour": 1}}'
    (root / "dataset.json").write_text(text, encoding="utf-8")
    return root


def test_channels_by_their_names_in_dataset_json_choose_the_files_and_order_them(tmp_path):
    two_channels(tmp_path)

    def files(channels) -> list[str]:
        return [path.name for path in find_cases(tmp_path, channels).cases[0].images]

    first, second = "a_0000.nii.gz", "a_0001.nii.gz"
    assert files(["flair", "t1c"]) == [second, first] and files("FLAIR") == [second]
    assert files(["t1c", "flair"]) == files(["x", "y"]) == files(None) == files(2) == [first, second]
    assert find_cases(tmp_path, "flair").cases[0].datalist_item()["case"] == "a"
    (tmp_path / "imagesTr" / first).unlink()
    assert find_cases(tmp_path, ["flair"]).problems == []
    (problem,) = find_cases(tmp_path, ["flair", "t1c"]).problems
    assert (problem.message, Path(problem.file).name) == ("channel 0 (t1c) is missing: there is no such file", first)
    assert [kind for _, _, kind in kinds(find_cases(tmp_path, ["t1c"]))] == ["missing_channel", "no_image"]


def test_channels_of_one_file_in_another_order_are_refused(tmp_path):
    msd_folder(tmp_path, ["a"], modality={"0": "FLAIR", "1": "T1w"})
    with pytest.raises(InputError, match="hold the channels FLAIR, T1w, asked for were T1w, FLAIR; keep the order"):
        find_cases(tmp_path, ["t1w", "flair"])
    assert find_cases(tmp_path, ["flair", "t1w"]).channels == ("flair", "t1w")


def test_a_link_to_nothing_is_a_bad_case_and_not_none(tmp_path):
    save(tmp_path / "a.nii.gz", some_image())
    (tmp_path / "b.nii.gz").symlink_to(tmp_path / "annex" / "b.nii.gz")
    cases, (failure,) = inference_cases(tmp_path)
    assert len(cases) == 1 and failure.startswith("b: b.nii.gz: cannot be read (a link to ")
    assert "annex/b.nii.gz, which is not there)" in failure


def test_capitals_of_a_folders_name_do_not_matter(tmp_path):
    touch(tmp_path, "Images/A.PNG", "Images/B.PNG", "Masks/A_Mask.PNG", "Masks/B_Mask.PNG")
    folder = find_cases(tmp_path)
    assert folder.layout == "paired" and [case.label.name for case in folder.cases] == ["A_Mask.PNG", "B_Mask.PNG"]


def test_images_that_lie_too_deep_are_pointed_at(tmp_path):
    touch(tmp_path, "patient-01/anat/T1w.nii.gz")
    with pytest.raises(InputError, match=f"images lie deeper, in {tmp_path / 'patient-01' / 'anat'}: list them"):
        find_cases(tmp_path)


def test_json_with_a_byte_order_mark(tmp_path):
    touch(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz")
    (tmp_path / "dataset.json").write_bytes(b'\xef\xbb\xbf{"labels": {"0": "background", "1": "Milz"}}')
    assert find_cases(tmp_path).label_names == {"Milz": 1}


def test_a_folder_that_cannot_be_used_is_refused_with_what_was_looked_for(tmp_path):
    with pytest.raises(InputError, match="no such folder.*imagesTr/"):
        find_cases(tmp_path / "absent")
    with pytest.raises(InputError, match="no images found; looked for.*imagesTr/"):
        find_cases(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        find_cases(save(tmp_path / "one.nii.gz", some_label()))


def test_the_parent_of_a_data_set_gets_a_hint(tmp_path):
    msd_folder(tmp_path / "Task04", ["a"])
    with pytest.raises(InputError, match="did you mean .*Task04"):
        find_cases(tmp_path)


def test_real_hippocampus(real_data):
    folder = find_cases(real_data / "Task04_Hippocampus")
    assert (folder.layout, len(folder.cases), folder.channels) == ("msd", 200, ("MRI",))
    assert folder.label_names == {"Anterior": 1, "Posterior": 2}
    assert {section: len(ids) for section, ids in folder.split.items()} == {"train": 160, "test": 40}
    assert folder.problems == []


def test_names_are_the_same_however_their_accents_are_written(tmp_path):
    """macOS writes an accent after its letter; copied to another system, such a name differs from a label's."""
    apart, together = (unicodedata.normalize(form, "é_1") for form in ("NFD", "NFC"))
    save(tmp_path / "images" / f"{apart}.nii.gz", some_image())
    save(tmp_path / "labels" / f"{together}.nii.gz", some_label())
    (tmp_path / "split.json").write_text(json.dumps({"train": [apart], "test": []}), encoding="utf-8")
    folder = find_cases(tmp_path)
    assert ([case.id for case in folder.cases], folder.split, folder.problems) == (
        [together],
        {"train": [together], "test": []},
        [],
    )
    item = folder.cases[0].datalist_item()
    assert LoadImageChannelsd("image", 1)(item)["image"].meta["filename_or_obj"].endswith(f"/{together}.nii.gz")
    check_data(tmp_path, skip_bad=tmp_path / "usable")
    assert (tmp_path / "usable" / "imagesTr" / f"{together}.nii.gz").is_symlink()


def test_a_file_of_another_kind_or_of_other_capitals_is_pointed_at(tmp_path):
    touch(tmp_path, "images/a.mgz", "images/B.nii.gz", "images/c.nii.gz")
    touch(tmp_path, "labels/a.nii.gz", "labels/b.nii.gz", "labels/c.nii.gz", "labels/d.nii.gz")
    told = {problem.case: problem.message.partition("among images")[2] for problem in find_cases(tmp_path).problems}
    assert told["a"] == "; images/a.mgz is of a kind that is not read: convert it"
    assert told["b"] == "; capitals count, and there is images/B.nii.gz" and told["d"] == ""
