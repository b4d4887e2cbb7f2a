"""One JSON file and one Markdown table; a row that was never run says so."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from shared_components.reporting.files import write_atomically

MANY_CALLS = 1000  # of the published sampler, in rows b3 and b3b
CONTENTS = {
    "a1": "fp32 training step G + D + EMA, prepared batches",
    "a1b": "the same as configured: bfloat16 autocast",
    "a1e": "training step and its data, end to end",
    "a2": "volume inference, same windows, votes and noise",
    "a3": "volume inference, windows in the plane of true slices",
    "a4": "volume inference, whole padded slices",
    "a4b": "the same as configured: bfloat16 autocast",
    "t1": "picture inference, same tiles in every step, votes and noise",
    "t2": "picture inference as configured, tiles blended in every step",
    "b1": "fp32 training step and EMA, prepared batches",
    "b1b": "the same as configured: bfloat16 autocast",
    "b2": "5 members x 50 calls, same solver and noise",
    "b3": f"5 members x 50 calls of the project's solver against x {MANY_CALLS} calls",
    "b3b": f"the bundle's own members and calls, as configured, against 5 members x {MANY_CALLS} calls",
    "c1": "images from label maps, 50 DDIM steps, batch 1 and 8",
    "c2": "the same on equal weights and noise",
    "d": "STAPLE on vote patterns",
    "e": "training transforms, epochs 2 and later",
    "f": "AdaptDiff image, maps of the mask computed once",
    "g": "saliency maps, 2 conditions x 8 noise draws x 1 step",
    "gg": "saliency maps, 2 conditions x 1 noise draw x 10 steps guided by the classifier",
    "h": "optimiser and EMA step",
    "o1": "whole slices with bfloat16 autocast",
    "o2": "whole slices with channels_last",
    "o3": "whole slices with torch.compile",
}
HIPPOCAMPUS = "cdal_hippocampus"
CDAL_PICTURES = ("cdal_monuseg", "cdal_lung_cxr")
MEDSEGDIFF = ("medsegdiff_isic", "medsegdiff_v2_isic")
CDM = "cdm_brats"
_OF_ALL_CDAL = (HIPPOCAMPUS, *CDAL_PICTURES)
MEASURED_FOR = {
    **dict.fromkeys(("a1", "a1b", "a1e"), _OF_ALL_CDAL),
    **dict.fromkeys(("t1", "t2"), CDAL_PICTURES),
    **dict.fromkeys(("b1", "b1b", "b2", "b3", "b3b"), MEDSEGDIFF),
    **dict.fromkeys(("g", "gg"), (CDM,)),
}
CPU_ONLY = {"c1", "c2", "d", "e", "f"}
PACKAGES = ("torch", "monai", "numpy", "itk", "pytorch-ignite")


def content_of(name: str, bundle: str) -> str:
    """What a row did, in words: named after its bundle, unless that is the hippocampus, which came first."""
    return CONTENTS[name] if bundle == HIPPOCAMPUS else f"{bundle}: {CONTENTS[name]}"


def environment(device: str, seed: int) -> dict[str, Any]:
    """What a row was measured on: machine, versions, commit."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "seed": seed,
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the working tree, with ``+changes`` where it differs from it; ``None`` without git."""
    root = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ("git", *arguments), cwd=root, capture_output=True, encoding="utf-8", check=True
        ).stdout.strip()

    try:
        tracked = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if tracked else "")
    except (OSError, subprocess.CalledProcessError):
        return None


class Results:
    """The results in a folder; rows measured again replace the old ones, the others stay.

    Args:
        folder: of ``results.json`` and ``results.md``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "results.json"
        empty: dict[str, list] = {"rows": [], "sweeps": []}
        self.content = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else empty

    def add(self, kind: str, record: dict[str, Any], found_on: dict[str, Any]) -> None:
        """Take one row or sweep over and write both files."""
        same = _identity(record)
        kept = [old for old in self.content[kind] if _identity(old) != same]
        self.content[kind] = sorted([*kept, {**record, "environment": found_on}], key=_identity)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps(self.content, indent=1) + "\n")
        write_atomically(self.folder / "results.md", markdown(self.content))


def _identity(record: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(record.get(key, "")) for key in ("name", "axis", "content", "opponent", "device"))


def markdown(content: dict[str, list]) -> str:
    """The table of all rows, then the sweeps, then what they were measured on."""
    environments: list[dict[str, Any]] = []
    lines = [
        "Opponent time / project time, above 1 where the project is faster: ratio of the medians, with the "
        "range of the single pairs.",
        "",
        "| row | device | content | opponent | ratio (range) | opponent s | project s | peak MB | gate | run |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for device in ("cpu", "cuda"):
        for name, text in CONTENTS.items():
            if device == "cuda" and name in CPU_ONLY:
                continue
            rows = [row for row in content["rows"] if row["name"] == name and row["device"] == device]
            lines += [_line(row, _number(environments, row["environment"])) for row in rows]
            found = {row["content"] for row in rows}
            wanted = [content_of(name, bundle) for bundle in MEASURED_FOR.get(name, ())]
            missing = [text for text in wanted if text not in found] if wanted else [] if rows else [text]
            lines += [f"| {name} | {device} | {text} | | not run | | | | not run | |" for text in missing]
    for sweep in content["sweeps"]:
        lines += ["", *_sweep_lines(sweep, _number(environments, sweep["environment"]))]
    lines += ["", "Measured on:", ""]
    lines += [f"{index}. {describe(item)}" for index, item in enumerate(environments, start=1)]
    return "\n".join(lines) + "\n"


def _number(environments: list[dict[str, Any]], item: dict[str, Any]) -> int:
    if item not in environments:
        environments.append(item)
    return environments.index(item) + 1


def describe(item: dict[str, Any]) -> str:
    """One line about a machine and its versions."""
    packages = ", ".join(f"{name} {number}" for name, number in item["packages"].items() if number)
    gpu = f", {item['gpu']}" if item["gpu"] else ""
    return (
        f"{item['processor']}{gpu}, {item['cores']} cores, {item['threads']} threads used; "
        f"Python {item['python']}, {packages}; commit {item['commit'] or 'unknown'}, "
        f"seed {item['seed']}, {item['date']}"
    )


def _line(row: dict[str, Any], run: int) -> str:
    start = f"| {row['name']} | {row['device']} | {row['content']}{_kind(row)} | {row['opponent']} |"
    gate, ratio = row["gate"], row["ratio"]
    if ratio is None:
        return f"{start} none: the gate failed | | | | FAILED: {gate['text']} | {run} |"
    peaks = " / ".join("-" if mb is None else f"{mb:.0f}" for mb in row["peak_mb"])
    return (
        f"{start} **{ratio['ratio']:.2f}** ({ratio['low']:.2f} to {ratio['high']:.2f}) | "
        f"{ratio['opponent_s']:.4g} | {ratio['project_s']:.4g} | {peaks} | {gate['text']} | {run} |"
    )


def _kind(row: dict[str, Any]) -> str:
    shown = ("kind", "size", "volumes", "members", "steps", "max_batch_size", "precision", "weights", "batch")
    parts = [f"{key} {row['details'][key]}" for key in shown if key in row["details"]]
    if "limit" in row["details"]:
        parts.append(f"{row['details']['limit']['share']:.0%} of the speed of a matrix product")
    if row.get("first"):
        parts.append(f"first call {row['first'][0]:.3g} / {row['first'][1]:.3g} s")
    return f" ({'; '.join(parts)})" if parts else ""


def _sweep_lines(sweep: dict[str, Any], run: int) -> list[str]:
    peaks = ["-" if mb is None else f"{mb:.0f}" for mb in sweep["peak_mb"]]
    each = sweep.get("line_over", "each")
    return [
        f"| {sweep['axis']} ({sweep['device']}, run {run}) | " + " | ".join(map(str, sweep["points"])) + " |",
        "|---" * (len(sweep["points"]) + 1) + "|",
        f"| s per {sweep.get('unit', 'volume')} | " + " | ".join(f"{value:.3g}" for value in sweep["median_s"]) + " |",
        "| peak MB | " + " | ".join(peaks) + " |",
        "",
        f"Line: {sweep['slope_s']:.3g} s {each} + {sweep['intercept_s']:.3g} s; misfit {sweep['misfit']:.0%}.",
    ]
