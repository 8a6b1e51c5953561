"""Reads what a `.tflite` file says about itself into records; runs nothing.

The format is a FlatBuffer: offsets into one block of bytes, which in a damaged or hostile file may
lead anywhere, in circles or into lengths of billions. Every read is therefore charged to an
allowance that the file's size sets, and whatever the FlatBuffer reader trips over is a ModelError.
"""

from __future__ import annotations

import importlib
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edge_app.engine.litert import TFLITE_MARK
from edge_app.errors import EngineError, ModelError
from edge_app.tools.tflite_graph import Graph, GraphTensor, Operator, Quantisation

MAX_FILE_BYTES = 1 << 30
_MAX_SIDE = 1 << 28


def read_graph(path: Path) -> Graph:
    """Raises ModelError when the file cannot be read, is no `.tflite` or is damaged.

    EngineError (no ModelError) when the package that describes the format is not installed.
    """
    try:
        # A device or a pipe may never end.
        size_bytes = path.stat().st_size if path.is_file() else 0
        data = path.read_bytes() if 0 < size_bytes <= MAX_FILE_BYTES else b""
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    if not path.exists():
        raise ModelError(f"{path}: no such file", hint="give the path of a .tflite file")
    if not data:
        raise ModelError(f"{path}: not a file of 1 to {MAX_FILE_BYTES} bytes")
    return parse_graph(data, str(path))


def parse_graph(data: bytes, name: str) -> Graph:
    """The model in `data`; `name` stands for it in messages. Raises ModelError."""
    if data[4:8] != TFLITE_MARK:
        raise ModelError(
            f"{name}: not a TensorFlow Lite model (no TFL3 mark in its first 8 bytes)",
            hint="give a .tflite file; other formats must be converted first",
        )
    schema = _schema()
    cause: Exception
    try:
        return _Reader(schema, data).graph()
    except _Damaged as error:
        found, cause = str(error), error
    # What the FlatBuffer reader, struct and numpy raise when offsets or lengths lead nowhere.
    except (struct.error, ValueError, TypeError, IndexError, OverflowError) as error:
        found, cause = "an offset or a length in it leads nowhere", error
    raise ModelError(
        f"{name}: damaged: {found}",
        hint="check the file against its source (sha256), or fetch it again",
    ) from cause


class _Damaged(Exception):
    """What in the file contradicts itself."""


def _schema() -> Any:
    try:
        return importlib.import_module("ai_edge_litert.schema_py_generated")
    except ImportError as error:
        raise EngineError(
            "reading the layers of a .tflite needs the package ai-edge-litert, which holds the"
            " description of the format; tflite_runtime has none",
            hint="pip install ai-edge-litert, on this or any other computer",
        ) from error


class _Reader:
    """One walk over a model. Raises _Damaged, and whatever the FlatBuffer reader raises."""

    def __init__(self, schema: Any, data: bytes) -> None:
        self._schema = schema
        self._data = data
        # A sound file holds every table, name and number it names, so reading each of them once
        # costs less than this; small files get some slack for what writers share.
        self._allowance = 2 * len(data) + 4096
        self._model = schema.Model.GetRootAs(data, 0)
        self._dtypes = _names(schema.TensorType)
        self._builtins = _names(schema.BuiltinOperator)
        self._activations = _names(schema.ActivationFunctionType)
        self._options = _names(schema.BuiltinOptions)
        self._external_buffers = False

    def graph(self) -> Graph:
        model = self._model
        subgraphs = self._count(model.SubgraphsLength())
        if subgraphs == 0:
            raise _Damaged("it holds no graph")
        subgraph = model.Subgraphs(0)
        codes = [self._code(model.OperatorCodes(i)) for i in self._each(model.OperatorCodesLength)]
        tensors = tuple(
            self._tensor(subgraph.Tensors(i)) for i in self._each(subgraph.TensorsLength)
        )
        operators = tuple(
            self._operator(subgraph.Operators(i), codes)
            for i in self._each(subgraph.OperatorsLength)
        )
        graph = Graph(
            tensors=tensors,
            operators=operators,
            inputs=self._integers(subgraph.InputsLength, subgraph.InputsAsNumpy),
            outputs=self._integers(subgraph.OutputsLength, subgraph.OutputsAsNumpy),
            subgraphs=subgraphs,
            file_bytes=len(self._data),
            external_buffers=self._external_buffers,
        )
        _check_wiring(graph)
        return graph

    def _count(self, length: int, each: int = 1) -> int:
        self._allowance -= length * each
        if length < 0 or self._allowance < 0:
            raise _Damaged("it names more than it can hold")
        return length

    def _each(self, length: Any) -> Iterator[int]:
        # The smallest table takes 8 bytes: its entry in the list, and its offset to a layout.
        return iter(range(self._count(int(length()), each=8)))

    def _integers(self, length: Any, values: Any) -> tuple[int, ...]:
        if not self._count(int(length())):
            return ()
        return tuple(int(value) for value in values())

    def _text(self, value: bytes | None) -> str:
        text = (value or b"").decode("utf-8")
        self._count(len(text))
        return text

    def _code(self, code: Any) -> tuple[str, bool, int]:
        # Since 2020 the number is in the wider field; older files fill only the first.
        number = max(int(code.BuiltinCode()), int(code.DeprecatedBuiltinCode()))
        kind = self._builtins.get(number)
        if kind is None:
            raise _Damaged(f"operator code {number} is unknown")
        custom = kind == "CUSTOM"
        return self._text(code.CustomCode()) if custom else kind, custom, int(code.Version())

    def _tensor(self, tensor: Any) -> GraphTensor:
        dtype = self._dtypes.get(int(tensor.Type()))
        if dtype is None:
            raise _Damaged(f"tensor type {tensor.Type()} is unknown")
        shape = self._integers(tensor.ShapeLength, tensor.ShapeAsNumpy)
        if any(not 0 <= side <= _MAX_SIDE for side in shape):
            raise _Damaged(f"a tensor has the shape {list(shape)}")
        signature = self._integers(tensor.ShapeSignatureLength, tensor.ShapeSignatureAsNumpy)
        data = self._constant(int(tensor.Buffer()))
        record = GraphTensor(
            name=self._text(tensor.Name()),
            shape=shape,
            dtype=dtype,
            quantisation=self._quantisation(tensor.Quantization(), shape),
            constant=data is not None,
            variable=bool(tensor.IsVariable()),
            dynamic=-1 in signature,
            values=_small_integers(data, dtype),
        )
        # Sparse and external constants are stored in another way than their shape says.
        inline = data is not None and len(data) and tensor.Sparsity() is None
        if inline and data is not None and record.size_bytes not in (0, len(data)):
            raise _Damaged(
                f"{record.name!r} holds {len(data)} bytes, its shape needs {record.size_bytes}"
            )
        return record

    def _constant(self, number: int) -> Any:
        """The stored bytes of a tensor; None when it is computed at run time."""
        if not 0 <= number < self._model.BuffersLength():
            raise _Damaged(f"a tensor is stored in buffer {number}, which does not exist")
        buffer = self._model.Buffers(number)
        if int(buffer.Offset()) > 1:
            self._external_buffers = True
            return np.empty(0, np.uint8)
        return buffer.DataAsNumpy() if buffer.DataLength() else None

    def _quantisation(self, stored: Any, shape: tuple[int, ...]) -> Quantisation | None:
        if stored is None or not self._count(int(stored.ScaleLength())):
            return None
        scales = tuple(float(scale) for scale in stored.ScaleAsNumpy())
        zero_points = self._integers(stored.ZeroPointLength, stored.ZeroPointAsNumpy)
        axis = int(stored.QuantizedDimension())
        if not all(math.isfinite(scale) and scale >= 0 for scale in scales):
            raise _Damaged("a quantisation scale is negative or not a number")
        if len(zero_points) not in (0, 1, len(scales)):
            raise _Damaged(f"{len(scales)} scales have {len(zero_points)} zero points")
        if len(scales) > 1 and not (0 <= axis < len(shape) and shape[axis] == len(scales)):
            raise _Damaged(f"{len(scales)} scales do not fit the shape {list(shape)}")
        return Quantisation(scales, zero_points or (0,), axis)

    def _operator(self, operator: Any, codes: list[tuple[str, bool, int]]) -> Operator:
        number = int(operator.OpcodeIndex())
        if number >= len(codes):
            raise _Damaged(f"operator code {number} does not exist")
        kind, custom, version = codes[number]
        options = self._builtin_options(operator)
        return Operator(
            kind=kind,
            custom=custom,
            version=version,
            inputs=self._integers(operator.InputsLength, operator.InputsAsNumpy),
            outputs=self._integers(operator.OutputsLength, operator.OutputsAsNumpy),
            activation=self._activations.get(_option(options, "FusedActivationFunction", 0), "?"),
            stride=(_option(options, "StrideH", 1), _option(options, "StrideW", 1)),
            dilation=(
                _option(options, "DilationHFactor", 1),
                _option(options, "DilationWFactor", 1),
            ),
            default_weights_format=_option(options, "WeightsFormat", 0) == 0,
            program_bytes=self._count(int(operator.CustomOptionsLength())),
        )

    def _builtin_options(self, operator: Any) -> Any:
        kind = self._options.get(int(operator.BuiltinOptionsType()), "NONE")
        table = operator.BuiltinOptions()
        if kind == "NONE" or table is None:
            return None
        options = getattr(self._schema, kind)()
        options.Init(table.Bytes, table.Pos)
        return options


def _check_wiring(graph: Graph) -> None:
    """Every operator reads what exists and was computed before it. Raises _Damaged."""
    named = [*graph.inputs, *graph.outputs]
    for operator in graph.operators:
        named += [*operator.outputs, *(number for number in operator.inputs if number != -1)]
    for number in named:
        if not 0 <= number < len(graph.tensors):
            raise _Damaged(f"tensor {number} is used but does not exist")
    known = set(graph.inputs)
    known.update(i for i, tensor in enumerate(graph.tensors) if tensor.constant or tensor.variable)
    # An empty buffer is also how an empty constant (the shape of a scalar) is stored.
    known.update(i for i, tensor in enumerate(graph.tensors) if tensor.elements == 0)
    for operator in graph.operators:
        missing = [number for number in operator.inputs if number != -1 and number not in known]
        if missing:
            name = graph.tensors[missing[0]].name
            raise _Damaged(f"{operator.kind} reads {name!r} before anything computed it")
        known.update(operator.outputs)
    if not known.issuperset(graph.outputs):
        raise _Damaged("an output is never computed")


def _small_integers(data: Any, dtype: str) -> tuple[int, ...]:
    if data is None or dtype not in ("INT32", "INT64"):
        return ()
    values = np.frombuffer(data.tobytes(), np.dtype(dtype.lower()).newbyteorder("<"))
    return tuple(int(value) for value in values) if len(values) <= 64 else ()


def _option(options: Any, name: str, default: int) -> int:
    read = getattr(options, name, None)
    return default if read is None else int(read())


def _names(constants: Any) -> dict[int, str]:
    return {value: name for name, value in vars(constants).items() if isinstance(value, int)}
