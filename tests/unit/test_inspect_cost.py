"""The papers' figures, from the operators of a file and not from the architecture's own records."""

from __future__ import annotations

import pytest

from edge_app.errors import ModelError
from edge_app.models.builder.build import build_random
from edge_app.models.builder.network import by_name, with_standard_convolutions
from edge_app.tools.cost import Cost, cost_of
from edge_app.tools.tflite_graph import Graph, GraphTensor, Operator
from edge_app.tools.tflite_reader import parse_graph


def cost(name: str) -> Cost:
    return cost_of(parse_graph(build_random(name), name))


def test_v1_against_standard_convolutions() -> None:
    """Howard et al. 2017, table 4: 569 M and 4.2 M against 4866 M and 29.3 M."""
    found = cost("mobilenet_v1_1.0_224")

    assert round(found.total.macs / 1e6) == 569
    assert round(found.total.weights / 1e6, 1) == 4.2
    assert round(found.standard_convolutions.macs / 1e6) == 4866
    assert round(found.standard.weights / 1e6, 1) == 29.3


def test_v1_lives_in_its_1x1_convolutions() -> None:
    """Howard et al. 2017, table 2: 94.86 % of multiply-adds, 74.59 % of parameters."""
    found = cost("mobilenet_v1_1.0_224")

    assert round(100 * found.pointwise.macs / found.total.macs, 2) == 94.86
    assert round(100 * found.pointwise.weights / found.total.weights, 2) == 74.59


@pytest.mark.parametrize(
    ("name", "million_macs", "million_weights"),
    [
        # Howard et al. 2017, tables 6 and 7.
        ("mobilenet_v1_0.75_224", 325, 2.6),
        ("mobilenet_v1_0.5_224", 149, 1.3),
        ("mobilenet_v1_0.25_224", 41, 0.5),
        ("mobilenet_v1_1.0_192", 418, 4.2),
        ("mobilenet_v1_1.0_160", 290, 4.2),
        ("mobilenet_v1_1.0_128", 186, 4.2),
        # Sandler et al. 2018, table 4, and 3.4 M parameters there.
        ("mobilenet_v2_1.0_224", 300, 3.4),
    ],
)
def test_widths_and_resolutions(name: str, million_macs: int, million_weights: float) -> None:
    found = cost(name)

    assert found.total.macs / 1e6 == pytest.approx(million_macs, abs=1)
    assert found.total.weights / 1e6 == pytest.approx(million_weights, abs=0.08)


@pytest.mark.parametrize("name", ["mobilenet_v1_0.5_160", "mobilenet_v2_0.75_96"])
def test_a_file_costs_what_its_architecture_says(name: str) -> None:
    """Two independent counts: from the operators of the file, and from the builder's layers."""
    found, network = cost(name), by_name(name)
    standard = with_standard_convolutions(network)

    assert found.total.macs == network.macs
    assert found.total.weights == network.weights
    assert found.total.params == network.params
    assert found.standard.macs == standard.macs
    assert found.standard.params == standard.params


def test_peak_memory_is_the_widest_place() -> None:
    """V1's first 1 x 1 convolution reads 112 x 112 x 32 bytes and writes twice as many."""
    found = cost("mobilenet_v1_1.0_224")

    assert found.peak_bytes == 112 * 112 * (32 + 64)
    assert max(found.layers, key=lambda x: x.live_bytes).name == "block01_pointwise"


def tensor(name: str, *shape: int, constant: bool = False) -> GraphTensor:
    return GraphTensor(name, shape, "INT8", None, constant, variable=False, dynamic=False)


def graph(tensors: list[GraphTensor], operators: list[Operator], outputs: tuple[int, ...]) -> Graph:
    return Graph(tuple(tensors), tuple(operators), (0,), outputs, 1, 0, external_buffers=False)


def test_a_shortcut_keeps_its_source_alive() -> None:
    tensors = [tensor("in", 1, 100), tensor("a", 1, 10), tensor("b", 1, 10), tensor("sum", 1, 100)]
    chain = [
        Operator("RELU", False, 1, (0,), (1,)),
        Operator("RELU", False, 1, (1,), (2,)),
        Operator("ADD", False, 1, (0, 2), (3,)),
    ]

    live = [layer.live_bytes for layer in cost_of(graph(tensors, chain, (3,))).layers]
    assert live == [110, 120, 210]


def test_a_depthwise_layer_with_two_readers_is_no_pair() -> None:
    tensors = [
        tensor("in", 1, 4, 4, 8),
        tensor("dw", 1, 3, 3, 8, constant=True),
        tensor("filtered", 1, 4, 4, 8),
        tensor("pw", 16, 1, 1, 8, constant=True),
        tensor("mixed", 1, 4, 4, 16),
        tensor("side", 1, 4, 4, 8),
    ]
    pair = [
        Operator("DEPTHWISE_CONV_2D", False, 3, (0, 1), (2,)),
        Operator("CONV_2D", False, 3, (2, 3), (4,)),
    ]
    second_reader = Operator("RELU", False, 1, (2,), (5,))

    alone = cost_of(graph(tensors, pair, (4,)))
    shared = cost_of(graph(tensors, [*pair, second_reader], (4, 5)))
    assert alone.total.macs == 4 * 4 * 8 * (9 + 16)
    assert alone.standard.macs == 4 * 4 * 16 * 9 * 8
    assert shared.standard == shared.total


def test_shared_weights_are_stored_once_and_used_twice() -> None:
    tensors = [tensor("in", 1, 8), tensor("w", 8, 8, constant=True), *[tensor("t", 1, 8)] * 2]
    twice = [
        Operator("FULLY_CONNECTED", False, 1, (0, 1), (2,)),
        Operator("FULLY_CONNECTED", False, 1, (2, 1), (3,)),
    ]

    found = cost_of(graph(tensors, twice, (3,)))
    assert (found.total.macs, found.total.params) == (128, 64)


def test_what_cannot_be_counted_is_named() -> None:
    tensors = [tensor("in", 1, 8), tensor("out", 1, 8)]
    found = cost_of(graph(tensors, [Operator("SVDF", False, 1, (0,), (1,))], (1,)))

    assert found.not_counted == ("SVDF",)


def test_weights_of_the_wrong_rank_are_refused() -> None:
    tensors = [tensor("in", 1, 4, 4, 8), tensor("w", 8, 8, constant=True), tensor("o", 1, 4, 4, 8)]

    with pytest.raises(ModelError, match=r"weights of \[8, 8\]"):
        cost_of(graph(tensors, [Operator("CONV_2D", False, 3, (0, 1), (2,))], (2,)))
