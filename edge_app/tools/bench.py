"""`edge-app bench`: what this machine makes of the default model, alone and in the appliance.

Everything is measured in turns within one run (the bare model, the appliance, the bare model, ...)
and compared as ratios, so that heat, clock changes and other programs touch all sides alike.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from edge_app.catalog import resolve
from edge_app.config import ModelConfig
from edge_app.domain import Engine
from edge_app.engine.litert import RUNTIMES, LiteRtEngine
from edge_app.errors import EXIT_OK, EdgeAppError, EngineError
from edge_app.publish.link import Broker
from edge_app.publish.listen import Received, listening
from edge_app.tools import bench_child
from edge_app.tools import bench_rig as rig

DEFAULT_S = 10.0
_ROUNDS = 3
_PACED_FPS = 30.0
_WARM_UP_S = 1.0
_IMPORTS = "import edge_app.appliance, edge_app.publish.mqtt, edge_app.camera.images"

Bound = tuple[str, float]  # "<=" or ">=", and the bound


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value. `met`: whether it reaches `target`; None without a target."""

    name: str
    value: float
    unit: str
    meaning: str
    target: str = ""
    met: bool | None = None


@dataclass(slots=True)
class _Turns:
    """What the turns gave: rates in 1/s, one a round; figures of the process at full speed."""

    bare_hz: list[float] = field(default_factory=list)
    labels_hz: list[float] = field(default_factory=list)
    script_hz: list[float] = field(default_factory=list)
    first_result_s: list[float] = field(default_factory=list)
    resident_mb: list[float] = field(default_factory=list)
    growth_mb: list[float] = field(default_factory=list)
    written_mb_per_h: list[float] = field(default_factory=list)


def run(*, seconds: float, as_json: bool) -> int:
    """Measure for `seconds` a part and print the figures. Without mosquitto: the model alone."""
    progress = Console(stderr=True)
    model = ModelConfig().name
    files = resolve(model)
    if files.cpu is None:
        raise EdgeAppError(f"model {model} has no file for the CPU")
    figures: list[Figure] = []
    notes: list[str] = []
    for runtime in RUNTIMES:
        progress.print(f"runtime {runtime} ...", style="dim")
        figures += _backend(files.cpu, runtime, seconds, notes)
    progress.print("child process ...", style="dim")
    figures += _child(files.cpu, seconds)
    program = rig.find_mosquitto()
    if program is None:
        notes.append(
            "mosquitto is not installed, so only the bare model was measured "
            "(apt install mosquitto; the demo's broker is too slow for this)"
        )
    with TemporaryDirectory(prefix="edge-app-bench-") as name:
        folder = Path(name)
        if program is not None:
            with rig.mosquitto(program, folder) as broker:
                figures += _pipeline(files.cpu, folder, broker, seconds, progress)
    _report(model, seconds, figures, notes, as_json)
    return EXIT_OK


def _backend(path: Path, runtime: str, seconds: float, notes: list[str]) -> list[Figure]:
    try:
        engine = LiteRtEngine(path, runtime=runtime)
    except EngineError as error:
        notes.append(f"runtime {runtime}: not measured: {error}")
        return []
    invoke_ms = 1000 / _invoke_hz(engine, seconds / _ROUNDS)
    engine.close()
    meaning = f"one inference, nothing else, one thread, {engine.info.runtime}"
    return [Figure(f"invoke, {runtime}", round(invoke_ms, 2), "ms", meaning)]


def _child(path: Path, seconds: float) -> list[Figure]:
    """Measure what an accelerator's child process costs, and whether it is kept busy."""
    cost_ms = bench_child.child_cost_ms(path, seconds)
    exchange_ms = bench_child.exchange_ms(path, seconds / _ROUNDS)
    labels_hz, share = bench_child.busy_share(path, seconds)
    device = f"a simulated device of {bench_child.DEVICE_MS:g} ms in a child process"
    meaning = "the same inference in a child process takes so much longer"
    return [
        _judged("child, cost", cost_ms, "ms", meaning, ("<=", 0.15)),
        Figure("child, exchange", round(exchange_ms, 3), "ms", "a device that takes no time"),
        Figure("device, labels", round(labels_hz, 1), "1/s", f"the whole loop on {device}"),
        _judged("device, share", share, "", "of what that device can do alone", (">=", 0.95)),
    ]


def _invoke_hz(engine: Engine, seconds: float) -> float:
    """Return inferences a second: input copied in, invoked, output copied out."""
    width, height = engine.info.input_px
    pixels = np.full((height, width, 3), 128, np.uint8)
    engine.run(pixels)  # the first one sets up buffers
    start_s, count = time.monotonic(), 0
    while time.monotonic() - start_s < seconds:
        engine.run(pixels)
        count += 1
    return count / (time.monotonic() - start_s)


def _pipeline(
    path: Path, folder: Path, broker: Broker, seconds: float, progress: Console
) -> list[Figure]:
    photos = rig.make_photos(folder / "photos")

    def config(fps: float, threads: int = 1) -> Path:
        return rig.write_config(
            folder, photos=folder / "photos", port=broker.port, fps=fps, threads=threads
        )

    figures = []
    for threads in range(1, min(4, os.cpu_count() or 1) + 1):
        engine = LiteRtEngine(path, threads=threads)
        turns = _Turns()
        for number in range(_ROUNDS):
            progress.print(f"{threads} thread(s): turn {number + 1}/{_ROUNDS} ...", style="dim")
            turns.bare_hz.append(_invoke_hz(engine, seconds / _ROUNDS))
            _full_speed(config(0, threads), broker, seconds / _ROUNDS, turns)
            if threads == 1:
                hz = rig.script_rate_hz(engine, photos, broker, seconds / _ROUNDS)
                turns.script_hz.append(hz)
        turns.bare_hz.append(_invoke_hz(engine, seconds / _ROUNDS))
        engine.close()
        figures += _one_thread(turns) if threads == 1 else _more_threads(turns, threads)
    progress.print(f"latency at {_PACED_FPS:g} frames a second ...", style="dim")
    return figures + _latency(config(_PACED_FPS), broker, seconds) + _imports()


def _full_speed(config: Path, broker: Broker, seconds: float, turns: _Turns) -> None:
    """Run the appliance as fast as it goes, and count what a subscriber receives."""
    with listening(broker, ["edge/bench/result"]) as arrived:
        started_ns = time.monotonic_ns()
        with rig.appliance(config) as process:
            turns.first_result_s.append((rig.await_message(arrived, process) - started_ns) / 1e9)
            time.sleep(_WARM_UP_S)
            before, start_s = arrived.qsize(), time.monotonic()
            resident_mb, written = rig.resident_mb(process.pid), rig.written_bytes(process.pid)
            time.sleep(seconds)
            count, elapsed_s = arrived.qsize() - before, time.monotonic() - start_s
            turns.labels_hz.append(count / elapsed_s)
            turns.resident_mb.append(rig.resident_mb(process.pid))
            turns.growth_mb.append(turns.resident_mb[-1] - resident_mb)
            written = rig.written_bytes(process.pid) - written
            turns.written_mb_per_h.append(written / 1e6 * 3600 / elapsed_s)


def _share(rates_hz: list[float], bare_hz: list[float]) -> float:
    """Return the median of each turn's rate over the mean of the bare rates around it."""
    return median(
        2 * rate / (before + after)
        for rate, before, after in zip(rates_hz, bare_hz, bare_hz[1:], strict=False)
    )


def _one_thread(turns: _Turns) -> list[Figure]:
    return [
        Figure("bare", round(median(turns.bare_hz), 1), "1/s", "inferences alone, one thread"),
        Figure(
            "labels",
            round(median(turns.labels_hz), 1),
            "1/s",
            "results a subscriber received: JPEG 640x480 in, MQTT QoS 1 out, every frame",
        ),
        _judged(
            "labels / bare",
            _share(turns.labels_hz, turns.bare_hz),
            "",
            "share of the model's own speed that comes out as messages; aim 0.97",
            (">=", 0.90),
        ),
        Figure(
            "script / bare",
            round(_share(turns.script_hz, turns.bare_hz), 3),
            "",
            "the same for decode, resize, invoke, publish one after the other in one thread",
        ),
        _judged(
            "first result",
            median(turns.first_result_s),
            "s",
            "start of the process to its first result at a subscriber",
            ("<=", 1.5),
        ),
        _judged(
            "memory",
            max(turns.resident_mb),
            "MB",
            "resident set at full speed, the largest of all turns",
            ("<=", 130),
        ),
        Figure(
            "memory growth",
            round(max(turns.growth_mb), 2),
            "MB",
            f"added in one turn after {_WARM_UP_S:g} s of warming up, the largest",
        ),
        _judged(
            "written to disk",
            max(turns.written_mb_per_h),
            "MB/h",
            "by the appliance while the broker is up (/proc/PID/io write_bytes)",
            ("<=", 0),
        ),
    ]


def _more_threads(turns: _Turns, threads: int) -> list[Figure]:
    return [
        Figure(
            f"bare, {threads} threads",
            round(median(turns.bare_hz), 1),
            "1/s",
            f"inferences alone, {threads} threads each",
        ),
        Figure(
            f"labels, {threads} threads",
            round(median(turns.labels_hz), 1),
            "1/s",
            "results received with the same; model.threads pays when this beats one thread's",
        ),
    ]


def _latency(config: Path, broker: Broker, seconds: float) -> list[Figure]:
    """Measure a source slower than the model: the appliance has time, so only its own path counts.

    Taken from every result: `age` (frame ready to inference, resizing and hand-over included) plus
    `postprocess`. What follows in a frame, encoding and handing over, is not in its own message;
    the stats' median `end_to_end` minus the medians of the rest gives it, as one constant.
    """
    with (
        listening(broker, ["edge/bench/result", "edge/bench/stats"]) as arrived,
        rig.appliance(config) as process,
    ):
        rig.await_message(arrived, process)
        time.sleep(_WARM_UP_S)
        _records(arrived)
        time.sleep(max(seconds, 2.5))  # one whole window of stats at least
        records = _records(arrived)
    results = [record["timing_ms"] for record in records if "timing_ms" in record]
    stats = [record["latency_ms"]["end_to_end"] for record in records if "latency_ms" in record]
    known_ms = median(t["age"] + t["invoke"] + t["postprocess"] for t in results)
    rest_ms = max(0.0, median(window["p50"] for window in stats) - known_ms)
    added_ms = np.array([t["age"] + t["postprocess"] for t in results]) + rest_ms
    meaning = f"frame ready to message handed over, inference left out, {_PACED_FPS:g} frames/s"
    return [
        _judged("added latency p50", float(np.percentile(added_ms, 50)), "ms", meaning, ("<=", 1)),
        _judged("added latency p99", float(np.percentile(added_ms, 99)), "ms", meaning, ("<=", 5)),
    ]


def _records(arrived: queue.SimpleQueue[Received | None]) -> list[dict[str, Any]]:
    """Take out what has arrived so far."""
    taken = [arrived.get() for _ in range(arrived.qsize())]
    return [json.loads(received[1]) for received in taken if received is not None]


def _imports() -> list[Figure]:
    """Measure the parts of the start that do not depend on the model."""
    parts = (
        ("start: Python", "pass", "starting the interpreter"),
        ("start: imports", _IMPORTS, "the same, and importing what the appliance needs"),
    )
    figures = []
    for name, code, meaning in parts:
        spent_s = []
        for _ in range(_ROUNDS):
            start_s = time.monotonic()
            subprocess.run([sys.executable, "-c", code], check=True)
            spent_s.append(time.monotonic() - start_s)
        figures.append(Figure(name, round(median(spent_s), 3), "s", meaning))
    return figures


def _judged(name: str, value: float, unit: str, meaning: str, target: Bound) -> Figure:
    sign, bound = target
    met = value <= bound if sign == "<=" else value >= bound
    return Figure(name, round(value, 3), unit, meaning, f"{sign} {bound:g}", met)


def _report(
    model: str, seconds: float, figures: list[Figure], notes: list[str], as_json: bool
) -> None:
    if as_json:
        record = {
            "model": model,
            "processors": os.cpu_count(),
            "seconds": seconds,
            "figures": [asdict(figure) for figure in figures],
            "notes": notes,
        }
        print(json.dumps(record))
        return
    table = Table(box=box.SIMPLE, title=f"{model} on {os.cpu_count()} processors")
    for title in ("figure", "value", "target", "", "what it means"):
        table.add_column(title, justify="right" if title in ("value", "target") else "left")
    for figure in figures:
        verdict = {True: "met", False: "missed", None: ""}[figure.met]
        value = f"{figure.value:g} {figure.unit}".strip()
        table.add_row(figure.name, value, figure.target, verdict, figure.meaning)
    console = Console()
    console.print(table)
    for note in notes:
        console.print(f"note: {note}", highlight=False)
