"""How a segmentation comes out of noise: the reverse process of one validation case, as a strip of pictures."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from shared_components.diffusion.label_coding import LabelCoding
from shared_components.diffusion.segmenter import DiffusionSegmenter
from shared_components.reporting.files import write_atomically
from shared_components.reporting.overlays import CAPTION, GAP, displayed, encode_png, label_colour, write_text

DENOISING_FILE = "denoising.png"
PICTURE = 128


class Chain(NamedTuple):
    """The reverse process of one slice, on the CPU, float32.

    Attributes:
        condition: (K, H, W) that the denoiser was shown.
        timesteps: of the steps that are kept.
        noisy: (C, H, W) before each of them, and behind the last step what it left.
        clean: (C, H, W) estimated in each.
    """

    condition: Tensor
    timesteps: list[float]
    noisy: list[Tensor]
    clean: list[Tensor]


class DenoisingPreview:
    """Draw how the first case of a validation is denoised, always with the same noise, as ``denoising.png``.

    The upper row has the image and the noisy label maps, from pure noise to the finished one, the lower row what the
    denoiser took the clean map for in each step; so one sees whether later steps still change anything. Of a volume
    it shows the slice with the most foreground. TensorBoard keeps the strip of every validation,
    `TrainingReportHandler` shows the last one. Nothing happens where the validated network is no
    `DiffusionSegmenter`, such as a plain one.

    Args:
        output_dir: where the picture goes.
        log_dir: TensorBoard's folder, or ``None``.
        max_steps: columns at most; of more reverse steps it shows some, the first and the last among them.
    """

    def __init__(
        self, output_dir: str | os.PathLike, log_dir: str | os.PathLike | None = None, max_steps: int = 6
    ) -> None:
        self.output_dir, self.log_dir, self.max_steps = Path(output_dir), log_dir, max_steps
        self._recorder: ChainRecorder | None = None

    def attach(self, engine: Engine) -> None:
        """Add the handler to a validation's evaluator."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def _start(self, engine: Engine) -> None:
        if self._recorder is not None:  # of a run that ended with an error
            self._recorder.remove()
            self._recorder = None
        network = engine.network
        if idist.get_rank() == 0 and engine.state.iteration == 1 and isinstance(network, DiffusionSegmenter):
            self._recorder = ChainRecorder(network, self.max_steps)

    def __call__(self, engine: Engine) -> None:
        """Draw and write what the first case's chain was."""
        if self._recorder is None:
            return
        recorder, self._recorder = self._recorder, None
        recorder.remove()
        if recorder.chain is None:  # the case failed
            return
        coding, adjacent = engine.network.label_coding, engine.network.num_adjacent_slices
        strip = denoising_strip(recorder.chain, coding, adjacent)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(self.output_dir / DENOISING_FILE, encode_png(strip))
        if self.log_dir is not None:
            self._tensorboard.add_image("denoising", strip, engine.state.epoch, dataformats="HWC")

    @cached_property
    def _tensorboard(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(log_dir=str(self.log_dir))


class ChainRecorder:
    """Keep, while a segmenter runs, the chain of the slice that ends with the most foreground.

    It listens to the denoiser and to the reverse process and changes nothing; `remove` ends that.

    Args:
        network: whose chains are recorded, in eval mode.
        max_steps: kept at most.
    """

    def __init__(self, network: DiffusionSegmenter, max_steps: int) -> None:
        last = network.num_inference_steps - 1
        self.chain: Chain | None = None
        self._coding, self._process, self._last = network.label_coding, network.process, last
        self._kept = {round(step) for step in np.linspace(0, last, min(max_steps, last + 1))}
        self._most, self._condition = -1.0, torch.empty(0)
        self._noisy: list[Tensor] = []
        self._clean: list[Tensor] = []
        self._hooks: list[RemovableHandle] = [
            network.denoiser.register_forward_pre_hook(self._see_condition),
            network.process.register_forward_hook(self._see_step),
        ]

    def remove(self) -> None:
        """Stop listening."""
        for hook in self._hooks:
            hook.remove()

    def _see_condition(self, module: nn.Module, inputs: tuple) -> None:
        self._condition = inputs[2]

    def _see_step(self, module: nn.Module, inputs: tuple, outputs: tuple[Tensor, Tensor]) -> None:
        step, noisy, (finished, clean) = inputs[0], inputs[2], outputs
        if step == 0:
            self._noisy, self._clean = [], []
        if step in self._kept:
            self._noisy.append(noisy)
            self._clean.append(clean)
        if step == self._last:
            self._finish(finished)

    def _finish(self, finished: Tensor) -> None:
        foreground = 1 - self._coding.decode(finished)[:, 0].flatten(1).mean(dim=1)
        most = float(foreground.max())
        if most > self._most:
            index, self._most = int(foreground.argmax()), most
            states = [[_on_cpu(item[index]) for item in items] for items in (self._noisy + [finished], self._clean)]
            timesteps = [float(self._process.timesteps[step]) for step in sorted(self._kept)]
            self.chain = Chain(_on_cpu(self._condition[index]), timesteps, *states)
        self._noisy, self._clean = [], []


def denoising_strip(chain: Chain, coding: LabelCoding, num_adjacent_slices: int = 0) -> np.ndarray:
    """Draw a chain in two rows: image and noisy maps; clean estimates.

    A class is drawn in its colour, as bright as the map says that it is present (0 black, 1 full); noise has all
    colours. The first axis runs to the right.

    Args:
        chain: of one slice.
        coding: of its label maps.
        num_adjacent_slices: neighbours on each side in the condition; the slice itself is drawn.

    Returns:
        (height, width, 3) uint8.
    """
    condition = chain.condition.numpy()
    if num_adjacent_slices > 0:
        condition = condition[len(condition) // 2][None]
    titles = [f"noisy, t = {timestep:g}" for timestep in chain.timesteps] + ["finished"]
    upper = [("image", displayed(condition, 2, None))]
    upper += [(title, _presence(noisy, coding)) for title, noisy in zip(titles, chain.noisy)]
    estimates = [f"estimate at t = {timestep:g}" for timestep in chain.timesteps]
    lower = [("", None)] + [(title, _presence(clean, coding)) for title, clean in zip(estimates, chain.clean)]
    scale = PICTURE / max(condition.shape[1:])
    size = tuple(max(1, round(length * scale)) for length in condition.shape[1:])
    step_x, step_y = PICTURE + GAP, size[1] + CAPTION + GAP
    canvas = Image.new("RGB", (len(upper) * step_x + GAP, 2 * step_y + GAP), "black")
    draw = ImageDraw.Draw(canvas)
    for row, panels in enumerate((upper, lower)):
        for column, (title, panel) in enumerate(panels):
            left, top = GAP + column * step_x, GAP + row * step_y
            if panel is not None:
                picture = Image.fromarray(np.clip(panel.swapaxes(0, 1), 0, 255).astype(np.uint8)).convert("RGB")
                canvas.paste(picture.resize(size, Image.Resampling.NEAREST), (left + (PICTURE - size[0]) // 2, top))
            write_text(draw, (left + PICTURE / 2, top + size[1] + CAPTION / 2), title, size=11, anchor="mm")
    return np.asarray(canvas)


def _presence(state: Tensor, coding: LabelCoding) -> np.ndarray:
    """(H, W, 3) in [0, 255]: the brightest structure's colour at every pixel."""
    presence = coding.presence(state[None])[0].clamp(0, 1).numpy()
    presence = presence[1:] if coding.coding == "classes" else presence
    colours = np.asarray([label_colour(index + 1) for index in range(len(presence))], dtype=np.float32)
    return (presence[..., None] * colours[:, None, None]).max(axis=0)


def _on_cpu(item: Tensor) -> Tensor:
    return item.detach().float().cpu()
