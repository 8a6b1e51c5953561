"""The networks cost what the papers say: Howard et al. 2017 and Sandler et al. 2018."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_app.errors import ModelError
from edge_app.models.builder.blocks import (
    INPUT,
    Layer,
    depthwise_3x3,
    inverted_residual,
    pointwise_1x1,
    same_padding_px,
    standard_3x3,
)
from edge_app.models.builder.network import (
    Network,
    by_name,
    mobilenet_v1,
    mobilenet_v2,
    with_standard_convolutions,
)

SOURCE = Layer("source", "conv", ("input",), (14, 14, 8), (14, 14, 64))


def millions(count: int, digits: int = 1) -> float:
    return round(count / 1e6, digits)


@pytest.mark.parametrize(
    ("width", "input_px", "macs", "weights"),
    [
        (1.0, 224, 569, 4.2),  # Howard et al. 2017, table 6
        (0.75, 224, 325, 2.6),
        (0.5, 224, 149, 1.3),
        (0.25, 224, 41, 0.5),
        (1.0, 192, 418, 4.2),  # and table 7; it prints 290 for what is 290.7
        (1.0, 160, 291, 4.2),
        (1.0, 128, 186, 4.2),
    ],
)
def test_v1_costs_what_its_paper_says(
    width: float, input_px: int, macs: int, weights: float
) -> None:
    network = mobilenet_v1(width, input_px)
    assert millions(network.macs, 0) == macs
    assert millions(network.weights) == weights


def test_v1_with_standard_convolutions_costs_what_its_paper_says() -> None:
    standard = with_standard_convolutions(mobilenet_v1())
    assert millions(standard.convolution_macs, 0) == 4866
    assert millions(standard.weights) == 29.3
    assert {layer.kind for layer in standard.layers} == {"conv", "mean", "dense", "softmax"}


def test_v2_costs_what_its_paper_says() -> None:
    network = mobilenet_v2()
    assert millions(network.macs, 0) == 301  # 300.8: the paper prints 300
    assert millions(network.weights, 2) == 3.47  # the paper prints 3.4
    assert network.params == 3_487_816
    assert mobilenet_v2(1.4).layers[-3].in_shape == (7, 7, 1792)
    assert mobilenet_v2(0.35).layers[-3].in_shape == (7, 7, 1280)


def test_blocks_cost_what_their_docstrings_say() -> None:
    area, m, n, t = 14 * 14, 64, 96, 6
    assert standard_3x3("a", SOURCE, n, 1, (1, 1)).macs == area * 9 * m * n
    assert standard_3x3("a", SOURCE, n, 2, (0, 1)).macs == area // 4 * 9 * m * n
    assert depthwise_3x3("a", SOURCE, 1, (1, 1)).macs == area * 9 * m
    assert pointwise_1x1("a", SOURCE, n, "relu6").macs == area * m * n
    block = inverted_residual("a", SOURCE, n, t, 1)
    assert sum(layer.macs for layer in block) == area * t * m * (m + 9 + n)
    assert sum(layer.weights for layer in block) == t * m * (m + 9 + n)
    pair = with_standard_convolutions(Network("pair", 14, (SOURCE, *block)))
    assert [layer.name for layer in pair.layers] == ["source", "a_expand", "a_project"]
    assert pair.layers[-1].weights == 9 * t * m * n


def test_a_shortcut_joins_equal_ends_only() -> None:
    assert inverted_residual("a", SOURCE, 64, 6, 1)[-1].inputs == ("source", "a_project")
    assert inverted_residual("a", SOURCE, 96, 6, 1)[-1].kind == "conv"
    assert inverted_residual("a", SOURCE, 64, 6, 2)[-1].kind == "conv"
    assert inverted_residual("a", SOURCE, 64, 1, 1)[0].kind == "depthwise"


@given(st.sampled_from([mobilenet_v1, mobilenet_v2]), st.integers(10, 200), st.integers(32, 512))
def test_every_network_is_connected(build: object, percent: int, input_px: int) -> None:
    assert callable(build)
    network = build(percent / 100, input_px, classes=7)
    shapes = {INPUT: (input_px, input_px, 3)}
    for layer in network.layers:
        assert layer.name not in shapes
        assert all(shapes[name] == layer.in_shape for name in layer.inputs)
        assert min(layer.out_shape) > 0
        if layer.kind in ("conv", "depthwise"):
            padded_px = layer.in_shape[0] + sum(layer.pad_px)
            assert (padded_px - layer.kernel_px) // layer.stride + 1 == layer.out_shape[0]
        shapes[layer.name] = layer.out_shape
    assert network.layers[-1].out_shape == (1, 1, 7)
    assert by_name(network.name).layers[:-2] == network.layers[:-2]


@pytest.mark.parametrize(
    "name",
    [
        "resnet_50",
        "mobilenet_v3_1.0_224",
        "mobilenet_v1_1.0",
        "mobilenet_v1_0.0_224",
        "mobilenet_v1_9.0_224",
        "mobilenet_v2_0.333_224",
        "mobilenet_v2_1.0_31",
        "mobilenet_v2_1.0_224.tflite",
    ],
)
def test_an_unknown_network_is_refused_with_what_is_allowed(name: str) -> None:
    with pytest.raises(
        ModelError, match=r"mobilenet_v1_WIDTH_INPUT|0\.1\.\.2\.0|32\.\.512"
    ) as error:
        by_name(name)
    assert error.value.hint


def test_same_padding_puts_the_odd_pixel_last() -> None:
    assert same_padding_px(224, 3, 2) == (0, 1)
    assert same_padding_px(7, 3, 2) == (1, 1)
    assert same_padding_px(7, 3, 1) == (1, 1)
    assert same_padding_px(7, 1, 1) == (0, 0)
