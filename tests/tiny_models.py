"""TFLite models small enough to compute by hand, made from the flatbuffer schema.

The base model only reshapes: each of its 12 outputs is the code of one channel of a 2 x 2 picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import ai_edge_litert.schema_py_generated as schema
import flatbuffers

SHAPE = (1, 2, 2, 3)
CLASSES = 12
SCALE = 1 / 256

_TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8,
}
_NO_BUFFER = 0


def reshape_model(
    dtype: str = "int8",
    *,
    shape: Sequence[int] = SHAPE,
    signature: Sequence[int] | None = None,
    zero_point: int | None = None,
    scale: float = SCALE,
    flat_zero_point: int | None = None,
    flat: Sequence[int] | None = None,
    float_output: bool = False,
) -> bytes:
    """Model whose output is its input, flattened; with `float_output`, dequantised as well."""
    if zero_point is None:
        zero_point = {"int8": -128, "uint8": 0, "float32": 0}[dtype]
    flat = flat or (shape[0], math.prod(shape[1:]))
    flat_zero_point = zero_point if flat_zero_point is None else flat_zero_point
    tensors = [
        _tensor("picture", dtype, shape, zero_point, signature, scale=scale),
        _tensor("flat", dtype, flat, flat_zero_point, scale=scale),
    ]
    operators = [_reshape(0, 1, flat)]
    if float_output:
        tensors.append(_tensor("real", "float32", flat))
        operators.append(_operator(1, [1], [2]))
    return _model(tensors, operators, inputs=[0], outputs=[len(tensors) - 1])


def no_input_model() -> bytes:
    """Nothing in; what comes out is whatever the tensor holds."""
    return _model([_tensor("flat", "int8", (1, CLASSES))], [], inputs=[], outputs=[0])


def no_output_model() -> bytes:
    """A picture in, nothing out."""
    return _model([_tensor("picture", "int8", SHAPE)], [], inputs=[0], outputs=[])


def two_input_model() -> bytes:
    """Two pictures in, the first one out."""
    tensors = [
        _tensor("left", "int8", SHAPE),
        _tensor("right", "int8", SHAPE),
        _tensor("flat", "int8", (1, CLASSES)),
    ]
    return _model(tensors, [_reshape(0, 2, (1, CLASSES))], inputs=[0, 1], outputs=[2])


def edgetpu_model() -> bytes:
    """Model with the form of a compiled one: a single custom operator holds the program."""
    tensors = [_tensor("picture", "int8", SHAPE), _tensor("flat", "int8", (1, CLASSES))]
    operator = _operator(2, [0], [1])
    operator.customOptions = list(b"program")
    return _model(tensors, [operator], inputs=[0], outputs=[1])


def _tensor(
    name: str,
    dtype: str,
    shape: Sequence[int],
    zero_point: int = -128,
    signature: Sequence[int] | None = None,
    *,
    scale: float = SCALE,
) -> schema.TensorT:
    tensor = schema.TensorT(
        shape=list(shape), type=_TYPES[dtype], buffer=_NO_BUFFER, name=name, hasRank=True
    )
    if signature is not None:
        tensor.shapeSignature = list(signature)
    if dtype != "float32":
        tensor.quantization = schema.QuantizationParametersT(scale=[scale], zeroPoint=[zero_point])
    return tensor


def _operator(code: int, inputs: list[int], outputs: list[int]) -> schema.OperatorT:
    return schema.OperatorT(opcodeIndex=code, inputs=inputs, outputs=outputs)


def _reshape(source: int, target: int, shape: Sequence[int]) -> schema.OperatorT:
    operator = _operator(0, [source], [target])
    operator.builtinOptionsType = schema.BuiltinOptions.ReshapeOptions
    operator.builtinOptions = schema.ReshapeOptionsT(newShape=list(shape))
    return operator


def _model(
    tensors: list[schema.TensorT],
    operators: list[schema.OperatorT],
    *,
    inputs: list[int],
    outputs: list[int],
) -> bytes:
    reshape, dequantize = schema.BuiltinOperator.RESHAPE, schema.BuiltinOperator.DEQUANTIZE
    custom = schema.BuiltinOperator.CUSTOM
    model = schema.ModelT(
        version=3,
        operatorCodes=[
            schema.OperatorCodeT(deprecatedBuiltinCode=reshape, builtinCode=reshape),
            schema.OperatorCodeT(deprecatedBuiltinCode=dequantize, builtinCode=dequantize),
            schema.OperatorCodeT(
                deprecatedBuiltinCode=custom, builtinCode=custom, customCode="edgetpu-custom-op"
            ),
        ],
        subgraphs=[
            schema.SubGraphT(tensors=tensors, inputs=inputs, outputs=outputs, operators=operators)
        ],
        buffers=[schema.BufferT()],
    )
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
