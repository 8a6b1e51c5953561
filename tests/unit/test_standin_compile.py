"""The tool that makes "compiled" models for the stand-in Edge TPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edge_app.engine.litert import EDGETPU_OP, LiteRtEngine
from edge_app.errors import ModelError
from tests import tiny_models
from tests.standin.edgetpu.compile import compiled, same_ends


def ends(model: bytes) -> list[tuple[bytes, list[int], int, list[float], list[int]]]:
    """Return name, shape, type, scales and zero points of all inputs, then of all outputs."""
    (graph,) = schema.ModelT.InitFromPackedBuf(model, 0).subgraphs
    tensors = [graph.tensors[index] for index in (*graph.inputs, *graph.outputs)]
    return [
        (
            tensor.name,
            list(tensor.shape),
            tensor.type,
            [] if tensor.quantization is None else list(tensor.quantization.scale),
            [] if tensor.quantization is None else list(tensor.quantization.zeroPoint),
        )
        for tensor in tensors
    ]


def with_own_buffers(model: bytes) -> bytes:
    """Return the model with an empty buffer for every tensor, as converters write it."""
    unpacked = schema.ModelT.InitFromPackedBuf(model, 0)
    for tensor in unpacked.subgraphs[0].tensors:
        tensor.buffer = len(unpacked.buffers)
        unpacked.buffers.append(schema.BufferT())
    builder = flatbuffers.Builder(1024)
    builder.Finish(unpacked.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize(
    "model",
    [
        tiny_models.reshape_model(),
        tiny_models.reshape_model("uint8", shape=(1, 5, 7, 3)),
        tiny_models.reshape_model(float_output=True),
        tiny_models.two_input_model(),
        with_own_buffers(tiny_models.reshape_model()),
    ],
    ids=["int8", "uint8", "float output", "two inputs", "own buffers"],
)
def test_a_compiled_model_keeps_its_ends_and_nothing_else(model: bytes) -> None:
    wrapped = schema.ModelT.InitFromPackedBuf(compiled(model), 0)
    assert ends(compiled(model)) == ends(model)
    (graph,) = wrapped.subgraphs
    (operator,) = graph.operators
    assert [code.customCode for code in wrapped.operatorCodes] == [EDGETPU_OP.encode()]
    assert list(operator.inputs) == list(graph.inputs)
    assert list(operator.outputs) == list(graph.outputs)
    assert len(operator.customOptions) == 32
    assert [buffer.data for buffer in wrapped.buffers] == [None]
    assert {tensor.buffer for tensor in graph.tensors} == {0}


def test_the_engine_sees_that_it_is_compiled(tmp_path: Path) -> None:
    cpu, twin = tmp_path / "tiny.tflite", tmp_path / "tiny_edgetpu.tflite"
    cpu.write_bytes(tiny_models.reshape_model())
    command = [sys.executable, "-m", "tests.standin.edgetpu.compile", str(cpu), str(twin)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    with pytest.raises(ModelError, match="compiled for the Edge TPU"):
        LiteRtEngine(twin)


def test_same_ends_as_a_compiled_model(tmp_path: Path) -> None:
    model = tmp_path / "twin.tflite"
    model.write_bytes(same_ends(compiled(tiny_models.reshape_model("uint8", shape=(1, 5, 7, 3)))))
    engine = LiteRtEngine(model)
    assert engine.info.input.shape == (1, 5, 7, 3)
    pixels = np.arange(105, dtype=np.uint8).reshape(5, 7, 3)
    (output,) = engine.run(pixels)
    assert (output == pixels.reshape(-1)).all()


def test_same_ends_needs_a_compiled_model() -> None:
    with pytest.raises(ValueError, match="not enough values"):
        same_ends(tiny_models.reshape_model())
