"""A plain segmentation network made whole: any size in, class probabilities out, an ensemble of views."""

from typing import List

import torch
from torch import Tensor, nn

from shared_components.diffusion.metadata import plain, with_metadata
from shared_components.diffusion.slices import pad_to_multiple
from shared_components.ensembling.combine import COMBINE_CHOICES, combine_members
from shared_components.errors import InputError, check_choice

MAX_VIEWS = 8


class ViewSegmenter(nn.Module):
    """Segment pictures by a network of fixed size rules, in several mirrored and turned views.

    To MONAI it is an ordinary network: one tensor in, one tensor out, scriptable. Pictures are padded to what the
    network takes. The members of the ensemble are views: as it is, mirrored, and both turned by 90, 180 and 270
    degrees; they say the same of an image of vessels, which have no preferred direction, and where they do not is
    where the segmentation is uncertain.

    Args:
        network: (B, K, H, W) to logits (B, classes, H, W); its ``downsampling`` is what H and W must be multiples of.
        num_samples: views, 1 to 8.
        combine: ``majority``, ``mean`` or ``staple`` (`shared_components.ensembling.combine_members`).
        amp: run the network in bfloat16, on CUDA and on the CPU; a scripted network ignores it.

    Raises:
        InputError: a number of views or a name outside the valid ones.
    """

    def __init__(self, network: nn.Module, num_samples: int = 1, combine: str = "mean", amp: bool = False) -> None:
        super().__init__()
        check_choice("combine", combine, COMBINE_CHOICES)
        self.network = network
        self.combine = combine
        self.num_samples = _checked(num_samples)
        self.amp = amp
        self.downsampling: int = network.downsampling

    @torch.jit.unused
    def set_sampling(self, num_samples: int, num_inference_steps: object = None) -> None:
        """Change the number of views; there are no reverse steps to change."""
        self.num_samples = _checked(num_samples)

    def forward(self, image: Tensor) -> Tensor:
        """Return class probabilities (B, classes, H, W) float32, which sum to 1.

        Args:
            image: (B, K, H, W), any H and W, normalised as in training.
        """
        if torch.jit.is_scripting():
            return self._segment(image)
        return self._segment_eager(image)

    @torch.jit.unused
    def _segment_eager(self, image: Tensor) -> Tensor:
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.amp):
            return with_metadata(self._segment(plain(image)), image)

    def _segment(self, image: Tensor) -> Tensor:
        padded, (top, left) = pad_to_multiple(image.float(), self.downsampling)
        members: List[Tensor] = []
        for view in range(self.num_samples):
            turns, mirrored = view // 2, view % 2 == 1
            seen = padded.flip(3) if mirrored else padded
            probability = self.network(torch.rot90(seen, turns, [2, 3])).float().softmax(dim=1)
            probability = torch.rot90(probability, -turns, [2, 3])
            probability = probability.flip(3) if mirrored else probability
            members.append(probability[:, :, top : top + image.shape[2], left : left + image.shape[3]])
        return combine_members(torch.stack(members), self.combine)


def _checked(num_samples: int) -> int:
    if type(num_samples) is not int or not 1 <= num_samples <= MAX_VIEWS:
        raise InputError(
            f"num_samples must be a whole number from 1 to {MAX_VIEWS} (views of the image), not {num_samples!r}"
        )
    return num_samples
