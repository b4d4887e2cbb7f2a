"""Augmentation is a function of (seed, epoch, index), whoever asks and in whatever order."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.transforms import (
    Compose,
    Lambdad,
    OneOf,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
)

from shared_components.data.seeded import SeededCacheDataset, SeededConcatDataset


def dataset(seed: int = 0, count: int = 6, **options) -> SeededCacheDataset:
    transform = Compose(
        [
            Lambdad("image", torch.neg),
            RandFlipd("image", prob=0.5, spatial_axis=0),
            Compose(
                [
                    RandAffined("image", prob=0.7, rotate_range=0.5, padding_mode="zeros"),
                    OneOf(
                        [
                            RandGaussianNoised("image", prob=1.0),
                            RandScaleIntensityd("image", factors=0.5, prob=1.0),
                        ]
                    ),
                ]
            ),
        ]
    )
    data = [{"image": torch.arange(64.0).reshape(1, 8, 8) + index} for index in range(count)]
    return SeededCacheDataset(data, transform, seed=seed, progress=False, **options)


def images(source: SeededCacheDataset, order=range(6)) -> dict[int, torch.Tensor]:
    return {index: source[index]["image"].as_tensor().clone() for index in order}


def equal(first: dict[int, torch.Tensor], second: dict[int, torch.Tensor]) -> bool:
    return all(torch.equal(first[index], second[index]) for index in first)


def test_order_repetition_and_cache_make_no_difference():
    first = images(dataset())
    again = dataset()
    assert equal(images(again, [5, 0, 3, 3, 1, 2, 4]), first)
    assert equal(images(again), first)
    assert equal(images(dataset(cache_rate=0.0)), first)
    assert equal(images(dataset(cache_rate=0.5)), first)
    assert torch.equal(again[-1]["image"].as_tensor(), first[5])


def test_seed_epoch_and_index_make_a_difference():
    source = dataset()
    first = images(source)
    source.set_epoch(1)
    second = images(source)
    other_seed = images(dataset(seed=1))
    for index in range(6):
        assert not torch.equal(first[index], second[index])
        assert not torch.equal(first[index], other_seed[index])
    assert not torch.equal(first[0] - first[0].mean(), first[1] - first[1].mean())
    source.set_epoch(0)
    assert equal(images(source), first)


def epochs(num_workers: int, persistent: bool) -> list[torch.Tensor]:
    source = dataset()
    loader = DataLoader(source, batch_size=2, num_workers=num_workers, persistent_workers=persistent)
    result = []
    for epoch in range(3):
        source.set_epoch(epoch)
        result.append(torch.cat([batch["image"].as_tensor() for batch in loader]))
    return result


@pytest.mark.parametrize("num_workers, persistent", [(0, False), (2, False), (2, True)])
def test_workers_make_no_difference(num_workers, persistent):
    source = dataset()
    for epoch, found in enumerate(epochs(num_workers, persistent)):
        source.set_epoch(epoch)
        assert torch.equal(found, torch.stack(list(images(source).values())))


def test_threads_and_a_pickled_dataset_make_no_difference():
    source = dataset()
    expected = images(source)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda index: source[index % 6]["image"].as_tensor(), range(24)))
    assert all(torch.equal(image, expected[number % 6]) for number, image in enumerate(found))
    assert equal(images(pickle.loads(pickle.dumps(source))), expected)


def test_an_engine_that_tells_the_epoch_at_its_start_gets_that_epochs_items():
    source = dataset()
    loader = DataLoader(source, batch_size=6, num_workers=2)
    seen = []
    engine = Engine(lambda _, batch: seen.append(batch["image"].as_tensor().clone()))
    engine.add_event_handler(Events.EPOCH_STARTED, lambda e: source.set_epoch(e.state.epoch))
    engine.run(loader, max_epochs=3)
    for epoch, found in enumerate(seen, start=1):
        source.set_epoch(epoch)
        assert torch.equal(found, torch.stack(list(images(source).values())))


def test_joined_datasets_are_each_themselves_in_every_epoch():
    joined = SeededConcatDataset([dataset(seed=0, count=3), dataset(seed=1, count=3)])
    first = dataset(seed=0, count=3), dataset(seed=1, count=3)
    for epoch in (1, 2):
        for part in (joined, *first):
            part.set_epoch(epoch)
        expected = [*images(first[0], range(3)).values(), *images(first[1], range(3)).values()]
        assert equal(images(joined), dict(enumerate(expected)))


def test_the_cached_items_stay_as_they_are():
    source = dataset()
    before = [item["image"].clone() for item in source._cache]
    images(source)
    assert all(torch.equal(item["image"], kept) for item, kept in zip(source._cache, before, strict=True))


def test_a_cache_that_does_not_fit_into_memory_is_told_of_once(monkeypatch, caplog):
    monkeypatch.setattr("shared_components.data.seeded.os.sysconf", {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": 2}.get)
    data = [{"image": torch.zeros(100)} for _ in range(4)]
    SeededCacheDataset(data[:2], Compose([]))
    assert caplog.messages == []
    SeededCacheDataset(data, Compose([]))
    assert len(caplog.messages) == 1 and "--train#dataset#cache_num 2:" in caplog.text
