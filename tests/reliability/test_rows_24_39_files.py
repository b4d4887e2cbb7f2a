"""Rows 24 to 39 of the table of cases: files, headers, formats, outputs."""

from __future__ import annotations

import gzip
import shutil
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import SaveImage
from PIL import Image
from torch import nn

from shared_components.bundle_tools.settings import check_settings
from shared_components.data.checks.cases import check_case, check_folder
from shared_components.data.datalists import datalist
from shared_components.data.layouts.cases import Case, find_cases
from shared_components.data.loaders import LoadImageChannelsd
from shared_components.data.writers import AtomicNibabelWriter
from shared_components.errors import InputError
from shared_components.reporting.files import write_atomically
from shared_components.training import CaseEvaluator, RunProgress
from shared_components.training.files import save_atomically
from tests.data.folders import case_names, msd_folder, save, save_deep_png, save_picture, some_image, some_picture
from tests.diffusion.test_segmenter import segmenter as small_segmenter
from tests.reliability.conftest import OBLIQUE, reoriented, small_phantom
from tests.reliability.in_child import with_full_disk
from tests.reliability.in_process import refusal, run_here
from tests.runs.commands import NETWORK, files_below


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


BROKEN = {
    "truncated.nii.gz": lambda content: content[: len(content) // 2],
    "flipped.nii.gz": flipped,
    "zero_bytes.nii.gz": lambda content: b"",
    "html.nii.gz": lambda content: b"<!DOCTYPE html><html>not found</html>",
    "plain_inside.nii.gz": gzip.decompress,
}


@pytest.fixture(scope="module")
def one_good_of_six(weights, tmp_path_factory) -> tuple[str, Path]:
    """The line that a prediction of broken files and a good one ends with, and where it wrote."""
    folder, output_dir = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("broken") / "out"
    content = save(folder / "good.nii.gz", small_phantom()).read_bytes()
    for name, breaking in BROKEN.items():
        (folder / name).write_bytes(breaking(content))
    options = {"dataset_dir": str(folder), "output_dir": str(output_dir), "ckpt_path": str(weights)}
    return refusal("inference", **NETWORK, **options), output_dir


def check_named(one_good_of_six: tuple[str, Path], name: str, words: str) -> None:
    line, output_dir = one_good_of_six
    assert line.startswith("5 cases could not be processed: ")
    (part,) = [part for part in line.split(" | ") if name in part]
    assert words in part and "good" not in line
    results = [file for file in files_below(output_dir) if file.startswith("good")]
    assert results == ["good_overlay.png", "good_seg.nii.gz", "good_uncertainty.nii.gz"]


def test_row_24_truncated_file(one_good_of_six):
    check_named(one_good_of_six, "truncated.nii.gz", "truncated")


def test_row_25_flipped_byte(one_good_of_six):
    check_named(one_good_of_six, "flipped.nii.gz", "corrupt")


@pytest.mark.parametrize(
    "name, words",
    [
        ("zero_bytes.nii.gz", "empty file (0 bytes)"),
        ("html.nii.gz", "no gzip file (starts b'<!DOCTYPE"),
        ("plain_inside.nii.gz", "wrongly named"),
    ],
)
def test_row_26_no_image_at_all(one_good_of_six, name, words):
    check_named(one_good_of_six, name, words)


def test_row_27_scale_factor_and_full_range_of_16_bits(predictions):
    for case in ("scaled", "unsigned"):
        assert np.mean(predictions.labels(case) != predictions.labels("plain")) < 0.005
        header = predictions.result(case).header
        assert header.get_data_dtype() == np.uint8 and header.get_slope_inter() in ((None, None), (1.0, 0.0))


def test_row_28_label_above_255(tmp_path):
    label = MetaTensor(torch.zeros(1, 4, 5, 6), meta={"filename_or_obj": "a.nii.gz"})
    label[0, 1, 2, 3] = 300
    save = SaveImage(tmp_path, "seg", output_dtype=torch.uint8, separate_folder=False, writer=AtomicNibabelWriter)
    save(label)
    found = nibabel.load(tmp_path / "a_seg.nii.gz")
    assert found.get_data_dtype() == np.uint16 and found.get_fdata()[1, 2, 3] == 300
    save(label.clip(0, 255))
    assert nibabel.load(tmp_path / "a_seg.nii.gz").get_data_dtype() == np.uint8


def test_row_29_anisotropic_spacing(predictions):
    result, image = predictions.result("anisotropic"), predictions.image("anisotropic")
    assert result.shape == image.shape and np.allclose(result.affine, image.affine)
    assert len(np.unique(predictions.labels("anisotropic"))) == 3


@pytest.mark.parametrize("place, value", [(80, 0.0), (80, -1.0), (80, float("nan")), (280, 0.0)])
def test_row_30_unusable_spacing_or_affine(tmp_path, place, value):
    content = bytearray(gzip.decompress(save(tmp_path / "a.nii.gz", some_image()).read_bytes()))
    content[place : place + 4] = struct.pack("<f", value)
    (tmp_path / "bad.nii").write_bytes(content)
    (finding,) = check_case(Case("a", (tmp_path / "bad.nii",)))
    assert finding.level == "error" and finding.file.endswith("bad.nii")
    printed = f"spacing [{value}, 1.0, 1.0]" if place == 80 else "singular affine [[0.0, 0.0, 0.0, 0.0]"
    assert printed in finding.message


def test_row_31_other_orientations(predictions):
    plain = np.asarray(reoriented(predictions.result("plain"), "RAS").dataobj)
    for case in ("las", "pir"):
        for postfix in ("seg", "uncertainty"):
            found = reoriented(predictions.result(case, postfix), "RAS")
            expected = reoriented(predictions.result("plain", postfix), "RAS")
            assert np.array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
            assert np.allclose(predictions.result(case).affine, predictions.image(case).affine)
    oblique = predictions.result("oblique")
    assert oblique.shape == plain.shape and np.allclose(oblique.affine, OBLIQUE, atol=1e-5)


def test_row_32_smaller_than_the_networks_input(predictions, tmp_path):
    for case in ("single_slice", "one_voxel"):
        assert predictions.result(case).shape == predictions.image(case).shape
        assert np.allclose(predictions.result(case).affine, predictions.image(case).affine)
    empty = save(tmp_path / "empty.nii", np.zeros((3, 0, 2), np.uint8))
    (finding,) = check_case(Case("a", (empty,)))
    assert finding.level == "error" and "(3, 0, 2): holds no voxels" in finding.message


def test_row_33_large_volume(monkeypatch, caplog):
    """Its size and time are told first, and no call of the denoiser holds more slices than a small one's."""
    monkeypatch.setattr("shared_components.training.progress.LARGE_IMAGE", 16 * 16 * 50)
    network = small_segmenter(num_samples=2, max_batch_size=8)
    sizes = []
    network.denoiser.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    loader = DataLoader(Dataset([{"image": torch.rand(1, 16, 16, depth)} for depth in (10, 50)]), batch_size=1)
    caplog.set_level("INFO")
    evaluator = CaseEvaluator(device="cpu", val_data_loader=loader, network=network, val_handlers=[RunProgress("test")])
    evaluator.run()
    assert max(sizes) <= 8
    (line,) = [line for line in caplog.messages if "voxels" in line]
    assert line.startswith("image of 16x16x50 voxels (0 million): about 0.")


def test_row_34_pictures_of_every_kind(tmp_path):
    colour, grey = some_picture(), some_picture(shape=(10, 12))
    load = LoadImageChannelsd("image", num_channels=3)

    def loaded(file: Path) -> np.ndarray:
        assert [f.level for f in check_case(Case("a", (file,)), None, 3, spatial_dims=2) if f.level == "error"] == []
        return load({"image": str(file)})["image"].numpy().transpose(2, 1, 0)

    alpha = np.concatenate([colour, grey[..., None]], axis=-1)
    (note,) = check_case(Case("a", (save_picture(tmp_path / "rgba.png", alpha),)), None, 3, spatial_dims=2)
    assert (note.level, note.kind) == ("warning", "alpha")
    assert np.array_equal(loaded(tmp_path / "rgba.png"), colour)
    palette = Image.fromarray(colour).quantize(16)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(loaded(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))
    deep = np.random.default_rng(1).integers(0, 1 << 16, (5, 7, 3)).astype(np.uint16)
    assert np.allclose(loaded(save_deep_png(tmp_path / "deep.png", deep)) * 257, deep, atol=0.01)
    Image.fromarray(grey > 127).save(tmp_path / "bit.png")
    assert np.array_equal(loaded(tmp_path / "bit.png")[..., 0] == 255, grey > 127)
    assert np.array_equal(loaded(save_picture(tmp_path / "grey.png", grey)), np.stack([grey] * 3, axis=-1))


def test_row_35_turned_by_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.add.outer(np.arange(16) * 9, np.arange(24) * 4).astype(np.uint8)
    save_picture(tmp_path / "images" / "a.jpg", stored, exif=exif, quality=95)
    upright, mask = stored[::-1].T, np.zeros((24, 16), np.uint8)
    mask[3:9, 2:5] = 255
    save_picture(tmp_path / "masks" / "a.png", mask)
    assert [f.kind for f in check_folder(find_cases(tmp_path)) if f.level != "note"] == ["exif"]
    loaded = LoadImageChannelsd("image")({"image": str(tmp_path / "images" / "a.jpg")})["image"]
    assert np.abs(loaded.numpy()[0].T - upright.astype(float)).max() <= 4
    save_picture(tmp_path / "masks" / "a.png", mask.T.copy())  # drawn on what is stored, not on what is shown
    (error,) = [f for f in check_folder(find_cases(tmp_path)) if f.level == "error"]
    assert error.file.endswith("a.png") and "rows and columns are swapped" in error.message


def test_row_36_paths_links_and_inputs_that_are_only_read(predictions):
    assert "späces" in str(predictions.images) and (predictions.images / "linked.nii.gz").is_symlink()
    assert np.array_equal(predictions.labels("linked"), predictions.labels("plain"))
    assert sorted(path.name for path in predictions.images.iterdir()) == predictions.found_before
    assert {name[: -len("_seg.nii.gz")] for name in files_below(predictions.output_dir) if "_seg" in name} == {
        name[: -len(".nii.gz")] for name in predictions.found_before
    }


def test_row_37_unwritable_output(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="output_dir .*file/out: .*cannot be written to"):
        check_settings(output_dir=tmp_path / "file" / "out")


def test_row_37_full_disk(tmp_path, monkeypatch):
    tensor = MetaTensor(torch.rand(1, 40, 40, 10), meta={"filename_or_obj": "a.nii.gz"})
    saver = SaveImage(tmp_path, "seg", separate_folder=False, writer=AtomicNibabelWriter, print_log=False)
    state = {"weight": torch.zeros(10000)}
    written = with_full_disk(lambda: save_atomically(state, tmp_path / "state.pt"))
    assert isinstance(written, InputError) and "state.pt: cannot be written (File too large)" in str(written)
    written = with_full_disk(lambda: write_atomically(tmp_path / "page.html", "x" * 10000))
    assert isinstance(written, InputError) and "page.html: cannot be written (File too large)" in str(written)
    assert isinstance(with_full_disk(lambda: saver(tensor)), RuntimeError)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("shared_components.bundle_tools.settings.LEAST_FREE_BYTES", 1 << 60)
    with pytest.raises(InputError, match=f"output_dir {tmp_path}: .* MB free, at least .* MB expected"):
        check_settings(output_dir=tmp_path)


def test_row_38_output_is_there(weights, tmp_path):
    folder, output_dir = tmp_path / "images", tmp_path / "out"
    output_dir.mkdir()
    (output_dir / "good_seg.nii.gz").write_bytes(b"earlier")
    save(folder / "good.nii.gz", small_phantom()[..., :2].copy())
    options = {"dataset_dir": str(folder), "output_dir": str(output_dir), "ckpt_path": str(weights)}
    line = refusal("inference", **NETWORK, **options)
    assert "good_seg.nii.gz is there already" in line and "overwrite" in line
    assert [(path.name, path.read_bytes()) for path in output_dir.glob("good*")] == [("good_seg.nii.gz", b"earlier")]
    run_here("inference", **NETWORK, **options, overwrite=True)
    assert nibabel.load(output_dir / "good_seg.nii.gz").shape == (24, 31, 2)


def test_row_39_duplicate_ids_and_the_same_image_in_two_sections(tmp_path):
    folder = msd_folder(tmp_path, case_names(10))
    shutil.copy(folder / "imagesTr" / "case_00.nii.gz", folder / "imagesTr" / "case_04.nii.gz")
    with pytest.raises(InputError, match="case_04.nii.gz: same image as case_00.nii.gz.* this one is in 'test'"):
        datalist(folder, "train")
    (folder / "imagesTr" / "case_04.nii.gz").unlink()
    save(folder / "imagesTr" / "case_04.nii.gz", some_image(99))
    save(folder / "imagesTr" / "case_04.nii", some_image(98))
    findings = [finding for finding in check_folder(find_cases(folder)) if finding.level == "error"]
    assert [(finding.case, finding.kind) for finding in findings] == [("case_04", "duplicate_id")]


class _Nothing(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([1 - image, image], dim=1)


def test_a_case_that_fails_in_the_middle_of_a_run_is_named_and_the_others_are_finished(tmp_path):
    """A file that was good when it was checked; after rows 24 to 26."""
    files = [str(save(tmp_path / f"{name}.nii.gz", some_image(1))) for name in "abc"]
    loader = DataLoader(Dataset([{"image": file} for file in files], LoadImageChannelsd("image")), batch_size=1)
    done = []
    evaluator = CaseEvaluator(device="cpu", val_data_loader=loader, network=_Nothing())
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: done.extend(engine.state.output))
    Path(files[1]).write_bytes(b"")
    evaluator.run()
    assert len(done) == 2 and len(evaluator.failures) == 1 and files[1] in evaluator.failures[0]
    for file in files:
        Path(file).unlink()
    with pytest.raises(InputError, match="none of 3 cases could be processed: .*a.nii.gz"):
        evaluator.run()
