"""What `config check` knows beyond the file: whether `run` could ever do what it says.

Nothing here opens a camera, a runtime or a connection.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

from edge_app.camera.folder import picture_files
from edge_app.camera.sources import parse_source
from edge_app.catalog import ModelFiles, resolve
from edge_app.config import Config, ModelConfig
from edge_app.domain import TensorSpec
from edge_app.engine.litert import RUNTIMES, check_input, check_outputs
from edge_app.errors import CameraError, ConfigError, EdgeAppError, EngineError, ModelError
from edge_app.files import why_not
from edge_app.publishers import spool_faults, spool_path
from edge_app.task.classify import fit_labels, load_labels
from edge_app.tools.tflite_graph import Graph, GraphTensor
from edge_app.tools.tflite_reader import read_graph
from edge_app.validate import shown
from edge_app.verify import check_files


def faults(config: Config) -> Iterator[str]:
    """Yield what the appliance would refuse of model, spool and sources, each with its key."""
    files = yield from _model_there(config.model)
    if files is not None:
        yield from _model_sound(config.model, files)
    yield from _runtime_there(config.model.runtime)
    yield from spool_faults(config)
    for name, camera in config.camera.items():
        if fault := _other_kind(camera.source):
            yield f"camera.{name}.source: found {shown(camera.source)}: {fault}"


def missing_model(config: Config) -> Iterator[str]:
    """Yield what of the model is not there or cannot be read; looks into no model."""
    yield from _model_there(config.model)


def notes(config: Config) -> Iterator[str]:
    """Yield what is not there now: recordings, devices, disks may be when they are needed."""
    for name, camera in config.camera.items():
        scheme, rest = parse_source(camera.source)
        if scheme in ("images", "file", "v4l2") and (reason := _absent(Path(rest))):
            yield f"camera.{name}.source: {rest} is not there now: {reason}"
        elif scheme == "images":
            try:
                picture_files(Path(rest), camera=name)
            except CameraError as error:
                yield _advice(error)
    if config.mqtt.url and config.spool.path:
        above = spool_path(config.spool.path).parent.parent
        with suppress(OSError):  # a folder on the way that this user may not enter
            if not above.exists():
                yield f"spool.path: {above} is not there now; messages would wait in memory"


def _model_there(model: ModelConfig) -> Generator[str, None, ModelFiles | None]:
    """Find and return the model's files (or None), and yield what is wrong with that."""
    labels = model.labels
    try:
        if labels:
            load_labels(Path(labels))
    except ModelError as error:
        yield f"model.labels: {_advice(error)}"
        labels = ""
    try:
        files = resolve(model.name, labels)
    except ModelError as error:
        yield f"model.name: {_advice(error)}"
        return None
    return files


def _model_sound(model: ModelConfig, files: ModelFiles) -> Iterator[str]:
    if model.backend == "edgetpu" and files.edgetpu is None:
        yield (
            f'model.backend: found "edgetpu": {files.name} has no file compiled for it; allowed: '
            '"auto" or "cpu", or a model with NAME_edgetpu.tflite beside NAME.tflite'
        )
    if files.cpu is None:
        yield (
            f"model.name: found {shown(model.name)}: compiled for the Edge TPU; allowed: one with "
            f"the file for the processor, {files.name}.tflite, beside it"
        )
        return
    if found := check_files(files):
        yield f"model.name: {'; '.join(fault.message for fault in found)}"
        return
    try:
        # A file with the hash of its passport is as the passport says.
        passport = files.passport
        classes = passport.outputs[0] if passport else _classes(files.cpu, read_graph(files.cpu))
    except ModelError as error:
        yield f"model.name: {_advice(error)}"
        return
    except EngineError:  # tflite_runtime alone cannot read the file without running it
        return
    try:
        if files.labels:
            fit_labels(files.labels, classes)
    except ModelError as error:
        yield f"model.{'labels' if model.labels else 'name'}: {_advice(error)}"


def _classes(path: Path, graph: Graph) -> int:
    """Return how many scores the model gives. Raises ModelError for one that `run` refuses."""
    check_input(path, [_spec(graph.tensors[number]) for number in graph.inputs])
    outputs = check_outputs(path, [_spec(graph.tensors[number]) for number in graph.outputs])
    return math.prod(outputs[0].shape)


def _spec(tensor: GraphTensor) -> TensorSpec:
    found = tensor.quantisation
    return TensorSpec(
        name=tensor.name,
        shape=(-1,) * len(tensor.shape) if tensor.dynamic else tensor.shape,
        dtype=tensor.dtype.lower(),
        scale=found.scales[0] if found else 0.0,
        zero_point=found.zero_points[0] if found else 0,
    )


def _runtime_there(wanted: str) -> Iterator[str]:
    packages = list(RUNTIMES.values()) if wanted == "auto" else [RUNTIMES[wanted]]
    if not any(importlib.util.find_spec(package) for package in packages):
        yield (
            f"model.runtime: found {shown(wanted)}: {' and '.join(packages)} not installed; "
            'allowed: "auto", or one that is installed'
        )


def _absent(path: Path) -> str:
    try:
        path.stat()
    except OSError as error:
        return why_not(error)
    return ""


def _other_kind(source: str) -> str:
    """Say whether what is there is of another kind than the source wants; "" when it may do."""
    try:
        scheme, rest = parse_source(source)
    except ConfigError:  # told already
        return ""
    path = Path(rest)
    try:
        if scheme == "images" and path.is_file():
            return f"a file; allowed: a folder of pictures, or file:{rest} for a video"
        if scheme == "file" and path.is_dir():
            return f"a folder; allowed: a video, or images:{rest} for its pictures"
        if scheme == "v4l2" and path.exists() and not path.is_char_device():
            return "no device; allowed: one that `v4l2-ctl --list-devices` shows"
    except OSError:  # a folder on the way that this user may not enter
        pass
    return ""


def _advice(error: EdgeAppError) -> str:
    return "; ".join(filter(None, (str(error), error.hint)))
