"""How often the int8 file names the same class as the float network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_app.models.builder.blocks import EMBEDDING, PROBABILITIES

_WANTED = {0.5: 0.95, 0.3: 0.88}


@dataclass(frozen=True, slots=True)
class Agreement:
    """`pictures` whose best class has more than `confidence` in float; `same` in int8."""

    confidence: float
    pictures: int
    same: int

    @property
    def wanted(self) -> float:
        """The share that a shipped model must reach."""
        return _WANTED.get(self.confidence, 0.0)

    @property
    def share(self) -> float:
        return self.same / self.pictures if self.pictures else float("nan")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`embedding_cosine`: median cosine between the float and the int8 embedding."""

    agreements: tuple[Agreement, ...]
    embedding_cosine: float


def evaluate(
    exact: dict[str, NDArray[np.float32]],
    rough: dict[str, NDArray[np.float32]],
) -> Evaluation:
    """Compare outputs for the same pictures: `probabilities` and `embedding`, `n x values`."""
    best, found = exact[PROBABILITIES].argmax(1), rough[PROBABILITIES].argmax(1)
    sure = exact[PROBABILITIES].max(1)
    agreements = [
        Agreement(limit, int((sure > limit).sum()), int((best == found)[sure > limit].sum()))
        for limit in (*_WANTED, 0.0)
    ]
    left, right = exact[EMBEDDING], rough[EMBEDDING]
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines = (left * right).sum(1) / np.maximum(lengths, 1e-9)
    return Evaluation(tuple(agreements), float(np.median(cosines)))
