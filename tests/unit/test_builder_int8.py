"""From float weights to an int8 file: the steps keep what they promise, and the file runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_app.errors import ModelError
from edge_app.models.builder.blocks import EMBEDDING, LOGITS, PROBABILITIES, Layer
from edge_app.models.builder.build import build_random
from edge_app.models.builder.calibrate import calibrate
from edge_app.models.builder.correct import bias_corrections
from edge_app.models.builder.equalise import equalised, joined_outputs
from edge_app.models.builder.interpreter import run_model
from edge_app.models.builder.network import Network, mobilenet_v1, mobilenet_v2
from edge_app.models.builder.quantisation import (
    Quantisation,
    read_quantisation,
    write_quantisation,
)
from edge_app.models.builder.quantise import (
    encode_float,
    encode_int8,
    encode_kernel,
    scale_and_zero_point,
)
from edge_app.models.builder.reference import forward, real_input
from edge_app.models.builder.tflite import write_model
from edge_app.models.builder.weights import LayerWeights, Weights, random_weights

SMALL = mobilenet_v2(0.35, 64, classes=10)
PICTURES = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights(SMALL)


@pytest.fixture(scope="module")
def record(weights: Weights) -> Quantisation:
    steps: set[str] = set()
    quantisation = calibrate(
        SMALL, weights, PICTURES, {"network": SMALL.name}, lambda step, *_: steps.add(step)
    )
    assert steps == {"channels", "ranges", "ranges, least error", "bias corrections"}
    return quantisation


def run_int8(model: bytes, name: str) -> NDArray[np.float32]:
    inputs = ((picture ^ 128).view(np.int8) for picture in PICTURES)
    return np.stack([outputs[name] for outputs in run_model(model, inputs)])


@pytest.mark.parametrize(
    "network",
    [
        mobilenet_v1(0.25, 32, 10),
        mobilenet_v1(0.25, 75, 10),
        mobilenet_v2(0.35, 64, 10),
        mobilenet_v2(0.35, 75, 10),
    ],
    ids=lambda network: network.name,
)
def test_the_numpy_reference_is_what_the_interpreter_computes(network: Network) -> None:
    weights = random_weights(network)
    size_px = network.input_px
    pictures = np.random.default_rng(1).integers(0, 256, (2, size_px, size_px, 3), np.uint8)
    names = [layer.name for layer in network.layers]
    expected = forward(network, weights, real_input(pictures), names)
    model = write_model(encode_float(network, weights), names, "test")
    for number, outputs in enumerate(run_model(model, map(real_input, pictures))):
        for name in names:
            np.testing.assert_allclose(outputs[name], expected[name][number], atol=1e-4)


def test_equalising_changes_no_output_but_those_it_scales(weights: Weights) -> None:
    generator = np.random.default_rng(2)
    factors = {
        layer.name: tuple(generator.uniform(0.5, 2, layer.out_shape[2]))
        for layer in SMALL.layers
        if layer.name.endswith("_project")
        and all(layer.name not in other.inputs[1:] for other in SMALL.layers)
    }
    assert len(factors) == 7  # one for each width of the residual stream
    outputs = ["block06_add", LOGITS]
    before = forward(SMALL, weights, real_input(PICTURES), outputs)
    after = forward(SMALL, equalised(SMALL, weights, factors), real_input(PICTURES), outputs)
    np.testing.assert_allclose(after[LOGITS], before[LOGITS], atol=1e-3)
    scaled = before["block06_add"] * np.array(factors["block04_project"], np.float32)
    np.testing.assert_allclose(after["block06_add"], scaled, atol=1e-3)


def test_additions_join_outputs() -> None:
    joined = {"block04_project", "block05_project", "block05_add", "block06_project", "block06_add"}
    for name in joined:
        assert joined_outputs(SMALL, name) == joined
    assert joined_outputs(SMALL, "block04_expand") == {"block04_expand"}


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_a_code_covers_its_range_and_zero_exactly(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    scale, zero_point = scale_and_zero_point(low, high)
    assert -128 <= zero_point <= 127
    assert scale * (-128 - zero_point) <= min(low, 0) + scale
    assert scale * (127 - zero_point) >= max(high, 0) - scale


def test_kernels_are_right_to_half_a_step() -> None:
    kernel = (
        np.random.default_rng(3).standard_normal((8, 3, 3, 4))
        * np.logspace(-4, 2, 8)[:, None, None, None]
    )
    layer = Layer("a", "conv", ("input",), (4, 4, 4), (4, 4, 8), 3, 1, (1, 1))
    encoded = encode_kernel(layer, kernel, np.zeros(8), 0.01)
    assert encoded.scale.shape == (8,)
    assert np.abs(encoded.values).max() == 127
    error = np.abs(encoded.real() - kernel) / encoded.scale.reshape(-1, 1, 1, 1)
    assert error.max() <= 0.501


def test_a_dead_channel_keeps_its_bias() -> None:
    layer = Layer("a", "conv", ("input",), (1, 1, 1), (1, 1, 2))
    network = Network("dead", 1, (layer,))
    weights = {"a": LayerWeights(np.array([1.0, 1e-30]).reshape(2, 1, 1, 1), np.array([1.0, 3.0]))}
    quantisation = Quantisation({"a": (-4, 4)}, {}, {}, {})
    bias = encode_int8(network, weights, quantisation).biases["a"]
    np.testing.assert_allclose(bias.real(), [1.0, 3.0], rtol=1e-3)


def test_int8_computes_nearly_what_float_computes(weights: Weights, record: Quantisation) -> None:
    exact = forward(SMALL, weights, real_input(PICTURES), [EMBEDDING])[EMBEDDING]
    model = write_model(encode_int8(SMALL, weights, record), [EMBEDDING], "test")
    rough = run_int8(model, EMBEDDING)
    cosines = (exact * rough).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
    assert cosines.min() > 0.98


def test_bias_correction_takes_away_a_mean_error(weights: Weights, record: Quantisation) -> None:
    """An expansion with one huge weight has coarse codes; its mean error is what goes."""
    spoilt = dict(weights)
    kernel = spoilt["head"].kernel.copy()
    kernel[:, :, :, 0] *= 40
    spoilt["head"] = replace(spoilt["head"], kernel=kernel)
    corrections = bias_corrections(SMALL, spoilt, record.ranges, PICTURES, lambda *_: None)
    exact = forward(SMALL, spoilt, real_input(PICTURES), [EMBEDDING])[EMBEDDING]

    def mean_error(quantisation: Quantisation) -> float:
        encoded = encode_int8(SMALL, spoilt, quantisation)
        rough = run_int8(write_model(encoded, [EMBEDDING], "test"), EMBEDDING)
        return float(np.abs((rough - exact).mean(0)).mean())

    plain = Quantisation(record.ranges, {}, {}, {})
    assert mean_error(replace(plain, corrections=corrections)) < 0.9 * mean_error(plain)


def test_the_same_network_gives_the_same_bytes() -> None:
    assert build_random("mobilenet_v2_0.35_96") == build_random("mobilenet_v2_0.35_96")
    assert build_random("mobilenet_v2_0.35_96", seed=1) != build_random("mobilenet_v2_0.35_96")


@pytest.mark.parametrize("name", ["mobilenet_v1_0.25_128", "mobilenet_v2_0.35_96"])
def test_a_random_model_runs_and_says_what_it_is(name: str) -> None:
    model = build_random(name)
    content = schema.ModelT.InitFromPackedBuf(model, 0)
    assert b"RANDOM WEIGHTS" in content.description
    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    assert source["dtype"] == np.int8
    assert source["quantization"] == (1 / 128, 0)
    interpreter.invoke()
    outputs = interpreter.get_output_details()
    assert [output["name"] for output in outputs] == [PROBABILITIES, EMBEDDING]
    assert outputs[0]["quantization"] == (1 / 256, -128)
    assert outputs[0]["shape"].tolist() == [1, 1000]


def test_what_an_edge_tpu_compiler_wants_is_kept() -> None:
    """Full int8, static shapes, known operator versions, a per-tensor classifier."""
    content = schema.ModelT.InitFromPackedBuf(build_random("mobilenet_v2_0.35_96"), 0)
    (graph,) = content.subgraphs
    types = {tensor.type for tensor in graph.tensors}
    assert types == {schema.TensorType.INT8, schema.TensorType.INT32}
    versions = {code.builtinCode: code.version for code in content.operatorCodes}
    operator = schema.BuiltinOperator
    assert versions == {
        operator.PAD: 2,
        operator.CONV_2D: 3,
        operator.DEPTHWISE_CONV_2D: 3,
        operator.ADD: 2,
        operator.MEAN: 2,
        operator.FULLY_CONNECTED: 4,
        operator.SOFTMAX: 2,
    }
    scales = {
        tensor.name: len(tensor.quantization.scale)
        for tensor in graph.tensors
        if tensor.quantization is not None
    }
    assert scales[b"logits/kernel"] == 1
    assert scales[b"stem/kernel"] == 16


def test_layers_that_no_output_needs_are_left_out(weights: Weights) -> None:
    model = write_model(encode_float(SMALL, weights), [EMBEDDING], "test")
    content = schema.ModelT.InitFromPackedBuf(model, 0)
    assert b"logits" not in {tensor.name for tensor in content.subgraphs[0].tensors}


def test_the_record_survives_its_file(record: Quantisation, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_quantisation(record, path)
    assert read_quantisation(path) == record


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"ranges": {"a": [1]}}', "\0"])
def test_a_damaged_record_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(ModelError, match="no quantisation parameters"):
        read_quantisation(path)


def test_a_record_of_another_network_is_refused(weights: Weights, record: Quantisation) -> None:
    with pytest.raises(ModelError, match="no range for stem"):
        encode_int8(SMALL, weights, replace(record, ranges={}))
    with pytest.raises(ModelError, match="stem: 3 corrections"):
        encode_int8(SMALL, weights, replace(record, corrections={"stem": (1.0, 2.0, 3.0)}))
