"""An ignite handler that draws each case."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.transforms import ResampleToMatch
from monai.utils import convert_to_numpy
from torch import Tensor

from shared_components.ensembling.uncertainty import entropy
from shared_components.errors import InputError
from shared_components.reporting.case_keys import CaseKey, claim, next_key
from shared_components.reporting.files import case_file, case_name, foreground_names, unique_name, write_atomically
from shared_components.reporting.overlays import encode_png, overlay_figure


class SaveOverlays:
    """Write a picture ``<case>_overlay.png`` of every case that an evaluator has finished (`overlay_figure`).

    The image is brought to the prediction's grid where preprocessing has changed it. Without an uncertainty
    map the entropy of the prediction's probabilities is drawn; without a label there are neither reference
    nor errors, so the same handler serves inference and evaluation. ``engine.state.overlays`` holds their
    paths.

    Args:
        output_dir: where the pictures go; made when the run starts.
        label_names: as in `CaseMetrics`.
        image_key: key of the (K, *spatial) image: three channels in 2-D are colours, of other images one
            channel is drawn.
        pred_key: key of the (C, *spatial) probabilities or (1, *spatial) label map.
        label_key: key of the reference, if there is one.
        uncertainty_key: key of the (1, *spatial) uncertainty in [0, 1], if there is one.
        overwrite: whether pictures of an earlier run may be replaced.
        also_claims: names, with wildcards, of what else the run writes to ``output_dir``, such as label maps
            by `SaveImaged`, which replaces files without asking; where one is there the run is refused alike.
        channel: the image's channel to draw, in grey; by default colours or the first (`overlay_figure`).
        instances_key: key of the (1, *spatial) numbers of the prediction's single objects, drawn where they are there.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        label_names: Mapping[Any, Any] | None = None,
        image_key: str = "image",
        pred_key: str = "pred",
        label_key: str = "label",
        uncertainty_key: str = "uncertainty",
        overwrite: bool = False,
        also_claims: Sequence[str] = (),
        channel: int | None = None,
        instances_key: str | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.label_names = label_names
        self.image_key, self.pred_key = image_key, pred_key
        self.label_key, self.uncertainty_key = label_key, uncertainty_key
        self.overwrite, self.channel, self.instances_key = overwrite, channel, instances_key
        self.claims = ["*_overlay.png", *also_claims]
        self._written: dict[CaseKey, Path] = {}

    def attach(self, engine: Engine) -> None:
        """Add the handler to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        claim(self, self.claims)
        self._written = {}

    def __call__(self, engine: Engine) -> None:
        """Draw the cases of one iteration."""
        for case in engine.state.output:
            label, image, prediction = case.get(self.label_key), case[self.image_key], case[self.pred_key]
            key = next_key(case_file(label, *case.values()), self._written)
            name = unique_name(
                case_name(key[0]), {path.name[: -len("_overlay.png")] for path in self._written.values()}
            )
            further = [case.get(self.uncertainty_key), case.get(self.instances_key)]
            figure = self._draw(name, image, prediction, label, *further)
            self._written[key] = write_atomically(self.output_dir / f"{name}_overlay.png", encode_png(figure))

    def _draw(
        self,
        name: str,
        image: Tensor,
        prediction: Tensor,
        label: Tensor | None,
        uncertainty: Tensor | None,
        instances: Tensor | None,
    ) -> np.ndarray:
        if uncertainty is None and prediction.shape[0] > 1:
            uncertainty = entropy(prediction[None].float())[0]
        labels = [None if item is None else convert_to_numpy(_label_map(item)) for item in (prediction, label)]
        names = foreground_names(self.label_names, prediction.shape[0])
        return overlay_figure(
            image=convert_to_numpy(on_grid_of(image, prediction)),
            prediction=labels[0],
            affine=convert_to_numpy(prediction.affine) if isinstance(prediction, MetaTensor) else None,
            reference=labels[1],
            uncertainty=None if uncertainty is None else convert_to_numpy(uncertainty)[0],
            label_names=names,
            title=name,
            channel=self.channel,
            instances=None if instances is None else convert_to_numpy(instances)[0],
        )

    def _finish(self, engine: Engine) -> None:
        engine.state.overlays = {key: path for part in idist.all_gather(self._written) for key, path in part.items()}


def on_grid_of(image: Tensor, prediction: Tensor) -> Tensor:
    """Return the image on the prediction's grid: as it is where the grids agree, else resampled linearly.

    A slice that the network saw as a volume of one slice loses that axis.
    """
    if image.ndim == prediction.ndim + 1 and image.shape[-1] == 1:
        image = image.squeeze(-1)
    both = isinstance(image, MetaTensor) and isinstance(prediction, MetaTensor)
    same_place = not both or torch.allclose(image.affine.double(), prediction.affine.double(), atol=1e-4)
    if image.shape[1:] == prediction.shape[1:] and same_place:
        return image
    if not both:
        raise InputError(
            f"image of shape {tuple(image.shape[1:])} and prediction of shape {tuple(prediction.shape[1:])}: "
            "without their affines they cannot be drawn on one grid"
        )
    return ResampleToMatch(mode="bilinear", padding_mode="zeros")(img=image.float(), img_dst=prediction)


def _label_map(item: Tensor) -> Tensor:
    """(C, *spatial) scores or a (1, *spatial) label map as (*spatial) int64."""
    return item.argmax(dim=0) if item.shape[0] > 1 else item[0].round().long()
