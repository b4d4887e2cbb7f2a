"""The commands that make, fill or run bundles."""

from __future__ import annotations

import sys

from fire.decorators import SetParseFn

from shared_components.commands.values import integer, number, truth


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
@SetParseFn(integer, "fold", "num_folds", "num_workers")
@SetParseFn(number, "memory")
@SetParseFn(truth, "skip_bad")
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


@SetParseFn(str, "bundle", "source", "output", "base", "overrides")
@SetParseFn(truth, "allow_missing_projections")
def import_checkpoint(bundle, source, output, *, allow_missing_projections=False, base=None, overrides=None):
    """Convert a checkpoint of a method's published code to a bundle's weights.

    Args:
        bundle: The bundle's folder.
        source: The published checkpoint.
        output: File to write, such as models/model.pt.
        allow_missing_projections: true: initialise tensors that no file of this revision holds; fine-tune then.
        base: Weights of an earlier import for the other part of the network, such as CDM's classifier.
        overrides: Keys in which the file's configuration differs, as JSON or a file of it: '{"num_channels": 4}'.
    """
    from shared_components.bundle_tools.import_checkpoint import import_checkpoint as run

    sys.stdout.write(f"{run(bundle, source, output, allow_missing_projections, base, overrides)}\n")


@SetParseFn(
    str, "bundle", "source_dir", "target_dir", "output_dir", "source_polarity", "target_polarity", "preset", "settings",
    "device",
)  # fmt: skip
@SetParseFn(integer, "longest_side", "target_longest_side", "seed")
@SetParseFn(truth, "target_labels", "overwrite")
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
