"""Predicts which operators an Edge TPU would take. A prediction: only the compiler decides.

The rules restate, as far as a file can show them, the documented limits of Google's
edgetpu_compiler 16 (https://coral.ai/docs/edgetpu/models-intro, "Supported operations", and
https://coral.ai/docs/edgetpu/compiler); the operator versions are the newest it is known to map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edge_app.tools.tflite_graph import Graph, GraphTensor, Operator

# On-chip memory for parameters; what does not fit is sent to the device for every inference.
ON_CHIP_BYTES = 8 * 2**20

MAX_VERSION = {
    "ADD": 2,
    "AVERAGE_POOL_2D": 2,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "EXPAND_DIMS": 1,
    "FULLY_CONNECTED": 4,
    "HARD_SWISH": 1,
    "L2_NORMALIZATION": 2,
    "LOGISTIC": 2,
    "MAXIMUM": 2,
    "MAX_POOL_2D": 2,
    "MEAN": 2,
    "MINIMUM": 2,
    "MUL": 2,
    "PACK": 2,
    "PAD": 2,
    "PRELU": 1,
    "QUANTIZE": 2,
    "REDUCE_MAX": 2,
    "REDUCE_MIN": 2,
    "RELU": 2,
    "RELU6": 2,
    "RELU_N1_TO_1": 1,
    "RESHAPE": 1,
    "RESIZE_BILINEAR": 3,
    "RESIZE_NEAREST_NEIGHBOR": 3,
    "RSQRT": 2,
    "SLICE": 2,
    "SOFTMAX": 2,
    "SPACE_TO_DEPTH": 2,
    "SPLIT": 2,
    "SQUARED_DIFFERENCE": 2,
    "SQUEEZE": 1,
    "STRIDED_SLICE": 2,
    "SUB": 2,
    "SUM": 1,
    "TANH": 2,
    "TILE": 1,
    "TRANSPOSE": 2,
    "TRANSPOSE_CONV": 3,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": 1,
}
_WEIGHTED = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"}
_REDUCTIONS = {"MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"}
_NO_FUSED_ACTIVATION = {"AVERAGE_POOL_2D", "MAX_POOL_2D", "CONCATENATION"}
_SOFTMAX_ELEMENTS = 16_000
_AFTER_CPU = "comes after an operator that stays on the CPU; the compiler maps one leading part"

Rule = Callable[[Graph, Operator], str]


@dataclass(frozen=True, slots=True)
class Prediction:
    """`reasons[i]`: why operator `i` stays on the CPU; empty: the Edge TPU takes it.

    `whole_model`: why the compiler would refuse the file. `parameter_bytes`: those of the
    operators taken.
    """

    reasons: tuple[tuple[str, ...], ...]
    whole_model: tuple[str, ...]
    parameter_bytes: int

    @property
    def mapped(self) -> int:
        return 0 if self.whole_model else sum(not reasons for reasons in self.reasons)

    @property
    def streamed_bytes(self) -> int:
        """Parameters beyond the on-chip memory, sent anew for each inference."""
        return max(0, self.parameter_bytes - ON_CHIP_BYTES)


def predict(graph: Graph) -> Prediction:
    """Apply the rules to every operator, then keep what one leading partition can hold."""
    own = [tuple(filter(None, (rule(graph, x) for rule in RULES))) for x in graph.operators]
    reasons: list[tuple[str, ...]] = []
    on_tpu: set[int] = set()
    after: set[int] = set()
    for operator, broken in zip(graph.operators, own, strict=True):
        inputs = set(operator.inputs)
        if broken:
            # Before anything is mapped it is only a longer way in; later it ends the partition.
            if inputs & (on_tpu | after):
                after.update(operator.outputs)
        elif inputs & after:
            broken = (_AFTER_CPU,)  # noqa: PLW2901
            after.update(operator.outputs)
        else:
            on_tpu.update(operator.outputs)
        reasons.append(broken)
    taken = {
        number
        for operator, broken in zip(graph.operators, reasons, strict=True)
        for number in operator.inputs
        if not broken and number >= 0 and graph.tensors[number].constant
    }
    parameter_bytes = sum(graph.tensors[number].size_bytes for number in taken)
    return Prediction(tuple(reasons), _whole_model(graph), parameter_bytes)


def _whole_model(graph: Graph) -> tuple[str, ...]:
    faults = []
    if graph.subgraphs != 1:
        faults.append(f"{graph.subgraphs} subgraphs; the compiler takes one")
    if graph.external_buffers:
        faults.append("weights are stored outside the FlatBuffer, as files newer than 2023 may do")
    if any(tensor.dynamic for tensor in graph.tensors):
        faults.append("a tensor has a dynamic shape; all sizes must be fixed")
    return tuple(faults)


def _known_operator(_: Graph, operator: Operator) -> str:
    if operator.custom:
        return f"custom operator {operator.kind}"
    newest = MAX_VERSION.get(operator.kind)
    if newest is None:
        return "operator is not supported"
    if operator.version > newest:
        return f"version {operator.version} is newer than the compiler knows ({newest})"
    return ""


def _eight_bits(graph: Graph, operator: Operator) -> str:
    wrong = {x.dtype for x in _activations(graph, operator)} - {"INT8", "UINT8"}
    return f"tensors of {', '.join(sorted(wrong))}; only 8-bit integers are computed" * bool(wrong)


def _quantised(graph: Graph, operator: Operator) -> str:
    eight_bit = [x for x in _activations(graph, operator) if x.dtype in ("INT8", "UINT8")]
    missing = any(tensor.quantisation is None for tensor in eight_bit)
    return "a tensor has no quantisation parameters" * missing


def _three_dimensions(graph: Graph, operator: Operator) -> str:
    deep = [x.shape for x in _activations(graph, operator) if any(n > 1 for n in x.shape[:-3])]
    return f"shape {list(deep[0])}: only the last three may exceed 1" if deep else ""


def _constant_weights(graph: Graph, operator: Operator) -> str:
    if operator.kind not in _WEIGHTED:
        return ""
    kernel = _input(graph, operator, 1)
    return "" if kernel and kernel.constant else "weights are not constant"


def _fully_connected(graph: Graph, operator: Operator) -> str:
    if operator.kind != "FULLY_CONNECTED":
        return ""
    kernel = _input(graph, operator, 1)
    if kernel and kernel.quantisation and kernel.quantisation.per_channel:
        return "fully connected weights are quantised per channel; per tensor is supported"
    return "" if operator.default_weights_format else "weights are in a shuffled format"


def _equal_dilation(_: Graph, operator: Operator) -> str:
    return "dilation differs in x and y" * (operator.dilation[0] != operator.dilation[1])


def _no_fused_activation(_: Graph, operator: Operator) -> str:
    fused = operator.kind in _NO_FUSED_ACTIVATION and operator.activation != "NONE"
    return f"fused activation {operator.activation}" if fused else ""


def _not_over_batch(graph: Graph, operator: Operator) -> str:
    source, which = _input(graph, operator, 0), _input(graph, operator, 1)
    if source is None or which is None or not which.values:
        return ""
    if operator.kind == "PAD":
        return "pads the batch dimension" * any(which.values[:2])
    rank = len(source.shape)
    reduces = operator.kind in _REDUCTIONS and rank > 1
    return "reduces the batch dimension" * (reduces and 0 in [x % rank for x in which.values])


def _small_softmax(graph: Graph, operator: Operator) -> str:
    source = _input(graph, operator, 0)
    large = operator.kind == "SOFTMAX" and source and source.elements > _SOFTMAX_ELEMENTS
    return f"softmax over more than {_SOFTMAX_ELEMENTS} elements" if large else ""


RULES: tuple[Rule, ...] = (
    _known_operator,
    _eight_bits,
    _quantised,
    _three_dimensions,
    _constant_weights,
    _fully_connected,
    _equal_dilation,
    _no_fused_activation,
    _not_over_batch,
    _small_softmax,
)


def _input(graph: Graph, operator: Operator, position: int) -> GraphTensor | None:
    if position >= len(operator.inputs) or operator.inputs[position] < 0:
        return None
    return graph.tensors[operator.inputs[position]]


def _activations(graph: Graph, operator: Operator) -> list[GraphTensor]:
    found = graph.activations((*operator.inputs, *operator.outputs))
    return [tensor for tensor in found if not tensor.variable]
