"""Rows a2 to a4 and the options: a whole volume, from preprocessed image to class probabilities."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cache

import torch
from monai.inferers import SimpleInferer
from torch import Tensor, nn

from benchmarks.gates import MIN_CASES, argmax_labels, dice_gate, exact_gate, mean_dice, too_few
from benchmarks.harness import Gate, Row, measure
from benchmarks.limits import share_of_limit
from benchmarks.naive import FILTERS, NaiveSegmenter, column_inferer, cube_inferer
from benchmarks.report import CONTENTS
from benchmarks.subject import Subject
from shared_components.bundle_tools.settings import bfloat16_pays

NAIVE = "SlidingWindowInferer, 32^3, overlap .75, one vote at a time, nothing cached, FIR by zero insertion"
BOUND = 2e-4
WINDOWS_AT_ONCE = 4
AXIAL = 2

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


def exact_volumes(subject: Subject) -> Iterator[Row]:
    """Row a2: the same windows, votes and noise."""
    volume, mean = subject.volume(0)[0], {"combine": "mean"}
    ours = _cubes(subject, **mean)(volume)
    what = "probabilities (mean of the members) of one volume"
    for filters in FILTERS:
        gate = exact_gate([_naive(subject, filters, **mean)(volume)], [ours], BOUND, what)
        yield _against_naive(subject, "a2", filters, gate, _cubes(subject), "same work")


def true_slices(subject: Subject) -> Iterator[Row]:
    """Row a3: windows in the plane, each true slice once a window."""
    return _other_windows(subject, "a3", inference_of(column_inferer(), subject.segmenter(slice_axes=[AXIAL])))


def whole_slices(subject: Subject) -> Iterator[Row]:
    """Row a4: whole padded slices, as the bundle does it: along all its slice axes."""
    whole = inference_of(SimpleInferer(), subject.segmenter())
    for row in _other_windows(subject, "a4", whole):
        if row.project_samples:
            work = over_volumes(whole, timed_volumes(subject))
            row.details["limit"] = share_of_limit(work, row.ratio()["project_s"], subject.device)
        yield row


def configured_slices(subject: Subject) -> Iterator[Row]:
    """Row a4b: row a4 in the precision that the bundle runs in here."""
    amp = bfloat16_pays()
    for row in _other_windows(subject, "a4b", inference_of(SimpleInferer(), subject.segmenter(amp=amp))):
        row.details["precision"] = "bfloat16 autocast" if amp else "fp32"
        yield row


def _other_windows(subject: Subject, name: str, predict: Predict) -> Iterator[Row]:
    gate = quality_gate(subject, _cubes_dice, predict, "32^3 windows of row a2, which equal the naive ones")
    kind = "same network, steps and number of members; other windows, and in a4 other slice axes"
    for filters in FILTERS if gate.passed else FILTERS[:1]:
        yield _against_naive(subject, name, filters, gate, predict, kind)


def _against_naive(subject: Subject, name: str, filters: str, gate: Gate, predict: Predict, kind: str) -> Row:
    row = Row(name, CONTENTS[name], f"{NAIVE} ({filters})", subject.device, gate)
    row.details = details_of(subject, kind)
    volumes = timed_volumes(subject)
    opponent = over_volumes(_naive(subject, filters), volumes)
    return measure(row, opponent, over_volumes(predict, volumes), subject.pairs)


def timed_volumes(subject: Subject) -> list[Tensor]:
    """The first test cases."""
    return [subject.volume(index)[0] for index in range(min(subject.volumes, len(subject.test_items)))]


def quality_gate(subject: Subject, opponent: Callable[[Subject], list[float]], project: Predict, what: str) -> Gate:
    """The Dice gate over the test cases; it refuses random weights and too few cases before anything is run."""
    if not subject.has_weights:
        return Gate(False, "Dice: no trained weights were given, so nothing can be said")
    if len(subject.test_items) < MIN_CASES:
        return too_few(len(subject.test_items), subject.data_name)
    gate = dice_gate(opponent(subject), dice_of(subject, project), data=subject.data_name)
    gate.text += f"; opponent: {what}"
    return gate


def dice_of(subject: Subject, predict: Predict) -> list[float]:
    """Mean foreground Dice of every test case, on the preprocessed grid."""
    scores = []
    for index in range(len(subject.test_items)):
        image, label = subject.volume(index, label=True)
        probability = predict(image)
        scores.append(mean_dice(argmax_labels(probability), label, probability.shape[1]))
    return scores


@cache
def _cubes_dice(subject: Subject) -> list[float]:
    return dice_of(subject, _cubes(subject))


@cache
def _whole_dice(subject: Subject) -> list[float]:
    return dice_of(subject, inference_of(SimpleInferer(), subject.segmenter()))


def _naive(subject: Subject, filters: str, **settings) -> Predict:
    return inference_of(cube_inferer(), NaiveSegmenter(subject.segmenter(**settings), filters))


def _cubes(subject: Subject, **settings) -> Predict:
    network = subject.segmenter(slice_axes=[AXIAL], **settings)
    return inference_of(cube_inferer(WINDOWS_AT_ONCE), network)


def details_of(subject: Subject, kind: str) -> dict:
    """Settings that belong to every row of inference."""
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
    volumes = timed_volumes(subject)
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
        gate = quality_gate(subject, _whole_dice, other, "fp32")
    row = Row(name, f"whole slices with {content}", "the same in fp32, eager", subject.device, gate)
    row.details = {**details_of(subject, "option"), "option": content}
    return measure(row, over_volumes(plain, volumes), over_volumes(other, volumes), subject.pairs)


def _autocast(subject: Subject) -> Predict:
    return inference_of(SimpleInferer(), subject.segmenter(amp=True))


def _channels_last(subject: Subject) -> Predict:
    return inference_of(SimpleInferer(), subject.segmenter().to(memory_format=torch.channels_last))


def _compiled(subject: Subject) -> Predict:
    network = copy.deepcopy(subject.segmenter())
    network.denoiser.forward = torch.compile(network.denoiser.forward, dynamic=True)
    return inference_of(SimpleInferer(), network)
