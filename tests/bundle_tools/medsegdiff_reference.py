"""For the tests of MedSegDiff imports: checkpoints in the published form, and networks that run on them as they are.

The reference network is written from the description of the method and looks its tensors up by their published names:
it knows nothing of our modules and of how names are mapped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.networks.medsegdiff_oracles import uniform_values

PUBLISHED = Path(__file__).parent / "published"
NORM = re.compile(r"(in_layers\.0|out_layers\.0|\bnorm|instnorm|^out\.0)\.(weight|bias)$")

Tensors = dict[str, Tensor]


def published_shapes(revision: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published B configuration at 256 pixels: ``v1``, ``v1_early`` or ``v2``."""
    entries = json.loads((PUBLISHED / f"medsegdiff_{revision}.json").read_text(encoding="utf-8"))
    return {name: tuple(shape) for name, shape in entries}


def small_shapes(revision: str) -> dict[str, tuple[int, ...]]:
    """The same at a quarter of every width and 64 pixels."""
    shapes = {}
    for name, shape in published_shapes(revision).items():
        sizes = [size // 4 if size >= 32 else size for size in shape]
        if name.endswith("complex_weight"):
            grid = shape[1] // 4
            sizes[1:3] = grid, grid // 2 + 1
        shapes[name] = tuple(sizes)
    return shapes


def empty_tensors(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    """A checkpoint without memory."""
    return {
        name: torch.empty(shape, dtype=torch.int64 if name.endswith("tracked") else torch.float32, device="meta")
        for name, shape in shapes.items()
    }


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    """A checkpoint in which no two tensors are alike."""
    generator, tensors = torch.Generator().manual_seed(7), {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(len(tensors))
        elif name.endswith("running_var"):
            tensors[name] = 1 + 0.5 * noise.tanh()
        elif NORM.search(name) and name.endswith("weight"):
            tensors[name] = 1 + 0.2 * noise
        elif name.endswith("complex_weight"):
            tensors[name] = torch.tensor([1.0, 0.0]) + 0.2 * noise
        else:
            tensors[name] = noise * (math.sqrt(shape[0] / noise.numel()) if len(shape) > 1 else 0.1)
    return tensors


def formula_values(name: str, shape: tuple[int, ...]) -> Tensor:
    """The values of a published tensor that depend on its kind and the flat index alone."""
    count = math.prod(shape)
    index = torch.arange(count, dtype=torch.float64)
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if name.endswith("complex_weight"):
        index = 0.05 * index[: count // 2]
        values = torch.stack([1 + 0.2 * index.sin(), 0.2 * index.cos()], dim=-1)
    elif NORM.search(name):
        values = 1 + 0.1 * (0.2 * index).sin() if name.endswith("weight") else 0.05 * (0.4 * index).cos()
    elif name.endswith(("running_mean", "running_var")):
        values = torch.full((count,), float(name.endswith("var")))
    elif name.endswith("bias"):
        values = 0.02 * (0.3 * index).cos()
    else:
        values = math.sqrt(6 * shape[0] / count) * (2 * uniform_values()[:count] - 1)
    return values.reshape(shape).float()


def run_published(tensors: Tensors, image: Tensor, noisy: Tensor, timesteps: Tensor, num_heads: int) -> Tensor:
    """Return [noise, variance head, calibration map] (B, 3, H, W) of the network that a checkpoint belongs to.

    A V1 checkpoint must hold the projection that its published form lacks, too, as ``bottleneck``.
    """
    is_v1 = "bottleneck.weight" in tensors
    half = tensors["time_embed.0.weight"].shape[1] // 2
    angles = timesteps[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
    time = _linear(tensors, "time_embed.0", torch.cat([angles.cos(), angles.sin()], dim=1))
    time = _linear(tensors, "time_embed.2", F.silu(time))
    x = _conv(tensors, "input_blocks.0.0", torch.cat([image, noisy], dim=1))
    if not is_v1:
        calibration, decoded = _decode_highway(tensors, *_encode_highway(tensors, image, []))
        size = image.shape[2:]
        fine, coarse = (F.interpolate(y, size=size, mode="bilinear") for y in (decoded[-2], decoded[-3]))
        x = x + torch.cat([fine, fine, coarse], dim=1)
    skips, number = [x], 1
    while any(_positions(tensors, f"input_blocks.{number}")):
        x = _block(tensors, f"input_blocks.{number}", x, time, num_heads)
        skips.append(x)
        number += 1
    if is_v1:
        bottleneck, kept = _encode_highway(tensors, image, [skips[3], skips[6], skips[9], skips[12]])
        calibration, _ = _decode_highway(tensors, bottleneck, kept)
        x = x + _conv(tensors, "bottleneck", bottleneck)
    x = _block(tensors, "middle_block", x, time, num_heads)
    for number in range(len(skips)):
        x = _block(tensors, f"output_blocks.{number}", torch.cat([x, skips.pop()], dim=1), time, num_heads)
    return torch.cat([_conv(tensors, "out.2", F.silu(_norm(tensors, "out.0", x))), calibration], dim=1)


def _encode_highway(tensors: Tensors, x: Tensor, taps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    skips = []
    for depth in range(5):
        for unit in range(2):
            x = _unit(tensors, f"hwm.conv_blocks_context.{depth}.blocks.{unit}", x)
        skips.append(x)
        x = F.max_pool2d(x, 2)
        if depth < len(taps):
            filtered = _conv(tensors, f"hwm.conv_trans_blocks_a.{depth}", taps[depth])
            weight = torch.view_as_complex(tensors[f"hwm.ffparser.{depth}.complex_weight"])
            filtered = torch.fft.irfft2(torch.fft.rfft2(filtered, norm="ortho") * weight, norm="ortho")
            spatial = _conv(tensors, f"hwm.conv_trans_blocks_b.{depth}", filtered)
            x = x * spatial * filtered.mean(dim=(2, 3), keepdim=True)
    for unit in range(2):
        x = _unit(tensors, f"hwm.conv_blocks_context.5.{unit}.blocks.0", x)
    return x, skips


def _decode_highway(tensors: Tensors, x: Tensor, skips: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    outputs = []
    for stage in range(5):
        x = torch.cat([F.interpolate(x, scale_factor=2, mode="bilinear"), skips[-1 - stage]], dim=1)
        for unit in range(2):
            x = _unit(tensors, f"hwm.conv_blocks_localization.{stage}.{unit}.blocks.0", x)
        outputs.append(x)
    return torch.sigmoid(_conv(tensors, "hwm.seg_outputs.0", x)), outputs


def _unit(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    x, norm = _conv(tensors, f"{name}.conv", x), f"{name}.instnorm"
    mean, variance = tensors[f"{norm}.running_mean"], tensors[f"{norm}.running_var"]
    return F.leaky_relu(F.batch_norm(x, mean, variance, tensors[f"{norm}.weight"], tensors[f"{norm}.bias"]), 0.01)


def _positions(tensors: Tensors, name: str) -> Iterator[tuple[str, str]]:
    """Yield the places 0, 1, ... of a block, each with the first of its layers' names."""
    for position in range(3):
        inside = [key.removeprefix(f"{name}.{position}.") for key in tensors if key.startswith(f"{name}.{position}.")]
        if inside:
            yield f"{name}.{position}", inside[0].split(".")[0]


def _block(tensors: Tensors, name: str, x: Tensor, time: Tensor, num_heads: int) -> Tensor:
    for place, first in _positions(tensors, name):
        if first == "in_layers":
            x = _residual(tensors, place, x, time)
        elif first == "op":
            x = _conv(tensors, f"{place}.op", x, stride=2)
        elif first == "conv":
            x = _conv(tensors, f"{place}.conv", F.interpolate(x, scale_factor=2))
        else:
            x = _attend(tensors, place, x, num_heads)
    return x


def _residual(tensors: Tensors, name: str, x: Tensor, time: Tensor) -> Tensor:
    hidden = _conv(tensors, f"{name}.in_layers.2", F.silu(_norm(tensors, f"{name}.in_layers.0", x)))
    hidden = hidden + _linear(tensors, f"{name}.emb_layers.1", F.silu(time))[:, :, None, None]
    hidden = _conv(tensors, f"{name}.out_layers.3", F.silu(_norm(tensors, f"{name}.out_layers.0", hidden)))
    return hidden + (_conv(tensors, f"{name}.skip_connection", x) if f"{name}.skip_connection.bias" in tensors else x)


def _attend(tensors: Tensors, name: str, x: Tensor, num_heads: int) -> Tensor:
    flat = _norm(tensors, f"{name}.norm", x).flatten(2)
    projected = F.conv1d(flat, tensors[f"{name}.qkv.weight"], tensors[f"{name}.qkv.bias"])
    heads = []
    for head in projected.chunk(num_heads, dim=1):
        query, key, value = head.chunk(3, dim=1)
        weights = torch.softmax(query.transpose(1, 2) @ key / math.sqrt(query.shape[1]), dim=-1)
        heads.append(value @ weights.transpose(1, 2))
    output = F.conv1d(torch.cat(heads, dim=1), tensors[f"{name}.proj_out.weight"], tensors[f"{name}.proj_out.bias"])
    return x + output.reshape(x.shape)


def _norm(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    return F.group_norm(x, 32, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def _linear(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def _conv(tensors: Tensors, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = tensors[f"{name}.weight"]
    return F.conv2d(x, weight, tensors.get(f"{name}.bias"), stride=stride, padding=weight.shape[2] // 2)
