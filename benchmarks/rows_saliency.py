"""Row g: CDM's saliency maps of slices, both conditions and all noise draws in one batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.gates import exact_gate
from benchmarks.harness import Row, measure
from benchmarks.report import content_of
from benchmarks.rows_inference import details_of
from benchmarks.subject import Subject
from shared_components.diffusion.weak_segmenter import WeakSegmenter

SLICES = 4
BOUND = 1e-3  # a quarter of a bin of Otsu's histogram; the difference of two conditions magnifies rounding
NAIVE = "one slice, noise draw and condition at a time, a second copy of the network, eager fp32"
# the bundle's settings, and the published ones
SETTINGS = {
    "g": {"num_samples": 8, "num_inference_steps": 1, "guidance_scale": 0.0},
    "gg": {"num_samples": 1, "num_inference_steps": 10, "guidance_scale": 10.0},
}


class NaiveMaps(nn.Module):
    """What `WeakSegmenter` computes by finite differences, each slice, noise draw and condition by itself.

    Args:
        segmenter: whose networks, steps and noise are used.
    """

    def __init__(self, segmenter: WeakSegmenter) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.denoisers = nn.ModuleList([segmenter.denoiser, copy.deepcopy(segmenter.denoiser)])

    def forward(self, slices: Tensor) -> Tensor:
        """Return the mean maps (N, 1, H, W) of slices (N, C, H, W), scaled to [0, 1]."""
        owner = self.segmenter
        means = []
        for index in range(len(slices)):
            position, draws = torch.tensor([0]), []  # a slice is a case of its own
            for draw in range(owner.num_samples):
                noisy = owner.noised(slices[index : index + 1], torch.tensor([draw]), position)
                draws.append(self.map_of(noisy).sum(dim=1, keepdim=True))
            means.append(torch.stack(draws).mean(dim=0))
        return owner.mask.scaled(torch.cat(means), slices)[0]

    def map_of(self, noisy: Tensor) -> Tensor:
        """Return the map of one state (1, C, H, W) at the start level."""
        owner = self.segmenter
        told = owner.class_weights(1, owner.positive_class)
        mixed = owner.tau * told + (1 - owner.tau) * owner.class_weights(1, owner.contrast_class)
        # in float64, because the difference of two states that were rounded is what the project does without
        states, total = [noisy.double(), noisy.double()], torch.zeros_like(noisy, dtype=torch.float64)
        for step in range(owner.num_inference_steps):
            timestep = owner.process.timestep(step, 1)
            for branch, (weights, target) in enumerate(((told, owner.positive_class), (mixed, owner.negative_class))):
                output = self.denoisers[branch](states[branch].float(), timestep, class_weights=weights)
                moved, _, _ = owner.guided_step(step, output.double(), states[branch], torch.tensor([target]))
                states[branch] = moved
            total = total + states[0] - states[1]
        return (total / (1 - owner.tau)).float()


class _Maps(nn.Module):
    """The project's scaled maps alone."""

    def __init__(self, segmenter: WeakSegmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, slices: Tensor) -> Tensor:
        return self.segmenter.describe(slices)["saliency"]


def saliency_maps(subject: Subject) -> Iterator[Row]:
    """Rows g (the bundle's settings) and gg (one draw, ten guided steps, as published)."""
    image = slices_of(subject)
    for name, settings in SETTINGS.items():
        segmenter = subject.segmenter(gated=False, **settings)
        naive, project = _maps(NaiveMaps(segmenter), image), _maps(_Maps(segmenter), image)
        with torch.no_grad():
            gate = exact_gate([naive()], [project()], BOUND, f"scaled maps of {SLICES} slices")
        row = Row(name, content_of(name, subject.bundle), NAIVE, subject.device, gate)
        counts = {"members": settings["num_samples"], "steps": settings["num_inference_steps"]}
        row.details = details_of(subject, "same work") | counts | {"volumes": SLICES, "size": tuple(image.shape[2:])}
        with torch.no_grad():
            yield measure(row, naive, project, subject.pairs)


def slices_of(subject: Subject) -> Tensor:
    """Random slices (N, C, H, W) of the configured size, in the range of the images."""
    generator = torch.Generator().manual_seed(subject.seed)
    parser = subject.config()
    channels, size = (parser.get_parsed_content(name) for name in ("num_channels", "image_size"))
    return (2 * torch.rand(SLICES, channels, *size, generator=generator) - 1).to(subject.device)


def _maps(network: nn.Module, image: Tensor) -> Callable[[], Tensor]:
    return lambda: network(image)
