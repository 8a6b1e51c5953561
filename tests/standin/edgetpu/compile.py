"""Wrap a CPU model as the Edge TPU compiler would: one `edgetpu-custom-op`, the same tensors.

    python -m tests.standin.edgetpu.compile model.tflite model_edgetpu.tflite

The operator's options, where a real compiled file carries the program for the device, carry the
sha256 of the CPU model. Such a file runs on the stand-in only.
"""

from __future__ import annotations

import copy
import hashlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

CUSTOM_OP = "edgetpu-custom-op"
_NO_BUFFER = 0


def compiled(model: bytes) -> bytes:
    """Return the "compiled" twin of a CPU model of one subgraph."""
    (cpu,) = schema.ModelT.InitFromPackedBuf(model, 0).subgraphs
    graph = _ends(cpu.tensors, cpu.inputs, cpu.outputs)
    custom = _operator(0, graph.inputs, graph.outputs)
    custom.customOptions = np.frombuffer(hashlib.sha256(model).digest(), np.uint8)
    graph.operators = [custom]
    return _packed(graph, [_operator_code(schema.BuiltinOperator.CUSTOM, CUSTOM_OP)])


def same_ends(model: bytes) -> bytes:
    """Return a CPU model with the inputs and outputs of a compiled model's `edgetpu-custom-op`.

    For a real compiled file whose CPU twin is not at hand. It computes nothing of worth: each
    output is the beginning of the first input, and quantised like it, since codes are only copied.
    Raises ValueError unless there is one such operator.
    """
    source = schema.ModelT.InitFromPackedBuf(model, 0)
    (graph,) = source.subgraphs
    (custom,) = [
        operator
        for operator in graph.operators
        if source.operatorCodes[operator.opcodeIndex].customCode == CUSTOM_OP.encode()
    ]
    twin = _ends(graph.tensors, custom.inputs, custom.outputs)
    buffers = [schema.BufferT()]
    twin.operators = []
    for output in twin.outputs:
        twin.operators += _beginning(twin, output, buffers)
    reshape, cut = schema.BuiltinOperator.RESHAPE, schema.BuiltinOperator.SLICE
    return _packed(twin, [_operator_code(reshape), _operator_code(cut)], buffers)


def _beginning(
    graph: schema.SubGraphT, output: int, buffers: list[schema.BufferT]
) -> list[schema.OperatorT]:
    """Return the operators that flatten the first input, cut it, and shape it as `output`."""
    source, target = graph.tensors[0], graph.tensors[output]
    target.quantization = source.quantization
    flat = _add(graph, _shaped(source, [math.prod(source.shape)]))
    part = _add(graph, _shaped(target, [math.prod(target.shape)]))
    first = _add(graph, _constant([0], buffers))
    count = _add(graph, _constant([math.prod(target.shape)], buffers))
    return [
        _reshape(graph, 0, flat),
        _operator(1, [flat, first, count], [part]),
        _reshape(graph, part, output),
    ]


def _ends(
    tensors: Sequence[schema.TensorT], inputs: Sequence[int], outputs: Sequence[int]
) -> schema.SubGraphT:
    """Return a graph of these inputs and outputs, with nothing between them yet."""
    graph = schema.SubGraphT()
    graph.tensors = [_shaped(tensors[i], tensors[i].shape) for i in (*inputs, *outputs)]
    graph.inputs = list(range(len(inputs)))
    graph.outputs = list(range(len(inputs), len(graph.tensors)))
    return graph


def _shaped(tensor: schema.TensorT, shape: Sequence[int]) -> schema.TensorT:
    tensor = copy.copy(tensor)
    tensor.shape, tensor.buffer = shape, _NO_BUFFER
    return tensor


def _constant(values: list[int], buffers: list[schema.BufferT]) -> schema.TensorT:
    buffer = schema.BufferT()
    buffer.data = np.array(values, "<i4").view(np.uint8)
    buffers.append(buffer)
    tensor = schema.TensorT()
    tensor.shape, tensor.type = [len(values)], schema.TensorType.INT32
    tensor.buffer = len(buffers) - 1
    return tensor


def _add(graph: schema.SubGraphT, tensor: schema.TensorT) -> int:
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _operator(code: int, inputs: Sequence[int], outputs: Sequence[int]) -> schema.OperatorT:
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = code, inputs, outputs
    return operator


def _reshape(graph: schema.SubGraphT, source: int, target: int) -> schema.OperatorT:
    operator = _operator(0, [source], [target])
    operator.builtinOptionsType = schema.BuiltinOptions.ReshapeOptions
    operator.builtinOptions = schema.ReshapeOptionsT()
    operator.builtinOptions.newShape = graph.tensors[target].shape
    return operator


def _operator_code(builtin: int, custom: str | None = None) -> schema.OperatorCodeT:
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = builtin
    code.customCode = custom
    code.version = 1
    return code


def _packed(
    graph: schema.SubGraphT,
    codes: list[schema.OperatorCodeT],
    buffers: list[schema.BufferT] | None = None,
) -> bytes:
    model = schema.ModelT()
    model.version = 3
    model.description = "made for the stand-in Edge TPU"
    model.operatorCodes, model.subgraphs = codes, [graph]
    model.buffers = buffers or [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(compiled(Path(sys.argv[1]).read_bytes()))
