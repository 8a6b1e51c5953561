"""Bias corrections: what int8 gets wrong on average, channel by channel, added back.

Layer by layer, so that each layer also makes up for what those before it left (Nagel et al. 2019,
arXiv:1906.04721, section 4.2, with measured means). The mean leaves out the largest differences
of either sign: rare activations far outside the range would otherwise pull whole channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from edge_app.models.builder.blocks import INPUT, Layer
from edge_app.models.builder.network import Network
from edge_app.models.builder.quantisation import rounded
from edge_app.models.builder.quantise import activation_codes, as_int8, encode_kernel
from edge_app.models.builder.reference import Activations, linear, real_input, relu6, run_layer
from edge_app.models.builder.weights import LayerWeights, Weights

_TRIMMED = 0.05  # part of the differences left out at either end
_POSITIONS = 14  # rows and columns of a layer's output that are looked at


def bias_corrections(
    network: Network,
    weights: Weights,
    ranges: Mapping[str, tuple[float, float]],
    pictures: NDArray[np.uint8],
    progress: Callable[[str, int, int], None],
) -> dict[str, tuple[float, ...]]:
    """One number per channel of each layer with weights. Holds all pictures' activations."""
    codes = activation_codes(network, ranges)
    exact = {INPUT: real_input(pictures)}
    rough = dict(exact)
    readers = Counter(name for layer in network.layers for name in layer.inputs)
    corrections = {}
    layers = network.layers[:-1]  # nothing comes after the softmax
    for number, layer in enumerate(layers, start=1):
        own = weights.get(layer.name)
        truth = run_layer(linear(layer), own, [exact[name] for name in layer.inputs])
        own = own and _as_encoded(layer, own, codes[layer.inputs[0]][0])
        result = run_layer(linear(layer), own, [rough[name] for name in layer.inputs])
        if own is not None:
            corrections[layer.name] = rounded(_trimmed_mean(truth - result), 3)
            result += np.array(corrections[layer.name], np.float32)
        if layer.activation == "relu6":
            truth, result = relu6(truth), relu6(result)
        exact[layer.name], rough[layer.name] = truth, as_int8(result, *codes[layer.name])
        for name in layer.inputs:
            readers[name] -= 1
            if not readers[name]:
                del exact[name], rough[name]
        progress("bias corrections", number, len(layers))
    return corrections


def _trimmed_mean(differences: Activations) -> NDArray[np.float64]:
    """Per channel, over pictures and some of the positions."""
    if differences.ndim == 4:
        step = max(1, differences.shape[1] // _POSITIONS)
        differences = differences[:, ::step, ::step]
    ordered = np.sort(differences.reshape(-1, differences.shape[-1]), axis=0)
    left_out = int(len(ordered) * _TRIMMED)
    return np.asarray(ordered[left_out : len(ordered) - left_out].mean(0, np.float64))


def _as_encoded(layer: Layer, weights: LayerWeights, input_scale: float) -> LayerWeights:
    kernel = encode_kernel(layer, weights.kernel, weights.bias, input_scale).real()
    return LayerWeights(kernel, weights.bias)
