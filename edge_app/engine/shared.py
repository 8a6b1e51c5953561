"""The memory a child engine and its parent share: pictures in, their outputs back.

It is an anonymous file (memfd) that both map, so there is no name to leak: when both are gone, so
is the memory.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_app.domain import EngineInfo, Pixels, Tensor, TensorSpec

RUN, DONE, FAILED = b"r", b"d", b"f"  # parent: run; child: outputs are there / an error follows
SLOTS = 2  # one picture at work, and one there when it is done: the device waits for nobody
_ALIGN_BYTES = 64


@dataclass(frozen=True, slots=True)
class Slot:
    """One picture's pixels and its raw outputs (without batch dimension)."""

    pixels: Pixels
    outputs: list[Tensor]


class Exchange:
    """The slots, as views of shared memory; both sides use them in turn.

    The file must have `size_bytes` of `info`.
    """

    def __init__(self, file: int, info: EngineInfo) -> None:
        self._memory = mmap.mmap(file, size_bytes(info))
        self._slots = [self._slot(info, number) for number in range(SLOTS)]
        self._used = 0

    def next(self) -> Slot:
        """Return the next picture's slot."""
        self._used += 1
        return self._slots[self._used % SLOTS]

    def close(self) -> None:
        """Unmap the memory. No slot may be held any more."""
        self._slots.clear()
        self._memory.close()

    def _slot(self, info: EngineInfo, number: int) -> Slot:
        *offsets, size = _offsets(info)
        starts = [number * size + offset for offset in offsets]
        return Slot(
            np.ndarray(info.input.shape[1:], np.uint8, self._memory, starts[0]),
            [
                np.ndarray(spec.shape[1:], spec.dtype, self._memory, start)
                for spec, start in zip(info.outputs, starts[1:], strict=True)
            ],
        )


def read_info(plain: Mapping[str, Any]) -> EngineInfo:
    """Return what `dataclasses.asdict` and JSON made plain."""
    fields = dict(plain)
    taken, *given = (
        TensorSpec(**{**spec, "shape": tuple(spec["shape"])})
        for spec in (fields.pop("input"), *fields.pop("outputs"))
    )
    return EngineInfo(**fields, input=taken, outputs=tuple(given))


def size_bytes(info: EngineInfo) -> int:
    """How much memory the slots take."""
    return SLOTS * _offsets(info)[-1]


def _offsets(info: EngineInfo) -> list[int]:
    """Where, in a slot, the pixels and each output begin, and where the last one ends."""
    sizes = [math.prod(info.input.shape[1:])]
    sizes += [math.prod(spec.shape[1:]) * np.dtype(spec.dtype).itemsize for spec in info.outputs]
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + -(-size // _ALIGN_BYTES) * _ALIGN_BYTES)
    return offsets
