"""Charts as inline SVG: nothing to install, nothing to load, sharp on paper."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from shared_components.reporting.overlays import PALETTE

_INK, _GRID = "#33414e", "#dfe5ea"


def _hex(colour: Sequence[int]) -> str:
    return "#" + "".join(f"{value:02x}" for value in colour)


def _svg(width: int, height: int, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "middle", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {extra}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = _GRID, width: float = 1) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"/>'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers from ``low`` to ``high``, about ``count`` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def strip_chart(groups: Mapping[str, Mapping[str, float]], label: str, top: float | None = None) -> str:
    """Draw one column of points per group, with a box of quartiles and the median.

    Args:
        groups: name of the group (a structure) to values by case; NaN is left out.
        label: what is measured.
        top: upper end of the axis; the largest value without it.
    """
    values = [value for group in groups.values() for value in group.values() if math.isfinite(value)]
    width, height, left, base = 70 + 130 * len(groups), 280, 50, 240
    low, high = min([0.0, *values]), top or max([*values, 1e-6]) * 1.05

    def y(value: float) -> float:
        return base - (value - low) / (high - low) * (base - 20)

    parts = [_line(left, y(t), width - 10, y(t)) + _text(left - 6, y(t) + 4, f"{t:g}", "end") for t in ticks(low, high)]
    for column, (name, group) in enumerate(groups.items()):
        centre, colour = left + 65 + 130 * column, _hex(PALETTE[column % len(PALETTE)])
        known = {case: value for case, value in group.items() if math.isfinite(value)}
        parts.append(_box(centre, list(known.values()), y) if known else "")
        for number, (case, value) in enumerate(known.items()):
            # the golden ratio spreads neighbours without chance, so the picture is the same every time
            x = centre + ((number * 0.618034) % 1 - 0.5) * 60
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y(value):.1f}" r="4" fill="{colour}" fill-opacity="0.75"'
                f' stroke="{_INK}" stroke-width="0.5"><title>{escape(case)}: {value:.3f}</title></circle>'
            )
        parts.append(_text(centre, base + 20, name))
    parts.append(_text(14, (base + 20) / 2, label, extra=f'transform="rotate(-90 14 {(base + 20) / 2})"'))
    return _svg(width, height, parts, label)


def _box(centre: float, values: Sequence[float], y) -> str:
    lower, middle, upper = (y(value) for value in np.percentile(values, (25, 50, 75)))
    return (
        f'<rect x="{centre - 42:.1f}" y="{upper:.1f}" width="84" height="{max(lower - upper, 0.5):.1f}"'
        f' fill="#eef2f5" stroke="{_INK}" stroke-width="1"/>'
        + _line(centre - 42, middle, centre + 42, middle, _INK, 2.5)
    )


def line_chart(points: Sequence[tuple[float, float]], label: str) -> str:
    """Draw one curve over the epochs; its last value stands beside its name.

    Args:
        points: (epoch, value); values that are not finite are left out.
        label: what is drawn.
    """
    points = [(x, v) for x, v in points if math.isfinite(v)]
    width, height, left, base, paint = 345, 250, 56, 210, _hex(PALETTE[5])
    if not points:
        return _svg(width, height, [_text(width / 2, height / 2, f"{label}: no value yet")], label)
    xs, vs = zip(*points)
    low, high = min(vs), max(vs)
    margin = 0.05 * (high - low) or max(abs(high), 1e-6) * 0.1
    low, high, first, last = low - margin, high + margin, min(xs), max(max(xs), min(xs) + 1)

    def place(x: float, v: float) -> tuple[float, float]:
        across, up = (x - first) / (last - first), (v - low) / (high - low)
        return left + across * (width - left - 16), base - up * (base - 50)

    parts = [_line(left, place(first, t)[1], width - 16, place(first, t)[1]) for t in ticks(low, high)]
    parts += [_text(left - 6, place(first, t)[1] + 4, f"{t:g}", "end") for t in ticks(low, high)]
    parts += [_text(place(t, low)[0], base + 18, f"{t:g}") for t in ticks(first, last) if t == int(t)]
    path = " ".join(f"{x:.1f},{v:.1f}" for x, v in (place(*point) for point in points))
    parts.append(f'<polyline points="{path}" fill="none" stroke="{paint}" stroke-width="2"/>')
    for point in points if len(points) <= 60 else points[-1:]:
        x, v = place(*point)
        title = f"<title>epoch {point[0]:g}: {point[1]:.4g}</title>"
        parts.append(f'<circle cx="{x:.1f}" cy="{v:.1f}" r="3" fill="{paint}">{title}</circle>')
    parts.append(_text(8, 16, label, "start", 'font-weight="600"'))
    parts.append(_text(8, 33, f"last {vs[-1]:.4g}, least {min(vs):.4g}, greatest {max(vs):.4g}", "start"))
    parts.append(_text((left + width) / 2, base + 36, "epoch"))
    return _svg(width, height, parts, label)


def reliability_chart(bins: Sequence[Sequence[float]], elements: str = "voxels") -> str:
    """Draw accuracy against confidence: on the diagonal, the probabilities mean what they say.

    Args:
        bins: (3, num_bins) as `shared_components.ensembling.calibration_bins` returns them.
        elements: what was counted, "voxels" or "pixels".
    """
    count, confidence, correct = (np.asarray(row, dtype=float) for row in bins)
    width, height, left, base, side = 330, 300, 60, 250, 230

    def x(value: float) -> float:
        return left + value * side

    def y(value: float) -> float:
        return base - value * side

    parts = [
        _line(left, y(t), x(1), y(t)) + _text(left - 6, y(t) + 4, f"{t:g}", "end") for t in (0, 0.25, 0.5, 0.75, 1)
    ]
    parts += [_text(x(t), base + 16, f"{t:g}") for t in (0, 0.5, 1)]
    parts.append(_line(x(0), y(0), x(1), y(1), "#8a99a6", 1.5))
    for n, p, c in zip(count, confidence, correct):
        if n > 0:
            radius = 3 + 9 * math.sqrt(n / count.sum())
            title = f"<title>{n:.0f} {elements}, confidence {p / n:.3f}, correct {c / n:.3f}</title>"
            parts.append(
                f'<circle cx="{x(p / n):.1f}" cy="{y(c / n):.1f}" r="{radius:.1f}" fill="{_hex(PALETTE[5])}"'
                f' fill-opacity="0.8">{title}</circle>'
            )
    parts.append(_text(x(0.5), base + 36, "probability of the predicted class"))
    label = f"share of correct {elements}"
    parts.append(_text(14, y(0.5), label, extra=f'transform="rotate(-90 14 {y(0.5)})"'))
    return _svg(width, height, parts, "reliability diagram")
