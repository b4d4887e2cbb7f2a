"""Tensor names of published checkpoints, mapped to those of our networks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from shared_components.errors import InputError

# Layers of a cDAL generator's module: ours, and the published name within the same module.
CDAL_LAYERS = {
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
CDAL_CONDITION_LAYERS = {
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


def _split_layer(path: str) -> tuple[str, str]:
    """Split the path of one of our layers into that of its published module and the published layer in it."""
    layers = CDAL_CONDITION_LAYERS if path.startswith("condition_blocks.") else CDAL_LAYERS
    parts = path.split(".")
    for depth in (2, 1):
        layer = ".".join(parts[-depth:])
        if len(parts) > depth and layer in layers:
            return ".".join(parts[:-depth]), layers[layer]
    return path, ""


def convert_cdal_generator(source_tensors: Mapping[str, Tensor], denoiser: nn.Module) -> dict[str, Tensor]:
    """Rename the tensors of a published cDAL generator checkpoint to those of ``denoiser``.

    Args:
        source_tensors: the published state dict; names may all begin with ``module.``.
        denoiser: a `CDALGenerator` in the checkpoint's configuration; it is not changed.

    Returns:
        A state dict for ``denoiser``: float32, attention maps transposed from [in, out] to [out, in].

    Raises:
        InputError: tensors are missing, surplus or of another shape; all of them are listed.
    """
    problems = find_differences(source_tensors, denoiser)
    if problems:
        raise InputError(f"not the expected cDAL generator checkpoint: {'; '.join(problems)}")
    source = _without_prefix(source_tensors)
    state = denoiser.state_dict()
    return {
        name: _to_our_layout(source[published], published).to(state[name].dtype, copy=True).contiguous()
        for name, published in cdal_generator_names(denoiser).items()
    }


def find_differences(source_tensors: Mapping[str, Tensor], denoiser: nn.Module) -> list[str]:
    """Say how a checkpoint differs from the published form of ``denoiser``; empty where it fits.

    Returns:
        At most one entry for each of missing, surplus and unfit tensors; it names all of them.
    """
    source = _without_prefix(source_tensors)
    state = denoiser.state_dict()
    expected = {published: state[name] for name, published in cdal_generator_names(denoiser).items()}
    unfit = []
    for name in expected.keys() & source.keys():
        shape, found = tuple(_to_our_layout(expected[name], name).shape), source[name]
        if tuple(found.shape) != shape or not found.is_floating_point():
            unfit.append(f"{name} {tuple(found.shape)} {found.dtype}, expected {shape} torch.float32")
    groups = {
        "missing": expected.keys() - source.keys(),
        "surplus": source.keys() - expected.keys(),
        "of another shape or type": unfit,
    }
    return [f"{len(names)} {kind}: {', '.join(sorted(names))}" for kind, names in groups.items() if names]


def _without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the prefix that data-parallel training put before every name."""
    prefix = "module." if all(name.startswith("module.") for name in tensors) else ""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items()}


def _to_our_layout(tensor: Tensor, published: str) -> Tensor:
    """Attention maps are published as [in, out]; they are square, so the same step leads back."""
    return tensor.T if published.endswith(".W") else tensor
