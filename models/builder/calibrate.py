"""Finds a network's quantisation parameters by watching it look at photos.

Three steps, each on the network as the one before left it: factors that even out the channels,
ranges with the least squared error, bias corrections. Every number is rounded before the next
step sees it, so that the record alone rebuilds the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_app.models.builder.blocks import LOGITS, PROBABILITIES, Kind, Layer
from edge_app.models.builder.correct import bias_corrections
from edge_app.models.builder.equalise import equalised, joined_outputs
from edge_app.models.builder.interpreter import run_model
from edge_app.models.builder.network import Network
from edge_app.models.builder.quantisation import Quantisation, rounded
from edge_app.models.builder.quantise import as_int8, encode_float, scale_and_zero_point
from edge_app.models.builder.reference import Activations, real_input
from edge_app.models.builder.tflite import write_model
from edge_app.models.builder.weights import Weights

Pictures = NDArray[np.uint8]
Peaks = Mapping[str, NDArray[np.float32]]
Progress = Callable[[str, int, int], None]  # step, done, of how many

_RELU6_MAX = 6.0
_SATURATED = 5.99  # a channel that gets here is clipped; scaling it up would clip it more
_HEADROOM = 0.95
_MOST_UP = 30.0  # between an expansion and its depthwise layer both sides have scales per channel
_MOST_UP_HALF = 6.0  # between a depthwise layer and its projection only one side has
_MOST_EITHER_WAY = 16.0
_PEAK_PERCENTILE = 99.9
_SAMPLES = 2000  # values kept of each output per picture
_SHRINK = np.geomspace(0.08, 1.0, 30)  # parts of the seen range that are tried
_LOGIT_MARGIN = 1.1  # two saturated logits would tie
_CORRECTION_PICTURES = 64


def calibrate(
    network: Network,
    weights: Weights,
    pictures: Pictures,
    about: Mapping[str, Any],
    progress: Progress,
) -> Quantisation:
    """`pictures`: `n x input_px x input_px x 3`. Takes a minute or two and a few gigabytes."""
    factors = _factors(network, _channel_peaks(network, weights, pictures, progress))
    even = equalised(network, weights, factors)
    ranges = _ranges(network, even, pictures, progress)
    some = pictures[:: max(1, len(pictures) // _CORRECTION_PICTURES)][:_CORRECTION_PICTURES]
    corrections = bias_corrections(network, even, ranges, some, progress)
    return Quantisation(ranges, factors, corrections, about)


def _channel_peaks(
    network: Network, weights: Weights, pictures: Pictures, progress: Progress
) -> Peaks:
    """The absolute value that each channel of each layer rarely exceeds in a picture."""
    seen: dict[str, list[Activations]] = defaultdict(list)
    for outputs in _watch("channels", network, weights, pictures, progress):
        for name, output in outputs.items():
            seen[name].append(np.abs(output).reshape(-1, output.shape[-1]).max(0))
    return {
        name: np.percentile(np.stack(values), _PEAK_PERCENTILE, axis=0).astype(np.float32)
        for name, values in seen.items()
    }


def _factors(network: Network, peaks: Peaks) -> dict[str, tuple[float, ...]]:
    factors: dict[str, tuple[float, ...]] = {}
    done: set[str] = set()
    for layer in network.layers:
        if layer.kind not in ("conv", "depthwise") or layer.name in done:
            continue
        joined = joined_outputs(network, layer.name)
        done |= joined
        readers = {r.kind for r in network.layers if joined.intersection(r.inputs)} - {"add"}
        if not readers <= {"conv", "depthwise"}:
            continue
        peak = np.maximum(np.max([peaks[name] for name in joined], axis=0), 1e-3)
        factors[layer.name] = rounded(_factor(layer, readers, peak), 3)
    return factors


def _factor(layer: Layer, readers: set[Kind], peak: NDArray[np.float32]) -> NDArray[np.float32]:
    """Up to the range's end before a depthwise layer, half of the way (in dB) elsewhere.

    A channel of the residual stream may also go down: on four photos in ten a few channels reach
    ten times the usual peak at one position, and would set the scale for all.
    """
    if layer.activation == "none":
        middle = np.sqrt(np.median(peak) / peak)
        return np.asarray(np.clip(middle, 1 / _MOST_EITHER_WAY, _MOST_EITHER_WAY))
    room = min(_RELU6_MAX, float(peak.max())) * _HEADROOM / peak
    if readers == {"depthwise"}:
        factor = np.clip(room, 1, _MOST_UP)
    else:
        factor = np.clip(np.sqrt(np.maximum(room, 1)), 1, _MOST_UP_HALF)
    return np.where(peak >= _SATURATED, np.float32(1), factor)


def _ranges(
    network: Network, weights: Weights, pictures: Pictures, progress: Progress
) -> dict[str, tuple[float, float]]:
    """For each output the range whose int8 codes have the least mean squared error."""
    generator = np.random.Generator(np.random.PCG64(0))
    places: dict[int, NDArray[np.int64]] = {}
    seen: dict[str, list[Activations]] = defaultdict(list)
    for outputs in _watch("ranges", network, weights, pictures, progress):
        for name, output in outputs.items():
            size = output.size
            if size not in places:
                places[size] = generator.choice(size, min(size, _SAMPLES), replace=False)
            seen[name].append(output.ravel()[places[size]])
    ranges = {}
    for number, (name, samples) in enumerate(seen.items(), start=1):
        progress("ranges, least error", number, len(seen))
        if name != PROBABILITIES:
            choose = _widest if name == LOGITS else _least_error_range
            low, high = rounded(np.array(choose(np.concatenate(samples))), 6)
            ranges[name] = (low, high)
    return ranges


def _widest(values: Activations) -> tuple[float, float]:
    return float(values.min()) * _LOGIT_MARGIN, float(values.max()) * _LOGIT_MARGIN


def _least_error_range(values: Activations) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())

    def error(part: float) -> float:
        code = scale_and_zero_point(low * part, high * part)
        return float(np.mean(np.square(as_int8(values, *code) - values)))

    best = min(_SHRINK.tolist(), key=error)
    return low * best, high * best


def _watch(
    step: str, network: Network, weights: Weights, pictures: Pictures, progress: Progress
) -> Iterator[dict[str, Activations]]:
    """Every layer's output for each picture. The interpreter is ten times as fast as numpy."""
    names = [layer.name for layer in network.layers]
    model = write_model(encode_float(network, weights), names, "every layer is an output")
    inputs = (real_input(picture) for picture in pictures)
    for number, outputs in enumerate(run_model(model, inputs), start=1):
        yield outputs
        progress(step, number, len(pictures))
