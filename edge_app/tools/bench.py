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
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

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
from edge_app.tools import bench_accelerator, bench_latency, bench_spool
from edge_app.tools import bench_rig as rig
from edge_app.tools.bench_figures import Figure, judged

DEFAULT_S = 10.0
_ROUNDS = 3
_PACED_FPS = 30.0
_WARM_UP_S = 1.0
_TURN_S = 0.7
_RESUME_S = 0.1
_IMPORTS = "import edge_app.appliance, edge_app.publish.mqtt, edge_app.camera.images"


@dataclass(slots=True)
class _Turns:
    """What the turns gave: rates in 1/s, one a turn; figures of the process at full speed."""

    bare_hz: list[float] = field(default_factory=list)
    labels_hz: list[float] = field(default_factory=list)
    script_hz: list[float] = field(default_factory=list)
    engine_share: list[float] = field(default_factory=list)
    first_result_s: float = 0.0
    resident_mb: float = 0.0
    growth_mb: float = 0.0
    written_mb_per_h: float = 0.0


def run(*, seconds: float, as_json: bool) -> int:
    """Measure for `seconds` a part and print the figures. Without mosquitto: the model alone."""
    progress = Console(stderr=True)
    model = ModelConfig().name
    files = resolve(model)
    if files.cpu is None:
        raise EdgeAppError(f"model {model} has no file for the CPU")
    figures: list[Figure] = []
    idle = rig.idle_share(_WARM_UP_S)
    notes = [f"before the start {idle:.0%} of the processors' time was idle"]
    for runtime in RUNTIMES:
        progress.print(f"runtime {runtime} ...", style="dim")
        figures += _backend(files.cpu, runtime, seconds, notes)
    figures += bench_accelerator.figures(
        files.cpu, seconds, lambda part: progress.print(f"{part} ...", style="dim")
    )
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
                progress.print("spool ...", style="dim")
                figures += bench_spool.figures(folder, broker, seconds)
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
        progress.print(f"{threads} thread(s), in turns ...", style="dim")
        engine = LiteRtEngine(path, threads=threads)
        script = photos if threads == 1 else []
        turns = _take_turns(engine, config(0, threads), broker, seconds, script)
        engine.close()
        figures += _one_thread(turns) if threads == 1 else _more_threads(turns, threads)
    progress.print(f"latency at {_PACED_FPS:g} frames a second ...", style="dim")
    return figures + _latency(config(_PACED_FPS), seconds) + _imports()


def _take_turns(
    engine: Engine, config: Path, broker: Broker, seconds: float, script: list[Path]
) -> _Turns:
    """Measure bare, appliance, (script,) bare, appliance, ...; who waits for its turn is stopped.

    Short turns: other programs and the clock change from one second to the next. The appliance
    stays up through all of them, so each of its turns is one of full speed.
    """
    turns = _Turns()
    turn_s = min(_TURN_S, seconds / _ROUNDS)
    with listening(broker, ["edge/bench/result"]) as arrived:
        started_ns = time.monotonic_ns()
        with rig.appliance(config) as process:
            turns.first_result_s = (rig.await_message(arrived, process) - started_ns) / 1e9
            time.sleep(_WARM_UP_S)
            before_mb, written = rig.resident_mb(process.pid), rig.written_bytes(process.pid)
            # Before the turns: whoever is stopped for longer than the broker may take to answer
            # finds, when it goes on, messages that belong on the disk.
            time.sleep(seconds)
            written = rig.written_bytes(process.pid) - written
            turns.written_mb_per_h = written / 1e6 / (seconds / 3600)
            for _ in range(max(_ROUNDS, round(seconds / turn_s))):
                with rig.paused(process):
                    turns.bare_hz.append(_invoke_hz(engine, turn_s))
                    if script:
                        turns.script_hz.append(rig.script_rate_hz(engine, script, broker, turn_s))
                _appliance_turn(process.pid, arrived, turn_s, turns)
            with rig.paused(process):
                turns.bare_hz.append(_invoke_hz(engine, turn_s))
            turns.resident_mb = rig.resident_mb(process.pid)
            turns.growth_mb = turns.resident_mb - before_mb
    return turns


def _appliance_turn(
    pid: int, arrived: queue.SimpleQueue[Received | None], seconds: float, turns: _Turns
) -> None:
    """Count what a subscriber receives, and what the busiest thread, the engine's, computes."""
    time.sleep(_RESUME_S)  # frames flow again
    before_s, before, start_s = rig.thread_cpu_s(pid), arrived.qsize(), time.monotonic()
    time.sleep(seconds)
    count, elapsed_s = arrived.qsize() - before, time.monotonic() - start_s
    turns.engine_share.append(_busiest_s(before_s, rig.thread_cpu_s(pid)) / elapsed_s)
    turns.labels_hz.append(count / elapsed_s)


def _busiest_s(before_s: Mapping[int, float], after_s: Mapping[int, float]) -> float:
    """Return the most that one thread computed between two readings."""
    return max(used_s - before_s.get(thread, 0.0) for thread, used_s in after_s.items())


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
        judged(
            "labels / bare",
            _share(turns.labels_hz, turns.bare_hz),
            "",
            "share of the model's own speed that comes out as messages; aim 0.97",
            (">=", 0.90),
            possible=1.0,
        ),
        Figure(
            "engine busy",
            round(median(turns.engine_share), 3),
            "",
            "processor time of the appliance's busiest thread, the engine's, over wall time",
        ),
        Figure(
            "script / bare",
            round(_share(turns.script_hz, turns.bare_hz), 3),
            "",
            "the same for decode, resize, invoke, publish one after the other in one thread",
        ),
        judged(
            "first result",
            turns.first_result_s,
            "s",
            "start of the process to its first result at a subscriber",
            ("<=", 1.5),
        ),
        judged(
            "memory",
            turns.resident_mb,
            "MB",
            "resident set after the last turn",
            ("<=", 130),
        ),
        Figure(
            "memory growth",
            round(turns.growth_mb, 2),
            "MB",
            f"added by all turns after {_WARM_UP_S:g} s of warming up",
        ),
        judged(
            "written to disk",
            turns.written_mb_per_h,
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


def _latency(config: Path, seconds: float) -> list[Figure]:
    """Measure a source slower than the model: the appliance has time, so only its own path counts.

    Every frame is timed from when it is ready until its result is handed to the MQTT publisher,
    less its inference. Left out: the client's sending, the broker, the network.
    """
    added_ms = bench_latency.added_ms(config, max(seconds, 1.0))
    meaning = f"frame ready to publisher has it, inference left out, {_PACED_FPS:g} frames/s"
    return [
        judged("added latency p50", float(np.percentile(added_ms, 50)), "ms", meaning, ("<=", 1)),
        judged("added latency p99", float(np.percentile(added_ms, 99)), "ms", meaning, ("<=", 5)),
    ]


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
        value = f"{figure.value:g} {figure.unit}".strip()
        table.add_row(figure.name, value, figure.target, figure.verdict, figure.meaning)
    console = Console()
    console.print(table)
    for note in notes:
        console.print(f"note: {note}", highlight=False)
