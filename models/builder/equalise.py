"""Scale channels of a layer's output, and undo it where the output is read.

Channels of one tensor share one int8 scale; a channel that uses little of it loses precision.
Cross-layer equalisation of Nagel et al. 2019, arXiv:1906.04721, section 4.1, extended to tensors
joined by additions, with factors from measured activations.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edge_app.models.builder.network import Network
from edge_app.models.builder.weights import LayerWeights, Weights


def equalised(
    network: Network, weights: Weights, factors: Mapping[str, tuple[float, ...]]
) -> dict[str, LayerWeights]:
    """The same function of the picture, with channels of the named layers' outputs scaled.

    Linear layers take any factor. ReLU6 takes factors from 1 up, as long as no scaled value
    passes 6.
    """
    result = dict(weights)
    for name, values in factors.items():
        factor = np.array(values)
        joined = joined_outputs(network, name)
        for layer in network.layers:
            if layer.name in joined and layer.weights:
                producer = result[layer.name]
                shape = (-1, 1, 1, 1) if layer.kind == "conv" else (-1,)
                result[layer.name] = LayerWeights(
                    producer.kernel * factor.reshape(shape), producer.bias * factor
                )
            elif layer.name not in joined and joined.intersection(layer.inputs):
                # The input channel comes last, in a convolution's kernel and a depthwise one.
                reader = result[layer.name]
                result[layer.name] = LayerWeights(reader.kernel / factor, reader.bias)
    return result


def joined_outputs(network: Network, name: str) -> frozenset[str]:
    """Outputs that additions join to `name`'s, and so must be scaled alike."""
    joined = {name}
    for layer in (*network.layers, *reversed(network.layers)):
        family = {layer.name, *layer.inputs}
        if layer.kind == "add" and family & joined:
            joined |= family
    return frozenset(joined)
