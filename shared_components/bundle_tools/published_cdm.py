"""The tensor names of published CDM checkpoints: the class-conditioned U-Net and the encoder classifier."""

from __future__ import annotations

from torch import nn

from shared_components.bundle_tools.published_medsegdiff import BLOCK_LAYERS, UNET_LAYERS, unet_places

CLASSIFIER_LAYERS = {
    "time_embedding.linear1": "time_embed.0",
    "time_embedding.linear2": "time_embed.2",
    "stem": "input_blocks.0.0",
    "middle1.residual": "middle_block.0",
    "middle1.attention": "middle_block.1",
    "middle2.residual": "middle_block.2",
    "output_norm": "out.0",
    "head.query_key_value": "out.2.qkv_proj",
    "head.output": "out.2.c_proj",
}


def unet_names(denoiser: nn.Module) -> dict[str, str]:
    """Return the published names of the tensors of a `ClassConditionedADM`: ours to theirs."""
    places = {f"unet.{ours}": published for ours, published in {**UNET_LAYERS, **unet_places(denoiser.unet)}.items()}
    return _names(denoiser, places)


def classifier_names(classifier: nn.Module) -> dict[str, str]:
    """Return the published names of the tensors of an `EncoderClassifier` with attention pooling: ours to theirs.

    The ``average`` head has no published form; its tensors are left out.
    """
    places = dict(CLASSIFIER_LAYERS)
    for index, step in enumerate(classifier.steps):
        places[f"steps.{index}.residual"] = f"input_blocks.{index + 1}.0"
        if not isinstance(step.attention, nn.Identity):
            places[f"steps.{index}.attention"] = f"input_blocks.{index + 1}.1"
    return _names(classifier, places)


def _names(network: nn.Module, places: dict[str, str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for name in network.state_dict():
        path, _, kind = name.rpartition(".")
        block, _, layer = path.rpartition(".")
        if path in places:
            names[name] = f"{places[path]}.{kind}"
        elif block in places and layer in BLOCK_LAYERS:
            names[name] = f"{places[block]}.{BLOCK_LAYERS[layer]}.{kind}"
        elif name == "head.positional_embedding":
            names[name] = "out.2.positional_embedding"
    return names
