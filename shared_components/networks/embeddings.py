"""Embeddings of the diffusion step."""

import math

import torch
from torch import Tensor


def sinusoidal_timestep_embedding(timesteps: Tensor, embedding_dim: int) -> Tensor:
    """Embed integer timesteps as sines, then cosines, of geometrically spaced frequencies.

    Frequency k of ``half = embedding_dim // 2`` is ``10000 ** (-k / (half - 1))``: the last one is 1e-4.
    (MONAI's ``get_timestep_embedding`` divides by ``half`` and puts the cosines first, so published cDAL
    weights would not fit it.)

    Args:
        timesteps: (B,) step indices, of any number type.
        embedding_dim: width of the embedding; even.

    Returns:
        (B, embedding_dim) float32, in [-1, 1].
    """
    half = embedding_dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / max(half - 1, 1)
    angles = timesteps.to(torch.float32)[:, None] * torch.exp(-math.log(10000.0) * exponents)[None, :]
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
