"""Published weights of ``diffusers.UNet2DModel``, for MONAI's `DiffusionModelUNet`: tensor names and configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from shared_components.errors import InputError

# Ours to theirs, in this order; within the U-Net of a `MONAIDenoiser`.
_RULES = (
    (r"^unet\.", ""),
    (r"^time_embed\.0\.", "time_embedding.linear_1."),
    (r"^time_embed\.2\.", "time_embedding.linear_2."),
    (r"^middle_block\.resnet_1\.", "mid_block.resnets.0."),
    (r"^middle_block\.resnet_2\.", "mid_block.resnets.1."),
    (r"^middle_block\.attention\.", "mid_block.attentions.0."),
    (r"^out\.0\.", "conv_norm_out."),
    (r"^out\.2\.conv\.", "conv_out."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.attn\.out_proj\.", r"\1.to_out.0."),
    (r"(attentions\.\d+)\.attn\.", r"\1."),
    (r"downsampler\.op\.conv\.", "downsamplers.0.conv."),
    (r"upsampler\.postconv\.conv\.", "upsamplers.0.conv."),
    (r"skip_connection\.conv\.", "conv_shortcut."),
    (r"(conv_in|conv1|conv2)\.conv\.", r"\1."),
)
# Settings of ``config.json`` that no tensor shows, and the one value that MONAI's U-Net has.
_FIXED = {
    "act_fn": "silu",
    "add_attention": True,
    "attn_norm_num_groups": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "upsample_type": "conv",
}


def unet_names(denoiser: nn.Module) -> dict[str, str]:
    """Return the published name of every tensor of a `MONAIDenoiser`: ours to theirs.

    Args:
        denoiser: a `MONAIDenoiser` of any configuration.
    """
    names = {}
    for name in denoiser.state_dict():
        published = name
        for pattern, replacement in _RULES:
            published = re.sub(pattern, replacement, published)
        names[name] = published
    return names


def check_config(config: Mapping[str, Any], denoiser: nn.Module, file: str) -> None:
    """See that a published ``config.json`` describes the denoiser in what its tensors do not show.

    Args:
        config: content of the file.
        denoiser: a `MONAIDenoiser`.
        file: its path, for messages.

    Raises:
        InputError: a setting that MONAI's U-Net does not have, or another one than the denoiser's; all are listed.
    """
    unet = denoiser.unet
    widths = list(unet.block_out_channels)
    attention = [bool(level) for level in unet.attention_levels]
    expected = {
        **_FIXED,
        "block_out_channels": widths,
        "layers_per_block": unet.num_res_blocks[0],
        "attention_head_dim": unet.num_head_channels[-1],
        "norm_eps": unet.out[0].eps,
        "norm_num_groups": unet.out[0].num_groups,
        "down_block_types": ["AttnDownBlock2D" if level else "DownBlock2D" for level in attention],
        "up_block_types": ["AttnUpBlock2D" if level else "UpBlock2D" for level in reversed(attention)],
    }
    found = {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}
    differences = [
        f"{name} is {found[name]!r}, expected {value!r}"
        for name, value in expected.items()
        if name in found and found[name] != value
    ]
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        differences.insert(0, f"_class_name is {config['_class_name']!r}, expected 'UNet2DModel'")
    if differences:
        raise InputError(f"{file}: not this network: {'; '.join(differences)}")
