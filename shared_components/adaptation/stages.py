"""All stages of AdaptDiff as one run that can be interrupted: train, weakly label, generate, fine-tune, score."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import shared_components
from shared_components.adaptation.adaptation_report import write_adaptation_report
from shared_components.adaptation.command_line import command
from shared_components.adaptation.mask_check import about_masks
from shared_components.bundle_tools.export import find_bundle
from shared_components.data.formats.files import read_json_object, write_json
from shared_components.data.phantoms import make_phantoms
from shared_components.data.vessels import POLARITIES
from shared_components.errors import InputError, check_choice, check_count

logger = logging.getLogger(__name__)

MARKER = "stage.json"
STATE = "training_state.pt"
PRESETS = {
    "default": {},
    "paper": {
        "train_segmenter": "paper_finetune",
        "train": "paper",
        "generate": "paper",
        "finetune": "paper_finetune",
        "evaluate": "paper",
    },
}
STAGE_NAMES = ("segmenter", "diffusion", "pairs", "adapted", "ceiling", "evaluation")


class Stage(NamedTuple):
    """A step of the whole run.

    Attributes:
        folder: where it writes, below the run's folder.
        config: the configuration, without ``.json``.
        product: the file in its folder that the next stages use.
        overrides: keys of the configuration with their values.
        needs: folders of the stages whose products it uses.
    """

    folder: str
    config: str
    product: str
    overrides: dict[str, Any]
    needs: tuple[str, ...] = ()


class Data(NamedTuple):
    """Folders of both domains, and how their pictures are read."""

    source: str
    target: str
    source_polarity: str
    target_polarity: str
    longest_side: int | None
    target_longest_side: int | None = None

    def keys(self, domain: str) -> dict[str, Any]:
        """Return the overrides of a configuration that reads the pictures of a domain, ``source`` or ``target``."""
        folder, polarity, longest_side = (
            (self.source, self.source_polarity, self.longest_side)
            if domain == "source"
            else (self.target, self.target_polarity, self.target_longest_side or self.longest_side)
        )
        return {"dataset_dir": folder, "vessel_polarity": polarity, "longest_side": longest_side}


def run_stages(
    bundle: str,
    source_dir: str | None = None,
    target_dir: str | None = None,
    output_dir: str | None = None,
    source_polarity: str = "dark",
    target_polarity: str = "bright",
    longest_side: int | None = None,
    target_longest_side: int | None = None,
    target_labels: bool | None = None,
    preset: str = "default",
    settings: str | Mapping[str, Any] | None = None,
    device: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Run all stages, those that are finished left out, and write a report.

    Every stage is a process of its own, ``python -m monai.bundle run`` with one of the bundle's configurations, and
    leaves ``stage.json`` when it is done: its settings and digests of what it was made from. A run that was interrupted
    goes on where it was, a training from its last complete epoch.

    Args:
        bundle: a bundle folder with the stages' configurations, or the name of a folder in ``bundles/``.
        source_dir: pictures with masks of vessels; phantoms with ``target_dir`` when both are ``None``.
        target_dir: pictures of the other modality.
        output_dir: of the run; ``<bundle>/output/stages`` when ``None``.
        source_polarity, target_polarity: whether vessels are ``dark`` or ``bright``.
        longest_side: pixels that the longer side of all pictures is brought to; as they are when ``None``.
        target_longest_side: the same for the target alone, so that vessels become equally wide in both;
            ``longest_side`` when ``None``.
        target_labels: the target has masks of vessels, to score with and to train the ceiling, a network that knows
            them; nothing else reads them. ``None``: only phantoms have.
        preset: ``default``, or ``paper`` with the published networks and settings.
        settings: overrides of single stages, ``{"diffusion": {"max_epochs": 10}, "all": {...}}`` or a JSON file of
            them; the stages are `STAGE_NAMES`.
        device: of all stages; CUDA if there is one when ``None``.
        seed: of all stages.
        overwrite: run stages anew whose settings or inputs changed.

    Returns:
        The report.

    Raises:
        InputError: a folder or name that is not there, an output among the images, a finished stage with other
            settings and no ``overwrite``, or a stage that fails; what is finished stays.
    """
    folder = find_bundle(bundle)
    output = Path(output_dir or folder / "output" / "stages").absolute()
    check_choice("preset", preset, PRESETS)
    if lacking := [name for name in PRESETS["paper"] if not (folder / "configs" / f"{name}.json").is_file()]:
        raise InputError(
            f"{folder}: has no configs/{lacking[0]}.json; expected a bundle of stages, as adaptdiff_octa is"
        )
    labelled = (source_dir is None) if target_labels is None else target_labels
    sides = (longest_side, target_longest_side)
    data = _data(source_dir, target_dir, output, source_polarity, target_polarity, sides)
    stages = plan(data, bool(labelled), _read_settings(settings), device, seed)
    for domain in ("source", "target") if labelled else ("source",):
        keys = data.keys(domain)
        for text in about_masks(keys["dataset_dir"], keys["vessel_polarity"]):
            logger.warning("%s: %s", domain, text)
    for number, stage in enumerate(stages, start=1):
        logger.info("stage %d of %d: %s", number, len(stages), stage.folder)
        _run_stage(folder, output, stage, PRESETS[preset].get(stage.config), overwrite)
    report = write_adaptation_report(folder, output, data, stages, PRESETS[preset].get("evaluate"))
    logger.info("report: %s", report)
    return report


def plan(
    data: Data, target_labels: bool, settings: Mapping[str, Mapping[str, Any]], device: str | None = None, seed: int = 0
) -> list[Stage]:
    """List the stages in their order; paths that begin with ``@`` are folders of the run."""
    common = {"seed": seed, **({} if device is None else {"device": device}), **settings.get("all", {})}

    def made(folder: str, config: str, product: str, overrides: dict, needs: tuple[str, ...] = ()) -> Stage:
        kind = "evaluation" if config == "evaluate" else folder
        return Stage(folder, config, product, {**overrides, **common, **settings.get(kind, {})}, needs)

    source, target = data.keys("source"), data.keys("target")
    generation = {"dataset_dir": data.source, "longest_side": data.longest_side, "ckpt_path": "@diffusion/model.pt"}
    tuning = {
        "dataset_dir": "@pairs",
        "ckpt_path": "@segmenter/model.pt",
        "source_dir": data.source,
        "source_polarity": data.source_polarity,
        "source_longest_side": data.longest_side,
    }
    stages = [
        made("segmenter", "train_segmenter", "model.pt", source),
        made("diffusion", "train", "model.pt", {**target, "segmenter_ckpt": "@segmenter/model.pt"}, ("segmenter",)),
        made("pairs", "generate", "pairs.png", generation, ("diffusion",)),
        made("adapted", "finetune", "model.pt", tuning, ("segmenter", "pairs")),
    ]
    scored = [("source", "segmenter"), ("source", "adapted")]
    if target_labels:
        stages.append(made("ceiling", "train_segmenter", "model.pt", target))
        scored += [("target", "segmenter"), ("target", "adapted"), ("target", "ceiling")]
    for domain, network in scored:
        overrides = {**data.keys(domain), "ckpt_path": f"@{network}/model.pt"}
        stages.append(made(f"scores/{domain}_{network}", "evaluate", "metrics_summary.csv", overrides, (network,)))
    return stages


def _data(
    source_dir: str | None,
    target_dir: str | None,
    output: Path,
    source_polarity: str,
    target_polarity: str,
    longest_sides: tuple[int | None, int | None],
) -> Data:
    for name, polarity in (("source_polarity", source_polarity), ("target_polarity", target_polarity)):
        check_choice(name, polarity, POLARITIES)
    if source_dir is None and target_dir is None:
        logger.warning("no data given: this is a demonstration on synthetic phantoms, not on patients")
        source_dir, target_dir = (
            str(make_phantoms(output / "phantoms" / kind, kind=kind)) for kind in ("fundus", "octa")
        )
    for name, folder in (("source_dir", source_dir), ("target_dir", target_dir)):
        if folder is None or not Path(folder).expanduser().is_dir():
            raise InputError(f"{name} {folder}: no such folder; give both source_dir and target_dir, or neither")
    source, target = (str(Path(folder).expanduser().absolute()) for folder in (source_dir, target_dir))
    if Path(source).resolve() == Path(target).resolve():
        raise InputError(f"source_dir and target_dir are one folder, {source}; the target is another modality's")
    for name, folder in (("source_dir", source), ("target_dir", target)):
        if output.resolve().is_relative_to(Path(folder).resolve()):
            raise InputError(f"output_dir {output}: lies in {name} {folder}, where results would become images")
    for name, side in zip(("longest_side", "target_longest_side"), longest_sides):
        if side is not None:
            check_count(name, side)
    return Data(source, target, source_polarity, target_polarity, *longest_sides)


def _read_settings(settings: str | Mapping[str, Any] | None) -> Mapping[str, Mapping[str, Any]]:
    if isinstance(settings, str) and settings.lstrip().startswith("{"):
        raise InputError(f"settings {settings[:40]}...: expected the name of a JSON file; write the text into one")
    content = read_json_object(Path(settings).expanduser()) if isinstance(settings, str) else dict(settings or {})
    known = ("all", *STAGE_NAMES)
    for stage, overrides in content.items():
        if stage not in known or not isinstance(overrides, Mapping):
            raise InputError(f"settings of '{stage}': expected an object of keys for one of {', '.join(known)}")
    return content


def _run_stage(bundle: Path, output: Path, stage: Stage, overlay: str | None, overwrite: bool) -> None:
    folder = output / stage.folder
    files = [bundle / "configs" / f"{name}.json" for name in (stage.config, overlay) if name]
    stated = _stated(output, stage, overlay)
    resume = False
    if (folder / MARKER).is_file():
        found = read_json_object(folder / MARKER)
        if found == stated and (folder / stage.product).is_file():
            logger.info("%s: finished already", folder)
            return
        if not overwrite:
            raise InputError(
                f"{folder}: was made with {_difference(found, stated)}; set overwrite to true or change output_dir"
            )
        (folder / MARKER).unlink()
    elif (folder / STATE).is_file():
        resume = not overwrite
    overrides = {**_paths(stage.overrides, output), "output_dir": str(folder), "bundle_root": str(bundle)}
    if resume:
        overrides["resume"] = True
    if overwrite or resume or not (folder / stage.product).is_file():  # what an unfinished stage has left may go
        overrides["overwrite"] = True
    _run(files, overrides, stage.folder)
    if not (folder / stage.product).is_file():
        raise InputError(f"stage {stage.folder}: ended without {folder / stage.product}; see what it says above")
    write_json(folder / MARKER, stated)


def _stated(output: Path, stage: Stage, overlay: str | None) -> dict[str, Any]:
    inputs = {}
    for name in stage.needs:
        weights = output / name / ("pairs.json" if name == "pairs" else "model.pt")
        inputs[name] = hashlib.sha256(weights.read_bytes()).hexdigest()
    stated = {"config": stage.config, "overlay": overlay, "overrides": stage.overrides, "inputs": inputs}
    return json.loads(json.dumps(stated, default=str))


def _difference(found: Mapping[str, Any], stated: Mapping[str, Any]) -> str:
    """Say what changed, in a few words."""
    changed = [key for key in ("config", "overlay") if found.get(key) != stated[key]]
    for part in ("overrides", "inputs"):
        before, now = found.get(part, {}), stated[part]
        changed += [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    return f"another {', '.join(changed)}" if changed else "a product that is missing now"


def _paths(overrides: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Replace ``@folder/file`` by the path below the run's folder."""
    return {
        key: str(output / value[1:]) if isinstance(value, str) and value.startswith("@") else value
        for key, value in overrides.items()
    }


def _run(files: Sequence[Path], overrides: Mapping[str, Any], name: str, call: Callable = subprocess.run) -> None:
    package = str(Path(shared_components.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    done = call([sys.executable, *command(files, overrides)], env={**os.environ, "PYTHONPATH": path})
    if done.returncode:
        raise InputError(
            f"stage {name}: ended with exit code {done.returncode}, for the reason above; mend it and run the same "
            "command again, which leaves out what is finished"
        )
