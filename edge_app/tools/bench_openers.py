"""How `edge-app bench --models` opens a model on each backend that this machine has."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from edge_app.catalog import SUFFIX, TWIN_SUFFIX
from edge_app.domain import Engine
from edge_app.engine.edgetpu import EdgeTpuEngine
from edge_app.engine.litert import LiteRtEngine
from edge_app.engine.opening import EdgeTpuModel, open_here
from edge_app.errors import EngineError

log = logging.getLogger(__name__)

# Opens the model of a CPU file on one backend; None: it cannot be measured there.
EngineOpener = Callable[[Path, str], Engine | None]


def openers(threads: int) -> dict[str, EngineOpener]:
    """Return one for each backend, by its name."""
    return {"cpu": _cpu_opener(threads), "edgetpu": _open_on_edgetpu}


def _cpu_opener(threads: int) -> EngineOpener:
    def open_on_cpu(path: Path, name: str) -> Engine:
        return LiteRtEngine(path, name=name, threads=threads)

    return open_on_cpu


def _open_on_edgetpu(path: Path, name: str) -> Engine | None:
    """Open the compiled file beside the one at `path`, if both it and an Edge TPU are there.

    In this process, because only within one process can several models share an Edge TPU; tried in
    a child before, which a library that does not fit the runtime may crash.
    """
    twin = path.with_name(path.name.removesuffix(SUFFIX) + TWIN_SUFFIX)
    if not twin.is_file():
        return None
    model = EdgeTpuModel(str(twin), name=name)
    try:
        with closing(EdgeTpuEngine(model)) as child:
            child.open()
        return open_here(**asdict(model))
    except EngineError as error:
        log.warning("%s is not measured on the Edge TPU: %s", name, error)
        return None
