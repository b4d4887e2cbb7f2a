"""Inferers that set how a segmenter samples."""

from __future__ import annotations

from typing import Any

from monai.inferers import SimpleInferer
from torch import Tensor, nn


class SamplingInferer(SimpleInferer):
    """MONAI's `SimpleInferer` that sets the members and steps of the network it is given, `DiffusionSegmenter`.

    MONAI Label builds a bundle's network once and its inferer for each request, with the options that the user chose.

    Args:
        num_samples: ensemble members.
        num_inference_steps: reverse steps; all of the training schedule when ``None``.
    """

    def __init__(self, num_samples: int, num_inference_steps: int | None = None) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.num_inference_steps = num_inference_steps

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Return ``network(inputs)``.

        Raises:
            InputError: the members or steps are not among the valid ones.
        """
        network.set_sampling(self.num_samples, self.num_inference_steps)
        return super().__call__(inputs, network, *args, **kwargs)
