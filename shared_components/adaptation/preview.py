"""Images generated during a training, to look at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.networks.utils import eval_mode
from torch import Tensor, nn

from shared_components.diffusion.chain import to_bytes
from shared_components.reporting.files import write_atomically
from shared_components.reporting.overlays import encode_png


class SynthesisPreview:
    """Generate a few images after every validation, above the masks they follow: ``<output_dir>/epoch_0010.png``.

    The masks are of the validation's items, which in an unsupervised training are pseudo-labels; the published code
    shows true labels of the target, which it should not know. Files are numbered by the epoch; there, half of them were
    overwritten.

    Args:
        output_dir: where they go.
        network: `DiffusionSynthesizer`.
        dataset: of the validation; items have "label" (1, W, H) of one size.
        num_images: how many.
    """

    def __init__(
        self, output_dir: str | os.PathLike, network: nn.Module, dataset: Sequence, num_images: int = 4
    ) -> None:
        self.output_dir = Path(output_dir)
        self.network = network
        self.dataset = dataset
        self.num_images = num_images

    def attach(self, engine: Engine) -> None:
        """Add the handler to an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Generate the images, always from the same noise, and write them as one picture."""
        if idist.get_rank() > 0 or self.num_images < 1:
            return
        count = min(self.num_images, len(self.dataset))
        labels = torch.stack([torch.as_tensor(_first(self.dataset[index])["label"]) for index in range(count)])
        device = next(self.network.parameters()).device
        with eval_mode(self.network):
            images = self.network(Tensor(labels).to(device).float(), torch.arange(count)).cpu()
        rows = torch.cat([2 * images - 1, 2 * (labels > 0).float() - 1], dim=3)  # the second spatial axis runs down
        sheet = to_bytes(torch.cat(list(rows[:, 0]), dim=0)).T
        self.output_dir.mkdir(parents=True, exist_ok=True)
        picture = np.repeat(sheet.numpy()[..., None], 3, axis=2)
        write_atomically(self.output_dir / f"epoch_{engine.state.epoch:04d}.png", encode_png(picture))


def _first(item: object) -> dict:
    return item[0] if isinstance(item, (list, tuple)) else item
