"""Hold a stand-alone bundle folder against a real MONAI Label server that can reach only the loopback.

    python tests/monai_label/acceptance.py --bundle FOLDER --image X.nii.gz [--label Y.nii.gz] [--train]
    python tests/monai_label/acceptance.py --bundle FOLDER --image X.jpg [--label Y.png] [--train]

The folder is copied alone into the ``monaibundle`` app of a scratch folder; the server must list it, segment
the image by datastore id and by upload on the image's own grid, give the same anatomy for the same image
stored in another voxel order (a picture: turned, with an EXIF orientation), use the weights it was given, and,
with ``--train``, fine-tune for one epoch and segment again. Every problem is listed; the exit code is 1 if there is
one.

The server runs in the environment that ``MONAI_LABEL_VENV`` names, else in this Python's own; ``install.sh``
makes one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import requests
from label_server import Server, Unusable
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from PIL import ExifTags, Image

logger = logging.getLogger("acceptance")

CASES = 4


@dataclass
class Findings:
    """What is wrong with a bundle (``problems``), and what is only worth knowing (``notes``)."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def require(self, condition: bool, problem: str) -> bool:
        if not condition:
            logger.error("PROBLEM: %s", problem)
            self.problems.append(problem)
        return condition

    def note(self, text: str) -> None:
        logger.warning("note: %s", text)
        self.notes.append(text)


def is_picture(file: Path) -> bool:
    return file.suffix.lower() in (".png", ".jpg", ".jpeg", ".tif", ".bmp")


def read(file: Path) -> nib.Nifti1Image:
    """An image, a label map or an answer; a picture as (columns, rows[, channels]) on a grid of pixels."""
    if not is_picture(file):
        return nib.load(file)
    return nib.Nifti1Image(np.swapaxes(np.asarray(Image.open(file)), 0, 1), np.eye(4))


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Dice of two masks; two empty masks agree."""
    total = first.sum() + second.sum()
    return 1.0 if total == 0 else float(2 * np.logical_and(first, second).sum() / total)


def check_folder(bundle: Path, findings: Findings) -> None:
    """Step 1: what the server would stumble over without saying so."""
    dangling = [str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_symlink() and not path.exists()]
    findings.require(not dangling, f"dangling links: {dangling}")
    weights = sorted((path.name for path in (bundle / "models").glob("*.pt")), key=len)
    script = (bundle / "models" / "model.ts").exists()
    findings.require("model.pt" in weights or script, "models/ holds neither model.pt nor model.ts")
    if weights:
        # The server loads the shortest name of all, whatever the configuration says.
        findings.require(weights[0] == "model.pt", f"the server would load {weights[0]} in place of model.pt")


def check_info(server: Server, findings: Findings) -> dict[str, int]:
    """Step 4; returns the labels by name."""
    info = server.info()
    model = info.get("models", {}).get(server.name)
    if model is None:
        raise Unusable(f"/info does not list {server.name}: {server.tail()}")
    findings.require(model.get("type") == "segmentation", f"type is '{model.get('type')}', expected 'segmentation'")
    labels = model.get("labels", {})
    labels = labels if isinstance(labels, dict) else {name: index for index, name in enumerate(labels, 1)}
    findings.require(bool(labels), "/info gives no labels: outputs.pred.channel_def is absent or empty")
    if (server.bundle / "configs" / "train.json").exists():
        findings.require(server.name in info.get("trainers", {}), "/info lists no trainer although train.json exists")
    return labels


class Answers:
    """Asks for segmentations and holds each against the image: shape, affine, whole known values, Dice."""

    def __init__(self, server: Server, labels: dict[str, int], findings: Findings, least_dice: float) -> None:
        self.server, self.labels, self.findings, self.least_dice = server, labels, findings, least_dice

    def get(self, what: str, image: Path, label: Path | None = None, **request: Any) -> nib.Nifti1Image | None:
        if is_picture(image):  # a JPEG would be answered by a JPEG, which keeps no label values
            params = {"result_extension": ".png", **json.loads(request.get("params", "{}"))}
            request["params"] = json.dumps(params)
        try:
            content = self.server.infer(**request)
        except (requests.HTTPError, requests.Timeout) as error:
            self.findings.require(False, f"{what}: {error}")
            return None
        suffix = ".png" if is_picture(image) else ".nii.gz"
        file = self.server.scratch / f"answer_{len(list(self.server.scratch.glob('answer_*')))}{suffix}"
        file.write_bytes(content)
        answer = read(file)
        self._check(what, answer, read(image))
        if label is not None and answer.shape == read(label).shape:
            self._check_dice(what, answer, read(label))
        return answer

    def _check(self, what: str, answer: nib.Nifti1Image, image: nib.Nifti1Image) -> None:
        shape = image.shape[: answer.ndim] if answer.ndim < 3 else image.shape[:3]
        self.findings.require(answer.shape == shape, f"{what}: shape {answer.shape}, the image has {shape}")
        difference = np.abs(answer.affine - image.affine).max()
        self.findings.require(difference < 1e-3, f"{what}: affine differs from the image's by {difference:.3g}")
        values = np.unique(np.asanyarray(answer.dataobj)).tolist()
        known = {0, *self.labels.values()}
        self.findings.require(set(values) <= known, f"{what}: values {values[:10]} are not among {sorted(known)}")
        if values == [0]:
            self.findings.note(f"{what}: the mask is empty; untrained weights?")

    def _check_dice(self, what: str, answer: nib.Nifti1Image, label: nib.Nifti1Image) -> None:
        found, true = np.asanyarray(answer.dataobj), np.asanyarray(label.dataobj)
        if true.max() == 255 and len(self.labels) == 1:
            true = true // 255
        scores = {name: dice(found == index, true == index) for name, index in self.labels.items()}
        mean = float(np.mean(list(scores.values()))) if scores else 0.0
        text = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
        logger.info("%s: Dice %s", what, text)
        self.findings.require(mean >= self.least_dice, f"{what}: mean Dice {mean:.3f} < {self.least_dice} ({text})")


def check_reorientation(
    answers: Answers, image: Path, straight: nib.Nifti1Image, least_agreement: float, findings: Findings
) -> None:
    """Step 7: the same image in another voxel order must give the same anatomy, not only the right grid."""
    if is_picture(image):
        check_turned_picture(answers, image, straight, findings)
        return
    original = nib.load(image)
    order = "PSL" if nib.aff2axcodes(original.affine) != tuple("PSL") else "RAS"
    turned = original.as_reoriented(ornt_transform(io_orientation(original.affine), axcodes2ornt(order)))
    file = answers.server.scratch / "turned.nii.gz"
    nib.save(turned, file)
    answer = answers.get(f"the image stored as {order}", file, upload=file)
    if answer is None:
        return
    first, second = (np.asanyarray(nib.as_closest_canonical(one).dataobj) for one in (straight, answer))
    if not findings.require(first.shape == second.shape, f"stored as {order}: shape {second.shape} v {first.shape}"):
        return
    for name, index in answers.labels.items():
        agreement = dice(first == index, second == index)
        logger.info("stored as %s: %s agrees by Dice %.3f", order, name, agreement)
        findings.require(
            agreement >= least_agreement,
            f"stored as {order}: '{name}' has Dice {agreement:.3f} with the answer for the original, "
            f"expected at least {least_agreement}; is Invertd missing?",
        )


def check_turned_picture(answers: Answers, image: Path, straight: nib.Nifti1Image, findings: Findings) -> None:
    """Step 7 for a picture: with turned pixels and an EXIF orientation that undoes it, it is the same picture."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    pixels = np.asarray(Image.open(image))
    straight_file, file = (answers.server.scratch / f"{name}.png" for name in ("upright", "turned"))
    Image.fromarray(pixels).save(straight_file)  # lossless, as the turned one is
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(file, exif=exif)
    upright = answers.get("the picture as PNG", straight_file, upload=straight_file)
    answer = answers.get("the picture turned, with an EXIF orientation", straight_file, upload=file)
    if upright is not None and answer is not None:
        same = np.array_equal(np.asanyarray(upright.dataobj), np.asanyarray(answer.dataobj))
        findings.require(same, "the picture turned, with an EXIF orientation: another answer")


def weights_under(folder: Path) -> dict[str, str]:
    """Digest of every weights file under a folder."""
    files = [path for path in folder.rglob("*.pt") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check_training(server: Server, label: Path, findings: Findings) -> bool:
    """Step 9 up to the weights that training writes; returns whether it ended well."""
    for case in range(CASES):
        server.put_label(f"case_{case}", label)
    before = weights_under(server.bundle)
    try:
        server.train()
    except (requests.HTTPError, requests.Timeout) as error:
        return findings.require(False, f"training: {error}")
    after = weights_under(server.bundle)
    written = sorted(name for name, digest in after.items() if before.get(name) != digest)
    logger.info("training wrote %s", ", ".join(written) or "no weights")
    findings.require(bool(written), "training wrote no weights inside the bundle's folder")
    strays = sorted(path.name for path in server.work.iterdir())
    findings.require(not strays, f"training wrote outside the bundle's folder: {strays}")
    check_folder(server.bundle, findings)
    return True


def check_log(server: Server, findings: Findings) -> None:
    """Step 8: a wrong checkpoint is a warning in the log, and the server goes on with random weights."""
    log = server.log.read_text(errors="replace")
    mismatch = [line for line in log.splitlines() if "Checkpoint keys don't match" in line]
    findings.require(not mismatch, f"the weights are not this network's: {mismatch[:1]}")


def check_option(name: str, server: Server, findings: Findings) -> None:
    """The server builds the network once: an option reaches it only where the inferer hands it on."""
    try:
        server.infer(case="case_0", params=f'{{"{name}": 0}}')
    except (requests.HTTPError, requests.Timeout):
        return
    findings.require(False, f"the user's option '{name}' is not read: the value 0 was accepted")


def check_inference(
    answers: Answers, image: Path, label: Path | None, least_agreement: float, findings: Findings
) -> None:
    """Steps 5 to 7."""
    by_id = answers.get("inference by datastore id", image, label, case="case_0")
    answers.get("inference by upload", image, label, upload=image)
    try:
        said = answers.server.infer(case="case_0", output="json")
        findings.require(b"label_names" in said, f"output=json holds no label_names: {said[:200]!r}")
    except (requests.HTTPError, requests.Timeout) as error:
        findings.require(False, f"output=json: {error}")
    if "num_samples" in answers.server.info()["models"][answers.server.name].get("config", {}):
        answers.get("inference with one member", image, case="case_0", params='{"num_samples": 1}')
        check_option("num_samples", answers.server, findings)
    if by_id is not None:
        check_reorientation(answers, image, by_id, least_agreement, findings)


def accept(
    bundle: Path,
    image: Path,
    label: Path | None = None,
    train: bool = False,
    least_dice: float = 0.5,
    least_agreement: float = 0.95,
) -> Findings:
    """Run the whole procedure in a scratch folder and return what was found.

    Args:
        bundle: the stand-alone folder; its name becomes the model's name.
        image: a NIfTI image or a picture that the bundle segments.
        label: its label map, on the same grid; asks for a least Dice, and is what training learns from.
        train: fine-tune for one epoch on four copies of the case, and segment again.
        least_dice: least mean Dice over the labels, before training.
        least_agreement: least Dice per label between the answers for two voxel orders of one image.
    """
    findings = Findings()
    with tempfile.TemporaryDirectory(prefix="label_") as scratch:
        try:
            with Server(bundle.absolute(), image, Path(scratch), CASES if train else 1) as server:
                check_folder(server.bundle, findings)
                labels = check_info(server, findings)
                answers = Answers(server, labels, findings, least_dice)
                check_inference(answers, image, label, least_agreement, findings)
                if train and label is not None and check_training(server, label, findings):
                    # One epoch may cost accuracy: only the form of the answer is held to account.
                    answers.get("inference after training", image, case="case_1")
                check_log(server, findings)
        except Unusable as error:
            findings.require(False, str(error))
    return findings


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True, help="stand-alone bundle folder")
    parser.add_argument("--image", type=Path, required=True, help="NIfTI image or picture that the bundle segments")
    parser.add_argument("--label", type=Path, help="its label map")
    parser.add_argument("--train", action="store_true", help="fine-tune for one epoch; needs --label")
    parser.add_argument("--least_dice", type=float, default=0.5, help="least mean Dice with --label")
    parser.add_argument("--least_agreement", type=float, default=0.95, help="least Dice between two voxel orders")
    options = parser.parse_args()
    if options.train and options.label is None:
        parser.error("--train needs --label")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    findings = accept(**vars(options))
    logger.info("%s: %d problems, %d notes", options.bundle.name, len(findings.problems), len(findings.notes))
    return 1 if findings.problems else 0


if __name__ == "__main__":
    sys.exit(main())
