"""What an accelerator's child process costs, and whether the loop keeps the accelerator busy.

No Edge TPU is needed: a simulated device takes the 4.5 ms that pycoral's authors give for
MobileNetV2 on a Raspberry Pi 4 with USB 3, and computes nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edge_app.cameras import open_cameras
from edge_app.catalog import shipped_dir
from edge_app.config import CameraConfig
from edge_app.domain import Engine, EngineInfo, Label, Pixels, Tensor
from edge_app.engine.child import ChildEngine, read_info
from edge_app.engine.litert import LiteRtEngine
from edge_app.loop import Job, Loop
from edge_app.policy import Rules
from edge_app.publish.jsonl import JsonLinesPublisher
from edge_app.publish.wire import Topics
from edge_app.report import HealthReader
from edge_app.sensors.clock import read_clock
from edge_app.sensors.sampler import Sample
from edge_app.task.classify import decode, scores

DEVICE_MS = 4.5
_ROUNDS = 5


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


def open_model(path: str) -> LiteRtEngine:
    """Open a model on the CPU in a child process."""
    return LiteRtEngine(Path(path))


def child_cost_ms(path: Path, seconds: float) -> float:
    """Return how much longer the median inference of the model at `path` takes in a child."""
    with (
        closing(LiteRtEngine(path)) as here,
        closing(ChildEngine(f"{__name__}:open_model", {"path": str(path)})) as child,
    ):
        child.open()
        # In turns, one inference each: heat and other programs touch both alike.
        here_ms, child_ms = _in_turns((here, child), seconds)
    return child_ms - here_ms


def exchange_ms(path: Path, seconds: float) -> float:
    """Return how long a child takes for a device that answers at once: the exchange alone."""
    with closing(LiteRtEngine(path)) as engine:
        info = engine.info
    with closing(_simulated(info, 0.0)) as child:
        child.open()
        return _in_turns((child,), seconds)[0]


def busy_share(path: Path, seconds: float) -> tuple[float, float]:
    """Return the labels a second of the whole loop on a simulated device, and their share.

    The share is of what the same device does when it is run in this process, back to back with
    nothing else to do: the device's limit.
    """
    with closing(LiteRtEngine(path)) as engine:
        info = engine.info
    here = SimulatedDevice(info, DEVICE_MS)
    rates_hz, limits_hz = [], []
    for _ in range(_ROUNDS):
        limits_hz.append(1e3 / _in_turns((here,), seconds / _ROUNDS)[0])
        rates_hz.append(_labels_hz(info, seconds / _ROUNDS))
    shares = (rate / limit for rate, limit in zip(rates_hz, limits_hz, strict=True))
    return median(rates_hz), median(shares)


def _simulated(info: EngineInfo, invoke_ms: float) -> ChildEngine:
    arguments = {"info": asdict(info), "invoke_ms": invoke_ms}
    return ChildEngine(f"{__name__}:open_simulated", arguments)


def _in_turns(engines: tuple[Engine, ...], seconds: float) -> list[float]:
    """Return the median time of one inference of each engine, in ms."""
    width, height = engines[0].info.input_px
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    times_ns: list[list[int]] = [[] for _ in engines]
    end_ns = time.monotonic_ns() + round(seconds * 1e9)
    while time.monotonic_ns() < end_ns or not times_ns[0]:
        for engine, times in zip(engines, times_ns, strict=True):
            start_ns = time.monotonic_ns()
            engine.run(pixels)
            times.append(time.monotonic_ns() - start_ns)
    return [median(times) / 1e6 for times in times_ns]


def _labels_hz(info: EngineInfo, seconds: float) -> float:
    """Run the loop on sample photos and a simulated device; return its results a second."""
    counted = Counted()
    camera = CameraConfig(source=f"images:{shipped_dir() / 'samples'}", fps=0)
    with closing(_simulated(info, DEVICE_MS)) as child:
        child.open()
        mailboxes = open_cameras({"main": camera}, child.info.input_px)
        health = HealthReader(child, counted, lambda: mailboxes.counters, lambda _: Sample())
        loop = Loop(
            mailboxes, child, counted, Topics("edge", "bench"), classify_job(info, health.read)
        )
        timer = threading.Timer(seconds, loop.stop)
        timer.start()
        with mailboxes:
            loop.run()
        timer.join()
    return counted.rate_hz()


class Counted(JsonLinesPublisher):
    """Writes records nowhere, and counts them."""

    def __init__(self) -> None:
        self._nowhere = Path("/dev/null").open("wb", buffering=0)  # noqa: SIM115  # closed below
        super().__init__(self._nowhere)
        self._times_ns: list[int] = []

    def offer(self, message: Any) -> None:
        """Count and write the record."""
        self._times_ns.append(time.monotonic_ns())
        super().offer(message)

    def rate_hz(self) -> float:
        """Return records a second, the warming up of the first tenth left out."""
        self.close()  # ends its thread
        self._nowhere.close()
        times_ns = self._times_ns[len(self._times_ns) // 10 :]
        return (len(times_ns) - 1) / ((times_ns[-1] - times_ns[0]) / 1e9)


def classify_job(info: EngineInfo, read_health: Callable[..., Any]) -> Job:
    """Return the appliance's job with every result published and no labels file."""
    spec = info.outputs[0]
    names = tuple(str(index) for index in range(spec.shape[-1]))

    def labels(outputs: list[Tensor], count: int) -> tuple[Label, ...]:
        return decode(scores(outputs[0], spec), names, count, 0.0)

    return Job(
        task="classify",
        model=info.model,
        rules=Rules(mode="every"),
        decode=labels,
        read_clock=read_clock,
        read_health=read_health,
        stats_every_s=10.0,
    )
