"""The words of an adapted bundle: metadata, model card, plan and the note on the data's licence."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from shared_components.bundle_tools.adaptation_plan import Choice, Task
from shared_components.data.fingerprint import Fingerprint
from shared_components.data.layouts.cases import CaseFolder
from shared_components.data.layouts.split import overlapping, sections

_KINDS = {"CT": "CT", "MR": "MR", "RGB": "colour", "grey": "grey"}
_FORMATS = {"CT": "hounsfield", "MR": "magnitude", "RGB": "RGB", "grey": "magnitude"}
_OVERLAYS = {
    "fast": "the members and steps that do for the bundle this one is made from; behind `evaluate.json` it tells what "
    "they cost here",
    "plain": "a plain network on the same data, without diffusion, to compare with",
    "plain_backbone": "the whole diffusion network, trained without diffusion, to compare with",
    "attention": "cDAL's discriminator, whose features weigh the loss",
}


def metadata(
    source: Mapping[str, Any],
    source_name: str,
    name: str,
    method: str,
    folder: CaseFolder,
    found: Fingerprint,
    task: Task,
) -> dict[str, Any]:
    """Return ``metadata.json``: the template's, with the data's channels, classes and names."""
    classes, what = list(task.classes), _what(found)
    listed = ", ".join(f"{number} {label}" for number, label in enumerate(["background", *classes]))
    meta = copy.deepcopy(dict(source))
    meta.update(
        version="0.1.0",
        changelog={"0.1.0": f"adapted from {source_name} {source['version']} to own data"},
        task=f"Segmentation of {', '.join(classes)} in {what}, by {method}",
        description=f"{method}, its settings derived by adapt_bundle from {found.num_cases} cases; see docs/plan.md.",
        authors="made by adapt_bundle of Diffusion Bundles for MONAI",
        copyright="Apache License 2.0 for the configurations; the data belong to their owner",
        data_source=f"own data: {folder.root.name}",
        data_type="PIL" if found.pictures else "nibabel",
        image_classes=f"channels: {', '.join(task.channels)}",
        label_classes=f"single channel: {listed}",
        pred_classes=f"{len(classes) + 1} channels of probability: {', '.join(['background', *classes])}",
        eval_metrics={},
        adapted_from={"bundle": source_name, "version": source["version"]},
    )
    meta["references"] = list(source.get("references", []))[:1]
    image = meta["network_data_format"]["inputs"]["image"]
    image.update(
        format=_FORMATS[found.modality],
        modality=found.modality if not found.pictures else "picture",
        num_channels=found.num_channels,
        value_range=[],
        channel_def={str(i): channel for i, channel in enumerate(task.channels)},
    )
    pred = meta["network_data_format"]["outputs"]["pred"]
    pred.update(
        num_channels=len(classes) + 1,
        channel_def={str(i): label for i, label in enumerate(["background", *classes])},
    )
    return meta


def plan_page(name: str, source_name: str, folder: CaseFolder, found: Fingerprint, choices: Sequence[Choice]) -> str:
    """Return ``docs/plan.md``: what was measured, and every setting with its reason."""
    rows = [f"| `{c.key}` | `{_code(c.value)}` | {_cell(c.reason)} |" for c in choices]
    parts = {section: len(ids) for section, ids in sections(folder).items()}
    shared = overlapping(sections(folder))
    warning = (
        f"\n**{shared} repeats the training cases, for want of patients: its scores mean nothing.**\n" if shared else ""
    )
    return f"""# How {name} was derived

`adapt_bundle` measured {found.num_cases} cases of `{folder.root.name}` (layout "{found.layout}") and set the keys
below in `configs/train.json`, and in `configs/inference.json` where it has them. Everything else is as in
{source_name}. Every key can be changed there, or on the command line.

## What was measured

{fingerprint_table(found)}

All figures: `docs/fingerprint.json`.

## What was chosen, and why

| key | value | reason |
| --- | --- | --- |
{chr(10).join(rows)}

## Sections

{", ".join(f"{section} {count}" for section, count in parts.items())} cases; their ids are in `docs/fingerprint.json`.
{warning}"""


def fingerprint_table(found: Fingerprint) -> str:
    """Return the fingerprint as a Markdown table."""
    axes = ("columns", "rows") if found.pictures else ("left-right", "posterior-anterior", "inferior-superior")
    sizes = "; ".join(
        f"{axis} {low:g} to {high:g}, median {mid:g}" for axis, (low, mid, high) in zip(axes, found.sizes)
    )
    steps = "; ".join(
        f"{axis} {low:.3g} to {high:.3g}, median {mid:.3g}" for axis, (low, mid, high) in zip(axes, found.spacings)
    )
    lines = {
        "cases": f"{found.num_cases}, {found.num_labelled} with a label",
        "size (pixels)" if found.pictures else "size (voxels)": sizes,
        "voxel size (mm)": steps,
        "modality": f"{found.modality}: {found.modality_source}",
        "slices": ", ".join(f"{axis} {n}" for axis, n in zip(axes, found.num_slices)) if not found.pictures else "",
        "exactly 0": f"{100 * found.zero_share:.1f} % of the voxels",
    }
    for kind, figures in (("all voxels", found.intensities), ("labelled voxels", found.foreground)):
        for channel, values in enumerate(figures):
            lines[f"channel {channel}, {kind}"] = (
                f"mean {values['mean']:.4g}, deviation {values['std']:.4g}, 0.5 to 99.5 percentile "
                f"{values['p0_5']:.4g} to {values['p99_5']:.4g}"
            )
    for item in found.classes:
        lines[f"label value {item.value}"] = (
            f"in {item.num_cases} cases, {100 * item.share_of_labelled:.3g} % of the labelled and "
            f"{100 * item.share_of_all:.3g} % of all voxels"
        )
    rows = [f"| {key} | {_cell(value)} |" for key, value in lines.items() if value]
    return "\n".join(["| | |", "| --- | --- |", *rows])


def model_card(
    name: str,
    source_name: str,
    method: str,
    folder: CaseFolder,
    found: Fingerprint,
    task: Task,
    train: Mapping[str, Any],
    configs: Sequence[str],
    reference: str,
) -> str:
    """Return ``docs/README.md``."""
    classes = ", ".join(task.classes)
    parts = sections(folder)
    shared = overlapping(parts)
    repeated = f" The {shared} part repeats the training cases, so its scores mean nothing." if shared else ""
    patients = task.patient_rule or "every case is one"
    overlays = [f"* `{key}.json`: {text}." for key, text in _OVERLAYS.items() if key in configs]
    run, path = "python -m monai.bundle run --config_file", f"{name}/configs"
    several = "torchrun --standalone --nnodes=1 --nproc_per_node=2 -m monai.bundle run --config_file"
    given = f"--ckpt_file {name}/models/model.pt --meta_file {path}/metadata.json --config_file {path}/inference.json"
    export = f"python -m monai.bundle ckpt_export --net_id network_def --filepath model.ts {given}"
    evaluate = f"\"['{path}/train.json','{path}/evaluate.json']\""
    return f"""# {name}

## Overview

Segments {classes} in {_what(found)}, by {method}: {source_name} of Diffusion Bundles for MONAI with settings that
`adapt_bundle` derived from the data. What was measured and why each setting is what it is: `docs/plan.md`.

Research only; not a medical device. **There are no weights yet**: train first.

## Data

{found.num_cases} cases of `{folder.root.name}`: {len(parts["train"])} to train, {len(parts["validation"])} to
validate and {len(parts["test"])} to test ({task.split_source}; patients: {patients}).{repeated} Their licence:
`docs/data_license.txt`.

## Training configuration

`configs/train.json`: {train["max_epochs"]} epochs, batches of {train["batch_size"]}, learning rate
{train["learning_rate"]}, seed {train["seed"]}. `--fold 1` and so on validate on other patients.

## Input

{found.num_channels} channel{"s" if found.num_channels > 1 else ""}: {", ".join(task.channels)}. Preparation is part
of the bundle.

## Output

Probabilities of background, {classes}. `inference.json` writes label maps with the class numbers of
`configs/metadata.json`, the uncertainty, and an overlay of each case.

## Performance

Not measured yet. `evaluate.json` writes Dice, distances, calibration (ECE) and how well the uncertainty finds errors
(AUROC) of the test cases to `output/{folder.root.name}/evaluation`, with a page to look at.

## Commands

From the folder that holds `{name}`; from inside it with `configs/...`; from elsewhere with the path, or with
`--bundle_root`.

```bash
{run} {path}/train.json --dataset_dir DATA
{run} {path}/train.json --dataset_dir DATA --resume True
{several} "['{path}/train.json','{path}/multi_gpu_train.json']" --dataset_dir DATA
cp {name}/output/DATA/model.pt {name}/models/model.pt
{run} {evaluate} --dataset_dir DATA
{run} {path}/inference.json --dataset_dir IMAGES --output_dir out
{export}
python -m shared_components export_bundle --bundle {name} --output dist/{name}
monailabel start_server --app apps/monaibundle --studies STUDIES --conf models {name} --conf zoo_source ngc
```

`DATA` is `{folder.root.name}`. Overlays, the second configuration after `train.json`; `evaluate.json` comes last:

{chr(10).join(overlays)}

## References

{reference}

## License

Configurations: Apache License 2.0. Data and weights: `docs/data_license.txt`.
"""


def data_licence(folder: CaseFolder) -> str:
    """Return ``docs/data_license.txt``."""
    meta = folder.root / "dataset.json"
    try:
        content = json.loads(meta.read_text(encoding="utf-8-sig")) if meta.is_file() else {}
    except ValueError:
        content = {}
    licence = content.get("licence", content.get("license"))
    said = f"dataset.json states the licence: {licence}." if licence else "Nothing in the folder states a licence."
    return (
        f"Data set: {folder.root.name}\n{said}\n"
        "Weights that are trained on these data, and the pictures of a report, may be used and passed on only as the\n"
        "owner of the data allows. Complete this note before the bundle leaves your hands.\n"
    )


def _what(found: Fingerprint) -> str:
    return f"{_KINDS[found.modality]} {'pictures' if found.pictures else 'volumes'}"


def _code(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("|", "\\|").replace("`", "'")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
