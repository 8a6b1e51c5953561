"""Wrap a CPU model as the Edge TPU compiler would: one `edgetpu-custom-op`, the same tensors.

    python -m tests.standin.edgetpu.compile model.tflite model_edgetpu.tflite

The operator's options, where a real compiled file carries the program for the device, carry the
sha256 of the CPU model. Such a file runs on the stand-in only.
"""

from __future__ import annotations

import copy
import hashlib
import sys
from pathlib import Path

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

CUSTOM_OP = "edgetpu-custom-op"


def compiled(model: bytes) -> bytes:
    """Return the "compiled" twin of a CPU model of one subgraph."""
    cpu = schema.ModelT.InitFromPackedBuf(model, 0)
    (graph,) = cpu.subgraphs
    ends = [*graph.inputs, *graph.outputs]
    wrapped = schema.SubGraphT()
    wrapped.name = graph.name
    wrapped.tensors = [_without_buffer(graph.tensors[index]) for index in ends]
    wrapped.inputs = list(range(len(graph.inputs)))
    wrapped.outputs = list(range(len(graph.inputs), len(ends)))
    wrapped.operators = [_operator(wrapped, hashlib.sha256(model).digest())]

    result = schema.ModelT()
    result.version = cpu.version
    result.description = "compiled for the stand-in Edge TPU"
    result.operatorCodes = [_operator_code()]
    result.subgraphs = [wrapped]
    result.buffers = [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(result.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _without_buffer(tensor: schema.TensorT) -> schema.TensorT:
    tensor = copy.copy(tensor)
    tensor.buffer = 0
    return tensor


def _operator(graph: schema.SubGraphT, program: bytes) -> schema.OperatorT:
    operator = schema.OperatorT()
    operator.opcodeIndex = 0
    operator.inputs, operator.outputs = graph.inputs, graph.outputs
    operator.customOptions = np.frombuffer(program, np.uint8)
    return operator


def _operator_code() -> schema.OperatorCodeT:
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = CUSTOM_OP
    code.version = 1
    return code


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(compiled(Path(sys.argv[1]).read_bytes()))
