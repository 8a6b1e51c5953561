"""The appliance against the bare model, in turns of one run: rates, memory, writes.

Heat, clock changes and other programs touch both sides alike, so their ratio says more than either.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from edge_app.domain import Engine
from edge_app.publish.link import Broker
from edge_app.publish.listen import Received, listening
from edge_app.tools import bench_rig as rig
from edge_app.tools.bench_figures import Figure, judged

ROUNDS = 3
_WARM_UP_S = 1.0
_TURN_S = 0.7
_RESUME_S = 0.1


@dataclass(slots=True)
class Turns:
    """What the turns gave: rates in 1/s, one a turn; figures of the process at full speed."""

    bare_hz: list[float] = field(default_factory=list)
    labels_hz: list[float] = field(default_factory=list)
    script_hz: list[float] = field(default_factory=list)
    engine_share: list[float] = field(default_factory=list)
    first_result_s: float = 0.0
    resident_mb: float = 0.0
    growth_mb: float = 0.0
    written_mb_per_h: float = 0.0


def take_turns(
    engine: Engine, config: Path, broker: Broker, seconds: float, script: list[Path]
) -> Turns:
    """Measure bare, appliance, (script,) bare, appliance, ...; who waits for its turn is stopped.

    Short turns: other programs and the clock change from one second to the next. The appliance
    stays up through all of them, so each of its turns is one of full speed.
    """
    turns = Turns()
    turn_s = min(_TURN_S, seconds / ROUNDS)
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
            for _ in range(max(ROUNDS, round(seconds / turn_s))):
                with rig.paused(process):
                    turns.bare_hz.append(invoke_hz(engine, turn_s))
                    if script:
                        turns.script_hz.append(rig.script_rate_hz(engine, script, broker, turn_s))
                _appliance_turn(process.pid, arrived, turn_s, turns)
            with rig.paused(process):
                turns.bare_hz.append(invoke_hz(engine, turn_s))
            turns.resident_mb = rig.resident_mb(process.pid)
            turns.growth_mb = turns.resident_mb - before_mb
    return turns


def _appliance_turn(
    pid: int, arrived: queue.SimpleQueue[Received | None], seconds: float, turns: Turns
) -> None:
    """Count what a subscriber receives, and what the busiest thread, the engine's, computes."""
    time.sleep(_RESUME_S)  # frames flow again
    before_s, before, start_s = rig.thread_cpu_s(pid), arrived.qsize(), time.monotonic()
    time.sleep(seconds)
    count, elapsed_s = arrived.qsize() - before, time.monotonic() - start_s
    turns.engine_share.append(busiest_s(before_s, rig.thread_cpu_s(pid)) / elapsed_s)
    turns.labels_hz.append(count / elapsed_s)


def busiest_s(before_s: Mapping[int, float], after_s: Mapping[int, float]) -> float:
    """Return the most that one thread computed between two readings."""
    return max(used_s - before_s.get(thread, 0.0) for thread, used_s in after_s.items())


def share(rates_hz: list[float], bare_hz: list[float]) -> float:
    """Return the median of each turn's rate over the mean of the bare rates around it."""
    return median(
        2 * rate / (before + after)
        for rate, before, after in zip(rates_hz, bare_hz, bare_hz[1:], strict=False)
    )


def figures(turns: Turns, threads: int) -> list[Figure]:
    """Return the rows on an appliance whose model runs on so many threads."""
    return _one_thread(turns) if threads == 1 else _more_threads(turns, threads)


def _one_thread(turns: Turns) -> list[Figure]:
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
            share(turns.labels_hz, turns.bare_hz),
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
            round(share(turns.script_hz, turns.bare_hz), 3),
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


def _more_threads(turns: Turns, threads: int) -> list[Figure]:
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


def invoke_hz(engine: Engine, seconds: float) -> float:
    """Return inferences a second: input copied in, invoked, output copied out."""
    width, height = engine.info.input_px
    pixels = np.full((height, width, 3), 128, np.uint8)
    engine.run(pixels)  # the first one sets up buffers
    start_s, count = time.monotonic(), 0
    while time.monotonic() - start_s < seconds:
        engine.run(pixels)
        count += 1
    return count / (time.monotonic() - start_s)
