"""The record of a calibration: all that building the int8 model needs besides the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edge_app.errors import ModelError


@dataclass(frozen=True, slots=True)
class Quantisation:
    """What calibration found out, by layer.

    `ranges`: least and greatest value that the layer's output can express. `factors`: by how much
    each channel of its output is scaled (`equalise`). `corrections`: what is then added to its
    bias. `about`: what was calibrated on, with which versions.
    """

    ranges: Mapping[str, tuple[float, float]]
    factors: Mapping[str, tuple[float, ...]]
    corrections: Mapping[str, tuple[float, ...]]
    about: Mapping[str, Any]


def read_quantisation(path: Path) -> Quantisation:
    """Raises ModelError when the file is missing or holds something else."""
    try:
        content = json.loads(path.read_text())
        return Quantisation(
            {name: (float(low), float(high)) for name, (low, high) in content["ranges"].items()},
            {name: tuple(map(float, values)) for name, values in content["factors"].items()},
            {name: tuple(map(float, values)) for name, values in content["corrections"].items()},
            content["about"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path}: no quantisation parameters: {error}", hint="make calibrate writes them"
        ) from error


def write_quantisation(quantisation: Quantisation, path: Path) -> None:
    """One line per layer, so that a change can be read."""
    sections = {
        "about": quantisation.about,
        "ranges": quantisation.ranges,
        "factors": quantisation.factors,
        "corrections": quantisation.corrections,
    }
    text = ",\n".join(
        f'"{section}": {{\n'
        + ",\n".join(
            f"  {json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}"
            for name, value in entries.items()
        )
        + "\n}"
        for section, entries in sections.items()
    )
    path.write_text(f"{{\n{text}\n}}\n")


def rounded(values: NDArray[Any], digits: int) -> tuple[float, ...]:
    """As many significant digits as the record keeps."""
    return tuple(float(f"{value:.{digits}g}") for value in values.tolist())
