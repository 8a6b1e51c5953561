"""Holds a model to its passport, before the appliance relies on it.

What is guaranteed. With a passport: every file has the hash it had when its behaviour was
recorded, checked before the interpreter sees it; the model's input and outputs are as the
passport says; the labels fit; the golden images get their scores. Without one: the file does not
crash the runtime and has a shape the appliance can use; that its answers are right is not known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from edge_app.catalog import ModelFile, ModelFiles, Passport, known_sha256
from edge_app.domain import EngineInfo
from edge_app.engine.litert import EDGETPU_OP, TFLITE_MARK
from edge_app.errors import EdgeAppError, ModelError
from edge_app.files import sha256_of
from edge_app.task.classify import fit_labels, scores

if TYPE_CHECKING:
    from edge_app.engine.litert import LiteRtEngine

# At start the hash has shown that the file is right; two photos show that this machine computes
# rightly with it, and cost a Pi little. `models verify` looks at all.
GOLDEN_AT_START = 2


@dataclass(frozen=True, slots=True)
class Fault:
    """One way in which a model is not what it should be, and the check that found it."""

    check: Literal["file", "labels", "structure", "golden"]
    message: str


def verify_model(files: ModelFiles, *, runtime: str = "auto") -> list[Fault]:
    """Everything found wrong with a model; empty: it may be used.

    Later checks need the earlier ones, so the list holds faults of one kind of check. Raises
    EngineError when there is no runtime to try it with.
    """
    faults, engine = _examine(files, runtime=runtime)
    if engine is not None:
        engine.close()
    return faults


def open_verified(
    files: ModelFiles, *, threads: int | None = None, runtime: str = "auto"
) -> LiteRtEngine:
    """The model on the CPU, verified with a few of its golden images.

    Raises ModelError with every fault found, or EngineError without a runtime.
    """
    faults, engine = _examine(files, GOLDEN_AT_START, threads=threads, runtime=runtime)
    if engine is None:
        reasons = [fault.message for fault in faults] or ["it has no CPU twin, only an Edge TPU's"]
        hint = "put good files in their place, or name another model"
        if any(fault.check == "labels" for fault in faults) and files.labels_file is None:
            hint = "model.labels (or --labels): one line for each output of this model, in order"
        elif files.passport and files.passport.base_url:
            hint = f"`edge-app models fetch {files.name}` gets its files anew"
        raise ModelError(f"model {files.name} is refused: {'; '.join(reasons)}", hint=hint)
    return engine


def check_files(files: ModelFiles) -> list[Fault]:
    """Existence, size, hash and kind of the model's files; the interpreter is not involved."""
    faults = []
    if files.passport:
        for file, path in (
            (files.passport.labels, files.labels_file),
            (files.passport.cpu, files.cpu),
            (files.passport.edgetpu, files.edgetpu),
        ):
            faults += _identity(file, path) if file and path else []
    for path, compiled in ((files.cpu, False), (files.edgetpu, True)):
        if path is not None and not faults:
            faults += check_kind(path, compiled=compiled)
    return faults


def _identity(file: ModelFile, path: Path) -> list[Fault]:
    expected = known_sha256(file, path)
    if not expected:
        return [
            Fault("file", f"{path}: no hash is known for it; `models fetch` records one, if asked")
        ]
    try:
        size, found = path.stat().st_size, sha256_of(path)
    except OSError as error:
        return [Fault("file", f"{path}: cannot be read: {error.strerror}")]
    if file.bytes and size != file.bytes:
        return [Fault("file", f"{path}: has {size} bytes, its passport says {file.bytes}")]
    if found != expected:
        return [
            Fault("file", f"{path}: is not the file it was (sha256 {found}, should be {expected})")
        ]
    return []


def check_kind(path: Path, *, compiled: bool) -> list[Fault]:
    """Whether the file is a model, and `compiled` for the Edge TPU when it should be."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return [Fault("file", f"{path}: cannot be read: {error.strerror}")]
    if data[4:8] != TFLITE_MARK:
        return [Fault("file", f"{path}: not a TensorFlow Lite model (no TFL3 mark)")]
    if compiled and EDGETPU_OP.encode() not in data:
        return [Fault("file", f"{path}: not compiled for the Edge TPU")]
    return []


def _examine(
    files: ModelFiles,
    golden: int | None = None,
    *,
    threads: int | None = None,
    runtime: str = "auto",
) -> tuple[list[Fault], LiteRtEngine | None]:
    faults = check_files(files)
    if faults or files.cpu is None:
        return faults, None
    # Imported here: listing models or checking hashes needs no interpreter.
    from edge_app.engine.litert import DEFAULT_THREADS, LiteRtEngine
    from edge_app.engine.trial import try_model

    try:
        if files.passport is None:
            try_model(files.cpu, runtime=runtime)
        engine = LiteRtEngine(
            files.cpu, name=files.name, threads=threads or DEFAULT_THREADS, runtime=runtime
        )
    except ModelError as error:
        return [Fault("structure", str(error))], None
    faults = _labels(files, engine.info)
    if files.passport:
        faults = (
            check_structure(files.passport, engine)
            or faults
            or _golden(files.folder, files.passport, engine, golden)
        )
    if faults:
        engine.close()
        return faults, None
    return [], engine


def check_structure(passport: Passport, engine: LiteRtEngine) -> list[Fault]:
    """Whether the graph is full-integer, and takes and gives what the passport says."""
    info = engine.info
    width, height = passport.input_px
    faults = []
    if floats := sorted(dtype for dtype in engine.dtypes() if dtype.startswith("float")):
        faults.append(f"computes in {', '.join(floats)}; a full-integer model is wanted")
    if info.input.shape != (1, height, width, 3) or info.input.dtype != passport.dtype:
        faults.append(
            f"input is {info.input.dtype} {list(info.input.shape)}, its passport says "
            f"{passport.dtype} {[1, height, width, 3]}"
        )
    found = tuple(math.prod(spec.shape) for spec in info.outputs)
    if found != passport.outputs:
        faults.append(f"outputs have {found} elements, its passport says {passport.outputs}")
    return [Fault("structure", fault) for fault in faults]


def _labels(files: ModelFiles, info: EngineInfo) -> list[Fault]:
    if not files.labels:
        return []
    try:
        fit_labels(files.labels, math.prod(info.outputs[0].shape))
    except ModelError as error:
        return [Fault("labels", str(error))]
    return []


def _golden(
    folder: Path, passport: Passport, engine: LiteRtEngine, count: int | None
) -> list[Fault]:
    from edge_app.task.image import fit, read_image

    faults = []
    for golden in passport.golden[:count]:
        try:
            picture = read_image(folder / golden.image)
        except EdgeAppError as error:
            faults.append(Fault("golden", str(error)))
            continue
        raw = engine.run(fit(picture, engine.info.input_px).pixels)[0]
        values = scores(raw, engine.info.outputs[0])
        faults += [
            Fault("golden", f"{golden.image}: {why}")
            for why in differs(values, golden.top, passport.tolerance)
        ]
    return faults


def differs(
    values: NDArray[np.float32], top: tuple[tuple[int, float], ...], tolerance: float
) -> list[str]:
    """Say how scores differ from a golden image's best classes, (index, score) each."""
    faults = []
    first = top[0][0]
    if max(index for index, _ in top) >= len(values):
        return [f"expects class {max(index for index, _ in top)} of {len(values)} classes"]
    if values[first] < values.max():
        faults.append(f"best class is {int(values.argmax())}, should be {first}")
    faults += [
        f"class {index} scores {values[index]:.3f}, should be {score:.3f} within {tolerance:g}"
        for index, score in top
        if abs(float(values[index]) - score) > tolerance
    ]
    return faults
