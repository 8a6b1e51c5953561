"""What `edge-app doctor` looks at: one function a check, each of which can fail on its own.

A check says what it saw (`evidence`); one that is not fine says why that matters (`cause`) and what
to do (`cure`). Nothing here changes anything on the machine.
"""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_app.camera.opening import open_camera
from edge_app.camera.sources import redacted, stall_bound_s
from edge_app.catalog import resolve
from edge_app.config import CameraConfig, ModelConfig, Mqtt, Spool
from edge_app.engine.devices import USB2_MBPS, explain
from edge_app.engine.survey import Survey
from edge_app.errors import CameraError, EdgeAppError
from edge_app.publish.listen import listening
from edge_app.publishers import broker_of, spool_path
from edge_app.sensors.power import Choice, PowerSensor
from edge_app.stats import Thermal, Throttled
from edge_app.verify import verify_model

Status = Literal["ok", "warning", "failed", "skipped"]

_PROGRAMS = ("edge-app", "edge_app")
_PAGE_BYTES = 4096
_HOT_C = 80.0  # a Raspberry Pi slows itself down from here on
_RETAINED_S = 2.0
_COVER_PX = (224, 224)


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found."""

    name: str
    status: Status
    evidence: str
    cause: str = ""
    cure: str = ""


def failed(name: str, error: EdgeAppError) -> Check:
    """Return the check that ended with `error`."""
    return Check(name, "failed", str(error), cure=error.hint)


def running_appliances(proc: Path = Path("/proc")) -> list[int]:
    """Return the processes that are `edge-app run`: they hold the cameras and the spool."""
    found = []
    for folder in proc.glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if b"run" in words and any(Path(os.fsdecode(w)).name in _PROGRAMS for w in words):
            found.append(int(folder.name))
    return sorted(found)


def check_model(model: ModelConfig) -> Check:
    """Hold the configured model to its passport: files, structure, golden images."""
    name = "model"
    try:
        files = resolve(model.name, model.labels)
        faults = verify_model(files, runtime=model.runtime)
    except EdgeAppError as error:
        return failed(name, error)
    if faults:
        seen = "; ".join(fault.message for fault in faults)
        cure = f"`edge-app models fetch {files.name}`, or name another model"
        return Check(name, "failed", seen, "its answers could not be relied on", cure)
    if files.passport is None:
        return Check(
            name,
            "warning",
            f"{files.name} loads and has a usable shape",
            "without a passport nobody can tell whether its answers are right",
            "`edge-app models add` writes one",
        )
    return Check(name, "ok", f"{files.name} answers as its passport says")


def check_edgetpu(model: ModelConfig, survey: Survey, page_bytes: int) -> Check:
    """Say whether an Edge TPU would serve, without opening it."""
    name = "edge tpu"
    if model.backend == "cpu":
        return Check(name, "skipped", 'model.backend is "cpu"')
    required = model.backend == "edgetpu"
    if not (required or survey.attached or survey.listed):
        return Check(name, "skipped", "none is attached; the processor does the work")
    if found := _edgetpu_obstacle(model, survey, page_bytes):
        return Check(name, "failed" if required else "warning", _described(survey), *found)
    if any((tpu.speed_mbps or USB2_MBPS + 1) <= USB2_MBPS for tpu in survey.attached):
        cause = "on a USB 2 link an inference takes twice as long and more"
        cure = "use a blue USB 3 port, and its own cable"
        return Check(name, "warning", _described(survey), cause, cure)
    return Check(name, "ok", _described(survey))


def _edgetpu_obstacle(
    model: ModelConfig, survey: Survey, page_bytes: int
) -> tuple[str, str] | None:
    """Return why it cannot serve and what to do; None when nothing is in its way."""
    if survey.library_version is None:
        cure = "install libedgetpu in the version that fits the runtime (docs/accelerator.md)"
        return survey.problem or "libedgetpu was not found", cure
    if any(tpu.bus == "pci" for tpu in survey.attached) and page_bytes != _PAGE_BYTES:
        cause = f"its driver needs memory pages of {_PAGE_BYTES} bytes; this kernel's: {page_bytes}"
        return cause, "kernel=kernel8.img in config.txt"
    if not survey.listed or any(not tpu.usable for tpu in survey.attached):
        return explain(model.device, survey.attached, survey.listed)
    try:
        has_twin = resolve(model.name, model.labels).edgetpu is not None
    except EdgeAppError as error:
        return str(error), error.hint
    if not has_twin:
        cause = f"{model.name} has no file compiled for it, so the processor does the work"
        return cause, "put NAME_edgetpu.tflite beside NAME.tflite"
    return None


def _described(survey: Survey) -> str:
    seen = [
        f"{tpu.bus} {tpu.node}" + (f" at {tpu.speed_mbps} Mbit/s" if tpu.speed_mbps else "")
        for tpu in survey.attached
    ] or list(survey.listed)
    library = f"libedgetpu {survey.library_version or 'not found'}"
    return f"{', '.join(seen) or 'no device'}; {library}"


def check_camera(camera_name: str, camera: CameraConfig, appliances: Sequence[int]) -> Check:
    """Take one frame."""
    name = f"camera {camera_name}"
    source = redacted(camera.source)
    if appliances and camera.source.partition(":")[0] in ("picamera", "v4l2"):
        held = f"not opened: an appliance runs (process {appliances[0]}) and may hold {source}"
        return Check(name, "skipped", held)
    started_s = time.monotonic()
    try:
        with open_camera(
            camera_name,
            camera.source,
            size_px=camera.size_px,
            fps=camera.fps,
            loop=camera.loop,
            cover_px=_COVER_PX,
        ) as opened:
            height, width, _ = opened.read(stall_bound_s(camera.fps)).pixels.shape
    except CameraError as error:
        return failed(name, error)
    took_s = time.monotonic() - started_s
    return Check(name, "ok", f"{source}: a frame of {width} x {height} px after {took_s:.1f} s")


def check_broker(mqtt: Mqtt, device_id: str) -> Check:
    """Connect as the appliance would, and hear what the broker keeps of it."""
    name = "broker"
    if not mqtt.url:
        return Check(name, "skipped", "mqtt.url is empty: results go to stdout")
    topic = f"{mqtt.base}/{device_id}/status"
    try:
        broker = broker_of(mqtt, client_id=f"edge-app-doctor-{os.getpid()}")
        with listening(broker, [topic]) as arrived:
            try:
                kept = arrived.get(timeout=_RETAINED_S)
            except queue.Empty:
                kept = None
    except EdgeAppError as error:
        return failed(name, error)
    status = kept[1].decode(errors="replace") if kept else "unknown: it never connected"
    return Check(name, "ok", f"{mqtt.url} lets us in; {device_id} is {status}")


def check_spool(spool: Spool) -> Check:
    """Say whether messages can wait on the disk."""
    name = "spool"
    if not spool.path:
        return Check(name, "skipped", "spool.path is empty: messages wait in memory")
    path = spool_path(spool.path)
    folder = path.parent if path.parent.exists() else path.parent.parent
    if not os.access(folder, os.W_OK):
        user = f"user {os.geteuid()} may not write there"
        cure = "run this as the appliance's user, or correct the folder's owner"
        return Check(name, "failed", f"{folder}: {user}", "messages would wait in memory", cure)
    free_mb = shutil.disk_usage(folder).free / 1e6
    if free_mb < 2 * spool.max_mb:
        cause = f"spool.max_mb is {spool.max_mb}, and its log takes as much again at worst"
        cure = "free some space, or lower spool.max_mb"
        return Check(name, "warning", f"{folder}: {free_mb:.0f} MB free", cause, cure)
    return Check(name, "ok", f"{folder}: {free_mb:.0f} MB free, {spool.max_mb} MB may be used")


def check_clock(synced: bool | None) -> Check:
    """Say whether time stamps and certificates can be judged rightly."""
    name = "clock"
    if synced is None:
        return Check(name, "skipped", "the kernel does not say whether it is synchronised")
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    if not synced:
        cause = "time stamps may be wrong, and certificates look expired or not valid yet"
        cure = "`timedatectl status` says what is wrong with time synchronisation"
        return Check(name, "warning", f"{now}, not synchronised", cause, cure)
    return Check(name, "ok", f"{now}, synchronised")


def check_power(choice: Choice) -> Check:
    """Say what measures power."""
    name = "power meter"
    if choice == "none":
        return Check(name, "skipped", 'power.source is "none"')
    reading = PowerSensor(choice).read(time.monotonic())
    if reading is not None:
        watts = "" if reading.watts is None else f", {reading.watts:.2f} W now"
        return Check(name, "ok", f"{reading.source}{watts}")
    if choice == "auto":
        return Check(name, "skipped", "nothing here measures power; the figures are null")
    cause = f'power.source is "{choice}", and nothing answers to that'
    return Check(name, "failed", "no reading", cause, "docs/power.md says what each one needs")


def check_supply(throttled: Throttled) -> Check:
    """Say whether the supply holds and the processor runs at full speed."""
    name = "supply"
    if throttled.now is None:
        return Check(name, "skipped", "nothing here can tell under-voltage or throttling")
    cure = "a supply and a cable of the right rating, and air; a Coral takes up to 900 mA"
    if throttled.now:
        cause = "a USB device may drop off, and the processor runs slower"
        return Check(name, "failed", f"now: {', '.join(throttled.now)}", cause, cure)
    if throttled.since_boot:
        cause = "not now, but since the last boot"
        return Check(name, "warning", ", ".join(throttled.since_boot), cause, cure)
    return Check(name, "ok", f"none of {', '.join(throttled.known or ())}")


def check_heat(thermal: Thermal) -> Check:
    """Compare the processor's temperature with where it slows itself down."""
    name = "temperature"
    if thermal.soc is None:
        return Check(name, "skipped", "nothing here measures it")
    seen = f"{thermal.soc:.0f} degrees Celsius"
    if thermal.soc >= _HOT_C:
        return Check(
            name, "warning", seen, "a Pi slows down from 80 on", "a heat sink, a fan, or shade"
        )
    return Check(name, "ok", seen)


def check_service(unit: str = "edge-app.service") -> Check:
    """Ask systemd how the service fares."""
    name = "service"
    wanted = ("LoadState", "ActiveState", "SubState", "NRestarts", "Result", "StatusText")
    command = ["systemctl", "show", unit, *(f"--property={each}" for each in wanted)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return Check(name, "skipped", "no systemd here to ask")
    said = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    if said.get("LoadState") != "loaded":
        return Check(name, "skipped", f"{unit} is not installed")
    seen = f"{said['ActiveState']} ({said['SubState']}), {said['NRestarts']} restarts"
    if said.get("StatusText"):
        seen += f"; {said['StatusText']}"
    if said["ActiveState"] == "active":
        return Check(name, "ok", seen)
    cure = f"`journalctl -u {unit} -n 50` says why"
    return Check(name, "failed", seen, f"its last result was {said['Result']}", cure)
