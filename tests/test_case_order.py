"""The order of the cases in a training, in one process and in several: shuffled, or as a preset says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.test_bundle_contract import BUNDLES, parser, read

PRESETS = [
    (bundle, file.stem)
    for bundle in BUNDLES
    for file in sorted((bundle / "configs").glob("*.json"))
    if file.stem != "train" and "shuffle" in read(bundle, file.stem)
]


def loader_of(bundle: Path, *overlays: str) -> Any:
    """The first of two processes' loader of nine cases."""
    made = parser(bundle, "train", *overlays, "multi_gpu_train", batch_size=2, num_workers=0)
    place = {"train#dataloader#sampler#num_replicas": 2, "train#dataloader#sampler#rank": 0}
    made.update({"train#dataset": list(range(9)), "crops_per_image": 1, **place})
    return made.get_parsed_content("train#dataloader")


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_several_processes_see_all_cases_shuffled(bundle: Path) -> None:
    loader = loader_of(bundle)
    assert loader.sampler.shuffle and not loader.sampler.drop_last and not loader.drop_last
    assert len(loader.sampler) == 5 and list(loader.sampler) != list(range(0, 9, 2))


def test_every_cdal_preset_has_the_published_order() -> None:
    assert {f"{bundle.name} {name}" for bundle, name in PRESETS} == {
        "cdal_hippocampus paper", "cdal_hippocampus paper_released", "cdal_lung_cxr paper", "cdal_monuseg paper",
    }  # fmt: skip


@pytest.mark.parametrize(("bundle", "preset"), PRESETS, ids=[f"{bundle.name}-{name}" for bundle, name in PRESETS])
def test_several_processes_keep_a_presets_order(bundle: Path, preset: str) -> None:
    """The ninth case fills no place in every process: it is left out, not repeated elsewhere or shuffled in."""
    loader = loader_of(bundle, preset)
    assert not loader.sampler.shuffle and loader.sampler.drop_last and loader.drop_last
    assert list(loader.sampler) == [0, 2, 4, 6]
    assert [batch.tolist() for batch in loader] == [[0, 2], [4, 6]]
