"""The building blocks of MobileNet: layers with shapes, multiply-adds and parameters.

Shapes are `(height_px, width_px, channels)`, one picture, channels last. Batch normalisation is
folded: it is the bias, and the scale of the weights, of the layer before it. A layer's output
bears the layer's name; the network's input is called `input`.

Sources: Howard et al. 2017, "MobileNets", arXiv:1704.04861 (V1, depthwise-separable convolution);
Sandler et al. 2018, "MobileNetV2", arXiv:1801.04381 (inverted residual).

How the papers count: a multiply-add is one multiplication with its addition, in convolutions and
the classifier only (`macs`); "parameters" are their weights, without batch norm and biases
(`weights`). `params` adds one folded bias per output channel, which is what a model file stores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Shape = tuple[int, int, int]
Kind = Literal["conv", "depthwise", "add", "mean", "dense", "softmax"]
Activation = Literal["relu6", "none"]

INPUT = "input"
EMBEDDING = "embedding"
LOGITS = "logits"
PROBABILITIES = "probabilities"


@dataclass(frozen=True, slots=True)
class Layer:
    """One operation. `pad_px`: zeros before and after each row and each column."""

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    in_shape: Shape
    out_shape: Shape
    kernel_px: int = 1
    stride: int = 1
    pad_px: tuple[int, int] = (0, 0)
    activation: Activation = "none"

    @property
    def weights(self) -> int:
        """Weights without biases: what the papers call parameters."""
        channels_in, channels_out = self.in_shape[2], self.out_shape[2]
        if self.kind == "conv":
            return self.kernel_px**2 * channels_in * channels_out
        if self.kind == "depthwise":
            return self.kernel_px**2 * channels_in
        if self.kind == "dense":
            return channels_in * channels_out
        return 0

    @property
    def params(self) -> int:
        """Weights, and one (folded) bias per output channel."""
        return self.weights + self.out_shape[2] if self.weights else 0

    @property
    def macs(self) -> int:
        """Multiply-adds for one picture: every weight is used once per output position."""
        height, width, _ = self.out_shape
        return height * width * self.weights


def standard_3x3(
    name: str, source: Layer, channels: int, stride: int, pad_px: tuple[int, int]
) -> Layer:
    """`h x w x m` to `h/s x w/s x n`, every output channel looking at every input channel.

    MACs `9*m*n * h/s*w/s`, weights `9*m*n` (Howard et al. 2017, section 3.1, equation 2).
    """
    height, width, _ = source.out_shape
    return Layer(
        name,
        "conv",
        (source.name,),
        source.out_shape,
        (math.ceil(height / stride), math.ceil(width / stride), channels),
        3,
        stride,
        pad_px,
        "relu6",
    )


def depthwise_3x3(name: str, source: Layer, stride: int, pad_px: tuple[int, int]) -> Layer:
    """`h x w x m` to `h/s x w/s x m`, one 3 x 3 filter per channel: filters, combines nothing.

    MACs `9*m * h/s*w/s`, weights `9*m` (Howard et al. 2017, section 3.1, equation 4).
    """
    height, width, channels = source.out_shape
    return Layer(
        name,
        "depthwise",
        (source.name,),
        source.out_shape,
        (math.ceil(height / stride), math.ceil(width / stride), channels),
        3,
        stride,
        pad_px,
        "relu6",
    )


def pointwise_1x1(name: str, source: Layer, channels: int, activation: Activation) -> Layer:
    """`h x w x m` to `h x w x n`: mixes channels at each position, looks at no neighbour.

    MACs `m*n * h*w`, weights `m*n`. After a depthwise 3 x 3 the pair costs `1/n + 1/9` of the
    standard convolution it stands for (Howard et al. 2017, section 3.1).
    """
    height, width, _ = source.out_shape
    return Layer(
        name,
        "conv",
        (source.name,),
        source.out_shape,
        (height, width, channels),
        activation=activation,
    )


def inverted_residual(
    name: str, source: Layer, channels: int, expansion: int, stride: int
) -> tuple[Layer, ...]:
    """Expand 1 x 1 (ReLU6), depthwise 3 x 3 (ReLU6), project 1 x 1 (linear); add when it fits.

    `h x w x m` to `h/s x w/s x n` through `t*m` channels (Sandler et al. 2018, table 1).
    At stride 1 MACs are `h*w * t*m * (m + 9 + n)` and weights `t*m * (m + 9 + n)`; without the
    expansion (`t = 1`) the term `m` goes. The shortcut joins the thin ends: stride 1 and `m = n`.
    """
    block: list[Layer] = []
    wide = source
    if expansion > 1:
        wide = pointwise_1x1(f"{name}_expand", source, expansion * source.out_shape[2], "relu6")
        block.append(wide)
    filtered = depthwise_3x3(f"{name}_depthwise", wide, stride, (1, 1))
    thin = pointwise_1x1(f"{name}_project", filtered, channels, "none")
    block += [filtered, thin]
    if stride == 1 and thin.out_shape == source.out_shape:
        shape = thin.out_shape
        block.append(Layer(f"{name}_add", "add", (source.name, thin.name), shape, shape))
    return tuple(block)


def classifier(source: Layer, classes: int) -> tuple[Layer, ...]:
    """Global average (the embedding), fully connected layer (logits), softmax (probabilities).

    `h x w x m` to `1 x 1 x m` to `1 x 1 x classes`; MACs and weights `m * classes`.
    """
    flat = (1, 1, source.out_shape[2])
    scores = (1, 1, classes)
    return (
        Layer(EMBEDDING, "mean", (source.name,), source.out_shape, flat),
        Layer(LOGITS, "dense", (EMBEDDING,), flat, scores),
        Layer(PROBABILITIES, "softmax", (LOGITS,), scores, scores),
    )


def same_padding_px(size_px: int, kernel_px: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "SAME": output `ceil(size / stride)`, the odd pixel of padding comes last."""
    total = max(0, (math.ceil(size_px / stride) - 1) * stride + kernel_px - size_px)
    return total // 2, total - total // 2
