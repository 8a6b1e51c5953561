"""Reading models: what is in them, and that no damage leads to anything but a clear error."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_app.catalog import shipped_dir
from edge_app.errors import ModelError
from edge_app.models.builder.build import build_random
from edge_app.tools.cost import cost_of
from edge_app.tools.edgetpu_rules import predict
from edge_app.tools.tflite_graph import Graph
from edge_app.tools.tflite_reader import parse_graph, read_graph


@cache
def small_model() -> bytes:
    return build_random("mobilenet_v1_0.1_32")


def examine(data: bytes) -> Graph:
    """Everything that `inspect` does with a file."""
    graph = parse_graph(data, "damaged.tflite")
    cost_of(graph)
    predict(graph)
    return graph


def test_the_shipped_model_is_read() -> None:
    graph = read_graph(shipped_dir() / "mobilenet_v2_1.0_224.tflite")

    picture = graph.tensors[graph.inputs[0]]
    assert picture.shape == (1, 224, 224, 3)
    assert picture.dtype == "INT8"
    assert picture.quantisation is not None
    assert picture.quantisation.scales == (1 / 128,)
    stem = next(operator for operator in graph.operators if operator.kind == "CONV_2D")
    assert (stem.stride, stem.activation, stem.version) == ((2, 2), "RELU6", 3)
    kernel = graph.tensors[stem.inputs[1]]
    assert kernel.constant
    assert kernel.shape == (32, 3, 3, 3)
    assert kernel.quantisation is not None
    assert len(kernel.quantisation.scales) == 32
    assert not graph.compiled


def test_sizes_and_small_constants() -> None:
    graph = parse_graph(small_model(), "small")
    mean = next(operator for operator in graph.operators if operator.kind == "MEAN")

    assert graph.tensors[mean.inputs[1]].values == (1, 2)
    assert graph.tensors[graph.inputs[0]].size_bytes == 32 * 32 * 3


# Anywhere, and more often among the tables, at both ends of the file.
places = st.one_of(st.integers(8, 1 << 30), st.integers(8, 4000), st.integers(-4000, -1))


@settings(max_examples=150)
@given(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=20))
def test_random_damage_is_read_or_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(small_model())
    for where, value in changes:
        data[where % len(data)] = value
    data[4:8] = b"TFL3"

    with suppress(ModelError):  # nothing else may come out
        examine(bytes(data))


@settings(max_examples=100)
@given(st.floats(0, 0.9999))
def test_a_truncated_file_is_refused(kept: float) -> None:
    data = small_model()
    # The writer puts tables behind data, and some of the last bytes are only padding.
    with pytest.raises(ModelError):
        examine(data[: int(kept * (len(data) - 64))])


@settings(max_examples=150)
@given(places, st.sampled_from([0xFFFFFFFF, 0x7FFFFFFF, 0x01000000, 0x0000FFFF]))
def test_enormous_lengths_and_offsets_cost_nothing(where: int, value: int) -> None:
    data = bytearray(small_model())
    struct.pack_into("<I", data, max(8, where % len(data) // 4 * 4 - 4), value)

    with suppress(ModelError):
        examine(bytes(data))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a file"),
        (b"\x89PNG\r\n\x1a\n", "not a TensorFlow Lite model"),
        (b"\x00\x00\x00\x00TFL3", "damaged"),
        (b"\xff\xff\xff\xffTFL3" + bytes(100), "damaged"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(content)

    with pytest.raises(ModelError, match=said):
        read_graph(path)


def test_missing_files_folders_and_devices_are_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.tflite"
    os.mkfifo(pipe)
    for path in (tmp_path / "none.tflite", tmp_path, Path("/dev/zero"), pipe):
        with pytest.raises(ModelError, match=r"no such file|not a file"):
            read_graph(path)


def test_weights_that_do_not_fill_their_shape_are_refused() -> None:
    data = small_model()
    kernel = struct.pack("<IIIII", 4, 8, 3, 3, 3)  # the stem's shape, a vector of four sides
    assert data.count(kernel) == 1
    grown = data.replace(kernel, struct.pack("<IIIII", 4, 8, 3, 3, 4))

    with pytest.raises(ModelError, match="its shape needs 288"):
        parse_graph(grown, "grown")


def test_without_the_format_description_the_error_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['ai_edge_litert.schema_py_generated'] = None\n"
        "from edge_app.errors import EngineError\n"
        "from edge_app.tools.tflite_reader import parse_graph\n"
        "try:\n"
        "    parse_graph(b'0000TFL3', 'm')\n"
        "except EngineError as error:\n"
        "    print(error.hint)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "pip install ai-edge-litert" in result.stdout, result.stderr


def test_a_small_file_that_unfolds_into_a_large_one_is_refused() -> None:
    """2000 tensors in 20 kB, all of them the same table of 2000 scales."""
    builder = flatbuffers.Builder(0)
    scales = builder.CreateNumpyVector(np.ones(2000, np.float32))
    shape = builder.CreateNumpyVector(np.array([2000], np.int32))
    schema.QuantizationParametersStart(builder)
    schema.QuantizationParametersAddScale(builder, scales)
    quantisation = schema.QuantizationParametersEnd(builder)
    schema.TensorStart(builder)
    schema.TensorAddShape(builder, shape)
    schema.TensorAddQuantization(builder, quantisation)
    tensor = schema.TensorEnd(builder)
    tensors = offsets(builder, [tensor] * 2000)
    schema.SubGraphStart(builder)
    schema.SubGraphAddTensors(builder, tensors)
    subgraphs = offsets(builder, [schema.SubGraphEnd(builder)])
    schema.BufferStart(builder)
    buffers = offsets(builder, [schema.BufferEnd(builder)])
    schema.ModelStart(builder)
    schema.ModelAddSubgraphs(builder, subgraphs)
    schema.ModelAddBuffers(builder, buffers)
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    assert len(builder.Output()) < 20_000

    with pytest.raises(ModelError, match="more than it can hold"):
        parse_graph(bytes(builder.Output()), "bomb")


def offsets(builder: Any, tables: list[int]) -> int:
    builder.StartVector(4, len(tables), 4)
    for table in tables:
        builder.PrependUOffsetTRelative(table)
    return int(builder.EndVector())
