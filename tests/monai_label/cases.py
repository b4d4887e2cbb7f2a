"""What each bundle is shown in MONAI Label: a case that its weights have not seen, and how well they must do on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from shared_components.data.phantoms import phantom_case

REPOSITORY = Path(__file__).resolve().parent.parent.parent
BUNDLES = [
    path.parent.parent
    for path in sorted(REPOSITORY.glob("bundles/*/configs/metadata.json"))
    # MONAI Label asks for segmentations: bundles that generate images are not for it
    if json.loads(path.read_text(encoding="utf-8"))["network_data_format"]["outputs"]["pred"]["type"] != "image"
]
# Image, label map and the least mean Dice that tells the bundle's weights from random ones.
REAL = {
    "cdal_hippocampus": (
        "Task04_Hippocampus/imagesTr/hippocampus_008.nii.gz",
        "Task04_Hippocampus/labelsTr/hippocampus_008.nii.gz",
        0.75,
    ),
    "cdal_lung_cxr": (
        "noncommercial/COVID_CXR/images/pneumocystis_pneumonia_12.png",
        "noncommercial/COVID_CXR/masks_lung/pneumocystis_pneumonia_12.png",
        0.9,
    ),
    "cdal_monuseg": (
        "noncommercial/MoNuSeg2018/Test/img/TCGA-GL-6846-01A-01-BS1.png",
        "noncommercial/MoNuSeg2018/Test/mask/TCGA-GL-6846-01A-01-BS1.png",
        0.6,
    ),
    "cdm_brats": (
        "noncommercial/BRATS2015_slices/flair/2013_pat0006_z108.png",
        "noncommercial/BRATS2015_slices/seg/2013_pat0006_z108.png",
        0.5,
    ),
    **dict.fromkeys(
        ("medsegdiff_isic", "medsegdiff_v2_isic"),
        (
            "ISIC2017/images_256/ISIC_0000046.jpg",
            "ISIC2017/masks_256/ISIC_0000046_segmentation.png",
            0.6,
        ),
    ),
}
MERGED = ("cdm_brats",)  # whose network has one class for all values of the label map


def _write_sequences(folder: Path) -> tuple[Path, Path]:
    """A phantom of two sequences as one 4-D file, and its label map."""
    flair, t1c, label = phantom_case(0, 3, "tumour")
    image = np.stack([flair, t1c], axis=-1).astype(np.float32)
    for name, content in (("image", image), ("label", label)):
        nib.save(nib.Nifti1Image(content, np.eye(4)), folder / f"{name}.nii.gz")
    return folder / "image.nii.gz", folder / "label.nii.gz"


def _write_picture(kind: str) -> Callable[[Path], tuple[Path, Path]]:
    """The first phantom of a kind that is not empty, and its mask, as PNG."""

    def write(folder: Path) -> tuple[Path, Path]:
        cases = (phantom_case(0, index, kind) for index in range(20))
        image, mask = next(case for case in cases if case[1].any())
        for name, content in (("image", image), ("label", mask)):
            Image.fromarray(content).save(folder / f"{name}.png")
        return folder / "image.png", folder / "label.png"

    return write


# Where no real image has a label map of these classes: phantoms. Most weights know none, so no Dice is asked for.
DRAWN = {
    "adaptdiff_octa": _write_picture("octa"),
    "cdm_abdomen": _write_picture("kidney_slices"),
    "medsegdiff_brats": _write_sequences,
}


def write_case(bundle: str, real_data: Path, folder: Path) -> tuple[Path, Path, float]:
    """Return image, label map and least Dice of a bundle; what is drawn or changed is written into ``folder``."""
    if bundle in DRAWN:
        return *DRAWN[bundle](folder), 0.0
    image, label, least_dice = REAL[bundle]
    if bundle not in MERGED:
        return real_data / image, real_data / label, least_dice
    merged = folder / Path(label).name
    Image.fromarray((np.asarray(Image.open(real_data / label)) > 0).astype(np.uint8)).save(merged)
    return real_data / image, merged, least_dice
