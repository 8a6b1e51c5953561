"""The network in float32, in numpy: what every model file is compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge_app.models.builder.blocks import INPUT, Layer
from edge_app.models.builder.network import Network
from edge_app.models.builder.weights import LayerWeights, Weights

Activations = NDArray[np.float32]


def real_input(pictures: NDArray[np.uint8]) -> Activations:
    """Pixels as the network sees them: `(pixel - 128) / 128`."""
    return (pictures.astype(np.float32) - np.float32(128)) / np.float32(128)


def forward(
    network: Network,
    weights: Weights,
    pictures: Activations,
    outputs: Collection[str],
) -> dict[str, Activations]:
    """Run `pictures` (`n x h x w x 3`, as from `real_input`) and return the layers in `outputs`.

    Outputs that no layer needs any more are forgotten.
    """
    tensors = {INPUT: pictures}
    readers = Counter(name for layer in network.layers for name in layer.inputs)
    for layer in network.layers:
        result = run_layer(layer, weights.get(layer.name), [tensors[n] for n in layer.inputs])
        tensors[layer.name] = result
        for name in layer.inputs:
            readers[name] -= 1
            if not readers[name] and name not in outputs:
                del tensors[name]
    return {name: tensors[name] for name in outputs}


def run_layer(layer: Layer, weights: LayerWeights | None, inputs: list[Activations]) -> Activations:
    """One layer on `n x h x w x c` (or `n x c` after the average), activation included."""
    first = inputs[0]
    if weights is not None:
        result = _weighted(layer, weights, first)
    elif layer.kind == "add":
        result = first + inputs[1]
    elif layer.kind == "mean":
        result = first.mean((1, 2))
    else:
        powers: Activations = np.exp(first - first.max(-1, keepdims=True))
        result = powers / powers.sum(-1, keepdims=True)
    return relu6(result) if layer.activation == "relu6" else result


def relu6(values: Activations) -> Activations:
    """`min(max(x, 0), 6)`."""
    return np.clip(values, np.float32(0), np.float32(6))


def linear(layer: Layer) -> Layer:
    """The layer without its activation."""
    return replace(layer, activation="none")


def _weighted(layer: Layer, weights: LayerWeights, inputs: Activations) -> Activations:
    kernel, bias = weights.kernel.astype(np.float32), weights.bias.astype(np.float32)
    if layer.kind == "dense":
        return np.asarray(inputs @ kernel.T + bias, np.float32)
    if layer.kind == "depthwise":
        taps = _taps(layer, inputs)
        result: Activations = next(taps) * kernel[0, 0, 0]
        for tap, weight in zip(taps, kernel.reshape(-1, kernel.shape[3])[1:], strict=True):
            result += tap * weight
        return np.asarray(result + bias, np.float32)
    # A convolution is one matrix product over the neighbourhood of each position.
    columns = np.concatenate(list(_taps(layer, inputs)), axis=-1)
    return np.asarray(columns @ kernel.reshape(len(bias), -1).T + bias, np.float32)


def _taps(layer: Layer, inputs: Activations) -> Iterator[Activations]:
    """The input as each of the `k * k` kernel positions sees it: `n x h/s x w/s x c`."""
    padded = np.pad(inputs, ((0, 0), layer.pad_px, layer.pad_px, (0, 0)))
    height, width, _ = layer.out_shape
    for y in range(layer.kernel_px):
        for x in range(layer.kernel_px):
            yield padded[
                :,
                y : y + layer.stride * height : layer.stride,
                x : x + layer.stride * width : layer.stride,
            ]
