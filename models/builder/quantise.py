"""From float weights to int8: `real = scale * (code - zero_point)`.

Activations have one scale and zero point per tensor. Kernels of convolutions have one scale per
output channel and zero point 0, the fully connected layer one scale in all (an Edge TPU compiler
of 2021 knows no other). Biases are int32 at scale `input scale * kernel scale`. This is the
scheme of Jacob et al. 2018, arXiv:1712.05877, with the bounds of TensorFlow Lite's int8
specification.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_app.errors import ModelError
from edge_app.models.builder.blocks import INPUT, PROBABILITIES, Layer
from edge_app.models.builder.equalise import equalised
from edge_app.models.builder.network import Network
from edge_app.models.builder.quantisation import Quantisation
from edge_app.models.builder.weights import Weights

# A pixel less 128 is the input's code: a camera's uint8 becomes int8 by flipping the top bit.
INPUT_SCALE = 1 / 128
# The softmax kernels of TensorFlow Lite accept no other output: 0..255/256.
PROBABILITY_SCALE, PROBABILITY_ZERO_POINT = 1 / 256, -128


@dataclass(frozen=True, slots=True)
class Encoded:
    """A constant as stored.

    `scale` has one element, or one per index of dimension `axis`, or none: not quantised.
    """

    values: NDArray[Any]
    scale: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    axis: int = 0

    def real(self) -> NDArray[np.float64]:
        if not self.scale.size:
            return self.values.astype(np.float64)
        shape = [1] * self.values.ndim
        shape[self.axis] = -1
        return self.values * self.scale.astype(np.float64).reshape(shape)


@dataclass(frozen=True, slots=True)
class EncodedNetwork:
    """A network with its constants as stored.

    `activations`: scale and zero point of each layer's output; empty for float32.
    """

    network: Network
    kernels: Mapping[str, Encoded]
    biases: Mapping[str, Encoded]
    activations: Mapping[str, tuple[float, int]]


def encode_float(network: Network, weights: Weights) -> EncodedNetwork:
    """The network in float32, not quantised."""
    return EncodedNetwork(
        network,
        {name: Encoded(w.kernel.astype(np.float32)) for name, w in weights.items()},
        {name: Encoded(w.bias.astype(np.float32)) for name, w in weights.items()},
        {},
    )


def encode_int8(network: Network, weights: Weights, quantisation: Quantisation) -> EncodedNetwork:
    """The network in int8. Raises ModelError when `quantisation` is for another network."""
    activations = activation_codes(network, quantisation.ranges)
    even = equalised(network, weights, quantisation.factors)
    kernels, biases = {}, {}
    for layer in network.layers:
        if not layer.weights:
            continue
        correction = quantisation.corrections.get(layer.name, (0.0,))
        if len(correction) not in (1, layer.out_shape[2]):
            raise ModelError(f"{layer.name}: {len(correction)} corrections, not one per channel")
        bias = even[layer.name].bias + np.array(correction)
        input_scale = activations[layer.inputs[0]][0]
        kernels[layer.name] = encode_kernel(layer, even[layer.name].kernel, bias, input_scale)
        biases[layer.name] = _encode_bias(bias, input_scale, kernels[layer.name])
    return EncodedNetwork(network, kernels, biases, activations)


def activation_codes(
    network: Network, ranges: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, int]]:
    """Scale and zero point of the input and of each layer's output. Raises ModelError."""
    codes = {INPUT: (INPUT_SCALE, 0)}
    for layer in network.layers:
        if layer.name == PROBABILITIES:
            codes[layer.name] = (PROBABILITY_SCALE, PROBABILITY_ZERO_POINT)
        elif layer.name in ranges:
            codes[layer.name] = scale_and_zero_point(*ranges[layer.name])
        else:
            raise ModelError(
                f"{network.name}: no range for {layer.name}", hint="calibrate this network"
            )
    return codes


def scale_and_zero_point(low: float, high: float) -> tuple[float, int]:
    """int8 code of `low..high`, widened so that 0 is in it and is exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max((high - low) / 255, 1e-8)))
    return scale, int(np.clip(np.round(-128 - low / scale), -128, 127))


def as_int8(values: NDArray[np.float32], scale: float, zero_point: int) -> NDArray[np.float32]:
    """Values after a way through int8 and back."""
    codes = np.clip(np.round(values / np.float32(scale)) + zero_point, -128, 127)
    return np.asarray((codes - zero_point) * np.float32(scale), np.float32)


def encode_kernel(
    layer: Layer, kernel: NDArray[np.float64], bias: NDArray[np.float64], input_scale: float
) -> Encoded:
    """Codes -127..127, symmetric.

    A channel that batch norm all but switched off has a tiny kernel and an ordinary bias: its
    scale is kept large enough for the bias to fit 30 bits.
    """
    if layer.kind == "dense":
        axis, peaks, biases = 0, np.abs(kernel).max(keepdims=True).ravel(), np.abs(bias).max()
    else:
        axis = 3 if layer.kind == "depthwise" else 0
        others = tuple(i for i in range(kernel.ndim) if i != axis)
        peaks, biases = np.abs(kernel).max(others), np.abs(bias)
    scale = np.maximum(np.maximum(peaks / 127, 1e-8), biases / (input_scale * 2.0**29))
    scale = scale.astype(np.float32)
    shape = [1] * kernel.ndim
    shape[axis] = -1
    codes = np.round(kernel / scale.astype(np.float64).reshape(shape))
    return Encoded(np.clip(codes, -127, 127).astype(np.int8), scale, axis)


def _encode_bias(bias: NDArray[np.float64], input_scale: float, kernel: Encoded) -> Encoded:
    scale = input_scale * kernel.scale.astype(np.float64)
    codes = np.clip(np.round(bias / scale), -(2**31), 2**31 - 1)
    return Encoded(codes.astype(np.int32), scale.astype(np.float32))
