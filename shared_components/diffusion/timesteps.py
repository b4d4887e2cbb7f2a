"""Which noise levels a reverse process visits, and which timestep the network is shown at each."""

import re
from typing import Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch import Tensor

from shared_components.errors import InputError

Spacing = Union[str, int, Sequence[int]]  # a respacing may be a number, or several
SPACINGS = ("trailing", "leading", "linspace", "uniform", "logSNR")
_SECTIONS = re.compile(r"\d+(,\d+)*")
_WHOLE_STRIDE = re.compile(r"ddim(\d+)")


def noise_levels(
    alphas_cumprod: Tensor, num_inference_steps: Optional[int] = None, spacing: Spacing = "trailing"
) -> Tuple[Tensor, Tensor]:
    """Choose the noise levels of a reverse process on a training schedule of T timesteps.

    ``trailing``, ``leading`` and ``linspace`` choose among the training timesteps and end at the clean map; so do a
    published respacing such as ``"ddim50"`` or ``"10,15,25"`` (`respaced_timesteps`), which fix the number of steps.

    ``uniform`` and ``logSNR`` lie between the training timesteps, as solvers of the process's differential equation
    choose them: evenly in continuous time, or in the logarithm of the signal-to-noise ratio. Training timestep i is
    the continuous time (i + 1) / T, log(abar) is linear between two timesteps, and the levels go from time 1 to 1 / T:
    they end at timestep 0, whose noise is all but invisible, not at the clean map.

    Args:
        alphas_cumprod: (T,) of the training schedule.
        num_inference_steps: N in 1..T; T, or what the respacing says, when ``None``.
        spacing: one of `SPACINGS`, or a respacing, as text or as a number or several.

    Returns:
        The timesteps that the network is shown, (N,), int64 or, where they are fractions, float64; and the abar of
        those levels and of the one that the last step ends at, (N + 1,) float64.

    Raises:
        InputError: an unknown spacing, or a number of steps that it cannot give.
    """
    alphas_cumprod = alphas_cumprod.detach().cpu().double()
    spacing = _as_text(spacing)
    if spacing not in ("uniform", "logSNR"):
        timesteps = strided_timesteps(len(alphas_cumprod), num_inference_steps, spacing)
        return timesteps, torch.cat([alphas_cumprod[timesteps], torch.ones(1, dtype=torch.float64)])
    count = len(alphas_cumprod)
    steps = _checked_steps(count, num_inference_steps)
    if count < 2:
        raise InputError(f"spacing {spacing!r} needs a training schedule of 2 or more timesteps, not {count}")
    known_times, known_levels = np.arange(1, count + 1) / count, alphas_cumprod.numpy()
    times = np.linspace(1, 1 / count, steps + 1)
    if spacing == "logSNR":
        ratios = (np.log(known_levels) - np.log1p(-known_levels))[::-1]
        times = np.interp(np.linspace(ratios[0], ratios[-1], steps + 1), ratios, known_times[::-1])
    levels = np.exp(np.interp(times, known_times, np.log(known_levels)))
    return torch.from_numpy(times[:-1] * count - 1), torch.from_numpy(levels)


def strided_timesteps(
    num_train_timesteps: int, num_inference_steps: Optional[int] = None, spacing: Spacing = "trailing"
) -> Tensor:
    """Return ``num_inference_steps`` of the training timesteps, the noisiest one first.

    ``trailing`` counts down from the noisiest one in equal strides, ``leading`` up from 0 in whole strides, and
    ``linspace`` rounds even steps between the two ends; the names are those of Lin et al. 2024, table 2.

    Raises:
        InputError: when the number of steps is not in 1..num_train_timesteps, or for an unknown spacing.
    """
    spacing = _as_text(spacing)
    if _WHOLE_STRIDE.fullmatch(spacing) or _SECTIONS.fullmatch(spacing):
        timesteps = respaced_timesteps(num_train_timesteps, spacing)
        if num_inference_steps not in (None, len(timesteps)):
            raise InputError(
                f"spacing {spacing!r} gives {len(timesteps)} num_inference_steps, not {num_inference_steps}"
            )
        return timesteps
    steps = _checked_steps(num_train_timesteps, num_inference_steps)
    if spacing == "trailing":
        stride = num_train_timesteps / steps
        return (num_train_timesteps - torch.arange(steps, dtype=torch.float64) * stride).round().long() - 1
    if spacing == "leading":
        return torch.arange(steps).flip(0) * (num_train_timesteps // steps)
    if spacing == "linspace":
        return torch.linspace(num_train_timesteps - 1, 0, steps, dtype=torch.float64).round().long()
    raise InputError(
        f"spacing must be one of {', '.join(SPACINGS)}, 'ddim50' or counts per section such as '10,15,25', "
        f"not {spacing!r}"
    )


def respaced_timesteps(num_train_timesteps: int, respacing: str) -> Tensor:
    """Return the training timesteps that a published ``timestep_respacing`` keeps, the noisiest one first.

    ``"ddimN"`` keeps every n-th timestep from 0 on, with the whole n that gives exactly N. Numbers between commas are
    how many timesteps to keep of each of as many equal sections, the cleanest first, in even steps from the section's
    first to its last; if T is no multiple of the number of sections, the first ones are one longer.

    Raises:
        InputError: no whole stride gives N, or a section holds fewer timesteps than are to be kept.
    """
    match = _WHOLE_STRIDE.fullmatch(respacing)
    if match:
        for stride in range(1, num_train_timesteps + 1):
            kept = torch.arange(0, num_train_timesteps, stride)
            if len(kept) == int(match[1]):
                return kept.flip(0)
        raise InputError(
            f"spacing {respacing!r}: no whole stride over {num_train_timesteps} timesteps gives {match[1]} steps"
        )
    counts = [int(count) for count in respacing.split(",")]
    sections = torch.arange(num_train_timesteps).tensor_split(len(counts))
    for section, count in zip(sections, counts):
        if not 1 <= count <= len(section):
            raise InputError(f"spacing {respacing!r}: a section of {len(section)} timesteps cannot give {count} steps")
    kept = [
        section[torch.linspace(0, len(section) - 1, count, dtype=torch.float64).round().long()]
        for section, count in zip(sections, counts)
    ]
    return torch.cat(kept).flip(0)


def _as_text(spacing: Spacing) -> str:
    """Return a respacing as text; a command line makes numbers of ``100`` and ``10,15,25``."""
    if isinstance(spacing, (list, tuple)):
        return ",".join(str(count) for count in spacing)
    return str(spacing)


def _checked_steps(num_train_timesteps: int, num_inference_steps: Optional[int]) -> int:
    steps = num_train_timesteps if num_inference_steps is None else num_inference_steps
    if not 1 <= steps <= num_train_timesteps:
        raise InputError(
            f"num_inference_steps must be in 1..{num_train_timesteps} (the steps of the training schedule), not {steps}"
        )
    return steps
