"""Runs a model file in the interpreter, for calibration and evaluation."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray


def run_model(
    model: bytes, inputs: Iterable[NDArray[Any]]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """For each input, in the model's own type and without batch: its outputs, in real numbers.

    Outputs are named after their tensors and have no batch dimension.
    """
    interpreter = Interpreter(model_content=model, num_threads=os.cpu_count())
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    outputs = interpreter.get_output_details()
    for values in inputs:
        interpreter.set_tensor(source["index"], values[None])
        interpreter.invoke()
        yield {
            output["name"]: _real(
                interpreter.get_tensor(output["index"])[0], *output["quantization"]
            )
            for output in outputs
        }


def _real(codes: NDArray[Any], scale: float, zero_point: int) -> NDArray[np.float32]:
    """`scale` 0: not quantised."""
    values = codes.astype(np.float32)
    return (values - np.float32(zero_point)) * np.float32(scale) if scale else values
