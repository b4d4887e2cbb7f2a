"""The tensor names of published cDAL checkpoints."""

from __future__ import annotations

from torch import nn

# Layers of a generator's module: ours, and the published name within the same module.
LAYERS = {
    "norm1.modulation": "GroupNorm_0.style",
    "conv1": "Conv_0",
    "time_projection": "Dense_0",
    "norm2.modulation": "GroupNorm_1.style",
    "conv2": "Conv_1",
    "shortcut": "Conv_2",
    "norm": "GroupNorm_0",
    "query": "NIN_0",
    "key": "NIN_1",
    "value": "NIN_2",
    "output": "NIN_3",
    "conv": "Conv2d_0",
}
CONDITION_LAYERS = {
    "norm1": "0.in_layers.0",
    "conv1": "0.in_layers.2",
    "norm2": "0.out_layers.0",
    "conv2": "0.out_layers.3",
}


def cdal_generator_names(denoiser: nn.Module) -> dict[str, str]:
    """Return the published name of every tensor of a `CDALGenerator`: ours to theirs.

    The published code keeps its modules in one numbered list, in the order in which ours are registered; the
    latent network is named apart.

    Args:
        denoiser: a `CDALGenerator` of any configuration.
    """
    names: dict[str, str] = {}
    rows: dict[str, int] = {}
    for name in denoiser.state_dict():
        path, _, kind = name.rpartition(".")
        if path.startswith("latent_embedding.layers."):
            names[name] = f"z_transform.{2 * int(path.rpartition('.')[2]) + 1}.{kind}"
            continue
        row, layer = _split_layer(path)
        number = rows.setdefault(row, len(rows))
        if layer.startswith("NIN_"):
            kind = {"weight": "W", "bias": "b"}[kind]
        names[name] = ".".join(part for part in ("all_modules", str(number), layer, kind) if part)
    return names


def is_attention_map(published: str) -> bool:
    """Return whether a tensor of this published name is one of the attention's matrices, published as [in, out]."""
    return published.endswith(".W")


def _split_layer(path: str) -> tuple[str, str]:
    """Split the path of one of our layers into that of its published module and the published layer in it."""
    layers = CONDITION_LAYERS if path.startswith("condition_blocks.") else LAYERS
    parts = path.split(".")
    for depth in (2, 1):
        layer = ".".join(parts[-depth:])
        if len(parts) > depth and layer in layers:
            return ".".join(parts[:-depth]), layers[layer]
    return path, ""
