"""What an accelerator's child process costs.

No Edge TPU is needed: a simulated device takes the 4.5 ms that pycoral's authors give for
MobileNetV2 on a Raspberry Pi 4 with USB 3, and computes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edge_app.domain import Engine, EngineInfo, Pixels, Tensor
from edge_app.engine.child import ChildEngine
from edge_app.engine.litert import LiteRtEngine, find_runtime
from edge_app.engine.shared import read_info

DEVICE_MS = 4.5
_USB_OPEN_S = 0.3


class SimulatedDevice:
    """Takes its time and gives zeros."""

    def __init__(self, info: EngineInfo, invoke_ms: float) -> None:
        self.info = replace(info, backend="simulated")
        self._invoke_s = invoke_ms / 1e3
        self._outputs = [np.zeros(spec.shape[1:], spec.dtype) for spec in info.outputs]

    def run(self, pixels: Pixels) -> list[Tensor]:
        """Wait as for a device; the picture is copied, as it would be to one."""
        pixels.copy()
        if self._invoke_s:
            time.sleep(self._invoke_s)
        return [output.copy() for output in self._outputs]

    def close(self) -> None:
        """Do nothing."""


def open_simulated(info: dict[str, Any], invoke_ms: float) -> SimulatedDevice:
    """Make a simulated device in a child process."""
    return SimulatedDevice(read_info(info), invoke_ms)


def prepare(_wanted: Mapping[str, Any]) -> None:
    """Import the runtime; for `engine.worker`."""
    find_runtime()


def open_like_usb(path: str, info: dict[str, Any]) -> SimulatedDevice:
    """Do what opening an Edge TPU does, and return a device that gives zeros; in a child process.

    That is: read the model, and wait for the USB.
    """
    LiteRtEngine(Path(path)).close()
    time.sleep(_USB_OPEN_S)
    return SimulatedDevice(read_info(info), DEVICE_MS)


def open_model(path: str) -> LiteRtEngine:
    """Open a model on the CPU in a child process."""
    return LiteRtEngine(Path(path))


def simulated(info: EngineInfo, invoke_ms: float) -> ChildEngine:
    """Start a simulated device in a child process."""
    arguments = {"info": asdict(info), "invoke_ms": invoke_ms}
    return ChildEngine(f"{__name__}:open_simulated", arguments)


def model_cost_ms(path: Path, seconds: float) -> float:
    """Return how much longer the median inference of the model at `path` takes in a child."""
    child = ChildEngine(f"{__name__}:open_model", {"path": str(path)})
    return _cost_ms(LiteRtEngine(path), child, seconds)


def device_cost_ms(path: Path, seconds: float) -> float:
    """Return the same for a simulated device, which leaves the processor alone."""
    with closing(LiteRtEngine(path)) as model:
        info = model.info
    return _cost_ms(SimulatedDevice(info, DEVICE_MS), simulated(info, DEVICE_MS), seconds)


def exchange_ms(path: Path, seconds: float) -> float:
    """Return how long a child takes for a device that answers at once: the exchange alone."""
    with closing(LiteRtEngine(path)) as model:
        info = model.info
    with closing(simulated(info, 0.0)) as child:
        child.open()
        return median(_times_ms((child,), seconds)[0])


def _cost_ms(here: Engine, child: ChildEngine, seconds: float) -> float:
    """Return the median of the differences of neighbours, an inference in the child and one here.

    Heat, the clock and other programs change from one second to the next; neighbours share them.
    """
    with closing(here), closing(child):
        child.open()
        here_ms, child_ms = _times_ms((here, child), seconds)
    return median(theirs - ours for ours, theirs in zip(here_ms, child_ms, strict=True))


def _times_ms(engines: tuple[Engine, ...], seconds: float) -> list[list[float]]:
    """Return how long each engine's inferences take; the engines take turns, one inference each."""
    width, height = engines[0].info.input_px
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    times_ms: list[list[float]] = [[] for _ in engines]
    end_ns = time.monotonic_ns() + round(seconds * 1e9)
    while time.monotonic_ns() < end_ns or not times_ms[0]:
        for engine, times in zip(engines, times_ms, strict=True):
            start_ns = time.monotonic_ns()
            engine.run(pixels)
            times.append((time.monotonic_ns() - start_ns) / 1e6)
    return times_ms
