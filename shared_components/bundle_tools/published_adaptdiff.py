"""The tensor names of published AdaptDiff checkpoints: of the denoiser and of the segmentation network."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

_DENOISER = (
    (r"^time\.", "time_mlp.1."),
    (r"^stem\.", "initial."),
    (r"^head\.", "final."),
    (r"^encoder\.(\d+)\.main\.", r"encoder_resblk.\1.main_path."),
    (r"^encoder\.(\d+)\.shortcut\.", r"encoder_resblk.\1.side_path."),
    (r"^encoder_time\.", "encoder_t_linear."),
    (r"^downsample\.", "encoder_down_sample."),
    (r"^upsample\.", "decoder_up_sample."),
    (r"^decoder\.(\d+)\.modulation(\d)\.embedding\.", r"decoder_spadeblk.\1.SPADE_norm_\2.embedding.0."),
    (r"^decoder\.(\d+)\.modulation(\d)\.", r"decoder_spadeblk.\1.SPADE_norm_\2."),
    (r"^decoder\.(\d+)\.conv(\d)\.", r"decoder_spadeblk.\1.conv_\2."),
    (r"^decoder\.(\d+)\.shortcut\.", r"decoder_spadeblk.\1.conv_3."),
    (r"^decoder_time\.", "decoder_t_linear."),
)
_SEGMENTER = (
    (r"^(encoder|decoder)\.(\d+)\.convolutions\.", r"\1.\2.dualconv."),
    (r"^downsample\.", "td."),
    (r"^upsample\.", "tu."),
)


def denoiser_names(denoiser: nn.Module) -> dict[str, str]:
    """Return the published names of the tensors of a `SpadeDenoiser` of any configuration: ours to theirs."""
    return _renamed(denoiser, _DENOISER)


def segmenter_names(segmenter: nn.Module) -> dict[str, str]:
    """Return the published names of the tensors of a `ResidualUNet` of any configuration: ours to theirs."""
    return _renamed(segmenter, _SEGMENTER)


def _renamed(network: nn.Module, rules: Sequence[tuple[str, str]]) -> dict[str, str]:
    names = {}
    for name in network.state_dict():
        names[name] = next((re.sub(rule, new, name) for rule, new in rules if re.match(rule, name)), name)
    return names
