"""Weights of a network: read from ImageNet training, or random. Batch norm is folded in."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_app.errors import ModelError
from edge_app.models.builder.blocks import LOGITS, Layer
from edge_app.models.builder.checkpoint import read_checkpoint
from edge_app.models.builder.network import Network

Array = NDArray[np.float64]

CHECKPOINT_SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"

# The network was trained on `(pixel / 255 - mean) / deviation`, per channel R, G, B.
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)
_BATCH_NORM_EPSILON = 1e-5


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """`kernel`: conv `out, k, k, in`; depthwise `1, k, k, channels`; dense `out, in`.

    `bias`: one per output channel. Both float64; batch norm is folded in.
    """

    kernel: Array
    bias: Array


Weights = Mapping[str, LayerWeights]


def imagenet_weights(network: Network, checkpoint: bytes) -> dict[str, LayerWeights]:
    """Weights of `mobilenet_v2_1.0_*` with 1000 classes, for inputs `(pixel - 128) / 128`.

    `checkpoint` is torchvision's file `mobilenet_v2-b0353104.pth`. Raises ModelError when it is
    another file, or does not fit the network.
    """
    sha256 = hashlib.sha256(checkpoint).hexdigest()
    if sha256 != CHECKPOINT_SHA256:
        raise ModelError(
            f"the checkpoint's sha256 is {sha256}, not {CHECKPOINT_SHA256}",
            hint="use the file mobilenet_v2-b0353104.pth",
        )
    tensors = read_checkpoint(checkpoint)
    weights: dict[str, LayerWeights] = {}
    for layer, (kernel, norm) in zip(_convolutions(network), _names(network), strict=True):
        weights[layer.name] = fold_batch_norm(tensors, kernel, norm, layer)
    weights["stem"] = take_pixels(weights["stem"])
    weights[LOGITS] = LayerWeights(
        tensors["classifier.1.weight"].astype(np.float64),
        tensors["classifier.1.bias"].astype(np.float64),
    )
    check_weights(network, weights)
    return weights


def random_weights(network: Network, seed: int = 0) -> dict[str, LayerWeights]:
    """Weights that mean nothing, for measuring cost; activations stay in a sane range.

    Normal with variance `2 / fan_in` (He et al. 2015, arXiv:1502.01852, equation 10), bias 0.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    weights = {}
    for layer in network.layers:
        if layer.weights:
            shape = kernel_shape(layer)
            fan_in = layer.weights // layer.out_shape[2]
            kernel = generator.standard_normal(shape) * math.sqrt(2 / fan_in)
            weights[layer.name] = LayerWeights(kernel, np.zeros(layer.out_shape[2]))
    return weights


def kernel_shape(layer: Layer) -> tuple[int, ...]:
    """Shape of a layer's kernel, in TensorFlow Lite's order."""
    k, channels_in, channels_out = layer.kernel_px, layer.in_shape[2], layer.out_shape[2]
    if layer.kind == "depthwise":
        return (1, k, k, channels_in)
    return (
        (channels_out, channels_in) if layer.kind == "dense" else (channels_out, k, k, channels_in)
    )


def check_weights(network: Network, weights: Weights) -> None:
    """Raises ModelError unless every layer that needs weights has them, in its shape."""
    for layer in network.layers:
        if layer.weights:
            expected = kernel_shape(layer)
            found = weights[layer.name].kernel.shape if layer.name in weights else None
            if found != expected:
                raise ModelError(f"{network.name}: {layer.name} needs {expected}, found {found}")


def _convolutions(network: Network) -> list[Layer]:
    return [layer for layer in network.layers if layer.kind in ("conv", "depthwise")]


def _names(network: Network) -> list[tuple[str, str]]:
    """Torchvision's names of each convolution's kernel and batch norm, in the order they run."""
    names = [("features.0.0", "features.0.1")]
    blocks: dict[str, list[Layer]] = {}
    for layer in _convolutions(network)[1:-1]:
        blocks.setdefault(layer.name.split("_", maxsplit=1)[0], []).append(layer)
    for number, block in enumerate(blocks.values(), start=1):
        prefix = f"features.{number}.conv"
        *activated, _ = block
        names += [(f"{prefix}.{i}.0", f"{prefix}.{i}.1") for i in range(len(activated))]
        names.append((f"{prefix}.{len(activated)}", f"{prefix}.{len(activated) + 1}"))
    return [*names, ("features.18.0", "features.18.1")]


def fold_batch_norm(
    tensors: Mapping[str, NDArray[Any]], kernel: str, norm: str, layer: Layer
) -> LayerWeights:
    """Batch norm `g * (x - mean) / sqrt(variance + epsilon) + b`, into its convolution."""

    def tensor(name: str) -> Array:
        return tensors[name].astype(np.float64)

    gain = tensor(f"{norm}.weight") / np.sqrt(tensor(f"{norm}.running_var") + _BATCH_NORM_EPSILON)
    scaled = tensor(f"{kernel}.weight") * gain[:, None, None, None]
    axes = (1, 2, 3, 0) if layer.kind == "depthwise" else (0, 2, 3, 1)
    bias = tensor(f"{norm}.bias") - tensor(f"{norm}.running_mean") * gain
    return LayerWeights(np.ascontiguousarray(scaled.transpose(axes)), bias)


def take_pixels(stem: LayerWeights) -> LayerWeights:
    """Let the stem take `(pixel - 128) / 128` instead of the trained normalisation.

    The sum is exact (`math.fsum`), so that every machine gets the same bits.
    """
    scale = 128 / 255 / np.array(_DEVIATION)
    shift = [
        (128 / 255 - mean) / deviation for mean, deviation in zip(_MEAN, _DEVIATION, strict=True)
    ]
    shifted = stem.kernel * np.array(shift)
    moved = [math.fsum(filter_) for filter_ in shifted.reshape(len(stem.bias), -1).tolist()]
    return LayerWeights(stem.kernel * scale, stem.bias + np.array(moved))
