"""MobileNet V1 and V2, of any width and input size, from their blocks; no trained numbers yet.

Sources: Howard et al. 2017, arXiv:1704.04861 (V1; width multiplier and resolution multiplier);
Sandler et al. 2018, arXiv:1801.04381 (V2).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from edge_app.errors import ModelError
from edge_app.models.builder.blocks import (
    INPUT,
    Layer,
    classifier,
    depthwise_3x3,
    inverted_residual,
    pointwise_1x1,
    same_padding_px,
    standard_3x3,
)

WIDTHS = (0.1, 2.0)
INPUTS_PX = (32, 512)

# (output channels, stride) of the 13 depthwise-separable blocks: Howard et al. 2017, table 1.
_V1_BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)
# (expansion, output channels, repeats, stride of the first): Sandler et al. 2018, table 2.
_V2_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


@dataclass(frozen=True, slots=True)
class Network:
    """Layers in the order they run; each reads the picture or layers before it."""

    name: str
    input_px: int
    layers: tuple[Layer, ...]

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def convolution_macs(self) -> int:
        """Multiply-adds without the classifier's."""
        return sum(layer.macs for layer in self.layers if layer.kind != "dense")

    @property
    def weights(self) -> int:
        return sum(layer.weights for layer in self.layers)

    @property
    def params(self) -> int:
        return sum(layer.params for layer in self.layers)


def mobilenet_v1(width: float = 1.0, input_px: int = 224, classes: int = 1000) -> Network:
    """A standard convolution and 13 depthwise-separable blocks (Howard et al. 2017, table 1).

    `width` thins every layer (alpha), `input_px` shrinks every map (rho); MACs go with about the
    square of each. Stride-2 layers pad as TensorFlow's "SAME" does. Raises ModelError.
    """
    _check_size(width, input_px, classes)

    def thin(channels: int) -> int:
        return max(8, int(channels * width))

    last = standard_3x3("stem", _picture(input_px), thin(32), 2, same_padding_px(input_px, 3, 2))
    layers = [last]
    for number, (channels, stride) in enumerate(_V1_BLOCKS, start=1):
        name = f"block{number:02}"
        pad_px = same_padding_px(last.out_shape[0], 3, stride)
        filtered = depthwise_3x3(f"{name}_depthwise", last, stride, pad_px)
        last = pointwise_1x1(f"{name}_pointwise", filtered, thin(channels), "relu6")
        layers += [filtered, last]
    layers += classifier(last, classes)
    return Network(f"mobilenet_v1_{_plain(width)}_{input_px}", input_px, tuple(layers))


def mobilenet_v2(width: float = 1.0, input_px: int = 224, classes: int = 1000) -> Network:
    """A standard convolution, 17 inverted residuals, a 1 x 1 (Sandler et al. 2018, table 2).

    Thinned channels are rounded to multiples of 8, and the last 1 x 1 never gets thinner than
    1280. Stride-2 layers pad one pixel on every side, as the trained weights expect.
    Raises ModelError.
    """
    _check_size(width, input_px, classes)
    last = standard_3x3("stem", _picture(input_px), _multiple_of_8(32 * width), 2, (1, 1))
    layers = [last]
    number = 0
    for expansion, channels, repeats, stride in _V2_STAGES:
        for repeat in range(repeats):
            number += 1
            layers += inverted_residual(
                f"block{number:02}",
                layers[-1],
                _multiple_of_8(channels * width),
                expansion,
                stride if repeat == 0 else 1,
            )
    layers.append(
        pointwise_1x1("head", layers[-1], _multiple_of_8(1280 * max(1.0, width)), "relu6")
    )
    layers += classifier(layers[-1], classes)
    return Network(f"mobilenet_v2_{_plain(width)}_{input_px}", input_px, tuple(layers))


def by_name(name: str) -> Network:
    """The network called `mobilenet_v1_WIDTH_INPUT` or `mobilenet_v2_WIDTH_INPUT`.

    Raises ModelError for any other name, width or input size.
    """
    match = re.fullmatch(r"mobilenet_v([12])_(\d+(?:\.\d+)?)_(\d+)", name)
    if match is None:
        raise ModelError(
            f"{name!r} is no network; known are mobilenet_v1_WIDTH_INPUT and"
            " mobilenet_v2_WIDTH_INPUT",
            hint="for example mobilenet_v1_0.5_160: width multiplier 0.5, 160 x 160 pixels",
        )
    version, width, input_px = match.groups()
    build = mobilenet_v1 if version == "1" else mobilenet_v2
    return build(float(width), int(input_px))


def with_standard_convolutions(network: Network) -> Network:
    """The same network with a standard convolution for each depthwise-separable pair.

    A depthwise layer and the 1 x 1 convolution that reads it become one k x k convolution with
    the second's name: the comparison of Howard et al. 2017, table 4. Its `macs` and `weights`
    are what the network would cost without its main idea. The table's 4866 M multiply-adds are
    `convolution_macs`: it counts the classifier's 1 M for MobileNet (569 M), not for this one.
    """
    depthwise = {layer.name: layer for layer in network.layers if layer.kind == "depthwise"}
    layers: list[Layer] = []
    merged: set[str] = set()
    for layer in network.layers:
        filtered = depthwise.get(layer.inputs[0])
        if layer.kind == "conv" and layer.kernel_px == 1 and filtered is not None:
            merged.add(filtered.name)
            layers.append(
                replace(
                    filtered,
                    name=layer.name,
                    kind="conv",
                    out_shape=layer.out_shape,
                    activation=layer.activation,
                )
            )
        else:
            layers.append(layer)
    kept = tuple(layer for layer in layers if layer.name not in merged)
    return Network(f"{network.name}_standard", network.input_px, kept)


def _picture(input_px: int) -> Layer:
    """Stands for the input where a block asks for the layer before it; in no network."""
    shape = (input_px, input_px, 3)
    return Layer(INPUT, "add", (), shape, shape)


def _multiple_of_8(channels: float) -> int:
    """Nearest multiple of 8, at least 8 and never more than 10 % below `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def _plain(width: float) -> str:
    return f"{width:.2f}".rstrip("0") if round(width, 1) != width else f"{width:.1f}"


def _check_size(width: float, input_px: int, classes: int) -> None:
    if not WIDTHS[0] <= width <= WIDTHS[1] or round(width, 2) != width:
        raise ModelError(
            f"width multiplier {width} is not in {WIDTHS[0]}..{WIDTHS[1]}, two decimals at most",
            hint="the papers use 0.25, 0.35, 0.5, 0.75, 1.0, 1.3 and 1.4",
        )
    if not INPUTS_PX[0] <= input_px <= INPUTS_PX[1]:
        raise ModelError(
            f"input of {input_px} px is not in {INPUTS_PX[0]}..{INPUTS_PX[1]} px",
            hint="the papers use 96, 128, 160, 192 and 224",
        )
    if classes < 1:
        raise ModelError(f"{classes} classes; at least 1 is needed")
