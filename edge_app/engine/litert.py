"""The TensorFlow Lite interpreter, in process: the only one the appliance runs models in.

`ai-edge-litert` is the maintained runtime; `tflite_runtime` 2.14 is accepted in its place, because
an older libedgetpu works only with a runtime of its own age.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge_app.domain import EngineInfo, Pixels, Tensor, TensorSpec
from edge_app.engine.stderr import native_stderr
from edge_app.errors import EngineError, ModelError

RUNTIMES = {"litert": "ai_edge_litert", "tflite": "tflite_runtime"}
EDGETPU_OP = "edgetpu-custom-op"
TFLITE_MARK = b"TFL3"  # bytes 4 to 8 of every model file
_INPUT_DTYPES = ("int8", "uint8")
_CODE_OFFSET = {"int8": 0x80, "uint8": 0}
# What the codes of black and white stand for where pictures are scaled, centred, or normalised by
# ImageNet's mean and deviation. Wide, because calibration finds only about these.
_PICTURE_RANGES = ((0, 1), (-1, 1), (-0.5, 0.5), (0, 255), (-128, 127), (-2.2, 2.7))
_RANGE_TOLERANCE = 0.15
# tflite_runtime's wheels lack the optimised int8 kernels and gain nothing; LiteRT was measured with
# `edge-app bench`: a second thread shortens one inference but takes the core the rest of the
# pipeline runs on. docs/performance.md has the figures.
DEFAULT_THREADS = 1


def find_runtime(wanted: str = "auto") -> tuple[str, Any]:
    """Return the distribution name with version, and the module that holds `Interpreter`.

    `wanted` is "auto" (LiteRT when it is installed, else tflite_runtime), "litert" or "tflite".
    Raises EngineError when none can be imported.
    """
    names = list(RUNTIMES.values()) if wanted == "auto" else [RUNTIMES[wanted]]
    problems = []
    for package in names:
        try:
            module = importlib.import_module(f"{package}.interpreter")
        except ImportError as error:
            problems.append(str(error))
            continue
        distribution = package.replace("_", "-")
        return f"{distribution} {importlib.metadata.version(distribution)}", module
    raise EngineError(
        f"no TensorFlow Lite runtime can be imported ({'; '.join(problems)})",
        hint="pip install ai-edge-litert (64-bit systems), or the extra edge-app[tflite]",
    )


@dataclass(frozen=True, slots=True)
class Delegate:
    """A library that computes in the CPU's place, and what it is told when it is loaded."""

    library: str
    version: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


class DelegateError(EngineError):
    """The delegate's library cannot be loaded, opens no device, or does not take the model.

    `__cause__` tells them apart: OSError, ValueError, RuntimeError.
    """


class LiteRtEngine:
    """A full-integer model on the CPU, or on an Edge TPU through its delegate.

    With a delegate it belongs in a child process (`engine.child`): the library aborts the process
    when it loses its device, and holds the interpreter lock while it opens one.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str = "",
        threads: int = DEFAULT_THREADS,
        runtime: str = "auto",
        delegate: Delegate | None = None,
    ) -> None:
        """Load the model at `path`.

        Raises ModelError, DelegateError, or EngineError without a runtime.
        """
        runtime_name, module = find_runtime(runtime)
        _check_file(path)
        with native_stderr() as said:
            try:
                self._interpreter = module.Interpreter(model_path=str(path), num_threads=threads)
                _check_compiled(path, self._interpreter, wanted=delegate is not None)
                if delegate is None:
                    self._interpreter.allocate_tensors()
            except (ValueError, RuntimeError) as error:
                raise ModelError(
                    f"{path}: the interpreter refuses it: {_first_line(said() or str(error))}",
                    hint="check the file against its source (sha256), or fetch it again",
                ) from error
        if delegate is not None:
            self._interpreter = _delegated(module, path, delegate, threads)
        inputs = self._interpreter.get_input_details()
        outputs = self._interpreter.get_output_details()
        self._info = EngineInfo(
            model=name or path.stem,
            backend="edgetpu" if delegate else "cpu",
            runtime=f"{runtime_name}, {delegate.version}" if delegate else runtime_name,
            device=delegate.options.get("device", "") if delegate else "",
            threads=threads,
            input=check_input(path, [_spec(detail) for detail in inputs]),
            outputs=check_outputs(path, [_spec(detail) for detail in outputs]),
        )
        self._input_index: int = inputs[0]["index"]
        self._output_indices: list[int] = [detail["index"] for detail in outputs]
        self._offset = np.uint8(_CODE_OFFSET[self._info.input.dtype])

    @property
    def info(self) -> EngineInfo:
        return self._info

    def run(self, pixels: Pixels) -> list[Tensor]:
        """Infer on `pixels` (height x width x 3); see `domain.Engine.run`.

        Every classifier trained on 8-bit pictures and quantised over its whole input range takes
        the pixel as its code (uint8), or the pixel - 128 (int8): flipping the top bit is that
        subtraction. A passport's golden images prove it for a model.
        """
        if pixels.shape != self._info.input.shape[1:] or pixels.dtype != np.uint8:
            raise EngineError(
                f"{self._info.model} takes uint8 pixels of shape {self._info.input.shape[1:]}, "
                f"got {pixels.dtype} {pixels.shape}"
            )
        codes = (pixels ^ self._offset).view(self._info.input.dtype)
        try:
            self._interpreter.set_tensor(self._input_index, codes[np.newaxis])
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise EngineError(f"{self._info.model} failed: {_first_line(str(error))}") from error
        # get_tensor copies, so the arrays are the caller's.
        return [self._interpreter.get_tensor(index)[0] for index in self._output_indices]

    def dtypes(self) -> frozenset[str]:
        """The types of all tensors of the graph; a full-integer model has no float among them."""
        details = self._interpreter.get_tensor_details()
        return frozenset(np.dtype(detail["dtype"]).name for detail in details)

    def close(self) -> None:
        """Free the interpreter. The engine cannot be used any more."""
        self.__dict__.pop("_interpreter", None)


def _check_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read: {error.strerror}",
            hint="give the path of a .tflite file, or a name from `edge-app models list`",
        ) from error
    if head[4:8] != TFLITE_MARK:
        raise ModelError(
            f"{path}: not a TensorFlow Lite model (no TFL3 mark in its first 8 bytes)",
            hint="give a .tflite file; other formats must be converted first",
        )


def _check_compiled(path: Path, interpreter: Any, *, wanted: bool) -> None:
    # Private, but the only way to see operators, and there in both runtimes. Without the check one
    # failure would be "unresolved custom op", which tells a user nothing, and the other none at
    # all: an ordinary model with a delegate runs on the CPU in silence.
    compiled = any(op["op_name"] == EDGETPU_OP for op in interpreter._get_ops_details())
    if compiled and not wanted:
        raise ModelError(
            f"{path}: compiled for the Edge TPU, cannot run on the CPU",
            hint="use the model's CPU twin: the same file name without _edgetpu",
        )
    if wanted and not compiled:
        raise ModelError(
            f"{path}: not compiled for the Edge TPU (no {EDGETPU_OP}); it would run on the CPU",
            hint="compile it with edgetpu_compiler, or fetch the model's _edgetpu.tflite",
        )


def _delegated(module: Any, path: Path, delegate: Delegate, threads: int) -> Any:
    """Return an interpreter that computes through the delegate, which only it refers to.

    A delegate freed before its interpreter is used after it was freed. What C++ says is not held
    back here: if the library aborts, its last words must already be out.
    """
    try:
        loaded = [module.load_delegate(delegate.library, dict(delegate.options))]
        interpreter = module.Interpreter(
            model_path=str(path), num_threads=threads, experimental_delegates=loaded
        )
        interpreter.allocate_tensors()
    except OSError as error:
        raise DelegateError(f"{delegate.library} cannot be loaded: {error}") from error
    except ValueError as error:
        raise DelegateError(f"{delegate.library}: {_first_line(str(error))}") from error
    except RuntimeError as error:
        raise DelegateError(
            f"{delegate.library} does not take {path.name}: {_first_line(str(error))}"
        ) from error
    return interpreter


def check_input(path: Path, inputs: Sequence[TensorSpec]) -> TensorSpec:
    """Return the one input, which takes pictures. Raises ModelError, in the name of `path`."""
    if len(inputs) != 1:
        raise ModelError(
            f"{path}: {len(inputs)} inputs; a picture model has exactly one",
            hint="give a model that takes one picture, such as `edge-app models list` shows",
        )
    spec = inputs[0]
    if spec.dtype not in _INPUT_DTYPES:
        raise ModelError(
            f"{path}: input is {spec.dtype}; int8 and uint8 are supported",
            hint="convert the model with full-integer quantisation, input and output included",
        )
    if len(spec.shape) != 4 or spec.shape[0] != 1 or spec.shape[3] != 3 or min(spec.shape) < 1:
        raise ModelError(
            f"{path}: input shape is {list(spec.shape)}; it must be [1, height, width, 3], fixed",
            hint="convert the model with a static shape, batch 1 and RGB input",
        )
    # `run` takes pixels for codes, which is right only when the codes span what pixels stand for.
    codes = np.iinfo(spec.dtype)
    low, high = ((int(code) - spec.zero_point) * spec.scale for code in (codes.min, codes.max))
    if spec.scale and not any(
        max(abs(low - first), abs(high - last)) <= _RANGE_TOLERANCE * (last - first)
        for first, last in _PICTURE_RANGES
    ):
        raise ModelError(
            f"{path}: the input's 8-bit codes stand for {low:.3g} to {high:.3g}; "
            f"pictures span one of {', '.join(f'{a:g} to {b:g}' for a, b in _PICTURE_RANGES)}",
            hint="quantise it again with whole pictures, black to white, as representative data",
        )
    return spec


def check_outputs(path: Path, outputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return the outputs, all of fixed shape. Raises ModelError, in the name of `path`."""
    shapes = [list(spec.shape) for spec in outputs]
    if not shapes or not all(shape and shape[0] == 1 and min(shape) >= 1 for shape in shapes):
        raise ModelError(
            f"{path}: output shapes are {shapes}; one or more are wanted, each [1, ...] and fixed",
            hint="convert the model with static shapes and batch 1",
        )
    return tuple(outputs)


def _spec(detail: Mapping[str, Any]) -> TensorSpec:
    signature = detail.get("shape_signature", detail["shape"])
    quantisation = detail["quantization_parameters"]
    scales, zero_points = quantisation["scales"], quantisation["zero_points"]
    return TensorSpec(
        name=str(detail["name"]),
        shape=tuple(int(size) for size in signature),
        dtype=np.dtype(detail["dtype"]).name,
        scale=float(scales[0]) if len(scales) else 0.0,
        zero_point=int(zero_points[0]) if len(zero_points) else 0,
    )


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
