"""Rows a2 to a4 and the options: a whole volume, from preprocessed image to class probabilities."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cache

import torch
from monai.inferers import SimpleInferer
from torch import Tensor, nn

from benchmarks.gates import argmax_labels, dice_gate, exact_gate, mean_dice
from benchmarks.harness import Gate, Row, measure
from benchmarks.limits import share_of_limit
from benchmarks.naive import NaiveSegmenter, column_inferer, cube_inferer
from benchmarks.subject import Subject

NAIVE = (
    "MONAI SlidingWindowInferer, 32^3, overlap .75, one vote at a time, nothing cached, FIR by zero insertion"
)
BOUND = 2e-4
WINDOWS_AT_ONCE = 4

Predict = Callable[[Tensor], Tensor]


def inference_of(inferer: Callable, network: nn.Module) -> Predict:
    """A function from a volume (1, K, H, W, D) to its class probabilities."""

    @torch.no_grad()
    def predict(image: Tensor) -> Tensor:
        return inferer(image, network)

    return predict


def over_volumes(predict: Predict, volumes: list[Tensor]) -> Callable[[], None]:
    """The work that is timed: all volumes, one after another."""

    def work() -> None:
        for volume in volumes:
            predict(volume)

    return work


def exact_volumes(subject: Subject) -> Row:
    """Row a2: the same windows, votes and noise."""
    fast, slow = _cubes(subject), _naive(subject)
    volumes = [subject.volume(index)[0] for index in range(subject.volumes)]
    mean = {"combine": "mean"}
    gate = exact_gate(
        [_naive(subject, **mean)(volumes[0])],
        [_cubes(subject, **mean)(volumes[0])],
        BOUND,
        "probabilities (mean of the members) of one volume",
    )
    row = Row("a2", "volume inference, same windows, votes and noise", NAIVE, subject.device, gate)
    row.details = _details(subject, "same work")
    return measure(row, over_volumes(slow, volumes), over_volumes(fast, volumes), subject.pairs)


def true_slices(subject: Subject) -> Row:
    """Row a3: windows in the plane, each true slice once a window."""
    columns = inference_of(column_inferer(), subject.segmenter())
    return _other_windows(subject, "a3", "volume inference, windows in the plane of true slices", columns)


def whole_slices(subject: Subject) -> Row:
    """Row a4: whole padded slices, as the bundle does it."""
    whole = inference_of(SimpleInferer(), subject.segmenter())
    row = _other_windows(subject, "a4", "volume inference, whole padded slices", whole)
    if row.project_samples:
        volumes = [subject.volume(index)[0] for index in range(subject.volumes)]
        seconds = row.ratio()["project_s"]
        row.details["limit"] = share_of_limit(over_volumes(whole, volumes), seconds, subject.device)
    return row


def _other_windows(subject: Subject, name: str, content: str, predict: Predict) -> Row:
    gate = _quality_gate(subject, _cubes_dice, predict, "32^3 windows of row a2, which equal the naive ones")
    row = Row(name, content, NAIVE, subject.device, gate)
    row.details = _details(subject, "same network, steps and members; other windows")
    volumes = [subject.volume(index)[0] for index in range(subject.volumes)]
    return measure(row, over_volumes(_naive(subject), volumes), over_volumes(predict, volumes), subject.pairs)


def _quality_gate(
    subject: Subject, opponent: Callable[[Subject], list[float]], project: Predict, what: str
) -> Gate:
    if not subject.has_weights:
        return Gate(False, "Dice: no trained weights were given, so nothing can be said")
    gate = dice_gate(opponent(subject), _dice(subject, project), data=subject.data_name)
    gate.text += f"; opponent: {what}"
    return gate


def _dice(subject: Subject, predict: Predict) -> list[float]:
    """Mean foreground Dice of every test case, on the preprocessed grid."""
    scores = []
    for index in range(len(subject.test_items)):
        image, label = subject.volume(index, label=True)
        probability = predict(image)
        scores.append(mean_dice(argmax_labels(probability), label, probability.shape[1]))
    return scores


@cache
def _cubes_dice(subject: Subject) -> list[float]:
    return _dice(subject, _cubes(subject))


@cache
def _whole_dice(subject: Subject) -> list[float]:
    return _dice(subject, inference_of(SimpleInferer(), subject.segmenter()))


def _naive(subject: Subject, **settings) -> Predict:
    return inference_of(cube_inferer(), NaiveSegmenter(subject.segmenter(**settings)))


def _cubes(subject: Subject, **settings) -> Predict:
    return inference_of(cube_inferer(WINDOWS_AT_ONCE), subject.segmenter(**settings))


def _details(subject: Subject, kind: str) -> dict:
    network = subject.segmenter()
    return {
        "kind": kind,
        "volumes": subject.volumes,
        "members": network.num_samples,
        "steps": network.num_inference_steps,
        "max_batch_size": network.max_batch_size,
        "precision": "fp32",
        "compile": False,
        "weights": str(subject.weights.name) if subject.has_weights else "random",
    }


def options(subject: Subject) -> Iterator[Row]:
    """Rows o1 to o3: what an option gains over whole slices in fp32, eager. bfloat16 needs the Dice gate."""
    plain = inference_of(SimpleInferer(), subject.segmenter())
    volumes = [subject.volume(index)[0] for index in range(subject.volumes)]
    yield _option(subject, "o1", "bfloat16 autocast", plain, _autocast(subject), volumes, exact=False)
    yield _option(subject, "o2", "channels_last", plain, _channels_last(subject), volumes, exact=True)
    if subject.compile:
        yield _option(subject, "o3", "torch.compile", plain, _compiled(subject), volumes, exact=True)


def _option(
    subject: Subject,
    name: str,
    content: str,
    plain: Predict,
    other: Predict,
    volumes: list[Tensor],
    exact: bool,
) -> Row:
    if exact:
        # Votes are counted, so a tie that rounding decides moves a probability by a whole vote.
        changed = [(argmax_labels(plain(v)) != argmax_labels(other(v))).float().mean() for v in volumes]
        share = float(torch.stack(changed).mean())
        gate = Gate(share < 1e-3, f"labels: {share:.1e} of the voxels differ, bound 1e-03")
    else:
        gate = _quality_gate(subject, _whole_dice, other, "fp32")
    row = Row(name, f"whole slices with {content}", "the same in fp32, eager", subject.device, gate)
    row.details = {**_details(subject, "option"), "option": content}
    return measure(row, over_volumes(plain, volumes), over_volumes(other, volumes), subject.pairs)


def _autocast(subject: Subject) -> Predict:
    predict = inference_of(SimpleInferer(), subject.segmenter())

    def cast(image: Tensor) -> Tensor:
        with torch.autocast(torch.device(subject.device).type, torch.bfloat16):
            return predict(image)

    return cast


def _channels_last(subject: Subject) -> Predict:
    return inference_of(SimpleInferer(), subject.segmenter().to(memory_format=torch.channels_last))


def _compiled(subject: Subject) -> Predict:
    network = copy.deepcopy(subject.segmenter())
    network.denoiser.forward = torch.compile(network.denoiser.forward, dynamic=True)
    return inference_of(SimpleInferer(), network)
