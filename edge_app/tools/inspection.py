"""What there is to say about a model, and that as a record for programs (`--json`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edge_app.tools.cost import Cost, LayerCost, cost_of
from edge_app.tools.edgetpu_rules import ON_CHIP_BYTES, Prediction, predict
from edge_app.tools.targets import find_target
from edge_app.tools.tflite_graph import Graph, GraphTensor, Quantisation
from edge_app.tools.tflite_reader import parse_graph, read_graph


@dataclass(frozen=True, slots=True)
class Inspection:
    """All there is to say about a model. `by_name`: an architecture, not a file."""

    name: str
    source: str
    by_name: bool
    graph: Graph
    cost: Cost
    prediction: Prediction


def inspect_target(name: str) -> Inspection:
    """Find, read and count. Raises ModelError."""
    target = find_target(name)
    if target.path is not None:
        graph, source = read_graph(target.path), str(target.path)
    else:
        # The file that the builder would write: one way of counting for files and for names.
        from edge_app.models.builder.build import build_random

        graph, source = parse_graph(build_random(name), name), "architecture"
    return Inspection(
        name=target.name,
        source=source,
        by_name=target.path is None,
        graph=graph,
        cost=cost_of(graph),
        prediction=predict(graph),
    )


def as_record(found: Inspection) -> dict[str, Any]:
    """The `--json` output. What is unknown is None: an Edge TPU program hides its layers."""
    cost, prediction, graph = found.cost, found.prediction, found.graph
    total, standard = cost.total, cost.standard
    return {
        "model": found.name,
        "source": found.source,
        "compiled_for_edgetpu": graph.compiled,
        "file_bytes": None if found.by_name else graph.file_bytes,
        "inputs": [_tensor_record(graph.tensors[i]) for i in graph.inputs],
        "outputs": [_tensor_record(graph.tensors[i]) for i in graph.outputs],
        "total": None
        if graph.compiled
        else {
            **asdict(total),
            "convolution_macs": cost.convolutions.macs,
            "peak_activation_bytes": cost.peak_bytes,
        },
        "standard": None
        if graph.compiled
        else {
            **asdict(standard),
            "convolution_macs": cost.standard_convolutions.macs,
            "macs_ratio": ratio(standard.macs, total.macs),
            "weights_ratio": ratio(standard.weights, total.weights),
        },
        "pointwise_share": {
            "macs": ratio(cost.pointwise.macs, total.macs),
            "weights": ratio(cost.pointwise.weights, total.weights),
        },
        "not_counted": list(cost.not_counted),
        "layers": [
            _layer_record(layer, reasons, by_name=found.by_name)
            for layer, reasons in zip(cost.layers, prediction.reasons, strict=True)
        ],
        "edgetpu_prediction": None if graph.compiled else _prediction_record(prediction),
    }


def _layer_record(layer: LayerCost, reasons: tuple[str, ...], *, by_name: bool) -> dict[str, Any]:
    unknown = {"macs": None, "weights": None, "params": None}
    quantisation = {
        "output": _quantisation_record(layer.output_quantisation),
        "weights": _quantisation_record(layer.kernel_quantisation),
    }
    return {
        "name": layer.name,
        "kind": layer.kind,
        "kernel_px": layer.kernel_px,
        "stride": layer.stride,
        "out_shape": layer.out_shape,
        **(asdict(layer.own) if layer.counted else unknown),
        "standard": asdict(layer.standard) if layer.counted else unknown,
        "output_bytes": layer.output_bytes,
        "live_bytes": layer.live_bytes,
        "quantisation": None if by_name else quantisation,
        "edgetpu": {"predicted": not reasons, "reasons": reasons},
    }


def _prediction_record(prediction: Prediction) -> dict[str, Any]:
    return {
        "mapped": prediction.mapped,
        "operators": len(prediction.reasons),
        "refused": prediction.whole_model,
        "parameter_bytes": prediction.parameter_bytes,
        "on_chip_bytes": ON_CHIP_BYTES,
        "streamed_bytes": prediction.streamed_bytes,
    }


def _tensor_record(tensor: GraphTensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "shape": tensor.shape,
        "dtype": tensor.dtype.lower(),
        "quantisation": _quantisation_record(tensor.quantisation),
    }


def _quantisation_record(found: Quantisation | None) -> dict[str, Any] | None:
    if found is None:
        return None
    if not found.per_channel:
        return {"per_channel": False, "scale": found.scales[0], "zero_point": found.zero_points[0]}
    return {
        "per_channel": True,
        "axis": found.axis,
        "scale": found.scales,
        "zero_point": found.zero_points,
    }


def ratio(first: int, second: int) -> float | None:
    return first / second if second else None
