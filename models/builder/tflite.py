"""Writes an encoded network as a `.tflite` file: the same network gives the same bytes.

Operators and versions are those TensorFlow's converter chooses and an Edge TPU compiler of 2021
accepts; the schema is the one that comes with the interpreter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edge_app.models.builder.blocks import INPUT, Layer, same_padding_px
from edge_app.models.builder.quantise import Encoded, EncodedNetwork

_FILE_IDENTIFIER = b"TFL3"
_SCHEMA_VERSION = 3

_OP = schema.BuiltinOperator
_INT8_VERSIONS = {
    _OP.PAD: 2,
    _OP.CONV_2D: 3,
    _OP.DEPTHWISE_CONV_2D: 3,
    _OP.ADD: 2,
    _OP.MEAN: 2,
    _OP.FULLY_CONNECTED: 4,
    _OP.SOFTMAX: 2,
}
_TYPES = {
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.float32): schema.TensorType.FLOAT32,
}


def write_model(encoded: EncodedNetwork, outputs: Sequence[str], description: str) -> bytes:
    """The file's bytes. Tensors are named after the layers; batch 1; `outputs` in that order.

    Layers that no output needs are left out.
    """
    graph = _Graph(encoded)
    needed = set(outputs)
    layers: list[Layer] = []
    for layer in reversed(encoded.network.layers):
        if layer.name in needed:
            needed.update(layer.inputs)
            layers.insert(0, layer)
    size_px = encoded.network.input_px
    graph.activation(INPUT, (1, size_px, size_px, 3))
    for layer in layers:
        _write_layer(graph, layer)
    return graph.finish(outputs, description)


def _write_layer(graph: _Graph, layer: Layer) -> None:
    height, width, channels = layer.out_shape
    flat = layer.kind in ("mean", "dense", "softmax")
    shape = (1, channels) if flat else (1, height, width, channels)
    inputs = [graph.tensors[name] for name in layer.inputs]
    if layer.kind in ("conv", "depthwise"):
        _write_convolution(graph, layer, inputs[0], shape)
    elif layer.kind == "dense":
        options = schema.FullyConnectedOptionsT()
        inputs += graph.weights(layer.name)
        graph.operator(_OP.FULLY_CONNECTED, inputs, graph.activation(layer.name, shape), options)
    elif layer.kind == "add":
        options = schema.AddOptionsT()
        options.potScaleInt16 = False
        graph.operator(_OP.ADD, inputs, graph.activation(layer.name, shape), options)
    elif layer.kind == "mean":
        inputs.append(graph.constant("axes", Encoded(np.array([1, 2], np.int32))))
        options = schema.ReducerOptionsT()
        graph.operator(_OP.MEAN, inputs, graph.activation(layer.name, shape), options)
    else:
        options = schema.SoftmaxOptionsT()
        options.beta = 1.0
        graph.operator(_OP.SOFTMAX, inputs, graph.activation(layer.name, shape), options)


def _write_convolution(graph: _Graph, layer: Layer, source: int, shape: tuple[int, ...]) -> None:
    """The kernels' own "SAME" padding where it is the layer's, else a PAD before it."""
    padding = schema.Padding.SAME
    size_px, _, channels = layer.in_shape
    if layer.pad_px != same_padding_px(size_px, layer.kernel_px, layer.stride):
        padding = schema.Padding.VALID
        edges = np.array([(0, 0), layer.pad_px, layer.pad_px, (0, 0)], np.int32)
        paddings = graph.constant(f"{layer.name}/paddings", Encoded(edges))
        padded_px = size_px + sum(layer.pad_px)
        padded = graph.activation(
            f"{layer.name}/padded", (1, padded_px, padded_px, channels), like=layer.inputs[0]
        )
        graph.operator(_OP.PAD, [source, paddings], padded, schema.PadOptionsT())
        source = padded
    depthwise = layer.kind == "depthwise"
    options = schema.DepthwiseConv2DOptionsT() if depthwise else schema.Conv2DOptionsT()
    options.padding = padding
    options.strideH = options.strideW = layer.stride
    if depthwise:
        options.depthMultiplier = 1
    if layer.activation == "relu6":
        options.fusedActivationFunction = schema.ActivationFunctionType.RELU6
    code = _OP.DEPTHWISE_CONV_2D if depthwise else _OP.CONV_2D
    inputs = [source, *graph.weights(layer.name)]
    graph.operator(code, inputs, graph.activation(layer.name, shape), options)


class _Graph:
    """A model being written: tensors and operators get their numbers in the order they come."""

    def __init__(self, encoded: EncodedNetwork) -> None:
        self._encoded = encoded
        self._type = np.dtype(np.int8 if encoded.activations else np.float32)
        self._codes: list[int] = []
        self._buffers = [schema.BufferT()]  # the format wants buffer 0 to be empty
        self._subgraph = schema.SubGraphT()
        self._subgraph.name = "main"
        self._subgraph.tensors, self._subgraph.operators = [], []
        self.tensors: dict[str, int] = {}

    def activation(self, name: str, shape: tuple[int, ...], like: str = "") -> int:
        """A tensor computed at run time, quantised as its layer is (or as the layer `like`)."""
        if not self._encoded.activations:
            return self._tensor(name, shape, self._type)
        scale, zero_point = self._encoded.activations[like or name]
        scales = np.array([scale], np.float32)
        return self._tensor(name, shape, self._type, _quantisation(scales, zero_point))

    def weights(self, name: str) -> list[int]:
        """A layer's kernel and bias."""
        kernel, bias = self._encoded.kernels[name], self._encoded.biases[name]
        return [self.constant(f"{name}/kernel", kernel), self.constant(f"{name}/bias", bias)]

    def constant(self, name: str, encoded: Encoded) -> int:
        values = encoded.values
        quantisation = None
        if encoded.scale.size:
            quantisation = _quantisation(encoded.scale, axis=encoded.axis)
        number = self._tensor(name, values.shape, values.dtype, quantisation)
        self._subgraph.tensors[number].buffer = self._buffer(values.tobytes())
        return number

    def operator(self, code: int, inputs: list[int], output: int, options: Any) -> None:
        if code not in self._codes:
            self._codes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex = self._codes.index(code)
        operator.inputs = np.array(inputs, np.int32)
        operator.outputs = np.array([output], np.int32)
        kind = type(options).__name__.removesuffix("T")
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        operator.builtinOptions = options
        self._subgraph.operators.append(operator)

    def finish(self, outputs: Sequence[str], description: str) -> bytes:
        self._subgraph.inputs = np.array([self.tensors[INPUT]], np.int32)
        self._subgraph.outputs = np.array([self.tensors[name] for name in outputs], np.int32)
        model = schema.ModelT()
        model.version = _SCHEMA_VERSION
        model.description = description
        model.operatorCodes = [self._operator_code(code) for code in self._codes]
        model.subgraphs = [self._subgraph]
        model.buffers = self._buffers
        builder = flatbuffers.Builder(0)
        builder.Finish(model.Pack(builder), _FILE_IDENTIFIER)
        return bytes(builder.Output())

    def _operator_code(self, code: int) -> Any:
        result = schema.OperatorCodeT()
        # Interpreters before 2020 read the 8-bit field.
        result.builtinCode = result.deprecatedBuiltinCode = code
        result.version = _INT8_VERSIONS[code] if self._encoded.activations else 1
        return result

    def _buffer(self, data: bytes) -> int:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(data, np.uint8)
        self._buffers.append(buffer)
        return len(self._buffers) - 1

    def _tensor(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], quantisation: Any = None
    ) -> int:
        tensor = schema.TensorT()
        tensor.name = name
        tensor.shape = np.array(shape, np.int32)
        tensor.type = _TYPES[dtype]
        tensor.buffer = 0
        tensor.quantization = quantisation
        self._subgraph.tensors.append(tensor)
        self.tensors[name] = len(self._subgraph.tensors) - 1
        return self.tensors[name]


def _quantisation(scale: NDArray[np.float32], zero_point: int = 0, axis: int = 0) -> Any:
    result = schema.QuantizationParametersT()
    result.scale = scale
    result.zeroPoint = np.full(len(scale), zero_point, np.int64)
    result.quantizedDimension = axis
    return result
