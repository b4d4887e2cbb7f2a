"""The choice of cases, the deformed label maps, the small segmenter and the table of a comparison with added pairs."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
import torch

from benchmarks import added_pairs
from shared_components.errors import InputError

IDS = [f"case_{number:03d}" for number in range(30)]


def test_smaller_choices_are_part_of_larger_ones():
    few, more = added_pairs.nested_cases(IDS, 5), added_pairs.nested_cases(reversed(IDS), 12)
    assert len(set(few)) == 5 and set(few) < set(more) < set(IDS)
    with pytest.raises(InputError, match="30 training cases"):
        added_pairs.nested_cases(IDS, 31)


def test_numbers_of_steps_hardly_depend_on_the_number_of_cases():
    for cases in (10, 26, 40, 56, 160, 176):
        steps = added_pairs.epochs_for(150, cases, 2) * -(-cases // 2)
        assert abs(steps - 150) <= 0.5 * -(-cases // 2)


def test_synthesiser_folders_hold_the_chosen_cases_alone(tmp_path):
    for kind in ("imagesTr", "labelsTr"):
        (tmp_path / "all" / kind).mkdir(parents=True)
        for case in IDS:
            (tmp_path / "all" / kind / f"{case}.nii.gz").write_bytes(case.encode())
    folder = added_pairs.link_cases(tmp_path / "all", tmp_path / "few", IDS[:3])
    assert sorted(file.name for file in (folder / "imagesTr").iterdir()) == [f"{case}.nii.gz" for case in IDS[:3]]
    assert (folder / "labelsTr" / f"{IDS[2]}.nii.gz").read_bytes() == IDS[2].encode()
    assert json.loads((folder / "split.json").read_text(encoding="utf-8")) == {"train": IDS[:3], "test": []}


def test_deformed_label_maps_keep_their_classes_and_differ(tmp_path):
    (tmp_path / "labelsTr").mkdir()
    label = np.zeros((20, 24, 16), np.uint8)
    label[6:14, 4:12, 4:12], label[6:14, 12:20, 4:12] = 1, 2
    nibabel.save(nibabel.Nifti1Image(label, np.diag([1, 1, 2, 1])), tmp_path / "labelsTr" / "a.nii.gz")
    folder = added_pairs.deform_labels(tmp_path, tmp_path / "maps", ["a"], 2)
    first, second = (nibabel.load(file) for file in sorted(folder.iterdir()))
    assert first.header.get_zooms() == (1, 1, 2)
    for image in (first, second):
        values = np.asarray(image.dataobj)
        assert set(np.unique(values)) == {0, 1, 2} and values.shape[:2] == label.shape[:2]
        assert 0.6 < (values > 0).sum() / (label > 0).sum() < 1.6
        labelled = values.any(axis=(0, 1))
        assert labelled[2:-2].all() and 0 < (~labelled).sum() <= 4
    assert not np.array_equal(first.dataobj, second.dataobj)


def test_the_small_segmenter_gives_probabilities():
    network = added_pairs.SmallUNet([4, 8])
    assert network.downsampling == 2
    maps = network(torch.rand(2, 3, 8, 12))[0]
    assert maps.shape == (2, 3, 8, 12) and torch.allclose(maps.sum(1), torch.ones(2, 8, 12), atol=1e-6)


def test_a_table_goes_on_and_compares_means_over_seeds(tmp_path):
    scores = {"steps": 150, "anterior": 0.0, "posterior": 0.0}
    table = added_pairs.Table(tmp_path / "dice.csv")
    for seed, mean in enumerate((0.5, 0.7)):
        table.add({"real": 10, "generated": 0, "seed": seed, "mean": mean, **scores})
    table = added_pairs.Table(tmp_path / "dice.csv")
    assert table.has(10, 0, 1) and not table.has(10, 16, 1) and not table.has(20, 0, 1)
    table.add({"real": 10, "generated": 16, "seed": 0, "mean": 0.8, **scores})
    assert "| 10 | 0.6000 (0.500 to 0.700) | 0.8000 (0.800 to 0.800) | +0.2000 |" in table.markdown()
