"""The commands that read or make folders of images."""

from __future__ import annotations

import logging
import sys

from fire.decorators import SetParseFn

from shared_components.commands.values import integer, number, numbers, truth


@SetParseFn(str, "dataset_dir", "report", "skip_bad", "label_column", "patient_pattern")
@SetParseFn(integer, "num_workers", "num_channels", "spatial_dims", "channel")
@SetParseFn(number, "affine_tolerance")
@SetParseFn(truth, "fill_nonfinite")
def check_data(
    dataset_dir,
    *,
    labels=None,
    channels=None,
    report=None,
    skip_bad=None,
    num_workers=None,
    affine_tolerance=0.1,
    label_column=None,
    num_channels=None,
    spatial_dims=None,
    fill_nonfinite=False,
    channel=None,
    patient_pattern=None,
):
    """List every problem of every case of a data folder; exit code 1 if there is an error.

    Understands MSD and nnU-Net folders, a manifest.csv, images/ beside labels/ or masks/, folders a class (normal/ and
    tumor/, in training/ and validation/ or directly, with seg/), and a folder of images alone.

    Args:
        dataset_dir: The folder.
        labels: Label values beside 0, as "1,2" or "{'anterior': 1, 'posterior': 2}". Default: dataset.json's.
        channels: Number of image channels, or their names as "T1,T2". Default: dataset.json's.
        report: JSON file to write the findings to.
        skip_bad: Folder to make, a dataset_dir without the bad cases; or a JSON file to list the good ones in.
        num_workers: Threads. Default: the number of CPU cores, at most 8.
        affine_tolerance: How far apart image and label may place the same corner voxel, in mm.
        label_column: The manifest's column of label files. Default: label, mask, seg or segmentation.
        num_channels: Image channels that the model takes, where channels does not say.
        spatial_dims: 2 or 3. Default: 2 if most cases are pictures (PNG, JPEG, TIFF), else 3.
        fill_nonfinite: true: images with NaN or infinite voxels are filled copies in the folder skip_bad.
        channel: The one that a model of one channel is shown, of files with several; counted from 0.
        patient_pattern: Regular expression that finds the patient in a case id; one who lies in two sections is an
            error.
    """
    from shared_components.data.checks.check_data import check_data as run

    findings = run(
        dataset_dir,
        labels,
        channels,
        report,
        skip_bad,
        num_workers,
        affine_tolerance,
        label_column,
        num_channels,
        spatial_dims,
        fill_nonfinite,
        channel,
        patient_pattern,
    )
    if any(finding.level == "error" for finding in findings):
        sys.exit(1)


@SetParseFn(str, "output_dir", "kind")
@SetParseFn(integer, "num_cases", "seed")
def make_phantoms(output_dir, *, num_cases=24, seed=0, kind="hippocampus"):
    """Write a small synthetic data set, to try everything without patient data.

    Args:
        output_dir: Folder to make.
        num_cases: At least 3.
        seed: Another seed gives other images.
        kind: hippocampus, organs, tumour (volumes), breast, fundus, kidney_slices, lesion, lungs, nuclei, octa or
            tumour_slices (pictures).
    """
    from shared_components.data.phantoms import make_phantoms as run

    sys.stdout.write(f"{run(output_dir, num_cases, seed, kind)}\n")


@SetParseFn(str, "dataset_dir", "output_dir")
@SetParseFn(integer, "channel", "every")
@SetParseFn(number, "min_share", "min_body")
@SetParseFn(numbers, "values", "window")
@SetParseFn(str, "labels_of", "channels")
def prepare_slices(
    dataset_dir, output_dir, *, values=(1,), channel=None, channels=None, window=None, min_share=0.01, min_body=0.05,
    every=1, labels_of="slice"
):  # fmt: skip
    """Write the axial slices of labelled volumes as pictures with image-level labels in a manifest.csv.

    Args:
        dataset_dir: Folder of volumes with label maps (CHAOS and BTCV as they are shipped, too), or of a manifest.csv
            with a label a volume.
        output_dir: Folder to make.
        values: Label values that are the object, such as 1,2,4; merged.
        channel: Index of the image channel. Default: the one that channels names, else the first.
        channels: Name of the image channel, as dataset.json, a manifest's column or the files have it.
        window: Lowest and highest grey value, such as -160,240 for CT. Default: percentiles of what is not zero.
        min_share: Share of the body from which on the object makes a slice positive; with less it is left out.
        min_body: Share of a slice that must be body.
        every: Take every n-th slice.
        labels_of: slice: a slice is positive by the label map; volume: all slices have the label of their volume.
    """
    from shared_components.data.slice_folder import prepare_slices as run

    wanted = [int(value) for value in values]
    folder = run(dataset_dir, output_dir, wanted, channel, window, min_share, min_body, every, labels_of, channels)
    sys.stdout.write(f"{folder}\n")


@SetParseFn(str, "source", "output")
def prepare_ct_organs(source, output):
    """Make a folder for segguided_ct_organs of TotalSegmentator's data.

    Args:
        source: Folder of the subjects' folders.
        output: Folder to make.
    """
    from shared_components.data.preparation.synthesis import prepare_ct_organs as run

    sys.stdout.write(f"{run(source, output)}\n")


@SetParseFn(str, "source", "output")
@SetParseFn(integer, "size", "axis")
@SetParseFn(number, "least_share")
def prepare_breast_mri(source, output, *, size=256, axis=2, least_share=0.01):
    """Cut labelled volumes into pictures for segguided_breast_mri.

    Args:
        source: Folder with imagesTr and labelsTr, a NIfTI volume a patient.
        output: Folder to make.
        size: Longest side of the pictures.
        axis: Slicing axis of the volumes in RAS order.
        least_share: Share of a slice that must be labelled.
    """
    from shared_components.data.preparation.synthesis import prepare_breast_mri as run

    sys.stdout.write(f"{run(source, output, size, axis, least_share)}\n")


@SetParseFn(str, "img_dir", "seg_dir", "output")
def prepare_mask_types(img_dir, seg_dir, output):
    """Merge the kinds of masks in the folders of the published segmentation-guided diffusion.

    Args:
        img_dir: Folder with train, val and test of images.
        seg_dir: Folder with a folder of train, val and test for each kind of mask.
        output: Folder to make.
    """
    from shared_components.data.preparation.synthesis import prepare_mask_types as run

    sys.stdout.write(f"{run(img_dir, seg_dir, output)}\n")


@SetParseFn(str, "source", "output_dir")
def import_pickle(source, output_dir):
    """Make folders of pictures out of a pickled dictionary of data sets, as the published AdaptDiff keeps them.

    Args:
        source: The pickled dictionary of arrays; a file with anything else in it is refused, and nothing in it is run.
        output_dir: Folder to make; each data set gets images/ and masks/ in a folder of its own.
    """
    from shared_components.data.preparation.pickled import import_pickle as run

    sys.stdout.write("".join(f"{folder}\n" for folder in run(source, output_dir)))


@SetParseFn(str, "dataset_dir", "output_dir")
@SetParseFn(number, "speckle")
@SetParseFn(integer, "seed")
def simulate_angiograms(dataset_dir, output_dir, *, speckle=0.4, seed=0):
    """Make a folder of bright vessels on a dark, speckled ground out of labelled fundus photographs.

    Args:
        dataset_dir: Colour photographs with masks of vessels.
        output_dir: Folder to make.
        speckle: Standard deviation of the factor that every pixel is multiplied by.
        seed: Of the speckle.
    """
    from shared_components.adaptation.mask_check import about_masks
    from shared_components.data.preparation.simulated_angiograms import simulate_angiograms as run

    for text in about_masks(dataset_dir, "dark"):
        logging.getLogger(__name__).warning("%s", text)
    sys.stdout.write(f"{run(dataset_dir, output_dir, speckle, seed)}\n")
