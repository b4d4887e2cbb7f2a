"""The plan of a whole run, and what happens to finished, changed and failed stages; no stage is run here."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from shared_components.adaptation import stages as module
from shared_components.adaptation.stages import Data, command, plan, run_stages
from shared_components.data.phantoms import make_phantoms
from shared_components.errors import InputError

BUNDLE = str(Path(__file__).parents[2] / "bundles" / "adaptdiff_octa")
DATA = Data("/s", "/t", "dark", "bright", 512)


def test_plan_without_target_labels():
    stages = plan(DATA, False, {})
    assert [stage.folder for stage in stages] == [
        "segmenter", "diffusion", "pairs", "adapted", "scores/source_segmenter", "scores/source_adapted",
    ]  # fmt: skip
    reads = {stage.folder: stage.overrides.get("dataset_dir") for stage in stages}
    assert [name for name, folder in reads.items() if folder == "/t"] == ["diffusion"]
    assert stages[1].overrides["vessel_polarity"] == "bright" and stages[0].overrides["vessel_polarity"] == "dark"
    assert stages[1].overrides["segmenter_ckpt"] == stages[3].overrides["ckpt_path"] == "@segmenter/model.pt"


def test_plan_with_target_labels_scores_three_networks():
    stages = {
        stage.folder: stage for stage in plan(DATA, True, {"diffusion": {"max_epochs": 3}, "all": {"amp": False}})
    }
    assert {"scores/target_segmenter", "scores/target_adapted", "scores/target_ceiling"} < set(stages)
    assert stages["ceiling"].config == "train_segmenter" and stages["ceiling"].overrides["dataset_dir"] == "/t"
    assert stages["diffusion"].overrides["max_epochs"] == 3 and "max_epochs" not in stages["adapted"].overrides
    assert all(stage.overrides["amp"] is False for stage in stages.values())


def test_each_domain_has_its_size():
    stages = {stage.folder: stage.overrides for stage in plan(DATA._replace(target_longest_side=300), True, {})}
    sides = {name: overrides.get("longest_side") for name, overrides in stages.items()}
    assert {name for name, side in sides.items() if side == 300} == {
        "diffusion", "ceiling", "scores/target_segmenter", "scores/target_adapted", "scores/target_ceiling",
    }  # fmt: skip
    assert sides["segmenter"] == sides["pairs"] == 512 and sides["adapted"] is None


def test_every_override_is_a_key_of_its_configuration():
    for stage in plan(DATA, True, {}, "cpu"):
        keys = json.loads((Path(BUNDLE) / "configs" / f"{stage.config}.json").read_text(encoding="utf-8"))
        assert set(stage.overrides) <= set(keys), stage.folder


def test_a_command_spells_none_as_monai_reads_it():
    arguments = command([Path("a.json"), Path("b.json")], {"x": None, "y": [1, 2]})
    assert arguments[3:] == ["--config_file", "['a.json', 'b.json']", "--x", "$None", "--y", "[1, 2]"]


class Processes:
    """Stands for the processes: writes a stage's product, or fails at one."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.resumed: list[str] = []
        self.fails = ""

    def __call__(self, arguments: list[str], env: dict) -> SimpleNamespace:
        given = dict(zip(arguments[4::2], arguments[5::2]))
        folder = Path(given["--output_dir"])
        name = folder.name if folder.parent.name != "scores" else f"scores/{folder.name}"
        self.ran.append(name)
        if given.get("--resume") == "True":
            self.resumed.append(name)
        folder.mkdir(parents=True, exist_ok=True)
        if name == self.fails:
            (folder / "training_state.pt").write_bytes(b"half")
            return SimpleNamespace(returncode=1)
        for product in ("model.pt", "pairs.png", "pairs.json", "metrics_summary.csv"):
            (folder / product).write_bytes(name.encode())
        return SimpleNamespace(returncode=0)


@pytest.fixture
def run(tmp_path, monkeypatch):
    for name in ("s", "t"):
        (tmp_path / name).mkdir()
    processes = Processes()
    monkeypatch.setattr(module.subprocess, "run", processes)
    monkeypatch.setattr(module._run, "__defaults__", (processes,))
    monkeypatch.setattr(module, "write_adaptation_report", lambda *_: tmp_path / "run" / "report.html")
    folders = {
        "source_dir": str(tmp_path / "s"),
        "target_dir": str(tmp_path / "t"),
        "output_dir": str(tmp_path / "run"),
    }

    def call(**options) -> list[str]:
        processes.ran, processes.resumed = [], []
        run_stages(BUNDLE, **{**folders, **options})
        return processes.ran

    call.processes = processes
    return call


def test_one_folder_for_both_domains_is_refused(run, tmp_path):
    with pytest.raises(InputError, match="source_dir and target_dir are one folder"):
        run(target_dir=str(tmp_path / "t" / ".." / "s"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"output_dir": "t/run"}, "t/run: lies in target_dir"),
        ({"longest_side": 0}, "longest_side must be a whole number of at least 1, not 0"),
        ({"target_longest_side": "308"}, "target_longest_side must be .*, not '308'"),
        ({"settings": '{"pairs": {"num_per_mask": 50}}'}, "expected the name of a JSON file"),
    ],
)
def test_mistakes_are_told_before_the_first_stage(run, tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        run(**options)
    assert run.processes.ran == []


def test_another_bundle_has_no_stages(tmp_path):
    with pytest.raises(InputError, match="cdm_brats: has no configs/train_segmenter.json; expected a bundle of stages"):
        run_stages(str(Path(BUNDLE).with_name("cdm_brats")), output_dir=str(tmp_path))


def test_masks_that_contradict_the_polarity_are_told_of(run, tmp_path, caplog):
    """Those of the target only where they are said to be of vessels."""
    for name, kind in (("s", "octa"), ("t", "fundus")):
        (tmp_path / name).rmdir()
        make_phantoms(tmp_path / name, 3, kind=kind)  # mixed up

    for labels, domains in ((False, ["source"]), (True, ["source", "target"])):
        caplog.clear()
        run(target_labels=labels, output_dir=str(tmp_path / f"run_{labels}"))
        told = [record.message for record in caplog.records if "the polarity is" in record.message]
        assert [message.partition(":")[0] for message in told] == domains


def test_finished_stages_are_left_out(run):
    assert len(run()) == 6
    assert run() == []


def test_a_failed_stage_is_gone_on_with(run):
    run.processes.fails = "diffusion"
    with pytest.raises(InputError, match="stage diffusion: ended with exit code 1.*same command again"):
        run()
    assert run.processes.ran == ["segmenter", "diffusion"]
    run.processes.fails = ""
    assert run()[:2] == ["diffusion", "pairs"] and run.processes.resumed == ["diffusion"]


def test_changed_settings_are_refused_or_run_anew(run):
    run()
    with pytest.raises(InputError, match="segmenter: was made with another seed; set overwrite"):
        run(seed=1)
    assert len(run(seed=1, overwrite=True)) == 6
    settings = {"pairs": {"num_per_mask": 3}}
    with pytest.raises(InputError, match="pairs: was made with another num_per_mask"):
        run(seed=1, settings=settings)
    assert run(seed=1, settings=settings, overwrite=True)[0] == "pairs"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "fast"}, "preset must be one of default, paper, not .fast."),
        ({"source_polarity": "white"}, "source_polarity"),
        ({"target_dir": None}, "target_dir None.*both"),
        ({"settings": {"train": {}}}, "settings of 'train'.*diffusion"),
    ],
)
def test_mistakes(run, options, message):
    with pytest.raises(InputError, match=message):
        run(**options)
    assert run.processes.ran == []
