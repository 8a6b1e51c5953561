"""Classification: from one output tensor to the labels it names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_app.domain import Label, Tensor, TensorSpec
from edge_app.errors import ModelError, Unreadable
from edge_app.files import read_text

BACKGROUND = "background"
_MAX_LABELS_BYTES = 16_000_000


def scores(output: Tensor, spec: TensorSpec) -> NDArray[np.float32]:
    """Turn one raw output into scores in 0..1, shape (classes,).

    Dequantised as `scale * (code - zero_point)`, in a type wide enough for the difference. A model
    that ends without its softmax gives logits, and they get one.
    """
    real = output.reshape(-1).astype(np.float32)
    if spec.scale:
        real = (real - spec.zero_point) * np.float32(spec.scale)
    if _are_logits(real, spec):
        real = np.exp(real - real.max())
        real /= real.sum()
    return real


def _are_logits(real: NDArray[np.float32], spec: TensorSpec) -> bool:
    """Whether the output can leave 0..1: for codes the same in every frame, whatever it shows.

    A float output has only its values to tell by.
    """
    if spec.scale and spec.dtype in ("int8", "uint8"):
        codes = np.iinfo(spec.dtype)
        low = (codes.min - spec.zero_point) * spec.scale
        high = (codes.max - spec.zero_point) * spec.scale
        step = spec.scale  # a range rounded to whole codes may end one step beyond
    else:
        low, high, step = float(real.min()), float(real.max()), 0.0
    return low < -step - 1e-3 or high > 1 + step + 1e-3


def decode(
    values: NDArray[np.float32], labels: Sequence[str], top_k: int, threshold: float
) -> tuple[Label, ...]:
    """Name the `top_k` best of `values` (classes,) that reach `threshold`, best first.

    Equal scores keep the order of their class index. Without labels a class is named by its index.
    """
    count = min(top_k, len(values))
    # A stable sort keeps ties in order. Most int8 scores of a frame are equal (zero): argpartition
    # takes 90 us for 1000 of those, and this 6.
    best = np.argsort(-values, kind="stable")[:count]
    return tuple(
        Label(int(i), labels[i] if labels else str(i), round(float(values[i]), 4))
        for i in best
        if values[i] >= threshold
    )


def load_labels(path: Path) -> tuple[str, ...]:
    """Read one label a line. Raises ModelError when the file cannot be read or is empty."""
    try:
        lines = read_text(path, _MAX_LABELS_BYTES).splitlines()
    except Unreadable as error:
        raise ModelError(f"labels {path}: cannot be read: {error}", hint=error.hint) from error
    labels = tuple(line.strip() for line in lines)
    while labels and not labels[-1]:
        labels = labels[:-1]
    if not labels:
        raise ModelError(f"labels {path}: the file is empty", hint="one label a line, UTF-8")
    return labels


def fit_labels(labels: Sequence[str], classes: int) -> tuple[str, ...]:
    """Make `labels` name exactly `classes` outputs, or raise ModelError.

    Many ImageNet models have 1001 outputs, the first being "background", and many label files have
    1000 lines (or the other way round). That difference is recognised; any other is an error.
    """
    if len(labels) == classes:
        return tuple(labels)
    if 0 < len(labels) == classes - 1 and labels[0].lower() != BACKGROUND:
        return (BACKGROUND, *labels)
    if len(labels) == classes + 1 and labels[0].lower() == BACKGROUND:
        return tuple(labels[1:])
    raise ModelError(
        f"{len(labels)} labels for a model with {classes} outputs",
        hint="give the labels file that came with this model, one line an output, in order",
    )
