"""Records of what a `.tflite` file holds: tensors, operators, and how they are wired."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edge_app.engine.litert import EDGETPU_OP

# Bits per element. Types of variable size (strings, resources) are not here: 0.
_BITS = {
    "INT4": 4,
    "INT8": 8,
    "UINT8": 8,
    "BOOL": 8,
    "INT16": 16,
    "UINT16": 16,
    "FLOAT16": 16,
    "BFLOAT16": 16,
    "INT32": 32,
    "UINT32": 32,
    "FLOAT32": 32,
    "INT64": 64,
    "UINT64": 64,
    "FLOAT64": 64,
    "COMPLEX64": 64,
    "COMPLEX128": 128,
}


@dataclass(frozen=True, slots=True)
class Quantisation:
    """`real = scale * (code - zero_point)`; one pair, or one per index of dimension `axis`."""

    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int

    @property
    def per_channel(self) -> bool:
        return len(self.scales) > 1


@dataclass(frozen=True, slots=True)
class GraphTensor:
    """`dtype` as the format spells it (INT8). `values`: of constant integers no longer than 64."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    quantisation: Quantisation | None
    constant: bool
    variable: bool
    dynamic: bool
    values: tuple[int, ...] = ()

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of the values; 0 for types whose size only run time knows."""
        return (self.elements * _BITS.get(self.dtype, 0) + 7) // 8


@dataclass(frozen=True, slots=True)
class Operator:
    """One node, in execution order. Inputs and outputs are tensor numbers, -1 where left out.

    `kind` is the builtin operator's name (CONV_2D), or a custom operator's own.
    """

    kind: str
    custom: bool
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    activation: str = "NONE"
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    default_weights_format: bool = True
    program_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Graph:
    """The first subgraph of a model, which is the one that inference starts at."""

    tensors: tuple[GraphTensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    subgraphs: int
    file_bytes: int
    external_buffers: bool

    @property
    def compiled(self) -> bool:
        """Whether an Edge TPU compiler made it, so that part of it is an opaque program."""
        return any(operator.kind == EDGETPU_OP for operator in self.operators)

    def activations(self, numbers: tuple[int, ...]) -> list[GraphTensor]:
        """Those of the tensors that are computed at run time."""
        found = (self.tensors[number] for number in numbers if number >= 0)
        return [tensor for tensor in found if not tensor.constant]
