"""What a model costs, layer by layer: multiply-adds, parameters, memory. Pure arithmetic on shapes.

Counted as Howard et al. 2017 (arXiv:1704.04861) count: a multiply-add is one multiplication with
its addition, in convolutions and fully connected layers; pooling, additions and activations are
not. `weights` are those layers' kernels; `params` adds biases and any other stored numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from edge_app.errors import ModelError
from edge_app.tools.tflite_graph import Graph, GraphTensor, Operator, Quantisation

_KERNEL_RANK = {"CONV_2D": 4, "DEPTHWISE_CONV_2D": 4, "TRANSPOSE_CONV": 4, "FULLY_CONNECTED": 2}
# These multiply too, but by rules of their own; inspect says so instead of counting them as 0.
_NOT_COUNTED = {"BATCH_MATMUL", "CONV_3D", "CONV_3D_TRANSPOSE", "RNN", "SVDF", "LSTM"}
_NOT_COUNTED |= {"UNIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM"}
_NOT_COUNTED |= {"UNIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_RNN"}
_INDEX_DTYPES = {"INT32", "INT64", "BOOL", "STRING"}


@dataclass(frozen=True, slots=True)
class Counts:
    """Multiply-adds, kernel weights, and all stored numbers (weights, biases, other constants)."""

    macs: int = 0
    weights: int = 0
    params: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.macs + other.macs, self.weights + other.weights, self.params + other.params
        )


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One operator. Shapes as stored, batch first; `kernel_px` is height, width.

    `standard`: the same with standard convolutions. A depthwise layer whose only reader is a 1 x 1
    convolution then costs nothing, and that one costs what the k x k convolution would.
    `live_bytes`: of all tensors that must exist while the layer runs.
    """

    name: str
    kind: str
    kernel_px: tuple[int, int] | None
    stride: tuple[int, int]
    out_shape: tuple[int, ...]
    own: Counts
    standard: Counts
    pointwise: bool
    counted: bool
    output_bytes: int
    live_bytes: int
    output_quantisation: Quantisation | None
    kernel_quantisation: Quantisation | None


@dataclass(frozen=True, slots=True)
class Cost:
    """A whole model."""

    layers: tuple[LayerCost, ...]

    @property
    def total(self) -> Counts:
        return sum((layer.own for layer in self.layers), Counts())

    @property
    def standard(self) -> Counts:
        return sum((layer.standard for layer in self.layers), Counts())

    @property
    def pointwise(self) -> Counts:
        return sum((layer.own for layer in self.layers if layer.pointwise), Counts())

    @property
    def convolutions(self) -> Counts:
        """Without fully connected layers, as some of the papers' tables count."""
        return sum((x.own for x in self.layers if x.kind != "FULLY_CONNECTED"), Counts())

    @property
    def standard_convolutions(self) -> Counts:
        return sum((x.standard for x in self.layers if x.kind != "FULLY_CONNECTED"), Counts())

    @property
    def peak_bytes(self) -> int:
        """The most activation memory needed at once, were no byte ever kept longer than needed."""
        return max((layer.live_bytes for layer in self.layers), default=0)

    @property
    def not_counted(self) -> tuple[str, ...]:
        """Kinds of operators whose multiply-adds are unknown and therefore not in the sums."""
        return tuple(sorted({layer.kind for layer in self.layers if not layer.counted}))


def cost_of(graph: Graph) -> Cost:
    """Count everything. Raises ModelError when a layer's shapes contradict each other."""
    return Cost(tuple(_Counter(graph).layers()))


class _Counter:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._seen: set[int] = set()
        # Half-precision models store weights as FLOAT16 and widen them when they run.
        self._widened = {
            operator.outputs[0]: operator.inputs[0]
            for operator in graph.operators
            if operator.kind == "DEQUANTIZE" and graph.activations(operator.inputs) == []
        }

    def layers(self) -> list[LayerCost]:
        graph = self._graph
        own = [self._own(operator) for operator in graph.operators]
        standard = self._standard(own)
        live_bytes = _live_bytes(graph)
        return [
            self._layer(operator, own[i], standard[i], live_bytes[i])
            for i, operator in enumerate(graph.operators)
        ]

    def _layer(
        self, operator: Operator, own: Counts, standard: Counts, live_bytes: int
    ) -> LayerCost:
        outputs = [self._graph.tensors[number] for number in operator.outputs]
        kernel = self._kernel(operator)
        size_px = self._kernel_px(operator)
        return LayerCost(
            name=outputs[0].name if outputs else "",
            kind=operator.kind,
            kernel_px=size_px if any(size_px) else None,
            stride=operator.stride,
            out_shape=outputs[0].shape if outputs else (),
            own=own,
            standard=standard,
            pointwise=self._is_pointwise(operator),
            counted=not operator.custom and operator.kind not in _NOT_COUNTED,
            output_bytes=sum(tensor.size_bytes for tensor in outputs),
            live_bytes=live_bytes,
            output_quantisation=outputs[0].quantisation if outputs else None,
            kernel_quantisation=kernel.quantisation if kernel else None,
        )

    def _kernel(self, operator: Operator) -> GraphTensor | None:
        """The weights of a layer that has some, with the rank that its kind needs."""
        rank = _KERNEL_RANK.get(operator.kind)
        if rank is None:
            return None
        numbers = operator.inputs
        # A transposed convolution's first input is the shape to make.
        least = 3 if operator.kind == "TRANSPOSE_CONV" else 2
        if len(numbers) < least or min(numbers[:least]) < 0 or not operator.outputs:
            raise ModelError(f"damaged: a {operator.kind} has {len(numbers)} inputs")
        kernel = self._graph.tensors[self._widened.get(numbers[1], numbers[1])]
        if len(kernel.shape) != rank or kernel.elements == 0:
            raise ModelError(f"damaged: a {operator.kind} has weights of {list(kernel.shape)}")
        maps = [self._graph.tensors[number] for number in (numbers[least - 2], operator.outputs[0])]
        if rank == 4 and any(len(tensor.shape) != 4 for tensor in maps):
            raise ModelError(f"damaged: a {operator.kind} that computes no feature maps")
        return kernel

    def _own(self, operator: Operator) -> Counts:
        kernel = self._kernel(operator)
        params = weights = 0
        for position, tensor in self._constants(operator):
            if tensor is kernel:
                weights = tensor.elements
            if position == 2 or tensor.dtype not in _INDEX_DTYPES:  # a bias, or not an index
                params += tensor.elements
        return Counts(self._macs(operator, kernel) if kernel else 0, weights, params)

    def _constants(self, operator: Operator) -> Iterator[tuple[int, GraphTensor]]:
        """Stored tensors and their position among the inputs, each at its first use only."""
        if operator.kind == "DEQUANTIZE":
            return  # counted where the values are used
        for position, stored in enumerate(operator.inputs):
            number = self._widened.get(stored, stored)
            if number >= 0 and number not in self._seen and self._graph.tensors[number].constant:
                self._seen.add(number)
                yield position, self._graph.tensors[number]

    def _macs(self, operator: Operator, kernel: GraphTensor) -> int:
        """Every output element needs one multiply-add per weight of its filter."""
        out = self._graph.tensors[operator.outputs[0]].elements
        if operator.kind == "CONV_2D":
            return out * (kernel.elements // kernel.shape[0])
        if operator.kind == "DEPTHWISE_CONV_2D":
            return out * kernel.shape[1] * kernel.shape[2]
        if operator.kind == "TRANSPOSE_CONV":  # every input element is spread over a filter
            source = self._graph.tensors[operator.inputs[2]].elements
            return source * (kernel.elements // kernel.shape[3])
        return out * kernel.shape[1]

    def _standard(self, own: list[Counts]) -> list[Counts]:
        """The same layers, each depthwise-separable pair replaced by one standard convolution.

        `k*k*m*n` weights, each used once per output position (Howard et al. 2017, section 3.1).
        """
        standard = list(own)
        for first, second in self._pairs():
            filtering, mixing = self._graph.operators[first], self._graph.operators[second]
            height_px, width_px = self._kernel_px(filtering)
            channels_in = self._graph.tensors[filtering.inputs[0]].shape[-1]
            result = self._graph.tensors[mixing.outputs[0]]
            per_output = height_px * width_px * channels_in
            weights = per_output * result.shape[-1]
            biases = own[second].params - own[second].weights
            standard[first] = Counts()
            standard[second] = Counts(result.elements * per_output, weights, weights + biases)
        return standard

    def _pairs(self) -> Iterator[tuple[int, int]]:
        """Depthwise layers and the 1 x 1 convolutions that alone read them."""
        readers: dict[int, list[int]] = {}
        for i, operator in enumerate(self._graph.operators):
            for number in operator.inputs:
                readers.setdefault(number, []).append(i)
        for i, operator in enumerate(self._graph.operators):
            if operator.kind != "DEPTHWISE_CONV_2D" or operator.outputs[0] in self._graph.outputs:
                continue
            only = readers.get(operator.outputs[0], [])
            if len(only) == 1 and self._is_pointwise(self._graph.operators[only[0]]):
                yield i, only[0]

    def _kernel_px(self, operator: Operator) -> tuple[int, int]:
        kernel = self._kernel(operator)
        return (kernel.shape[1], kernel.shape[2]) if kernel and len(kernel.shape) == 4 else (0, 0)

    def _is_pointwise(self, operator: Operator) -> bool:
        return operator.kind == "CONV_2D" and self._kernel_px(operator) == (1, 1)


def _live_bytes(graph: Graph) -> list[int]:
    """Bytes of the tensors alive at each operator.

    Alive from the operator that computes it (the start, for the model's inputs) to the last that
    reads it (the end, for its outputs); an operator's inputs and outputs are alive together.
    Runtimes need a little more (alignment, scratch space) or less (adding in place).
    """
    end = len(graph.operators) - 1
    first = dict.fromkeys(graph.inputs, 0)
    last = dict.fromkeys(graph.inputs, 0)
    for i, operator in enumerate(graph.operators):
        for number in operator.outputs:
            first.setdefault(number, i)
            last[number] = i
        for number in operator.inputs:
            if number in first:
                last[number] = i
    last.update(dict.fromkeys(graph.outputs, end))
    for number, tensor in enumerate(graph.tensors):
        if tensor.variable:
            first[number], last[number] = 0, end
    change = [0] * (len(graph.operators) + 1)
    for number, start in first.items():
        if graph.operators and not graph.tensors[number].constant:
            change[start] += graph.tensors[number].size_bytes
            change[last[number] + 1] -= graph.tensors[number].size_bytes
    return list(accumulate(change))[:-1]
