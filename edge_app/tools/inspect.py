"""`edge-app models inspect`: a model's cost layer by layer, and what an Edge TPU would take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from edge_app.errors import EXIT_OK, UsageError
from edge_app.tools import plot as pictures
from edge_app.tools.cost import Cost, Counts, LayerCost
from edge_app.tools.edgetpu_rules import ON_CHIP_BYTES
from edge_app.tools.inspection import Inspection, as_record, inspect_target, ratio
from edge_app.tools.tflite_graph import GraphTensor, Quantisation

_SHORT_KINDS = {
    "CONV_2D": "conv",
    "DEPTHWISE_CONV_2D": "depthwise",
    "TRANSPOSE_CONV": "transposed",
    "FULLY_CONNECTED": "dense",
}


def inspect_model(target: str, *, as_json: bool = False, plot: Path | None = None) -> int:
    """Print what `target` (path, installed model or architecture name) costs; return exit code.

    Raises ModelError when it cannot be read, UsageError when `plot` cannot be drawn.
    """
    if plot is not None:
        pictures.check_plot(plot)
    inspection = inspect_target(target)
    if plot is not None:
        if inspection.graph.compiled:
            raise UsageError(
                f"{target} is compiled for the Edge TPU, which hides the layers to draw",
                hint="draw the CPU twin: the same file name without _edgetpu",
            )
        _draw(inspection, plot)
    if as_json:
        print(json.dumps(as_record(inspection), indent=1))
    else:
        _show(inspection, Console())
    return EXIT_OK


def _show(found: Inspection, console: Console) -> None:
    graph = found.graph
    console.print(f"[bold]{found.name}[/bold]", highlight=False)
    if found.by_name:
        console.print("architecture, as the builder would write it in int8 (no trained weights)")
    else:
        console.print(
            f"{found.source}, {graph.file_bytes / 1e6:.2f} MB", highlight=False, soft_wrap=True
        )
    for word, numbers in (("input", graph.inputs), ("output", graph.outputs)):
        for number in numbers:
            console.print(f"{word:>6}: {_tensor_text(graph.tensors[number])}", highlight=False)
    console.print(_layer_table(found))
    if graph.compiled:
        program_bytes = sum(operator.program_bytes for operator in graph.operators)
        console.print(
            f"Compiled for the Edge TPU: {program_bytes / 1e6:.2f} MB of it is a program that"
            " hides its layers and\nruns on no CPU. Inspect the CPU twin (the name without"
            " _edgetpu) to see them.",
            highlight=False,
        )
        return
    if not found.by_name:
        console.print(_quantisation_table(found.cost))
    console.print(_total_table(found.cost))
    console.print(_remarks(found.cost), highlight=False)
    console.print(_prediction_text(found), highlight=False)


def _layer_table(found: Inspection) -> Table:
    # Together 80 columns: a pipe, a narrow terminal and a page of documentation have no more.
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("layer", overflow="ellipsis", no_wrap=True, max_width=22)
    table.add_column("operator", overflow="ellipsis", no_wrap=True, max_width=16)
    for heading in ("output", "MACs M", "params k", "live kB"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("TPU", no_wrap=True)
    for layer, reasons in zip(found.cost.layers, found.prediction.reasons, strict=True):
        table.add_row(
            layer.name,
            _kind_text(layer),
            "x".join(map(str, layer.out_shape[1:])),
            _scaled(layer.own.macs, 1e6) if layer.counted else "?",
            _scaled(layer.own.params, 1e3) if layer.counted else "?",
            f"{layer.live_bytes / 1e3:.0f}",
            _place(found, reasons),
        )
    return table


def _place(found: Inspection, reasons: tuple[str, ...]) -> str:
    if found.graph.compiled:
        return ""
    return "no" if reasons or found.prediction.whole_model else "yes"


def _quantisation_table(cost: Cost) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title="Quantisation", title_justify="left"
    )
    table.add_column("layer", overflow="ellipsis", no_wrap=True, max_width=26)
    table.add_column("out scale", justify="right", no_wrap=True)
    table.add_column("zero", justify="right", no_wrap=True)
    table.add_column("weights' scales", no_wrap=True)
    for layer in cost.layers:
        output = layer.output_quantisation
        table.add_row(
            layer.name,
            f"{output.scales[0]:.6g}" if output else "none",
            str(output.zero_points[0]) if output else "",
            _scales_text(layer.kernel_quantisation) if layer.kernel_px or layer.own.weights else "",
        )
    return table


def _total_table(cost: Cost) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("in total")
    for heading in ("this model", "standard conv.", "saving"):
        table.add_column(heading, justify="right")
    rows: Mapping[str, tuple[int, int]] = {
        "multiply-adds": (cost.total.macs, cost.standard.macs),
        "  without classifier": (cost.convolutions.macs, cost.standard_convolutions.macs),
        "weights": (cost.total.weights, cost.standard.weights),
        "parameters (with biases)": (cost.total.params, cost.standard.params),
    }
    for name, (own, standard) in rows.items():
        saving = ratio(standard, own)
        times = f"{saving:.2f} times less" if saving else ""
        table.add_row(name, _counted(own), _counted(standard), times)
    return table


def _remarks(cost: Cost) -> str:
    macs = ratio(cost.pointwise.macs, cost.total.macs)
    weights = ratio(cost.pointwise.weights, cost.total.weights)
    lines = []
    if macs is not None and weights is not None:
        lines.append(f"1 x 1 convolutions: {macs:.2%} of multiply-adds, {weights:.2%} of weights")
    if cost.layers:
        widest = max(cost.layers, key=lambda layer: layer.live_bytes)
        lines.append(f"Activation memory: at most {cost.peak_bytes / 1e6:.3f} MB, at {widest.name}")
        lines.append("  (each tensor lives from where it is computed to where it is last read)")
    if cost.not_counted:
        lines.append(f"Not counted: {', '.join(cost.not_counted)}")
    return "\n".join(lines)


def _prediction_text(found: Inspection) -> str:
    prediction = found.prediction
    lines = [
        f"Edge TPU, predicted (only its compiler knows): {prediction.mapped} of"
        f" {len(prediction.reasons)} operators",
        *(f"  the whole model stays on the CPU: {reason}" for reason in prediction.whole_model),
        *(
            f"  {layer.name} ({layer.kind}): {'; '.join(reasons)}"
            for layer, reasons in zip(found.cost.layers, prediction.reasons, strict=True)
            if reasons
        ),
    ]
    if prediction.mapped:
        fit = f"{prediction.parameter_bytes / 1e6:.2f} MB of parameters, about"
        fit += f" {ON_CHIP_BYTES / 1e6:.1f} MB on the chip"
        if prediction.streamed_bytes:
            fit += f": {prediction.streamed_bytes / 1e6:.2f} MB are sent for every inference"
        lines.append(f"  {fit}")
    return "\n".join(lines)


def _draw(found: Inspection, path: Path) -> None:
    total = found.cost.total
    bars = [
        pictures.Bar(layer.name, _group(layer), layer.own.macs, layer.own.params)
        for layer in found.cost.layers
        if layer.own != Counts()
    ]
    title = (
        f"{found.name}: {_counted(total.macs)} multiply-adds, {_counted(total.params)} parameters"
    )
    pictures.plot_layers(bars, title, path)


def _group(layer: LayerCost) -> str:
    if layer.pointwise:
        return "1 x 1 convolution"
    names = {
        "CONV_2D": "standard convolution",
        "DEPTHWISE_CONV_2D": "depthwise convolution",
        "FULLY_CONNECTED": "fully connected",
    }
    return names.get(layer.kind, "other")


def _kind_text(layer: LayerCost) -> str:
    text = _SHORT_KINDS.get(layer.kind, layer.kind.lower() if layer.counted else layer.kind)
    if layer.kernel_px:
        text += f" {layer.kernel_px[0]}x{layer.kernel_px[1]}"
    return text + (f" /{layer.stride[0]}" if max(layer.stride) > 1 else "")


def _tensor_text(tensor: GraphTensor) -> str:
    shape = "x".join(map(str, tensor.shape))
    text = f"{tensor.name} {shape} {tensor.dtype.lower()}"
    if tensor.quantisation:
        scale, zero_point = tensor.quantisation.scales[0], tensor.quantisation.zero_points[0]
        text += f", scale {scale:.6g}, zero point {zero_point}"
    return text


def _scales_text(found: Quantisation | None) -> str:
    if found is None:
        return "none"
    if not found.per_channel:
        return f"{found.scales[0]:.3g}, one for all"
    return f"{min(found.scales):.3g} to {max(found.scales):.3g}, by channel"


def _scaled(number: int, unit: float) -> str:
    return f"{number / unit:.2f}" if number else "-"


def _counted(number: int) -> str:
    """Four significant digits or so, in thousands (k) or millions (M)."""
    if number >= 1_000_000:
        return f"{number / 1e6:.{max(0, 4 - len(str(number // 1_000_000)))}f} M"
    if number >= 10_000:
        return f"{number / 1e3:.1f} k"
    return str(number) if number else "-"
