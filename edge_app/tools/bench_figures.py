"""A figure of the bench, and whether it reaches what is wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["", "met", "missed", "not valid"]
Bound = tuple[str, float]  # "<=" or ">=", and the bound


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value. `verdict`: whether it reaches `target`; empty without a target."""

    name: str
    value: float
    unit: str
    meaning: str
    target: str = ""
    verdict: Verdict = ""


def judged(
    name: str, value: float, unit: str, meaning: str, target: Bound, *, possible: float = math.inf
) -> Figure:
    """Hold `value` to `target`. Above `possible` it is noise, which meets nothing."""
    sign, bound = target
    value = round(value, 3)
    met = value <= bound if sign == "<=" else value >= bound
    verdict: Verdict = "not valid" if value > possible else "met" if met else "missed"
    return Figure(name, value, unit, meaning, f"{sign} {bound:g}", verdict)
