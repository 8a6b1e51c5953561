"""`edge-app bench`: what this machine makes of the default model, alone and in the appliance.

Everything is measured in turns within one run (the bare model, the appliance, the bare model, ...)
and compared as ratios, so that heat, clock changes and other programs touch all sides alike.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from edge_app.catalog import resolve
from edge_app.config import ModelConfig
from edge_app.engine.litert import RUNTIMES, LiteRtEngine
from edge_app.errors import EXIT_OK, EdgeAppError, EngineError
from edge_app.publish.link import Broker
from edge_app.tools import bench_accelerator, bench_latency, bench_spool, bench_turns
from edge_app.tools import bench_rig as rig
from edge_app.tools.bench_figures import Figure, judged

DEFAULT_S = 10.0
_PACED_FPS = 30.0
_LOOK_S = 1.0
_IMPORTS = "import edge_app.appliance, edge_app.publish.mqtt, edge_app.camera.images"


def run(*, seconds: float, as_json: bool) -> int:
    """Measure for `seconds` a part and print the figures. Without mosquitto: the model alone."""
    progress = Console(stderr=True)
    model = ModelConfig().name
    files = resolve(model)
    if files.cpu is None:
        raise EdgeAppError(f"model {model} has no file for the CPU")
    figures: list[Figure] = []
    idle = rig.idle_share(_LOOK_S)
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
    invoke_ms = 1000 / bench_turns.invoke_hz(engine, seconds / bench_turns.ROUNDS)
    engine.close()
    meaning = f"one inference, nothing else, one thread, {engine.info.runtime}"
    return [Figure(f"invoke, {runtime}", round(invoke_ms, 2), "ms", meaning)]


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
        turns = bench_turns.take_turns(engine, config(0, threads), broker, seconds, script)
        engine.close()
        figures += bench_turns.figures(turns, threads)
    progress.print(f"latency at {_PACED_FPS:g} frames a second ...", style="dim")
    return figures + _latency(config(_PACED_FPS), seconds) + _imports()


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
        for _ in range(bench_turns.ROUNDS):
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
