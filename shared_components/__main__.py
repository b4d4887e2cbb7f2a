"""The command line: ``python -m shared_components COMMAND --option value``."""

from __future__ import annotations

import inspect
import logging
import re
import signal
import sys
from collections.abc import Callable
from difflib import get_close_matches

from fire import Fire
from fire.core import FireExit
from fire.decorators import SetParseFn

from shared_components.errors import InputError, install_one_line_errors

_NAME = "python -m shared_components"
_HELP_FLAGS = ("--help", "-h", "help")


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"found '{text}', expected a whole number") from None


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise InputError(f"found '{text}', expected true or false")
    return text.lower() == "true"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"found '{text}', expected a number") from None


@SetParseFn(str, "dataset_dir", "report", "skip_bad", "label_column")
@SetParseFn(_integer, "num_workers", "num_channels", "spatial_dims", "channel")
@SetParseFn(_number, "affine_tolerance")
@SetParseFn(_truth, "fill_nonfinite")
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
):
    """List every problem of every case of a data folder; exit code 1 if there is an error.

    Understands MSD and nnU-Net folders, a manifest.csv, images/ beside labels/ or masks/, and a folder of images alone.

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
    """
    from shared_components.data.check_data import check_data as run

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
    )
    if any(finding.level == "error" for finding in findings):
        sys.exit(1)


@SetParseFn(str, "output_dir", "kind")
@SetParseFn(_integer, "num_cases", "seed")
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


@SetParseFn(str, "bundle", "output")
def export_bundle(bundle, output):
    """Make a bundle that works alone, with the needed part of shared_components inside it.

    Args:
        bundle: The bundle's folder, such as bundles/cdal_hippocampus.
        output: Folder to make, or a name that ends in .zip.
    """
    from shared_components.bundle_tools.export import export_bundle as run

    sys.stdout.write(f"{run(bundle, output)}\n")


@SetParseFn(str, "from_", "dataset_dir", "name", "output", "label_column", "patient_pattern", "device")
@SetParseFn(_integer, "fold", "num_folds", "num_workers")
@SetParseFn(_number, "memory")
@SetParseFn(_truth, "skip_bad")
def adapt_bundle(
    from_,
    dataset_dir,
    name,
    *,
    output=None,
    labels=None,
    channels=None,
    label_column=None,
    patient_pattern=None,
    fold=None,
    num_folds=5,
    device=None,
    memory=None,
    skip_bad=False,
    num_workers=None,
):
    """Make a new bundle for a folder of labelled images, its settings derived from them; docs/plan.md says why.

    Args:
        from_: A segmentation bundle to start from, such as cdal_hippocampus (volumes) or cdal_monuseg (pictures).
        dataset_dir: The folder. What check_data understands, this does.
        name: Of the new bundle: letters, digits and underscores.
        output: Folder to make. Default: bundles/NAME, or NAME where there is no folder bundles.
        labels: Classes: names as "liver,spleen", or values as "{'kidneys': [2, 3]}". Default: all.
        channels: Names of the image channels as "T1,T2" (columns of a manifest, files of a case), or their number.
        label_column: The column or file of labels, where its name does not say.
        patient_pattern: Regular expression that finds the patient in a case id. Default: printed.
        fold: Part of the patients that validates. Default: 0.
        num_folds: How many parts.
        device: cpu or cuda: what it is to be trained on. Default: CUDA if there is one.
        memory: GiB that a training may take. Default: four fifths of the GPU's, or half of the machine's.
        skip_bad: true: leave out cases that cannot be used.
        num_workers: Threads. Default: the number of CPU cores, at most 8.
    """
    from shared_components.bundle_tools.adapt_bundle import adapt_bundle as run

    made = run(
        from_, dataset_dir, name, output, labels, channels, label_column, patient_pattern, fold, num_folds, device,
        memory, skip_bad, num_workers,
    )  # fmt: skip
    sys.stdout.write(f"{made}\n")


@SetParseFn(str, "bundle", "source", "output", "base")
@SetParseFn(_truth, "allow_missing_projections")
def import_checkpoint(bundle, source, output, *, allow_missing_projections=False, base=None):
    """Convert a checkpoint of a method's published code to a bundle's weights.

    Args:
        bundle: The bundle's folder.
        source: The published checkpoint.
        output: File to write, such as models/model.pt.
        allow_missing_projections: true: initialise tensors that no file of this revision holds; fine-tune then.
        base: Weights of an earlier import for the other part of the network, such as CDM's classifier.
    """
    from shared_components.bundle_tools.import_checkpoint import import_checkpoint as run

    sys.stdout.write(f"{run(bundle, source, output, allow_missing_projections, base)}\n")


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.strip("[]()").split(",")]
    except ValueError:
        raise InputError(f"found '{text}', expected numbers such as 1,2") from None


@SetParseFn(str, "dataset_dir", "output_dir")
@SetParseFn(_integer, "channel", "every")
@SetParseFn(_number, "min_share", "min_body")
@SetParseFn(_numbers, "values", "window")
@SetParseFn(str, "labels_of")
def prepare_slices(
    dataset_dir, output_dir, *, values=(1,), channel=0, window=None, min_share=0.01, min_body=0.05, every=1,
    labels_of="slice"
):  # fmt: skip
    """Write the axial slices of labelled volumes as pictures with image-level labels in a manifest.csv.

    Args:
        dataset_dir: Folder of volumes with label maps, or of a manifest.csv with a label a volume.
        output_dir: Folder to make.
        values: Label values that are the object, such as 1,2,4; merged.
        channel: Index of the image channel.
        window: Lowest and highest grey value, such as -160,240 for CT. Default: percentiles of what is not zero.
        min_share: Share of the body from which on the object makes a slice positive; with less it is left out.
        min_body: Share of a slice that must be body.
        every: Take every n-th slice.
        labels_of: slice: a slice is positive by the label map; volume: all slices have the label of their volume.
    """
    from shared_components.data.slice_folder import prepare_slices as run

    wanted = [int(value) for value in values]
    folder = run(dataset_dir, output_dir, wanted, channel, window, min_share, min_body, every, labels_of)
    sys.stdout.write(f"{folder}\n")


@SetParseFn(str, "source", "output")
def prepare_ct_organs(source, output):
    """Make a folder for segguided_ct_organs of TotalSegmentator's data.

    Args:
        source: Folder of the subjects' folders.
        output: Folder to make.
    """
    from shared_components.data.prepare_synthesis import prepare_ct_organs as run

    sys.stdout.write(f"{run(source, output)}\n")


@SetParseFn(str, "source", "output")
@SetParseFn(_integer, "size", "axis")
@SetParseFn(_number, "least_share")
def prepare_breast_mri(source, output, *, size=256, axis=2, least_share=0.01):
    """Cut labelled volumes into pictures for segguided_breast_mri.

    Args:
        source: Folder with imagesTr and labelsTr, a NIfTI volume a patient.
        output: Folder to make.
        size: Longest side of the pictures.
        axis: Slicing axis of the volumes in RAS order.
        least_share: Share of a slice that must be labelled.
    """
    from shared_components.data.prepare_synthesis import prepare_breast_mri as run

    sys.stdout.write(f"{run(source, output, size, axis, least_share)}\n")


@SetParseFn(str, "img_dir", "seg_dir", "output")
def prepare_mask_types(img_dir, seg_dir, output):
    """Merge the kinds of masks in the folders of the published segmentation-guided diffusion.

    Args:
        img_dir: Folder with train, val and test of images.
        seg_dir: Folder with a folder of train, val and test for each kind of mask.
        output: Folder to make.
    """
    from shared_components.data.prepare_synthesis import prepare_mask_types as run

    sys.stdout.write(f"{run(img_dir, seg_dir, output)}\n")


@SetParseFn(str, "source", "output_dir")
def import_pickle(source, output_dir):
    """Make folders of pictures out of a pickled dictionary of data sets, as the published AdaptDiff keeps them.

    Args:
        source: The pickled dictionary of arrays; a file with anything else in it is refused, and nothing in it is run.
        output_dir: Folder to make; each data set gets images/ and masks/ in a folder of its own.
    """
    from shared_components.data.pickled import import_pickle as run

    sys.stdout.write("".join(f"{folder}\n" for folder in run(source, output_dir)))


@SetParseFn(str, "dataset_dir", "output_dir")
@SetParseFn(_number, "speckle")
@SetParseFn(_integer, "seed")
def simulate_angiograms(dataset_dir, output_dir, *, speckle=0.4, seed=0):
    """Make a folder of bright vessels on a dark, speckled ground out of labelled fundus photographs.

    Args:
        dataset_dir: Colour photographs with masks of vessels.
        output_dir: Folder to make.
        speckle: Standard deviation of the factor that every pixel is multiplied by.
        seed: Of the speckle.
    """
    from shared_components.data.simulated_angiograms import simulate_angiograms as run

    sys.stdout.write(f"{run(dataset_dir, output_dir, speckle, seed)}\n")


@SetParseFn(
    str, "bundle", "source_dir", "target_dir", "output_dir", "source_polarity", "target_polarity", "preset", "settings",
    "device",
)  # fmt: skip
@SetParseFn(_integer, "longest_side", "target_longest_side", "seed")
@SetParseFn(_truth, "target_labels", "overwrite")
def run_stages(
    bundle,
    *,
    source_dir=None,
    target_dir=None,
    output_dir=None,
    source_polarity="dark",
    target_polarity="bright",
    longest_side=None,
    target_longest_side=None,
    target_labels=None,
    preset="default",
    settings=None,
    device=None,
    seed=0,
    overwrite=False,
):
    """Adapt a vessel segmenter to another modality, all stages in one run that can be interrupted; ends with a report.

    Finished stages are left out when the same command is given again.

    Args:
        bundle: The bundle's folder, bundles/adaptdiff_octa.
        source_dir: Pictures with masks of vessels. Default, without target_dir: phantoms of both.
        target_dir: Pictures of the other modality; their masks are not read unless target_labels says so.
        output_dir: Folder of the run. Default: output/stages in the bundle.
        source_polarity: dark or bright: what vessels are in the source.
        target_polarity: dark or bright: what vessels are in the target.
        longest_side: Pixels that the longer side of all pictures is brought to. Default: as they are.
        target_longest_side: The same for the target's pictures, where another size makes vessels equally wide.
        target_labels: true: the target has masks of vessels; score with them, and train the ceiling.
        preset: default, or paper for the published networks and settings.
        settings: JSON file of overrides by stage, such as {"diffusion": {"max_epochs": 10}}.
        device: Of all stages. Default: CUDA if there is one.
        seed: Of all stages.
        overwrite: true: run stages anew whose settings or inputs changed.
    """
    from shared_components.adaptation.stages import run_stages as run

    report = run(
        bundle,
        source_dir,
        target_dir,
        output_dir,
        source_polarity,
        target_polarity,
        longest_side,
        target_longest_side,
        target_labels,
        preset,
        settings,
        device,
        seed,
        overwrite,
    )
    sys.stdout.write(f"{report}\n")


COMMANDS: dict[str, Callable] = {
    function.__name__: function
    for function in (
        check_data,
        make_phantoms,
        export_bundle,
        adapt_bundle,
        import_checkpoint,
        prepare_ct_organs,
        prepare_breast_mri,
        prepare_mask_types,
        import_pickle,
        prepare_slices,
        simulate_angiograms,
        run_stages,
    )
}


def main(arguments: list[str]) -> None:
    """Run the command that ``arguments`` (those after the program's name) ask for.

    Raises:
        InputError: no such command, no such option, or what the command itself finds wrong.
        SystemExit: with code 0 after help, 1 or 2 after an error already told.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    if not arguments or arguments[0] in _HELP_FLAGS:
        sys.stdout.write(_overview())
        sys.exit(0 if arguments else 2)
    name, *options = arguments
    if name not in COMMANDS:
        raise InputError(f"no command '{name}'{_nearest(name, COMMANDS)}; commands: {', '.join(COMMANDS)}")
    if any(option in _HELP_FLAGS[:2] for option in options):
        sys.stdout.write(_command_help(name))
        return
    options = [re.sub(r"^--from(?==|$)", "--from_", option) for option in options]  # a word of Python's own
    _check_options(name, options)
    try:
        Fire(COMMANDS[name], command=options, name=f"{_NAME} {name}")
    except FireExit as error:
        sys.exit(error.code)


def _overview() -> str:
    lines = [
        f"  {name:<18} {inspect.getdoc(function).splitlines()[0]}" for name, function in COMMANDS.items()
    ]
    return "\n".join(
        [f"usage: {_NAME} COMMAND --option value", "", *lines, "", "COMMAND --help tells its options.", ""]
    )


def _command_help(name: str) -> str:
    parameters = inspect.signature(COMMANDS[name]).parameters.values()
    usage = [
        f"--{_shown(p.name)} {_shown(p.name).upper()}" if p.default is p.empty else f"[--{p.name} {p.name.upper()}]"
        for p in parameters
    ]
    text = inspect.getdoc(COMMANDS[name]).replace("    from_:", "    from:")
    return f"usage: {_NAME} {name} {' '.join(usage)}\n\n{text}\n"


def _shown(parameter: str) -> str:
    return parameter.rstrip("_")


def _check_options(name: str, options: list[str]) -> None:
    """Refuse what the command does not know and what it lacks, before it runs."""
    parameters = inspect.signature(COMMANDS[name]).parameters
    given: list[str] = []
    num_positional = 0
    awaiting = ""
    for option in [*options, "--"]:
        if option.startswith("--") and awaiting:
            raise InputError(f"{name}: --{awaiting} needs a value")
        if option.startswith("--") and option != "--":
            key, equals, _ = option[2:].partition("=")
            key = key.replace("-", "_")
            if key not in parameters:
                known = ", ".join(f"--{_shown(parameter)}" for parameter in parameters)
                raise InputError(
                    f"{name}: no option '--{key}'{_nearest(key, parameters, '--')}; options: {known}"
                )
            given.append(key)
            awaiting = "" if equals else key
        elif awaiting:
            awaiting = ""
        else:
            num_positional += option != "--"
    positional = [
        p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in given
    ]
    if num_positional > len(positional):
        raise InputError(f"{name}: {num_positional} values without a name; write --option value")
    required = [p.name for p in parameters.values() if p.default is p.empty and p.name not in given]
    if missing := required[num_positional:]:
        raise InputError(f"{name}: --{_shown(missing[0])} is missing; {_NAME} {name} --help tells the options")


def _nearest(name: str, known, prefix: str = "") -> str:
    matches = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{prefix}{matches[0]}'?" if matches else ""


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    install_one_line_errors()
    main(sys.argv[1:])
