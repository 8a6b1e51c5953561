"""Each rule refuses what it names, and nothing else; the partition has one leading part."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from edge_app.models.builder.build import build_random
from edge_app.tools.edgetpu_rules import ON_CHIP_BYTES, predict
from edge_app.tools.tflite_graph import Graph, GraphTensor, Operator, Quantisation
from edge_app.tools.tflite_reader import parse_graph

ONE = Quantisation((0.1,), (0,), 0)
MAP = GraphTensor("map", (1, 8, 8, 4), "INT8", ONE, False, False, False)
WEIGHTS = replace(MAP, name="weights", shape=(4, 1, 1, 4), constant=True)
INDICES = GraphTensor("indices", (2,), "INT32", None, True, False, False, values=(1, 2))
RELU = Operator("RELU", False, 1, (0,), (1,))
CONV = Operator("CONV_2D", False, 3, (0, 2), (1,))


def graph(
    *operators: Operator, source: GraphTensor = MAP, third: GraphTensor = WEIGHTS, more: int = 0
) -> Graph:
    tensors = (source, source, third, *(source,) * more)
    outputs = (operators[-1].outputs[0],)
    return Graph(tensors, operators, (0,), outputs, 1, 0, external_buffers=False)


def reason(found: Graph) -> str:
    return "; ".join(predict(found).reasons[0])


def test_a_mobilenet_is_taken_whole() -> None:
    name = "mobilenet_v2_0.1_32"
    prediction = predict(parse_graph(build_random(name), name))

    assert prediction.mapped == len(prediction.reasons) > 60
    assert 0 < prediction.parameter_bytes < ON_CHIP_BYTES


@pytest.mark.parametrize(
    ("refused", "why"),
    [
        (graph(replace(RELU, kind="Mine", custom=True)), "custom operator Mine"),
        (graph(replace(RELU, kind="GATHER")), "not supported"),
        (graph(replace(CONV, version=5)), r"version 5 is newer .* \(3\)"),
        (graph(RELU, source=replace(MAP, dtype="FLOAT32")), "tensors of FLOAT32"),
        (graph(RELU, source=replace(MAP, quantisation=None)), "no quantisation"),
        (graph(RELU, source=replace(MAP, shape=(2, 8, 8, 4))), "last three"),
        (graph(CONV, third=replace(WEIGHTS, shape=(1, 1, 1, 4), constant=False)), "not constant"),
        (graph(replace(CONV, dilation=(1, 2))), "dilation"),
        (graph(replace(RELU, kind="MAX_POOL_2D", activation="RELU")), "fused activation RELU"),
        (
            graph(
                replace(CONV, kind="FULLY_CONNECTED"),
                third=replace(WEIGHTS, quantisation=Quantisation((0.1, 0.2), (0,), 0)),
            ),
            "per channel",
        ),
        (graph(replace(CONV, kind="FULLY_CONNECTED", default_weights_format=False)), "shuffled"),
        (
            graph(
                replace(RELU, kind="MEAN", inputs=(0, 2)), third=replace(INDICES, values=(0, -1))
            ),
            "reduces the batch",
        ),
        (
            graph(replace(RELU, kind="PAD", inputs=(0, 2)), third=replace(INDICES, values=(0, 1))),
            "pads the batch",
        ),
        (graph(replace(RELU, kind="SOFTMAX"), source=replace(MAP, shape=(1, 16001))), "softmax"),
    ],
)
def test_each_rule(refused: Graph, why: str) -> None:
    assert re.search(why, reason(refused))
    assert len(predict(refused).reasons[0]) == 1


@pytest.mark.parametrize(
    "taken",
    [
        graph(RELU),
        graph(CONV),
        graph(replace(RELU, kind="MEAN", inputs=(0, 2)), third=INDICES),
        graph(
            replace(RELU, kind="PAD", inputs=(0, 2)), third=replace(INDICES, values=(0, 0, 1, 1))
        ),
        graph(replace(RELU, kind="MAX_POOL_2D")),
    ],
)
def test_what_no_rule_names_is_taken(taken: Graph) -> None:
    assert reason(taken) == ""


def test_after_the_first_cpu_operator_all_stays_on_the_cpu() -> None:
    middle = replace(RELU, kind="GATHER", inputs=(1,), outputs=(3,))
    last = replace(RELU, inputs=(3,), outputs=(4,))
    prediction = predict(graph(RELU, middle, last, more=2))

    assert prediction.mapped == 1
    assert "not supported" in prediction.reasons[1][0]
    assert "comes after" in prediction.reasons[2][0]


def test_a_cpu_operator_in_front_does_not_spoil_the_rest() -> None:
    first = replace(RELU, kind="GATHER")
    second = replace(RELU, inputs=(1,), outputs=(3,))

    assert predict(graph(first, second, more=1)).mapped == 1


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (replace(graph(RELU), subgraphs=2), "2 subgraphs"),
        (replace(graph(RELU), external_buffers=True), "outside"),
        (graph(RELU, source=replace(MAP, dynamic=True)), "dynamic"),
    ],
)
def test_whole_models_the_compiler_refuses(changed: Graph, why: str) -> None:
    prediction = predict(changed)

    assert prediction.mapped == 0
    assert why in prediction.whole_model[0]


def test_parameters_beyond_the_chip_are_streamed() -> None:
    large = replace(WEIGHTS, shape=(4096, 1, 1, 3072))
    prediction = predict(graph(CONV, third=large))

    assert prediction.parameter_bytes == 12 * 2**20
    assert prediction.streamed_bytes == 4 * 2**20
