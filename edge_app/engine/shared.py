"""The memory a child engine and its parent share: one picture in, the outputs back.

It is an anonymous file (memfd) that both map, so there is no name to leak: when both are gone, so
is the memory.
"""

from __future__ import annotations

import math
import mmap

import numpy as np

from edge_app.domain import EngineInfo, Pixels, Tensor

RUN, DONE, FAILED = b"r", b"d", b"f"  # parent: run; child: outputs are there / an error follows
_ALIGN_BYTES = 64


class Exchange:
    """A picture's pixels and the raw outputs (without batch dimension), as views of shared memory.

    The file must have `size_bytes` of `info`.
    """

    def __init__(self, file: int, info: EngineInfo) -> None:
        self._memory = mmap.mmap(file, size_bytes(info))
        offsets = _offsets(info)
        self.pixels: Pixels = np.ndarray(info.input.shape[1:], np.uint8, self._memory, offsets[0])
        self.outputs: list[Tensor] = [
            np.ndarray(spec.shape[1:], spec.dtype, self._memory, offset)
            for spec, offset in zip(info.outputs, offsets[1:], strict=False)
        ]

    def close(self) -> None:
        """Unmap the memory; the views are gone with it."""
        self.__dict__.pop("pixels", None)
        self.__dict__.pop("outputs", None)
        self._memory.close()


def size_bytes(info: EngineInfo) -> int:
    """How much memory an engine's pictures and outputs take."""
    return _offsets(info)[-1]


def _offsets(info: EngineInfo) -> list[int]:
    """Where the pixels and each output begin, and where the last one ends."""
    sizes = [math.prod(info.input.shape[1:])]
    sizes += [math.prod(spec.shape[1:]) * np.dtype(spec.dtype).itemsize for spec in info.outputs]
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + -(-size // _ALIGN_BYTES) * _ALIGN_BYTES)
    return offsets
