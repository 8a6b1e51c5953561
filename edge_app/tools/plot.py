"""Pictures of cost. The only module that imports matplotlib: optional, since heavy on a Pi."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_app.errors import EdgeAppError, UsageError

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")  # Okabe and Ito's
_LABEL_CHARACTERS = 34


@dataclass(frozen=True, slots=True)
class Bar:
    """One layer; layers of one `group` share a colour."""

    label: str
    group: str
    macs: int
    params: int


@dataclass(frozen=True, slots=True)
class Point:
    """One model: median latency, and the range that 80 % of its inferences fell in."""

    label: str
    macs: int
    median_ms: float
    p10_ms: float
    p90_ms: float


@dataclass(frozen=True, slots=True)
class Line:
    """`latency_ms = intercept_ms + slope_ms * macs`."""

    intercept_ms: float
    slope_ms: float
    label: str


def check_plot(path: Path) -> None:
    """Before any work is done: can a picture be drawn and written there? Raises UsageError."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path}: pictures are written as PNG", hint="end the name in .png")
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"{path}: cannot be written there", hint="name a file in a directory")
    _figure(1, 1)


def plot_layers(bars: Sequence[Bar], title: str, path: Path) -> None:
    """Multiply-adds and parameters of each layer, first layer on top."""
    figure = _figure(11, 1.6 + 0.19 * max(len(bars), 4))
    groups = list(dict.fromkeys(bar.group for bar in bars))
    colours = [_COLOURS[groups.index(bar.group) % len(_COLOURS)] for bar in bars]
    left, right = figure.subplots(1, 2, sharey=True)
    rows = range(len(bars))
    left.barh(rows, [bar.macs / 1e6 for bar in bars], color=colours)
    right.barh(rows, [bar.params / 1e3 for bar in bars], color=colours)
    left.set_yticks(rows, [_short(bar.label) for bar in bars], fontsize=8)
    left.set_ylim(len(bars) - 0.4, -0.6)
    left.set_xlabel("multiply-adds (million)")
    right.set_xlabel("parameters (thousand)")
    for axes in (left, right):
        _tidy(axes, "x")
    for number, group in enumerate(groups):
        right.barh([0], [0], color=_COLOURS[number % len(_COLOURS)], label=group)
    right.legend(loc="upper right" if _grows(bars) else "lower right", frameon=True)
    figure.suptitle(title, fontsize=12)
    _save(figure, path)


def plot_latency(
    series: Mapping[str, Sequence[Point]], lines: Mapping[str, Line], title: str, path: Path
) -> None:
    """Latency against multiply-adds, one colour per backend, bars from p10 to p90."""
    figure = _figure(9, 6)
    axes = figure.subplots()
    most = max((point.macs for points in series.values() for point in points), default=1)
    highest_ms = max((point.p90_ms for points in series.values() for point in points), default=1)
    for number, (backend, points) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        axes.errorbar(
            [point.macs / 1e6 for point in points],
            [point.median_ms for point in points],
            yerr=[
                [point.median_ms - point.p10_ms for point in points],
                [point.p90_ms - point.median_ms for point in points],
            ],
            fmt="o",
            capsize=3,
            color=colour,
            label=f"{backend}: median, p10 to p90",
        )
        _name_points(axes, points, most, highest_ms)
        if line := lines.get(backend):
            ends = (0.0, 1.05 * most)
            fitted = [line.intercept_ms + line.slope_ms * macs for macs in ends]
            axes.plot(
                [macs / 1e6 for macs in ends], fitted, "--", color=colour, lw=1, label=line.label
            )
    axes.set_xlim(0, 1.08 * most / 1e6)
    axes.set_ylim(0, 1.25 * highest_ms)  # room for the legend
    axes.set_xlabel("multiply-adds per inference (million)")
    axes.set_ylabel("latency of one inference (ms)")
    axes.legend(loc="upper left")
    _tidy(axes, "both")
    figure.suptitle(title, fontsize=12)
    _save(figure, path)


def _name_points(axes: Any, points: Sequence[Point], most: int, highest_ms: float) -> None:
    """Names beside the points, moved up where they would cover each other."""
    lowest_free_ms = 0.0
    for point in sorted(points, key=lambda point: point.median_ms):
        height_ms = max(point.median_ms, lowest_free_ms)
        lowest_free_ms = height_ms + 0.05 * highest_ms
        left = point.macs > 0.7 * most  # no room on the right
        axes.annotate(
            point.label,
            (point.macs / 1e6, point.median_ms),
            xytext=((point.macs + (-0.025 if left else 0.025) * most) / 1e6, height_ms),
            arrowprops={"arrowstyle": "-", "color": "0.7", "lw": 0.7},
            ha="right" if left else "left",
            va="center",
            fontsize=9,
        )


def _figure(width_in: float, height_in: float) -> Any:
    try:
        module = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise UsageError(
            f"--plot needs matplotlib, which cannot be imported ({error})",
            hint='pip install "edge-app[plot]"',
        ) from error
    # Without pyplot: no window system, and no list of open figures to grow.
    return module.Figure(figsize=(width_in, height_in), dpi=120, layout="constrained")


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise EdgeAppError(f"{path}: cannot be written: {error.strerror}") from error


def _tidy(axes: Any, grid: str) -> None:
    axes.grid(axis=grid, color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)


def _grows(bars: Sequence[Bar]) -> bool:
    """Whether the last layers hold most parameters, so that the legend fits best on top."""
    half = len(bars) // 2
    return sum(bar.params for bar in bars[half:]) >= sum(bar.params for bar in bars[:half])


def _short(label: str) -> str:
    return label if len(label) <= _LABEL_CHARACTERS else f"…{label[1 - _LABEL_CHARACTERS :]}"
