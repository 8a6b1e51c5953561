"""What `edge-app bench` measures with: a real broker, the appliance as a process, sample photos."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from paho.mqtt.enums import MQTTProtocolVersion

from edge_app.catalog import shipped_dir
from edge_app.domain import Engine
from edge_app.errors import EdgeAppError
from edge_app.publish.link import KEEPALIVE_S, Broker, new_client
from edge_app.publish.listen import Received
from edge_app.task.image import fit, read_image
from edge_app.tools.processes import free_port, running, wait_until_open

PROGRAM = "mosquitto"
PHOTO_PX = (640, 480)
_START_S = 20.0


def find_mosquitto() -> str | None:
    """Find the broker's program; Debian keeps it where only root's PATH looks."""
    return shutil.which(PROGRAM, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")


def make_photos(folder: Path) -> list[Path]:
    """Write the shipped sample photos to `folder` as JPEG files of PHOTO_PX."""
    folder.mkdir()
    photos = []
    for source in sorted((shipped_dir() / "samples").glob("*.jpg")):
        pixels = fit(read_image(source), PHOTO_PX).pixels
        photos.append(folder / source.name)
        cv2.imwrite(str(photos[-1]), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    return photos


@contextmanager
def mosquitto(program: str, folder: Path) -> Iterator[Broker]:
    """Run a broker on a loopback port of its own, with nothing written to disk."""
    port = free_port()
    config = folder / "mosquitto.conf"
    # Its own limit would drop messages to a subscriber that lags for a moment.
    lines = (f"listener {port} 127.0.0.1", "allow_anonymous true", "max_queued_messages 0")
    config.write_text("\n".join([*lines, "log_type none", ""]))
    with running([program, "-c", str(config)]) as process:
        wait_until_open(port, process)
        yield Broker("127.0.0.1", port, "bench-subscriber")


def write_config(folder: Path, *, photos: Path, port: int, fps: float, threads: int) -> Path:
    """Write the appliance's configuration: every result published, a report every second."""
    path = folder / "config.toml"
    path.write_text(
        f"""\
[device]
id = "bench"

[camera.photos]
source = "images:{photos}"
size_px = [{PHOTO_PX[0]}, {PHOTO_PX[1]}]
fps = {fps}

[model]
threads = {threads}

[publish]
mode = "every"

[mqtt]
url = "mqtt://127.0.0.1:{port}"

[spool]
path = "{folder / "spool.db"}"

[stats]
interval_s = 1
"""
    )
    return path


@contextmanager
def appliance(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `edge-app run` as a process of its own."""
    with running([sys.executable, "-m", "edge_app", "run", "--config", str(config)]) as process:
        yield process


def await_message(
    arrived: queue.SimpleQueue[Received | None], process: subprocess.Popen[bytes]
) -> int:
    """Return when (CLOCK_MONOTONIC, ns) the next message arrived."""
    give_up_s = time.monotonic() + _START_S
    while time.monotonic() < give_up_s and process.poll() is None:
        with suppress(queue.Empty):
            if arrived.get(timeout=0.2) is not None:
                return time.monotonic_ns()
    ended = process.returncode
    raise EdgeAppError(
        f"the appliance gave no result (exit code {ended})"
        if ended is not None
        else f"the appliance gave no result within {_START_S:.0f} s",
        hint="`edge-app demo` shows what it says",
    )


def script_rate_hz(engine: Engine, photos: list[Path], broker: Broker, seconds: float) -> float:
    """Do what a first script does, one step after the other; return labels sent a second."""
    # A name of its own: the broker would throw out the subscriber, whose connection stays open.
    script = replace(broker, client_id="bench-script")
    client = new_client(script, MQTTProtocolVersion.MQTTv311)
    client.connect(broker.host, broker.port, KEEPALIVE_S)
    client.loop_start()
    start_s, sent = time.monotonic(), 0
    while time.monotonic() - start_s < seconds:
        picture = np.asarray(cv2.imread(str(photos[sent % len(photos)])), np.uint8)
        pixels = cv2.resize(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), engine.info.input_px)
        scores = engine.run(np.asarray(pixels, np.uint8))[0]
        client.publish("script/result", f'{{"index":{scores.argmax()}}}', qos=1)
        sent += 1
    elapsed_s = time.monotonic() - start_s
    client.disconnect()
    client.loop_stop()
    return sent / elapsed_s


@contextmanager
def paused(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Keep `process` from running; what it holds, and its connections, stay."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def idle_share(seconds: float) -> float:
    """Return how much of all processors' time nobody uses in the coming `seconds`."""
    before = _processor_ticks()
    time.sleep(seconds)  # what is measured is this very stretch of time
    spent = [after - first for first, after in zip(before, _processor_ticks(), strict=True)]
    return (spent[3] + spent[4]) / max(1, sum(spent))  # idle and iowait


def thread_cpu_s(pid: int) -> dict[int, float]:
    """Return the processor time of every thread of process `pid`, by its id."""
    used_s = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # a thread may end meanwhile
            used_s[int(task.name)] = cpu_s((task / "stat").read_text())
    return used_s


def cpu_s(stat: str) -> float:
    """Return user and system time of a line of /proc/PID/stat; the name may hold anything."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _processor_ticks() -> list[int]:
    first = Path("/proc/stat").read_text().splitlines()[0]
    return [int(number) for number in first.split()[1:9]]  # the guests' are counted in user


def resident_mb(pid: int) -> float:
    """Return what process `pid` holds in memory now (1 MB = 10^6 bytes)."""
    return _kernel_figure(Path(f"/proc/{pid}/status"), "VmRSS:") * 1024 / 1e6


def written_bytes(pid: int) -> float:
    """Return how many bytes process `pid` has caused to be written to disk."""
    return _kernel_figure(Path(f"/proc/{pid}/io"), "write_bytes:")


def _kernel_figure(file: Path, name: str) -> float:
    for line in file.read_text().splitlines():
        if line.startswith(name):
            return float(line.split()[1])
    raise EdgeAppError(f"{file} has no line {name}")
