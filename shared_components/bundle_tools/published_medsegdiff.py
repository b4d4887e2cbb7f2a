"""The tensor names of published MedSegDiff checkpoints, V1 and V2.

Every tensor of a published file has its place in our networks, none is dropped. The reverse does not hold for V1: of
the nine 1x1 convolutions between its branches the early published code draws all anew in every forward pass, its newest
revision still the last one, and what is drawn anew is neither trained nor saved.
"""

from __future__ import annotations

from torch import nn

NEVER_SAVED = ("bottleneck_projection.",)
SAVED_LATER = ("hwm.conv_trans_blocks_a.", "hwm.conv_trans_blocks_b.")

UNET_LAYERS = {
    "time_embedding.linear1": "time_embed.0",
    "time_embedding.linear2": "time_embed.2",
    "time_embedding.label_embedding": "label_emb",
    "stem": "input_blocks.0.0",
    "middle1.residual": "middle_block.0",
    "middle1.attention": "middle_block.1",
    "middle2.residual": "middle_block.2",
    "output_norm": "out.0",
    "output_conv": "out.2",
}
# Layers of the U-Net's residual blocks and of its attention: ours, and the published name within the same block.
BLOCK_LAYERS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_projection": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "shortcut": "skip_connection",
    "norm": "norm",
    "query_key_value": "qkv",
    "output": "proj_out",
}


def medsegdiff_names(denoiser: nn.Module) -> dict[str, str]:
    """Return the published names of the tensors of a `MedSegDiffV1` or `MedSegDiffV2`: ours to theirs.

    Left out are those without a published name: V1's ``bottleneck_projection`` and the ``anchor_projection`` of a V2
    whose width is not the published one.

    Args:
        denoiser: a `MedSegDiffV1` or `MedSegDiffV2` of any configuration.
    """
    places = {f"unet.{ours}": published for ours, published in unet_places(denoiser.unet).items()}
    highway = _highway_places(denoiser.highway)
    places.update({f"highway.{ours}": f"hwm.{published}" for ours, published in highway.items()})
    for depth in range(len(getattr(denoiser, "gates", ()))):
        places[f"gates.{depth}.projection"] = f"hwm.conv_trans_blocks_a.{depth}"
        places[f"gates.{depth}.spatial"] = f"hwm.conv_trans_blocks_b.{depth}"
        places[f"gates.{depth}.parser"] = f"hwm.ffparser.{depth}"
    names: dict[str, str] = {}
    for name in denoiser.state_dict():
        path, _, kind = name.rpartition(".")
        block, _, layer = path.rpartition(".")
        if path in places:
            names[name] = f"{places[path]}.{'complex_weight' if layer == 'parser' else kind}"
        elif block in places:
            names[name] = f"{places[block]}.{BLOCK_LAYERS[layer]}.{kind}"
    return names


def assumed(denoiser: nn.Module) -> str:
    """Say which heads and which order of the attention's channels a network has; tensors are alike with any."""
    layers = [layer for layer in denoiser.modules() if hasattr(layer, "use_new_attention_order")]
    heads = sorted({layer.num_heads for layer in layers})
    order = layers[0].use_new_attention_order  # the middle always attends
    return f"num_heads {', '.join(map(str, heads))}, use_new_attention_order {order}"


def unet_places(unet: nn.Module) -> dict[str, str]:
    """Return where the published U-Net has the layers and blocks of ours; it numbers its blocks through."""
    places, number = dict(UNET_LAYERS), 1
    for index, level in enumerate(unet.down_levels):
        ours = f"down_levels.{index}"
        for step in range(len(level.steps)):
            places[f"{ours}.steps.{step}.residual"] = f"input_blocks.{number}.0"
            places[f"{ours}.steps.{step}.attention"] = f"input_blocks.{number}.1"
            number += 1
        if level.downsample is not None:
            places[f"{ours}.downsample.residual"] = f"input_blocks.{number}.0"
            places[f"{ours}.downsample.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    number = 0
    for index, level in enumerate(unet.up_levels):
        ours = f"up_levels.{index}"
        for step in range(len(level.steps)):
            places[f"{ours}.steps.{step}.residual"] = f"output_blocks.{number}.0"
            places[f"{ours}.steps.{step}.attention"] = f"output_blocks.{number}.1"
            number += 1
        # the way up lies in the block of the level's last step, behind its attention
        position = 1 if isinstance(level.steps[-1].attention, nn.Identity) else 2
        places[f"{ours}.upsample.residual"] = f"output_blocks.{number - 1}.{position}"
        places[f"{ours}.upsample.conv"] = f"output_blocks.{number - 1}.{position}.conv"
    return places


def _highway_places(highway: nn.Module) -> dict[str, str]:
    """Return where the published highway has the layers of ours."""
    stages = {f"encoder.{i}": f"conv_blocks_context.{i}.blocks.{{}}" for i in range(len(highway.encoder))}
    stages["bottleneck"] = f"conv_blocks_context.{len(highway.encoder)}.{{}}.blocks.0"
    stages.update((f"decoder.{i}", f"conv_blocks_localization.{i}.{{}}.blocks.0") for i in range(len(highway.decoder)))
    places = {"head": "seg_outputs.0"}
    for ours, published in stages.items():
        unit = -1
        for index, layer in enumerate(highway.get_submodule(ours)):
            is_convolution = isinstance(layer, nn.Conv2d)
            unit += is_convolution
            # what is called instnorm normalises by the batch
            places[f"{ours}.{index}"] = f"{published.format(unit)}.{'conv' if is_convolution else 'instnorm'}"
    return places
