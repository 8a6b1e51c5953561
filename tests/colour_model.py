"""A classifier of a few kilobytes: which of red, green and blue is a picture mostly?

Written with the schema that comes with the interpreter, so that tests have models of every kind
(int8, uint8, float, dynamic, batched) that load and run in no time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

SIDE_PX = 8
LABELS = ("red", "green", "blue")
_TYPES = {
    "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8,
    "int32": schema.TensorType.INT32,
    "float32": schema.TensorType.FLOAT32,
}
_ZERO = {"int8": -128, "uint8": 0, "float32": 0}


def write_model(
    path: Path,
    *,
    dtype: str = "int8",
    batch: int = 1,
    dynamic: bool = False,
    float_scores: bool = False,
    gain: float = 16.0,
) -> Path:
    """Reshape, fully connected, softmax. Scores are about 1 for the colour that prevails."""
    pixels = SIDE_PX * SIDE_PX
    weights = np.full((3, pixels, 3), -0.5, np.float32)
    for colour in range(3):
        weights[colour, :, colour] = 1.0
    flat = (weights * gain / pixels).reshape(3, -1)
    step = float(np.abs(flat).max() / 127)
    real = dtype == "float32"
    middle = 128 if dtype == "uint8" else 0
    codes = flat if real else (np.rint(flat / step) + middle).astype(dtype)
    bias = np.zeros(3, np.float32 if real else np.int32)
    zero = _ZERO[dtype]
    model = _Model()
    size = (batch, SIDE_PX, SIDE_PX, 3)
    picture = model.tensor("picture", size, dtype, 1 / 255, zero)
    if dynamic:
        model.graph.tensors[picture].shapeSignature = [-1, *size[1:]]
    row = model.tensor("row", (batch, 3 * pixels), dtype, 1 / 255, zero)
    weight = model.tensor("weight", flat.shape, dtype, step, middle, values=codes)
    offset = model.tensor("bias", (3,), "float32" if real else "int32", step / 255, 0, values=bias)
    logits = model.tensor("logits", (batch, 3), dtype, 2 * gain / 255, zero + (0 if real else 128))
    scores = model.tensor("scores", (batch, 3), dtype, 1 / 256, zero)
    model.operator(schema.BuiltinOperator.RESHAPE, [picture], row, _reshape(batch))
    model.operator(
        schema.BuiltinOperator.FULLY_CONNECTED,
        [row, weight, offset],
        logits,
        schema.FullyConnectedOptionsT(),
    )
    softmax = schema.SoftmaxOptionsT()
    softmax.beta = 1.0
    model.operator(schema.BuiltinOperator.SOFTMAX, [logits], scores, softmax)
    if float_scores:
        real_scores = model.tensor("real_scores", (batch, 3), "float32", 0, 0)
        model.operator(
            schema.BuiltinOperator.DEQUANTIZE, [scores], real_scores, schema.DequantizeOptionsT()
        )
        scores = real_scores
    path.write_bytes(model.finish([picture], [scores]))
    return path


def write_labels(path: Path, labels: tuple[str, ...] = LABELS) -> Path:
    path.write_text("\n".join(labels) + "\n", encoding="utf-8")
    return path


def write_pictures(folder: Path) -> list[Path]:
    """One picture per colour."""
    paths = []
    for colour, name in enumerate(LABELS):
        pixels = np.full((48, 64, 3), 20, np.uint8)
        pixels[:, :, 2 - colour] = 230  # OpenCV writes B, G, R
        paths.append(folder / f"{name}.png")
        cv2.imwrite(str(paths[-1]), pixels)
    return paths


def _reshape(batch: int) -> Any:
    options = schema.ReshapeOptionsT()
    options.newShape = [batch, SIDE_PX * SIDE_PX * 3]
    return options


class _Model:
    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.buffers = [schema.BufferT()]
        self.model.operatorCodes = []
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.model.subgraphs = [self.graph]

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        scale: float,
        zero: int,
        *,
        values: np.ndarray | None = None,
    ) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name, list(shape), _TYPES[dtype]
        if dtype != "float32":
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [scale], [zero]
        if values is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
            tensor.buffer = len(self.model.buffers)
            self.model.buffers.append(buffer)
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def operator(self, kind: int, inputs: list[int], output: int, options: Any) -> None:
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = kind
        code.version = 4 if kind == schema.BuiltinOperator.FULLY_CONNECTED else 1
        operator = schema.OperatorT()
        operator.opcodeIndex = len(self.model.operatorCodes)
        operator.inputs, operator.outputs = inputs, [output]
        operator.builtinOptions = options
        operator.builtinOptionsType = getattr(
            schema.BuiltinOptions, type(options).__name__.removesuffix("T")
        )
        self.model.operatorCodes.append(code)
        self.graph.operators.append(operator)

    def finish(self, inputs: list[int], outputs: list[int]) -> bytes:
        self.graph.inputs, self.graph.outputs = inputs, outputs
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())
